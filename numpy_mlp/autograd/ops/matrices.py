"""Ops on matrices and their rows: products, sums, normalisation, and the loss of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from numpy_mlp.autograd.context import Context, needs
from numpy_mlp.autograd.core import Op
from numpy_mlp.autograd.gradients import Array
from numpy_mlp.modules.losses import class_indices

__all__ = [
    "BatchMM", "MatrixMultiply", "Normalize", "RowMax", "RowSum", "Select",
    "SoftmaxCrossEntropy",
]  # fmt: skip


def _one_for_each_row(x: Array, indices: Any) -> Array:
    """Return a copy of ``indices``, whose memory the caller may use again before backward."""
    if x.ndim != 2:
        raise ValueError(f"expected a matrix and an index for each row, got shape {x.shape}")
    return np.array(class_indices(indices, *x.shape))


class MatrixMultiply(Op, pure=True):
    """``a @ b``; ∂L/∂a = go @ bᵀ, ∂L/∂b = aᵀ @ go.

    y[n,m] = Σ_k a[n,k] b[k,m]  ⇒  ∂L/∂a[n,k] = Σ_m go[n,m] b[k,m]. Of arrays with more dimensions,
    the last two are matrices and the others broadcast.

    Raises:
        ValueError: an input has fewer than two dimensions, or the sizes do not fit.
    """

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError(
                f"cannot multiply matrices of shapes {a.shape} and {b.shape}; expected "
                f"(..., N, K) and (..., K, M)"
            )
        context["a"], context["b"] = a, b
        return np.asarray(a @ b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array | None, Array | None]:
        a, b = context["a"], context["b"]
        da = go @ b.swapaxes(-1, -2) if needs(context, 0) else None
        return da, a.swapaxes(-1, -2) @ go if needs(context, 1) else None


class BatchMM(Op, pure=True):
    """One matrix (O, I) times each of a batch of vectors (N, I) -> (N, O).

    y[n,o] = Σ_i w[o,i] x[n,i]  ⇒  ∂L/∂w[o,i] = Σ_n go[n,o] x[n,i], ∂L/∂x[n,i] = Σ_o go[n,o] w[o,i].

    Raises:
        ValueError: the shapes are not of this kind.
    """

    @staticmethod
    def forward(context: Context, matrix: Array, vectors: Array) -> Array:
        if matrix.ndim != 2 or vectors.ndim != 2 or matrix.shape[1] != vectors.shape[1]:
            raise ValueError(
                f"a matrix of shape {matrix.shape} and vectors of shape {vectors.shape} do not "
                f"fit; expected (O, I) and (N, I)"
            )
        context["matrix"], context["vectors"] = matrix, vectors
        return np.asarray(vectors @ matrix.T)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array | None, Array | None]:
        matrix, vectors = context["matrix"], context["vectors"]
        dmatrix = go.T @ vectors if needs(context, 0) else None
        return dmatrix, go @ matrix if needs(context, 1) else None


class RowSum(Op, pure=True):
    """The sum of each row, (N, M) -> (N,); ∂L/∂x[n,m] = go[n]."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["shape"] = x.shape
        return np.asarray(x.sum(axis=1))

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.broadcast_to(go[:, None], context["shape"])


class RowMax(Op, pure=True):
    """The largest value of each row, (N, M) -> (N,); ∂L/∂x[n,m] = go[n] at it, 0 elsewhere.

    Where several are largest, the first of them takes it all.

    Raises:
        ValueError: x is not a matrix.
    """

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        if x.ndim != 2:
            raise ValueError(f"expected a matrix (N, M), got shape {x.shape}")
        context["shape"], context["at"] = x.shape, x.argmax(axis=1)
        return np.asarray(x.max(axis=1))

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx = np.zeros(context["shape"], dtype=go.dtype)
        dx[np.arange(len(go)), context["at"]] = go
        return dx


class Normalize(Op, pure=True):
    """Each row divided by its sum, (N, M) -> (N, M).

    y[n,m] = x[n,m] / s[n], s[n] = Σ_k x[n,k], and ∂s/∂x = 1: x[n,m] is in the numerator of its own
    y and in the denominator of the whole row,

        ∂L/∂x[n,m] = (go[n,m] - Σ_k go[n,k] y[n,k]) / s[n].
    """

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["sum"] = x.sum(axis=1, keepdims=True)
        context["y"] = y = np.asarray(x / context["sum"])
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        y = context["y"]
        return np.asarray((go - (go * y).sum(axis=1, keepdims=True)) / context["sum"])


class Select(Op, pure=True):
    """One element of each row, (N, M) with ``indices`` (N,), or one-hot (N, M) -> (N,).

    y[n] = x[n, indices[n]]  ⇒  ∂L/∂x is go at those places and 0 elsewhere.

    Raises:
        ValueError: there is not one index for each row, or one is no column's.
    """

    @staticmethod
    def forward(context: Context, x: Array, *, indices: Array) -> Array:
        indices = _one_for_each_row(x, indices)
        context["shape"], context["indices"] = x.shape, indices
        return np.asarray(x[np.arange(len(x)), indices])

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx = np.zeros(context["shape"], dtype=go.dtype)
        dx[np.arange(len(go)), context["indices"]] = go
        return dx


class SoftmaxCrossEntropy(Op, pure=True):
    """Mean cross-entropy of the softmax of scores, (N, C) with ``targets`` (N,) -> a number.

        L = 1/N Σ_n (log Σ_k e^x[n,k] - x[n, t_n])
        ∂L/∂x[n,c] = go · (softmax(x)[n,c] - [c = t_n]) / N,

    since ∂/∂x[n,c] log Σ_k e^x[n,k] = softmax(x)[n,c]. One op for what :func:`logsoftmax` and
    :func:`logceloss` do in several, with fewer roundings. With ``label_smoothing`` ε, the target is
    q = (1 - ε) [c = t_n] + ε/C instead, and stands in the place of [c = t_n] in both.

    Raises:
        ValueError: there is not one target for each row, one is no class, or ``label_smoothing``
            is not in [0, 1).
    """

    @staticmethod
    def forward(
        context: Context, x: Array, *, targets: Array, label_smoothing: float = 0.0
    ) -> Array:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}")
        targets = _one_for_each_row(x, targets)
        rows = np.arange(len(x))
        shifted = x - x.max(axis=1, keepdims=True)  # at most 0: exp cannot overflow
        exp = np.exp(shifted)
        total = exp.sum(axis=1)
        context["exp"], context["total"], context["targets"] = exp, total, targets
        context["ε"], of_target = label_smoothing, shifted[rows, targets]
        if label_smoothing:  # Σ_k q[n,k] x[n,k]
            smooth = label_smoothing * shifted.mean(axis=1)
            of_target = (1 - label_smoothing) * of_target + smooth
        return np.asarray((np.log(total) - of_target).mean())

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx: Array = context["exp"] / context["total"][:, None]  # softmax(x)
        dx[np.arange(len(dx)), context["targets"]] -= 1 - context["ε"]
        if context["ε"]:
            dx -= context["ε"] / dx.shape[1]
        dx /= len(dx)
        dx *= go
        return dx
