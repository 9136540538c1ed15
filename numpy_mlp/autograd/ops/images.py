"""Ops on images (N, C, H, W): convolution and pooling, by the layers of :mod:`numpy_mlp.modules`.

As there, results are views in that shape of memory in the order (N, H, W, C). Formulas, derivatives
and constants are those of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy_mlp.autograd.context import Context, needs
from numpy_mlp.autograd.core import Op
from numpy_mlp.autograd.gradients import Array
from numpy_mlp.autograd.ops.layers import apply_layer, recalled_layer
from numpy_mlp.modules import AvgPool2dModule, Conv2dModule, MaxPool2dModule

__all__ = ["AvgPool2d", "Conv2d", "MaxPool2d"]

Size = int | Sequence[int]
"""A number, or two, for rows and columns."""


class Conv2d(Op, pure=True):
    """Images (N, C, H, W) with a weight (O, C/groups, kH, kW) -> (N, O, OH, OW).

    A third input, a bias (O,), is added to each output channel; see
    :class:`numpy_mlp.modules.Conv2dModule`.

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
        if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] * groups:
            raise ValueError(
                f"images of shape {x.shape} and a weight of shape {weight.shape} do not fit; "
                f"expected (N, C, H, W) and (O, C/groups, kH, kW), with groups={groups!r}"
            )
        n_filters, _, *kernel_size = weight.shape
        if bias is not None and bias.shape != (n_filters,):
            raise ValueError(f"expected a bias ({n_filters},), got shape {bias.shape}")
        layer = Conv2dModule(
            x.shape[1],
            n_filters,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias is not None,
            weight=weight,
            algorithm=algorithm,
        )
        if bias is not None:
            layer.params["bias"] = bias
        return apply_layer(context, layer, x)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array | None, ...]:
        layer = recalled_layer(context)
        names = list(layer.params)  # the inputs after x
        layer.frozen = frozenset(n for i, n in enumerate(names, 1) if not needs(context, i))
        layer.grads = {}  # the arrays of a pass before are whoever's they were given to
        dx = None
        if needs(context, 0):
            dx = layer.backward(go)
        else:
            layer.backward_parameters(go)
        return dx, *(layer.grads.get(name) for name in names)


class MaxPool2d(Op, pure=True):
    """The largest value that a window sees, (N, C, H, W) -> (N, C, OH, OW).

    ∂L/∂x is go at the largest, the first of equals, added up where windows overlap; see
    :class:`numpy_mlp.modules.MaxPool2dModule`.

    Raises:
        ValueError: x is no images, or a constant is out of range.
    """

    @staticmethod
    def forward(
        context: Context,
        x: Array,
        *,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
    ) -> Array:
        _check_images(x)
        return apply_layer(context, MaxPool2dModule(kernel_size, stride, padding), x)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return recalled_layer(context).backward(go)


class AvgPool2d(Op, pure=True):
    """The mean of what a window sees, (N, C, H, W) -> (N, C, OH, OW).

    ∂L/∂x is the sum of go / (kH kW) over the windows that see x; see
    :class:`numpy_mlp.modules.AvgPool2dModule`.

    Raises:
        ValueError: x is no images, or a constant is out of range.
    """

    @staticmethod
    def forward(
        context: Context,
        x: Array,
        *,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
    ) -> Array:
        _check_images(x)
        return apply_layer(context, AvgPool2dModule(kernel_size, stride, padding), x)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return recalled_layer(context).backward(go)


def _check_images(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"expected images (N, C, H, W), got shape {x.shape}")
