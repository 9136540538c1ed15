"""Batch normalisation of a batch of vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.module import Array, Module, check_dtype


class BatchNormModule(Module, takes_workspace=True):
    """Standardise each feature over the batch, then scale and shift it.

    ``x_hat = (x - μ) / √(σ² + eps)``, ``y = weight · x_hat + bias``, with μ and σ² the mean and the
    biased variance (divided by N) of each column. Evaluation uses running statistics instead:
    ``running = (1 - momentum) · running + momentum · batch``, of the mean and of the *unbiased*
    variance (divided by N - 1), exactly as ``torch.nn.BatchNorm1d`` does; this momentum is not the
    optimizer's.

    Args:
        num_features: number of columns D.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics.
        dtype: ``float32`` or ``float64``.

    Shapes: ``x``, ``y``, ``dout``, ``dx`` (N, D); ``weight``, ``bias``, running statistics (D,).

    Raises:
        ValueError: ``num_features`` or ``eps`` is not positive; a training batch of one row, whose
            variance says nothing.

    Source: Ioffe and Szegedy, *Batch Normalization*, ICML 2015.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        dtype: DTypeLike = np.float64,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be a positive integer, got {num_features!r}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps!r}")
        check_dtype(dtype)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.params = {
            "weight": np.ones(num_features, dtype=dtype),
            "bias": np.zeros(num_features, dtype=dtype),
        }
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.buffers = {
            "running_mean": np.zeros(num_features, dtype=dtype),
            "running_var": np.ones(num_features, dtype=dtype),
            "num_batches_tracked": np.zeros((), dtype=np.int64),
        }

    @property
    def running_mean(self) -> Array:
        """Running mean of each feature, (D,)."""
        return self.buffers["running_mean"]

    @property
    def running_var(self) -> Array:
        """Running unbiased variance of each feature, (D,)."""
        return self.buffers["running_var"]

    def forward(self, x: Array) -> Array:
        """Return ``weight · x_hat + bias``, (N, D) -> (N, D)."""
        x = self._real(x)
        assert x.ndim == 2 and x.shape[1] == self.num_features, (
            f"BatchNormModule.forward: x has shape {x.shape}, expected (N, {self.num_features})"
        )
        if self.training:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        inv_std = 1 / np.sqrt(var + self.eps)  # (D,)
        x_hat = self._new("x_hat", x.shape, np.result_type(x, self.params["weight"]))
        np.subtract(x, mean, out=x_hat)
        x_hat *= inv_std  # (N, D)
        self._remember(x_hat, inv_std)
        y: Array = np.multiply(self.params["weight"], x_hat, out=self._over("y", x, x_hat))
        y += self.params["bias"]
        return y

    def _batch_statistics(self, x: Array) -> tuple[Array, Array]:
        n = x.shape[0]
        if n < 2:
            raise ValueError(
                f"batch normalisation needs more than one row to train on, got shape {x.shape}"
            )
        mean = x.mean(axis=0)
        deviation = np.subtract(
            x, mean, out=self._new("deviation", x.shape, np.result_type(x, 0.0))
        )
        var = np.einsum("nd,nd->d", deviation, deviation) / n
        self.running_mean[...] += self.momentum * (mean - self.running_mean)
        self.running_var[...] += self.momentum * (var * (n / (n - 1)) - self.running_var)
        self.buffers["num_batches_tracked"] += 1
        return mean, var

    def backward(self, dout: Array) -> Array:
        """Store ∂L/∂weight and ∂L/∂bias in ``grads`` and return ∂L/∂x.

        Write δ = ``dout`` and g = δ · weight = ∂L/∂x_hat. Scale and shift are elementwise:

            dweight = Σ_n δ[n] · x_hat[n],          dbias = Σ_n δ[n].

        One x[m] reaches every x_hat[n] = (x[n] - μ) s, where s = inv_std = (σ² + eps)^(-1/2), on
        three paths. Directly, for n = m. Through the mean, ∂μ/∂x[m] = 1/N. And through the variance
        σ² = 1/N Σ_n (x[n] - μ)², whose part through μ vanishes, as deviations sum to 0:

            ∂σ²/∂x[m] = 2/N (x[m] - μ),   ∂s/∂σ² = -s³/2   ⇒   ∂s/∂x[m] = -s² x_hat[m] / N

        The product rule puts them together, one term a path; [n = m] is 1 if n = m, else 0:

            ∂x_hat[n]/∂x[m] = s [n = m]  -  s/N  -  s x_hat[n] x_hat[m] / N

        Summing g[n] times this over n:

            dx = s (g - mean_n(g) - x_hat · mean_n(g · x_hat))
               = s · weight (δ - dbias/N - x_hat · dweight/N)
        """
        x_hat, inv_std = self._recall()
        dout = self._upstream(dout, x_hat.shape)
        n = x_hat.shape[0]
        dweight = np.einsum("nd,nd->d", dout, x_hat)  # (D,)
        dbias = np.ones(n, dout.dtype) @ dout  # (D,)
        self._grad("weight")[...], self._grad("bias")[...] = dweight, dbias
        dx: Array = np.multiply(
            x_hat, dweight / n, out=self._new("dx", x_hat.shape, np.result_type(x_hat, dout))
        )
        np.subtract(dout, dx, out=dx)
        dx -= dbias / n
        dx *= inv_std * self.params["weight"]
        return dx

    def __repr__(self) -> str:
        return f"BatchNormModule({self.num_features}, eps={self.eps}, momentum={self.momentum})"
