"""Who watches a training: the loop only trains, and tells its observers what has happened."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from tqdm import tqdm

from handgrad.training.learner import Learner
from handgrad.training.metrics import MetricsFile, Row
from handgrad.training.progress import Progress
from handgrad.training.team import Team

_WIDE = 100  # columns from which the progress bar names the step
_REPORT_SECONDS = 0.25  # how often the progress bar asks the learner's scalars for their values


class Training(Protocol):
    """What observers see of the training.

    Attributes:
        learner: the model, its loss and its optimizer.
        progress: the counters.
        total_steps: when training ends.
        team: the processes that train together.
    """

    learner: Learner
    progress: Progress
    total_steps: int
    team: Team

    def running_row(self) -> Row:
        """Return this process's training since the last evaluation as a row, at least a step."""
        ...

    def images_until(self, step: int) -> int:
        """Return how many training images the first ``step`` steps see."""
        ...


class Observer:
    """Something that is told what happens in a training; a subclass writes what it wants to hear.

    An error that an observer raises ends the training, and leaves the last checkpoint.
    """

    def begin(self, training: Training) -> None:
        """Training begins, or goes on from ``training.progress.step``."""

    def step(self, training: Training, n_images: int) -> None:
        """A step on ``n_images`` images was taken."""

    def evaluated(self, training: Training, rows: Sequence[Row]) -> None:
        """The training since the last time and the splits were evaluated: a row each."""

    def end(self, training: Training, error: BaseException | None) -> None:
        """Training has ended, or a signal has stopped it; or ``error`` has broken it off."""


class MetricsRecorder(Observer):
    """Add what is evaluated to ``metrics.csv``.

    Args:
        file: to write to.
    """

    def __init__(self, file: MetricsFile) -> None:
        self.file = file

    def evaluated(self, training: Training, rows: Sequence[Row]) -> None:
        """Add the rows."""
        for row in rows:
            self.file.append(row)


class ProgressBar(Observer):
    """A progress bar on standard error, if that is a terminal, and a line an evaluation.

    Attributes:
        bar: there once training has begun.
    """

    bar: tqdm[Any]

    def __init__(self) -> None:
        self._reported = 0.0

    def begin(self, training: Training) -> None:
        """Show the bar."""
        self.bar = tqdm(
            total=training.images_until(training.total_steps),
            initial=training.images_until(training.progress.step),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=sys.stderr is None or not sys.stderr.isatty(),
        )

    def step(self, training: Training, n_images: int) -> None:
        """Move the bar; now and then, say how training goes."""
        if self.bar.disable:
            return
        self.bar.update(n_images * training.team.size)
        now = time.perf_counter()
        if now - self._reported > _REPORT_SECONDS:
            self._reported = now
            row = training.running_row()
            text = f"loss {row.loss:.4f}, accuracy {row.accuracy:.4f}"
            if shutil.get_terminal_size().columns >= _WIDE:
                text = f"step {row.step}/{training.total_steps}, {text}"
            self.bar.set_postfix_str(text, refresh=False)

    def evaluated(self, training: Training, rows: Sequence[Row]) -> None:
        """Print a line."""
        width = len(str(training.total_steps))
        place = f"step {rows[0].step:>{width}}/{training.total_steps}  epoch {rows[0].epoch:5.2f}"
        parts = [f"{row.split} loss {row.loss:.4f} accuracy {row.accuracy:.4f}" for row in rows]
        line = "   ".join([place, *parts])
        if sys.stdout.isatty() and len(line) > shutil.get_terminal_size().columns:
            line = f"{place}   " + f"\n{'':{len(place) + 3}}".join(parts)
        with self.bar.external_write_mode(file=sys.stdout):
            print(line)

    def end(self, training: Training, error: BaseException | None) -> None:
        """Take the bar away."""
        self.bar.close()
