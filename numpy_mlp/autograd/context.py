"""What an op keeps from forward to backward, and whether anything is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Recording(threading.local):
    on = True  # in each thread of its own


recording = _Recording()


@contextmanager
def no_grad() -> Iterator[None]:
    """Compute values only: what is made inside has no ``source``, and nothing is remembered."""
    before, recording.on = recording.on, False
    try:
        yield
    finally:
        recording.on = before


class Context(dict[str, Any]):
    """What an op's ``forward`` leaves for its ``backward``: a dictionary.

    Attributes:
        needs_input_grad: for each input, whether a gradient is wanted. An op may return None for
            one that is not, and save the work.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...] = ()) -> None:
        super().__init__()
        self.needs_input_grad = needs_input_grad


def needs(context: dict[str, Any], i: int) -> bool:
    """Say whether input ``i`` wants a gradient; a plain dictionary as context wants all."""
    wanted = getattr(context, "needs_input_grad", ())
    return wanted[i] if wanted else True
