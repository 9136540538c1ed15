"""The curves of a run, drawn in the terminal while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence

from handgrad.pictures.terminal import LivePlot
from handgrad.training.metrics import Row
from handgrad.training.observers import Observer, ProgressBar, Training

_SECONDS = 0.25  # between two looks at the training under way


class LiveCurves(Observer):
    """Draws above a progress bar; stands behind it among the observers.

    Args:
        progress: the bar.
        rows: of ``metrics.csv``; grows as the run goes on.
    """

    def __init__(self, progress: ProgressBar, rows: Sequence[Row]) -> None:
        self._progress, self._rows, self._looked = progress, rows, 0.0

    def begin(self, training: Training) -> None:
        """Draw what there is."""
        self._plot = LivePlot(self._progress.bar, self._rows).__enter__()

    def step(self, training: Training, n_images: int) -> None:
        """Draw the training under way."""
        now = time.perf_counter()
        if now - self._looked > _SECONDS and not self._progress.bar.disable:
            self._looked = now
            self._plot.update(training.running_row())

    def evaluated(self, training: Training, rows: Sequence[Row]) -> None:
        """Draw the new rows."""
        self._plot.update()

    def end(self, training: Training, error: BaseException | None) -> None:
        """Leave the last picture."""
        self._plot.__exit__(None if error is None else type(error), error, None)
