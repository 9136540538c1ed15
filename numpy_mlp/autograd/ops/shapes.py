"""Ops that sum, repeat, reorder or pick values: derivatives are zeros and ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numpy_mlp.autograd.context import Context
from numpy_mlp.autograd.core import Op
from numpy_mlp.autograd.gradients import Array

__all__ = [
    "Concatenate", "Expand", "Pad", "Reshape", "Slice", "Squeeze", "Sum", "Transpose", "Unsqueeze",
]  # fmt: skip

_TAKE_ONCE = (slice, int, np.integer, type(Ellipsis))


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


class Pad(Op, pure=True):
    """Constant values around the array, as ``numpy.pad`` writes them; ∂L/∂x is go without them.

    ``widths`` are pairs (before, after), for the last dimensions where there are fewer than those:
    ``((1, 1), (1, 1))`` puts a frame around images (N, C, H, W).

    Raises:
        ValueError: there are more pairs than dimensions, or one is negative.
    """

    @staticmethod
    def forward(
        context: Context, x: Array, *, widths: Sequence[tuple[int, int]], value: float = 0.0
    ) -> Array:
        if len(widths) > x.ndim:
            raise ValueError(f"{len(widths)} pairs for the {x.ndim} dimensions of shape {x.shape}")
        pairs = [(0, 0)] * (x.ndim - len(widths)) + [(int(a), int(b)) for a, b in widths]
        context["inside"] = tuple(
            slice(before, before + size) for (before, _), size in zip(pairs, x.shape, strict=True)
        )
        return np.pad(x, pairs, constant_values=value)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go[context["inside"]])


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
