"""Cross-entropy, on probabilities and, fused with softmax, on logits.

A loss is a function of (prediction, target): these modules remember nothing, and ``backward``
takes the same two arguments as ``forward``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numpy_mlp.modules.module import Array, as_real, underflow_is_zero


def class_indices(targets: Any, n: int, n_classes: int) -> Array:
    """Return targets as indices (N,), from integer labels (N,) or (N, 1), or one-hot rows (N, C).

    Raises:
        ValueError: the shape or type does not fit, a row is not one-hot, or a label is out of
            range.
    """
    y: Array = np.asarray(targets)
    if y.shape == (n, n_classes):
        one_hot = (y == 1).sum(axis=1) == 1
        one_hot &= (y != 0).sum(axis=1) == 1
        if not one_hot.all():
            raise ValueError(
                f"row {one_hot.argmin()} of y is not one-hot: expected a single 1 and zeros "
                f"elsewhere; give one label for each row otherwise"
            )
        indices: Array = y.argmax(axis=1)
        return indices
    if y.shape == (n, 1):
        y = y[:, 0]
    if y.shape != (n,) or y.dtype.kind not in "iu":
        advice = "" if y.shape != (n,) else "; give y.astype(int), if it holds whole numbers"
        raise ValueError(
            f"y must be integer labels of shape ({n},) or one-hot rows ({n}, {n_classes}), "
            f"got {y.dtype} of shape {y.shape}{advice}"
        )
    if n and not (y.min() >= 0 and y.max() < n_classes):
        bad = y[(y < 0) | (y >= n_classes)][0]
        raise ValueError(
            f"label {bad} is out of range: expected 0 to {n_classes - 1}, one for each of "
            f"{n_classes} outputs, counted from 0"
        )
    return y


class CrossEntropyModule:
    """Mean negative log-likelihood of probabilities: ``L = -(1/N) Σ_n log x[n, y[n]]``.

    Shapes: ``x`` (N, C), probabilities; ``y`` (N,) or (N, 1) integer labels, or (N, C) one-hot
    rows; the loss is a scalar, ``dx`` is (N, C). Probabilities below the smallest normal number are
    taken to be that number, so that the loss stays finite; a network that saturates its softmax
    still loses its gradient that way. :class:`SoftMaxCrossEntropyModule` does not, and is what
    training uses.
    Source: Goodfellow et al., *Deep Learning*, 2016, section 6.2.2.
    """

    @underflow_is_zero
    def forward(self, x: Array, y: Array) -> float:
        """Return the mean loss over the batch."""
        _, _, p = self._target(x, y)
        return float(-np.log(p).mean())

    @underflow_is_zero
    def backward(self, x: Array, y: Array) -> Array:
        """Return ∂L/∂x: only the target's entry counts, and d(-log p)/dp = -1/p.

        ∂L/∂x[n,c] = -1 / (N · x[n,c]) if c = y[n], else 0.
        """
        x, target, p = self._target(x, y)
        dx: Array = np.zeros(x.shape, x.dtype)
        dx[np.arange(len(x)), target] = -1 / (len(x) * p)
        return dx

    @staticmethod
    def _target(x: Array, y: Array) -> tuple[Array, Array, Array]:
        """Return x as floats; each row's target, and its probability, kept above 0."""
        x = as_real(x, "CrossEntropyModule: x")
        assert x.ndim == 2, f"CrossEntropyModule: x has shape {x.shape}, expected (N, C)"
        n, n_classes = x.shape
        target = class_indices(y, n, n_classes)
        return x, target, np.maximum(x[np.arange(n), target], np.finfo(x.dtype).tiny)


class SoftMaxCrossEntropyModule:
    """Softmax and cross-entropy in one step: ``L = (1/N) Σ_n (log Σ_k exp x[n,k] - x[n, y[n]])``.

    Exact for logits of any size, where softmax followed by a logarithm is not: log softmax is
    computed as a difference and never as the logarithm of something that was rounded to 0.

    Args:
        label_smoothing: share ε of each label that all C classes get alike: the target is q =
            (1 - ε) onehot(y) + ε/C (Szegedy et al., *Rethinking the Inception Architecture*, CVPR
            2016), and ``L = (1/N) Σ_n (log Σ_k exp x[n,k] - Σ_k q[n,k] x[n,k])``.

    Shapes: ``x`` (N, C), logits; ``y`` (N,) or (N, 1) integer labels, or (N, C) one-hot rows; the
    loss is a scalar, ``dx`` is (N, C).

    Raises:
        ValueError: ``label_smoothing`` is not in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}")
        self.label_smoothing = label_smoothing

    def forward(self, x: Array, y: Array) -> float:
        """Return the mean loss over the batch."""
        return self.loss_and_gradient(x, y)[0]

    def backward(self, x: Array, y: Array) -> Array:
        """Return ∂L/∂x; the derivation is that of :meth:`loss_and_gradient`."""
        return self.loss_and_gradient(x, y)[1]

    @underflow_is_zero
    def loss_and_gradient(self, x: Array, y: Array) -> tuple[float, Array]:
        """Return the loss and ∂L/∂x from one evaluation of the softmax p.

        Since ∂/∂x[n,c] log Σ_k exp x[n,k] = p[n,c]:

            ∂L/∂x[n,c] = (p[n,c] - [c = y[n]]) / N             ⇒   dx = (p - onehot(y)) / N

        With smoothed labels q stands in the place of onehot(y).

        It holds where the loss is cross-entropy, of exactly this softmax's output, averaged over
        the batch; any other pair needs SoftMaxModule.backward.
        """
        x = as_real(x, "SoftMaxCrossEntropyModule: x")
        assert x.ndim == 2, f"SoftMaxCrossEntropyModule: x has shape {x.shape}, expected (N, C)"
        n, n_classes = x.shape
        rows, target = np.arange(n), class_indices(y, n, n_classes)
        dx: Array = x - x.max(axis=1, keepdims=True)  # (N, C), at most 0: exp cannot overflow
        ε = self.label_smoothing
        of_target = dx[rows, target]  # (N,)
        if ε:
            of_target = (1 - ε) * of_target + ε * dx.mean(axis=1)
        np.exp(dx, out=dx)
        total = dx.sum(axis=1)  # (N,)
        loss = float((np.log(total) - of_target).mean())
        dx /= total[:, None]  # the probabilities p
        dx[rows, target] -= 1 - ε
        if ε:
            dx -= ε / n_classes
        dx /= n
        return loss, dx
