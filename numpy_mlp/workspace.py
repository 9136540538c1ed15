"""Memory that is made once and written to again by every training step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


class Borrower(Protocol):
    """A layer; what ``takes_workspace`` promises, :class:`numpy_mlp.modules.Module` says."""

    workspace: Workspace | None


class Workspace:
    """Arrays by name, each as large as it ever had to be.

    A step needs the same arrays as the one before it. Memory that is new must be found, cleared by
    the system and brought into the caches, which costs more than most of the arithmetic that then
    uses it. A workspace is lent to the layers of a network for the length of a step; outside of
    one, layers answer with new arrays, which are the caller's to keep.

    An array from a workspace holds until the next step. Within a step it may be overwritten by the
    next layer as soon as nobody reads it any more: whatever a layer remembers for its backward
    pass is pinned, and stays.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Array] = {}
        self._owned: set[int] = set()
        self._pinned: set[int] = set()

    def array(self, name: Hashable, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the array called ``name``, its contents undefined; smaller ones share its memory.

        Args:
            name: what tells it from all others.
            shape: of this use; may change from step to step.
            dtype: of its entries.
        """
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            if buffer is not None:
                self._owned.discard(id(buffer))
            buffer = self._buffers[name] = np.empty(size, dtype)
            self._owned.add(id(buffer))
        return buffer[:size].reshape(shape)

    def pin(self, values: Iterable[object]) -> None:
        """Keep the arrays among ``values`` from being overwritten in this step."""
        for value in values:  # a loop: a generator costs more than what it is for, at every layer
            if isinstance(value, np.ndarray):
                self._pinned.add(id(value.base))

    def may_overwrite(self, array: Array) -> bool:
        """Say whether ``array`` is one of the workspace's, and nobody reads it any more."""
        return id(array.base) in self._owned and id(array.base) not in self._pinned

    @contextlib.contextmanager
    def lent_to(self, layers: Iterable[Borrower]) -> Iterator[None]:
        """Let ``layers`` write into these arrays; what is left in them is up to the next step.

        A network with a layer that does not declare ``takes_workspace`` makes new arrays as ever:
        nobody knows what that layer keeps for its backward pass.
        """
        layers = list(layers)
        if not all(getattr(layer, "takes_workspace", False) for layer in layers):
            layers = []
        self._pinned.clear()
        for layer in layers:
            layer.workspace = self
        try:
            yield
        finally:
            for layer in layers:
                layer.workspace = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
