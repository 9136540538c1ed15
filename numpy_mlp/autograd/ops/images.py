"""Ops on images (N, C, H, W): convolution and pooling, by the kernels of :mod:`numpy_mlp.modules`.

As there, results are views in that shape of memory in the order (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.autograd.context import Context, needs
from numpy_mlp.autograd.core import Op
from numpy_mlp.autograd.gradients import Array
from numpy_mlp.modules.convolution import Lane, Scratch, choose_algorithm
from numpy_mlp.modules.convolution import convolve as _convolve
from numpy_mlp.modules.convolution import convolve_backward as _convolve_backward
from numpy_mlp.modules.pooling import AvgPool2dModule, MaxPool2dModule
from numpy_mlp.modules.window import Window, channels_first, channels_last, pair
from numpy_mlp.workspace import Workspace

__all__ = ["AvgPool2d", "Conv2d", "MaxPool2d"]

Size = int | Sequence[int]
"""A number, or two, for rows and columns."""


class Conv2d(Op, pure=True):
    """Images (N, C, H, W) with a weight (O, C/groups, kH, kW) -> (N, O, OH, OW).

    A third input, a bias (O,), is added to each output channel. The formula and its derivatives are
    those of :class:`numpy_mlp.modules.Conv2dModule`; so are the constants.

    Raises:
        ValueError: the shapes do not fit, or a constant is out of range.
    """

    @staticmethod
    def forward(
        context: Context,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        algorithm: str = "auto",
    ) -> Array:
        _check_shapes(x, weight, bias, groups)
        window = Window(
            pair("kernel_size", weight.shape[2:], 1),
            pair("stride", stride, 1),
            pair("padding", padding, 0),
            pair("dilation", dilation, 1),
        )
        method = choose_algorithm(algorithm, window, groups, min(x.shape[1], len(weight)))
        rows = channels_last(x, np.result_type(x, weight))
        y = np.empty((len(x), *window.output_size(*x.shape[2:]), len(weight)), rows.dtype)
        _convolve(method, rows, weight, bias, y, _lanes())
        context["method"], context["rows"], context["weight"] = method, rows, weight
        context["inputs"] = 2 if bias is None else 3
        return channels_first(y)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array | None, ...]:
        rows, names = context["rows"], ("x", "weight", "bias")[: context["inputs"]]
        wanted = {name for i, name in enumerate(names) if needs(context, i)}
        dx = np.empty_like(rows) if "x" in wanted else None
        upstream = channels_last(go, rows.dtype)
        weight = context["weight"]
        grads: dict[str, Array | None] = {
            **_convolve_backward(
                context["method"], rows, weight, upstream, dx, wanted - {"x"}, _lanes()
            ),
            "x": None if dx is None else channels_first(dx),
        }
        return tuple(grads.get(name) for name in names)


def _check_shapes(x: Array, weight: Array, bias: Array | None, groups: int) -> None:
    n_filters = len(weight) if weight.ndim == 4 else 0
    fits = x.ndim == 4 and n_filters and groups >= 1 and not n_filters % groups
    if not fits or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"images of shape {x.shape} and a weight of shape {weight.shape} do not fit; expected "
            f"(N, C, H, W) and (O, C/groups, kH, kW), with groups={groups!r} that divide C and O"
        )
    if bias is not None and bias.shape != (n_filters,):
        raise ValueError(f"expected a bias ({n_filters},), got shape {bias.shape}")


def _lanes() -> Lane:
    """Return what gives each lane arrays to work in, for the length of one pass."""
    workspace = Workspace()

    def lane_of(lane: int, dtype: DTypeLike) -> Scratch:
        return lambda name, shape: workspace.array((name, lane), shape, dtype)

    return lane_of


class MaxPool2d(Op, pure=True):
    """The largest value that a window sees, (N, C, H, W) -> (N, C, OH, OW).

    ∂L/∂x is go at the largest, the first of equals, added up where windows overlap; see
    :class:`numpy_mlp.modules.MaxPool2dModule`, also for the constants.

    Raises:
        ValueError: x is no images, or a constant is out of range.
    """

    @staticmethod
    def forward(
        context: Context, x: Array, *, kernel_size: Size, stride: Size | None = None,
        padding: Size = 0,
    ) -> Array:  # fmt: skip
        return _pool(context, MaxPool2dModule(kernel_size, stride, padding), x)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx: Array = context["layer"].backward(go)
        return dx


class AvgPool2d(Op, pure=True):
    """The mean of what a window sees, (N, C, H, W) -> (N, C, OH, OW).

    ∂L/∂x is the sum of go / (kH kW) over the windows that see x; see
    :class:`numpy_mlp.modules.AvgPool2dModule`, also for the constants.

    Raises:
        ValueError: x is no images, or a constant is out of range.
    """

    @staticmethod
    def forward(
        context: Context, x: Array, *, kernel_size: Size, stride: Size | None = None,
        padding: Size = 0,
    ) -> Array:  # fmt: skip
        return _pool(context, AvgPool2dModule(kernel_size, stride, padding), x)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        dx: Array = context["layer"].backward(go)
        return dx


def _pool(context: Context, layer: MaxPool2dModule | AvgPool2dModule, x: Array) -> Array:
    if x.ndim != 4:
        raise ValueError(f"expected images (N, C, H, W), got shape {x.shape}")
    context["layer"] = layer  # of this one pass, which remembers what its backward reads
    return layer.forward(x)
