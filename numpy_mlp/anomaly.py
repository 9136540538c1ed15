"""Finding where a number stopped being finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from numpy_mlp.modules.module import Array, Module, is_parametric
from numpy_mlp.network import Network


def check_finite(array: Array, what: str) -> None:
    """Raise FloatingPointError, naming ``what``, if a value of ``array`` is NaN or infinite."""
    # One number tells, as a rule: a sum of squares is finite only if all of them are. It costs a
    # fraction of asking each value, and overflows on its own only for values beyond 1e19.
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        if math.isfinite(np.dot(flat, flat)):
            return
    finite = np.isfinite(array)
    if not finite.all():
        raise FloatingPointError(f"{what} became {array[~finite].flat[0]}")


def name_of(name: str, layer: Module) -> str:
    """Return what a layer is called in an error: ``layers.0 (LinearModule)``."""
    return f"{name} ({type(layer).__name__})"


_WATCHED = {
    "forward": "the output of",
    "backward": "the gradient that reaches the input of",
    "backward_parameters": "the gradients of",
}


@contextlib.contextmanager
def detect_anomaly(model: Network) -> Iterator[None]:
    """Check everything that the layers of ``model`` return and compute, while the context lasts.

    Outputs, gradients of inputs and gradients of parameters: the first that is not finite raises
    FloatingPointError with the name of the layer.
    """
    for place, layer in zip(model.names, model.layers, strict=True):
        name = name_of(place, layer)
        for method, what in _WATCHED.items():
            setattr(layer, method, _checked(layer, method, f"{what} {name}"))
    try:
        yield
    finally:
        for layer in model.layers:
            for method in _WATCHED:
                layer.__dict__.pop(method, None)


def _checked(layer: Module, method: str, what: str) -> Callable[[Array], Any]:
    original = getattr(layer, method)

    def call(x: Array) -> Any:
        result = original(x)
        if method != "forward" and is_parametric(layer):
            for key, grad in layer.grads.items():
                check_finite(grad, f"the gradient of {key} in {what.rpartition(' of ')[2]}")
        if result is not None:
            check_finite(result, what)
        return result

    return call


def explain(model: Network, x: Array) -> str | None:
    """Return where the first value that is not finite appears on the way to the logits of ``x``.

    None if nowhere.
    """
    try:
        check_finite(x, "a value of the images")
        # A gradient that was not finite has spoilt its parameter and those of the layers before it.
        for name, layer in reversed(list(zip(model.names, model.layers, strict=True))):
            if is_parametric(layer):
                for key, param in layer.params.items():
                    what = f"{key} of {name_of(name, layer)}, in the update of the step before,"
                    check_finite(param, what)
        with detect_anomaly(model):
            model.logits(x)
    except FloatingPointError as error:
        return str(error)
    return None
