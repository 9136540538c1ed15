"""What a training step costs, counted in products: the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from numpy_mlp.modules.module import Array, Module, is_parametric, is_trained
from numpy_mlp.network import Network


def training_operations(model: Network, shape: tuple[int, ...]) -> int:
    """Return the floating-point operations of a training step, for each image of ``shape``.

    Those of convolutions, computed directly, and of linear layers: two for each weight and place
    that it is used at, in the forward pass, in ∂L/∂W of what is trained, and in ∂L/∂x of what has
    something trained before it.
    """
    return sum(map(sum, operations_of_layers(model, shape).values()))


def operations_of_layers(model: Network, shape: tuple[int, ...]) -> dict[Module, tuple[int, int]]:
    """Return those of each layer with parameters: of its forward pass, of its backward pass."""
    places: dict[Module, int] = {}

    def counted(module: Module, forward: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def count(x: Array) -> Array:
            y = forward(x)
            places[module] = math.prod(y.shape[2:])
            return y

        return count

    layers = [m for m in model.modules() if is_parametric(m) and not hasattr(m, "children")]
    for layer in layers:
        layer.forward = counted(layer, layer.forward)  # type: ignore[assignment, method-assign]
    training = model.training
    model.eval()
    try:
        model.logits(np.zeros((1, *shape), next(iter(model.params.values())).dtype))
    finally:
        model.train(training)
        for layer in layers:
            del layer.forward
    operations, something_trained = {}, False
    for layer in layers:
        weight = layer.params.get("weight")
        once = 2 * places[layer] * weight.size if weight is not None and weight.ndim > 1 else 0
        passes_back = ("weight" not in layer.frozen) + something_trained
        operations[layer] = once, passes_back * once
        something_trained |= is_trained(layer)
    return operations
