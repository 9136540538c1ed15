"""The operations: what each computes, and what its backward pass is.

In every ``backward``, ``go`` is ∂L/∂output; the formula above it is the chain rule for one element.
Elementwise ops broadcast as NumPy does and leave it to the engine to sum their gradients back to
the shapes that went in. docs/derivations.md derives them a line at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numpy_mlp.autograd.core import Context, Op

Array = NDArray[Any]


_TAKE_ONCE = (slice, int, np.integer, type(Ellipsis))


def _needs(context: Context, i: int) -> bool:
    """Say whether input ``i`` wants a gradient; a plain dictionary as context wants all."""
    needs = getattr(context, "needs_input_grad", ())
    return needs[i] if needs else True


def _one_for_each_row(x: Array, indices: Array) -> Array:
    """Return a copy of ``indices``, whose memory the caller may use again before backward."""
    indices = np.array(indices)
    if x.ndim != 2 or indices.shape != x.shape[:1]:
        raise ValueError(
            f"expected a matrix and an index for each row, got shapes {x.shape} and {indices.shape}"
        )
    return indices


class Add(Op, pure=True):
    """``a + b``; ∂L/∂a = go, ∂L/∂b = go."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        return np.asarray(a + b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, Array]:
        return go, go


class Sub(Op, pure=True):
    """``a - b``; ∂L/∂a = go, ∂L/∂b = -go."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        return np.asarray(a - b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, Array | None]:
        return go, -go if _needs(context, 1) else None


class Multiply(Op, pure=True):
    """``a · b``, element by element; ∂L/∂a = go · b, ∂L/∂b = go · a."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        context["a"], context["b"] = a, b
        return np.asarray(a * b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array | None, Array | None]:
        a, b = context["a"], context["b"]
        return go * b if _needs(context, 0) else None, go * a if _needs(context, 1) else None


class Divide(Op, pure=True):
    """``a / b``, element by element; ∂L/∂a = go / b, ∂L/∂b = -go · a / b²."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        context["a"], context["b"] = a, b
        return np.asarray(a / b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, Array | None]:
        a, b = context["a"], context["b"]
        da = go / b
        return da, -da * a / b if _needs(context, 1) else None


class Power(Op, pure=True):
    """``x^p`` for a constant p; ∂L/∂x = go · p · x^(p-1)."""

    @staticmethod
    def forward(context: Context, x: Array, *, exponent: float) -> Array:
        context["x"], context["exponent"] = x, exponent
        return np.asarray(x**exponent)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        p = context["exponent"]
        if p == 0:
            return np.zeros_like(go)
        return np.asarray(go * p * context["x"] ** (p - 1))


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
        da = go @ b.swapaxes(-1, -2) if _needs(context, 0) else None
        return da, a.swapaxes(-1, -2) @ go if _needs(context, 1) else None


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
        dmatrix = go.T @ vectors if _needs(context, 0) else None
        return dmatrix, go @ matrix if _needs(context, 1) else None


class Log(Op, pure=True):
    """Natural logarithm; ∂L/∂x = go / x."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["x"] = x
        return np.asarray(np.log(x))

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go / context["x"])


class Exp(Op, pure=True):
    """``e^x``; ∂L/∂x = go · e^x."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["exp"] = np.asarray(np.exp(x))
        return np.asarray(context["exp"])

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * context["exp"])


class Id(Op, pure=True):
    """``x`` itself: another node for the same value; ∂L/∂x = go."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        return x

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return go


class Sum(Op, pure=True):
    """The sum of all values, or along ``axis``; ∂L/∂x[i] = go of the sum that x[i] is in."""

    @staticmethod
    def forward(
        context: Context,
        x: Array,
        *,
        axis: int | tuple[int, ...] | None = None,
        keepdims: bool = False,
    ) -> Array:
        context["shape"], context["axis"], context["keepdims"] = x.shape, axis, keepdims
        return np.asarray(x.sum(axis=axis, keepdims=keepdims))

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        if context["axis"] is not None and not context["keepdims"]:
            go = np.expand_dims(go, context["axis"])
        return np.broadcast_to(go, context["shape"])


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


class Sigmoid(Op, pure=True):
    """``σ(x) = 1 / (1 + e^-x)``; ∂L/∂x = go · σ · (1 - σ)."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        # e^-|x| cannot overflow: σ(x) = 1 / (1 + e^-x) for x >= 0, e^x / (e^x + 1) below.
        e = np.exp(-np.abs(x))
        context["y"] = y = np.asarray(np.where(x >= 0, x.dtype.type(1), e) / (1 + e))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        y = context["y"]
        return np.asarray(go * (y * (1 - y)))


class Tanh(Op, pure=True):
    """``tanh(x)``; ∂L/∂x = go · (1 - tanh²)."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["y"] = y = np.asarray(np.tanh(x))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        y = context["y"]
        return np.asarray(go * (1 - y * y))


