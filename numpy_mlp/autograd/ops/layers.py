"""Ops that compute what a hand-written layer does: a layer for each time that the op is applied."""

from __future__ import annotations

from numpy_mlp.autograd.context import Context
from numpy_mlp.autograd.gradients import Array
from numpy_mlp.modules import Module


def apply_layer(context: Context, layer: Module, x: Array) -> Array:
    """Return the layer's output, and leave the layer in ``context``."""
    y = layer.forward(x)
    context["layer"], context["kept"] = layer, layer._recall()
    return y


def recalled_layer(context: Context) -> Module:
    """Return the layer, which remembers its forward pass, as often as it is asked for."""
    layer: Module = context["layer"]
    layer._remember(*context["kept"])
    return layer
