"""What the walk back asks of gradients as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def owner_of(array: Array) -> int:
    """Return the identity of the array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return id(array)


def sum_to(grad: Any, value: Array, op: str) -> Array:
    """Return ``grad`` summed over the dimensions along which ``value`` was broadcast.

    y = x broadcast: every copy of x[i] adds its own gradient, ∂L/∂x[i] = Σ over copies ∂L/∂y. The
    result has the dtype of ``value`` too; ``op`` is whose gradient it is, for the error.
    """
    grad, shape = np.asarray(grad), value.shape
    if grad.shape != shape:
        extra = grad.ndim - len(shape)
        kept = grad.shape[extra:] if extra >= 0 else ()
        if extra < 0 or any(n not in (1, g) for n, g in zip(shape, kept, strict=True)):
            raise ValueError(
                f"{op}.backward returned a gradient of shape {grad.shape} for an "
                f"input of shape {shape}"
            )
        stretched = [i + extra for i, n in enumerate(shape) if n == 1 and kept[i] != 1]
        grad = grad.sum(axis=(*range(extra), *stretched)).reshape(shape)
    if grad.dtype != value.dtype:
        grad = grad.astype(value.dtype)
    result: Array = grad
    return result
