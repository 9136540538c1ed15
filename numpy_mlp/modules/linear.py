"""The linear (fully connected) layer: y = x Wᵀ + b."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.module import Array, Module, check_dtype
from numpy_mlp.randomness import Source, as_generator


def initial_weight(
    shape: tuple[int, ...],
    gain: float,
    weight_std: float | None,
    rng: Source,
    dtype: DTypeLike,
) -> Array:
    """Return weights from N(0, gain² / fan_in), or from N(0, ``weight_std``²) if that is given.

    Args:
        shape: outputs first; all others together are the fan_in, what an output sums over.
        gain: of the activation before.
        weight_std: overrides the rule.
        rng: where they are drawn from.
        dtype: of the result.

    Raises:
        ValueError: ``weight_std`` is not positive.

    Source: He et al., *Delving Deep into Rectifiers*, ICCV 2015, equation 10.
    """
    if weight_std is None:
        weight_std = gain / math.sqrt(math.prod(shape[1:]))
    elif not 0 < weight_std < math.inf:
        raise ValueError(f"weight_std must be positive, got {weight_std!r}")
    return (as_generator(rng).standard_normal(shape) * weight_std).astype(dtype)


class LinearModule(Module, takes_workspace=True):
    r"""Affine map of each row of a batch: ``y = x Wᵀ + b``.

    Entry by entry, ``y[n,o] = Σ_i x[n,i] W[o,i] + b[o]``.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        input_layer: whether this layer sees the data themselves rather than the output of an
            activation; its initial weights then have gain 1.
        bias: add b.
        dtype: ``float32`` or ``float64``.
        rng: source of the initial weights, a generator or a seed; by default NumPy's global one.
        gain: gain of the activation before this layer (√2 for ReLU, which zeroes half of its
            inputs). Not used when ``input_layer`` is true.
        weight_std: draw the weights from N(0, ``weight_std``²) instead of Kaiming's scheme
            (the course of 2018 asks for 0.0001).

    Shapes:
        ``x`` (N, in_features); ``y`` and ``dout`` (N, out_features);
        ``params['weight']`` (out_features, in_features); ``params['bias']`` (out_features,).

    Initialisation: ``W ~ N(0, gain² / in_features)``, ``b = 0``, which keeps the variance of the
    signal from layer to layer (He et al., *Delving Deep into Rectifiers*, ICCV 2015, eq. 10).

    Raises:
        ValueError: a size is not a positive integer, ``weight_std`` is not positive, or ``dtype``
            is another.

    Example:
        >>> layer = LinearModule(3, 2, rng=np.random.default_rng(0))
        >>> layer.forward(np.ones((5, 3))).shape
        (5, 2)
        >>> layer.backward(np.ones((5, 2))).shape
        (5, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        input_layer: bool = False,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float64,
        rng: Source = None,
        gain: float = math.sqrt(2.0),
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        check_dtype(dtype)
        self.in_features, self.out_features = int(in_features), int(out_features)
        shape = (self.out_features, self.in_features)
        gain = 1.0 if input_layer else gain
        self.params = {"weight": initial_weight(shape, gain, weight_std, rng, dtype)}
        if bias:
            self.params["bias"] = np.zeros(self.out_features, dtype=dtype)
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}

    def forward(self, x: Array) -> Array:
        """Return ``x Wᵀ + b``, (N, in_features) -> (N, out_features)."""
        x = self._real(x)
        assert x.ndim == 2 and x.shape[1] == self.in_features, (
            f"LinearModule.forward: x has shape {x.shape}, expected (N, {self.in_features})"
        )
        # Only x is kept: ∂L/∂W reads it. Its gradient ∂L/∂x reads W, which is there anyway.
        self._remember(x)
        y = self._matmul("y", x, self.params["weight"].T)  # (N, in) @ (in, out) -> (N, out)
        if "bias" in self.params:
            y += self.params["bias"]
        return y

    def backward(self, dout: Array) -> Array:
        r"""Store ∂L/∂W and ∂L/∂b in ``grads`` and return ∂L/∂x.

        With δ = ``dout`` = ∂L/∂y, the chain rule sums over every output that an entry touches:

            ∂L/∂x[m,i] = Σ_n Σ_o ∂L/∂y[n,o] · ∂y[n,o]/∂x[m,i]

        and a row of y depends on that row of x alone, ∂y[n,o]/∂x[m,i] = W[o,i] if n = m, else 0:

            ∂L/∂x[m,i] = Σ_o δ[m,o] W[o,i]                         ⇒   dx = δ W

        For the gradients of weight and bias see :meth:`backward_parameters`.
        """
        dout = self._real(dout, "dout")
        self.backward_parameters(dout)
        return self._matmul("dx", dout, self.params["weight"])  # (N, out) @ (out, in) -> (N, in)

    def backward_parameters(self, dout: Array) -> None:
        r"""Store ∂L/∂W and ∂L/∂b in ``grads``; enough for the first layer of a network.

        One weight takes part in the output of every sample, so the sum runs over the batch:
        ∂y[n,o]/∂W[p,i] = x[n,i] and ∂y[n,o]/∂b[p] = 1 if o = p, else 0:

            ∂L/∂W[o,i] = Σ_n δ[n,o] x[n,i]                         ⇒   dweight = δᵀ x
            ∂L/∂b[o]   = Σ_n δ[n,o]                                ⇒   dbias = Σ_n δ[n]

        No 1/N appears: the mean over the batch entered once, in the loss, and is inside δ.
        """
        (x,) = self._recall()
        dout = self._upstream(dout, (x.shape[0], self.out_features))
        np.matmul(dout.T, x, out=self._grad("weight"))  # (out, N) @ (N, in)
        if "bias" in self.params:  # a sum, as a product
            np.matmul(np.ones(len(dout), dout.dtype), dout, out=self._grad("bias"))

    def __repr__(self) -> str:
        return f"LinearModule(in_features={self.in_features}, out_features={self.out_features})"
