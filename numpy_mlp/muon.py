"""Muon: momentum whose directions all have the same size, for the filters of convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from numpy_mlp.modules.module import Array, as_real
from numpy_mlp.optim import Arrays, Optimizer
from numpy_mlp.parallel import for_chunks


class Muon(Optimizer):
    """Momentum made orthogonal for filters, Nesterov's momentum for all other parameters.

    A filter bank is a matrix, O rows of C·kH·kW. Its step has the directions of the momentum, all
    of the same size: ``b = momentum · b + ∇L``, ``θ -= lr · orthogonalize(∇L + momentum · b)``.
    Before it, θ is scaled to the norm √O, as batch normalisation after a convolution makes its
    outputs independent of the filters' scale. Everything else is trained as by :class:`SGD` with
    ``nesterov``, with a learning rate of its own and a decoupled decay: ``θ *= 1 - share ·
    weight_decay``, ``b = rest_momentum · b + ∇L``, ``θ -= rate · (∇L + rest_momentum · b)``, where
    share = lr / ``top_lr``, the place in the schedule.

    Args:
        params: arrays to train; those of four axes are filters.
        lr: learning rate of the filters, at its highest.
        momentum: share of the filters' buffer that survives a step, in [0, 1).
        rest_lr: learning rate of each parameter that is no filter, when the filters' is ``lr``.
        rest_momentum: of those.
        weight_decay: share by which those shrink in a step, when the filters' rate is ``lr``.
        steps: of the iteration in :func:`orthogonalize`.

    Raises:
        ValueError: a value is out of range.

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
    """

    slots: tuple[str, ...] = ("momentum_buffer",)
    whole_steps = True

    def __init__(
        self,
        params: Arrays,
        lr: float,
        *,
        momentum: float = 0.6,
        rest_lr: float | Sequence[float] = 0.1,
        rest_momentum: float = 0.85,
        weight_decay: float | Sequence[float] = 0.0,
        steps: int = 3,
    ) -> None:
        for name, value in (("momentum", momentum), ("rest_momentum", rest_momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        super().__init__(params, lr, weight_decay)
        rates = rest_lr if isinstance(rest_lr, Sequence) else [rest_lr] * len(self.params)
        if len(rates) != len(self.params) or not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(
                f"rest_lr must be >= 0 and finite, for each parameter, got {rest_lr!r}"
            )
        self.top_lr, self.rest_lr = lr, list(rates)
        self.momentum, self.rest_momentum, self.steps = momentum, rest_momentum, steps

    def _update_all(self, grads: Sequence[Array]) -> None:
        """Update every parameter, several at the same time."""

        def work(chunk: slice, lane: int) -> None:
            for index in range(chunk.start, chunk.stop):
                self.update(index, grads[index])

        for_chunks(len(grads), 1, work)

    def update(self, index: int, grad: Array) -> None:
        """Update one parameter, as part of a step."""
        param, buffer = self.params[index], self.state[index]["momentum_buffer"]
        grad = as_real(grad, "a gradient")
        assert param.shape == grad.shape, f"parameter {param.shape}, gradient {grad.shape}"
        momentum = self.momentum if param.ndim == 4 else self.rest_momentum
        buffer *= momentum
        buffer += grad
        direction = momentum * buffer
        direction += grad
        if param.ndim == 4:
            param *= math.sqrt(len(param)) / np.linalg.norm(param)
            # A view of the filters as columns, which is how a convolution keeps them.
            filters = direction.transpose(2, 3, 1, 0)
            update = orthogonalize(filters.reshape(-1, len(param)), self.steps)
            update *= self.lr
            param -= update.reshape(filters.shape).transpose(3, 2, 0, 1)
            return
        share = self.lr / self.top_lr if self.top_lr else 0.0
        param *= 1 - share * self.weight_decay[index]
        direction *= share * self.rest_lr[index]
        param -= direction


def orthogonalize(matrix: Array, steps: int = 3) -> Array:
    """Return U S Vᵀ for a matrix U diag(σ) Vᵀ, where S is near 1 instead of σ.

    A step of Newton and Schulz's iteration, ``X ← (a + b G + c G²) X`` with G = X Xᵀ, changes no
    singular vector and every singular value by the same polynomial, σ ← a σ + b σ³ + c σ⁵. From
    anywhere in (0, 1] a few steps bring it between 0.7 and 1.2: the coefficients trade the limit 1
    for a steep rise at 0. As the steps' factors are polynomials in the same G, they commute, and
    only G and their product are iterated, which are the smaller matrices: G ← P G P, Q ← P Q, and
    X = Q X₀ at the end.

    Args:
        matrix: (M, N), not changed.
        steps: of the iteration.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if len(matrix) > matrix.shape[1]:
        return orthogonalize(matrix.T, steps).T
    x = matrix / (np.linalg.norm(matrix) + 1e-7)  # so that no singular value is above 1
    gram = x @ x.T
    product = np.eye(len(gram), dtype=gram.dtype)
    for _ in range(steps):
        factor = b * gram + c * (gram @ gram)
        factor[np.diag_indices_from(factor)] += a
        product = factor @ product
        gram = factor @ gram @ factor
    result: Array = product @ x
    return result