class ReLU(Op, pure=True):
    """``max(x, 0)``; ∂L/∂x = go where x > 0, 0 elsewhere."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["y"] = y = np.asarray(np.maximum(x, 0))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * (context["y"] > 0))


class LeakyReLU(Op, pure=True):
    """x where x > 0, ``slope``·x elsewhere; ∂L/∂x = go · (1 or ``slope``)."""

    @staticmethod
    def forward(context: Context, x: Array, *, slope: float = 0.01) -> Array:
        context["factor"] = factor = np.where(x > 0, x.dtype.type(1), x.dtype.type(slope))
        return np.asarray(x * factor)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * context["factor"])


class ELU(Op, pure=True):
    """x where x > 0, e^x - 1 elsewhere; ∂L/∂x = go · (1, or y + 1 = e^x)."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["y"] = y = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * np.minimum(context["y"] + 1, 1))


class Expand(Op, pure=True):
    """A dimension of length 1 repeated; ∂L/∂x = Σ over the repeats of go.

    Raises:
        ValueError: the dimension is longer than 1.
    """

    @staticmethod
    def forward(context: Context, x: Array, *, dim: int, repeats: int) -> Array:
        if x.shape[dim] != 1:
            raise ValueError(f"dimension {dim} of {x.shape} has length {x.shape[dim]}, expected 1")
        context["dim"] = dim
        return np.repeat(x, repeats, axis=dim)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go.sum(axis=context["dim"], keepdims=True))


class Select(Op, pure=True):
    """One element of each row, (N, M) with ``indices`` (N,) -> (N,).

    y[n] = x[n, indices[n]]  ⇒  ∂L/∂x is go at those places and 0 elsewhere.

    Raises:
        ValueError: there is not one index for each row.
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
    :func:`logceloss` do in several, with fewer roundings.

    Raises:
        ValueError: there is not one target for each row.
    """

    @staticmethod
    def forward(context: Context, x: Array, *, targets: Array) -> Array:
        targets = _one_for_each_row(x, targets)
        rows = np.arange(len(x))
        shifted = x - x.max(axis=1, keepdims=True)  # at most 0: exp cannot overflow
        exp = np.exp(shifted)
        total = exp.sum(axis=1)
        context["exp"], context["total"], context["targets"] = exp, total, targets
        return np.asarray((np.log(total) - shifted[rows, targets]).mean())

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx: Array = context["exp"] / context["total"][:, None]  # softmax(x)
        dx[np.arange(len(dx)), context["targets"]] -= 1
        dx /= len(dx)
        dx *= go
        return dx


class Squeeze(Op, pure=True):
    """A dimension of length 1 taken out; ∂L/∂x is go with it put back."""

    @staticmethod
    def forward(context: Context, x: Array, *, dim: int = 0) -> Array:
        context["dim"] = dim
        return x.squeeze(dim)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.expand_dims(go, context["dim"])


class Unsqueeze(Op, pure=True):
    """A dimension of length 1 put in; ∂L/∂x is go with it taken out."""

    @staticmethod
    def forward(context: Context, x: Array, *, dim: int = 0) -> Array:
        context["dim"] = dim
        return np.expand_dims(x, dim)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return go.squeeze(context["dim"])


class Reshape(Op, pure=True):
    """The same values in another shape; ∂L/∂x is go in the old one."""

    @staticmethod
    def forward(context: Context, x: Array, *, shape: tuple[int, ...]) -> Array:
        context["shape"] = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return go.reshape(context["shape"])


class Transpose(Op, pure=True):
    """The dimensions in another order, reversed without ``axes``; ∂L/∂x has them put back."""

    @staticmethod
    def forward(context: Context, x: Array, *, axes: tuple[int, ...] | None = None) -> Array:
        axes = tuple(range(x.ndim))[::-1] if axes is None else axes
        context["back"] = np.argsort([axis % x.ndim for axis in axes])
        return x.transpose(axes)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return go.transpose(context["back"])


class Slice(Op, pure=True):
    """``x[index]``; ∂L/∂x is go at those places, added up where one was taken twice, 0 elsewhere.

    Slices, integers, masks and integer arrays, as NumPy takes them: with integer arrays this also
    gathers the patches of a convolution.
    """

    @staticmethod
    def forward(context: Context, x: Array, *, index: Any) -> Array:
        context["shape"], context["index"] = x.shape, index
        return np.asarray(x[index])

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx, index = np.zeros(context["shape"], dtype=go.dtype), context["index"]
        items = index if isinstance(index, tuple) else (index,)
        if all(item is None or isinstance(item, _TAKE_ONCE) for item in items):
            dx[index] = go  # no value is taken twice, and none needs to be added
        else:
            np.add.at(dx, index, go)
        return dx


class Concatenate(Op, pure=True):
    """Arrays one after the other along ``dim``; each gets back its own part of go."""

    @staticmethod
    def forward(context: Context, *arrays: Array, dim: int = 0) -> Array:
        context["dim"] = dim
        context["ends"] = np.cumsum([array.shape[dim] for array in arrays])[:-1]
        return np.concatenate(arrays, axis=dim)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, ...]:
        return tuple(np.split(go, context["ends"], axis=context["dim"]))
