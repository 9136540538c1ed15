"""What the loop counts: a checkpoint holds all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.training.team import Team


@dataclass
class Progress:
    """The loop's counters; all of them are in a checkpoint.

    The sums are those of this process's images; a checkpoint has a row of them for each process.

    Attributes:
        step: updates made.
        seconds: training time so far, evaluation included.
        eval_seconds: the part of it spent in evaluations and checkpoints.
        loss_sum: Σ loss · count of the steps since the last report.
        correct_sum: correct predictions of the steps since the last report.
        count: images of the steps since the last report.
        rows: rows of ``metrics.csv``.
        evaluated: step of the last evaluation, or None.
        best_accuracy: best validation accuracy so far, or None.
        best_loss: validation loss there.
        best_step: step of it.
    """

    step: int = 0
    seconds: float = 0.0
    eval_seconds: float = 0.0
    loss_sum: Any = 0.0
    correct_sum: Any = 0
    count: int = 0
    rows: int = 0
    evaluated: int | None = None
    best_accuracy: float | None = None
    best_loss: float = math.inf
    best_step: int = 0

    def sums(self) -> NDArray[np.float64]:
        """Return ``loss_sum``, ``correct_sum`` and ``count``."""
        return np.array([float(self.loss_sum), float(self.correct_sum), float(self.count)])

    def to_dict(self, sums: NDArray[np.float64]) -> dict[str, Any]:
        """Return what a checkpoint holds, with the ``sums`` (n, 3) of all n processes."""
        return {name: getattr(self, name) for name in _COUNTERS} | {"sums": sums.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], team: Team) -> Progress:
        """Return the counters in ``values``, read from a file; ValueError where they cannot be.

        When the number of processes has changed, the first takes over the sums of all.
        """
        if wrong := sorted({*_COUNTERS, "sums"} ^ values.keys()):
            raise ValueError(f"{wrong[0]} is missing or unknown")
        self = cls(**{name: values[name] for name in _COUNTERS})
        for name in ("step", "rows", "best_step"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"its {name} is {value!r}")
        for name in ("seconds", "eval_seconds", "best_loss"):
            if type(getattr(self, name)) not in (int, float):
                raise ValueError(f"its {name} is {getattr(self, name)!r}")
        if type(self.evaluated) not in (int, type(None)):
            raise ValueError(f"its evaluated is {self.evaluated!r}")
        if type(self.best_accuracy) not in (int, float, type(None)):
            raise ValueError(f"its best_accuracy is {self.best_accuracy!r}")
        sums = np.array(values["sums"], dtype=np.float64)
        if sums.ndim != 2 or sums.shape[1] != 3 or not (sums[:, 1:] >= 0).all():
            raise ValueError(f"its sums are {values['sums']!r}")
        if len(sums) != team.size:
            sums = np.concatenate([sums.sum(axis=0)[None], np.zeros((team.size - 1, 3))])
        loss_sum, correct_sum, count = sums[team.rank].tolist()
        self.loss_sum, self.correct_sum, self.count = loss_sum, correct_sum, int(count)
        return self


# What a checkpoint holds of the counters beside the sums.
_COUNTERS = (
    "step",
    "seconds",
    "eval_seconds",
    "rows",
    "evaluated",
    "best_accuracy",
    "best_loss",
    "best_step",
)
