"""Several processes that train one network, each with a share of every batch."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Team(Protocol):
    """What the loop asks of the processes it is one of.

    Every method but the properties is called by all processes at the same point, and gives all of
    them the same answer.

    Attributes:
        rank: number of this process; process 0 writes and speaks for all.
        size: number of processes.
        restarted: whether these processes replace others that died.
        may_restart: whether others will replace these when one dies.
        launch: what tells these processes, and those that may replace them, from all others.
    """

    rank: int
    size: int
    restarted: bool
    may_restart: bool
    launch: str

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values."""
        ...

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of the processes' arrays, all of one shape."""
        ...

    def gather(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the processes' arrays (n_i, ...), one after the other in the order of ranks."""
        ...

    def agree_on(self, text: str) -> str:
        """Return the text of process 0."""
        ...

    def wait(self) -> None:
        """Return when all processes have come here."""
        ...


class Alone:
    """The team of one process."""

    rank, size, restarted, may_restart, launch = 0, 1, False, False, ""

    def largest(self, value: int) -> int:
        """Return ``value``."""
        return value

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``values``."""
        return values

    def gather(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return ``array``."""
        return array

    def agree_on(self, text: str) -> str:
        """Return ``text``."""
        return text

    def wait(self) -> None:
        """Return."""
