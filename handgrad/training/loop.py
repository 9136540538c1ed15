"""The training loop, one for every backend: it talks to a learner and to nothing else."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from handgrad.data.dataset import Split
from handgrad.errors import DataError, DivergedError
from handgrad.pictures.terminal import LivePlot
from handgrad.training.checkpoint import Checkpoint
from handgrad.training.learner import Learner
from handgrad.training.metrics import MetricsFile, Row
from handgrad.training.team import Alone, Team

_REPORT_SECONDS = 0.25  # how often the progress bar asks the learner's scalars for their values


class Loader(Protocol):
    """What the loop asks of a loader; :class:`handgrad.data.BatchLoader` is one."""

    split: Split
    batch_size: int

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield ``(images, labels)`` of an epoch, from batch number ``start`` on."""
        ...


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


@dataclass
class Loop:
    """Train a learner for a number of steps, evaluating and saving on the way.

    Args:
        learner: the backend.
        train_loader: batches to learn from.
        eval_loaders: batches of each split to evaluate on the way, by name; of this process's
            share of it. With one called ``validation`` the best weights on it are kept.
        schedule: learning rate of each step, counted from 0.
        total_steps: when to stop.
        eval_every: steps between evaluations; there is also one before the first step and one
            after the last.
        metrics: where rows go.
        checkpoint_path: where checkpoints go, at every evaluation and on a signal.
        checkpoint_every: steps between further checkpoints; None for no others.
        quiet: print nothing.
        live: draw the curves in the terminal; not where ``quiet``.
        team: the processes that train together. Each runs a loop of its own, in step with the
            others.
    """

    learner: Learner
    train_loader: Loader
    eval_loaders: Mapping[str, Loader]
    schedule: Callable[[int], float]
    total_steps: int
    eval_every: int
    metrics: MetricsFile
    checkpoint_path: Path
    checkpoint_every: int | None = None
    quiet: bool = False
    live: bool = False
    team: Team = field(default_factory=Alone)
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    stop_signal: int | None = None
    _clock: float = field(
        default=0.0, init=False
    )  # when this run would have begun, had it not stopped
    # The signal that this process got. Any moment may change it; what they all agreed on, and act
    # on, is stop_signal.
    _asked: int | None = field(default=None, init=False)
    _reported: float = field(default=0.0, init=False)
    _saved_step: int | None = field(default=None, init=False)
    _plot: LivePlot | None = field(default=None, init=False)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take up the state in ``checkpoint``.

        Raises:
            DataError: it belongs to another model, optimizer or version.
        """
        try:
            self.progress = Progress.from_dict(checkpoint.progress, self.team)
            if checkpoint.best:
                self.learner.load_weights(checkpoint.best)  # only to see that they fit
            self.learner.load_weights(checkpoint.weights)
            self.learner.load_state(checkpoint.learner, checkpoint.learner_text)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self.checkpoint_path} does not fit this run: {error}") from None
        for name, array in checkpoint.weights.items():
            if not np.isfinite(array).all():
                raise DataError(f"{self.checkpoint_path} is damaged: {name} is not finite")
        self.best_weights = dict(checkpoint.best)
        self._saved_step = self.progress.step

    def run(self) -> bool:
        """Train to the last step; return False when a signal stopped it before.

        Raises:
            DivergedError: the loss or a weight is not finite any more. The last checkpoint is
                from before.
        """
        p, loader = self.progress, self.train_loader
        self._clock = time.perf_counter() - p.seconds
        with self._signals_caught(), self._bar() as bar, self._plotted(bar):
            if self._evaluation_is_due():
                self._evaluate(bar)
            while p.step < self.total_steps and not self._stopping():
                epoch, first = divmod(p.step, len(loader))
                for images, labels in loader.batches(epoch, first):
                    self._step(images, labels, bar)
                    if self._evaluation_is_due():
                        self._evaluate(bar)
                    elif self.checkpoint_every and p.step % self.checkpoint_every == 0:
                        start = time.perf_counter()
                        self._check_weights()
                        p.seconds = start - self._clock
                        self._save()
                        p.eval_seconds += time.perf_counter() - start
                    if p.step == self.total_steps or self._stopping():
                        break
            p.seconds = time.perf_counter() - self._clock
            if self._stopping():
                self._check_weights()
                self._save()
        return p.step == self.total_steps and not self._evaluation_is_due()

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        due = step % self.eval_every == 0 or step == self.total_steps
        return due and self.progress.evaluated != step

    def _break_off(self) -> None:
        """End an evaluation when a signal has come; those of a team stay in step and finish it."""
        if self._asked is not None and self.team.size == 1:
            raise _BrokenOffError

    def _stopping(self) -> bool:
        """Say whether any of the processes was asked to stop: then all do, after the same step."""
        if self.stop_signal is None:
            self.stop_signal = self.team.largest(self._asked or 0) or None
        return self.stop_signal is not None

    def _step(self, images: Any, labels: Any, bar: tqdm[Any]) -> None:
        p = self.progress
        try:
            loss, correct = self.learner.train_step(images, labels, self.schedule(p.step))
        except FloatingPointError as error:
            self._diverged(str(error), p.step + 1)
        # A loss that is on the host already is checked at once; a device's when it is reported.
        if isinstance(loss, float) and not math.isfinite(loss):
            self._diverged(f"the loss became {loss}", p.step + 1)
        p.loss_sum = p.loss_sum + loss * len(labels)
        p.correct_sum = p.correct_sum + correct
        p.count += len(labels)
        p.step += 1
        if bar.disable:
            return
        bar.update(len(labels) * self.team.size)
        now = time.perf_counter()
        if now - self._reported > _REPORT_SECONDS:
            self._reported = now
            loss, accuracy = float(p.loss_sum) / p.count, float(p.correct_sum) / p.count
            bar.set_postfix_str(
                f"step {p.step}/{self.total_steps}, loss {loss:.4f}, accuracy {accuracy:.4f}",
                refresh=False,
            )
            if self._plot is not None:
                epoch, lr = p.step / len(self.train_loader), self.schedule(p.step)
                seconds = now - self._clock
                self._plot.update(Row(p.step, epoch, "train", loss, accuracy, lr, seconds))

    def _evaluate(self, bar: tqdm[Any]) -> None:
        """Report the training since the last time, evaluate each split, save.

        A signal breaks it off, as if it had not begun; a resumed run begins with it.
        """
        p = self.progress
        report: list[tuple[str, float, float]] = []
        loss_sum, correct_sum, count = self.team.sum(p.sums())  # waits for the steps under way
        start = time.perf_counter()
        if count:
            report.append(("train", float(loss_sum / count), float(correct_sum / count)))
        try:
            for name, loader in self.eval_loaders.items():
                loss, accuracy, _ = evaluate(self.learner, loader, self.team, self._break_off)
                report.append((name, loss, accuracy))
        except _BrokenOffError:
            p.eval_seconds += time.perf_counter() - start
            return
        except FloatingPointError as error:
            self._diverged(str(error), p.step)
        p.loss_sum, p.correct_sum, p.count, p.evaluated = 0.0, 0, 0, p.step
        for name, loss, accuracy in report:
            better = p.best_accuracy is None or (accuracy, -loss) > (p.best_accuracy, -p.best_loss)
            if name == "validation" and better:
                p.best_accuracy, p.best_loss, p.best_step = accuracy, loss, p.step
                self.best_weights = {k: np.array(v) for k, v in self.learner.weights().items()}
        for name, loss, _ in report:
            if not math.isfinite(loss):
                self._diverged(f"the {name} loss became {loss}", p.step)
        self._check_weights()
        p.seconds = time.perf_counter() - self._clock
        epoch, lr = p.step / len(self.train_loader), self.schedule(p.step)
        for name, loss, accuracy in report:
            self.metrics.append(Row(p.step, epoch, name, loss, accuracy, lr, p.seconds))
        if report and not self.quiet:
            width = len(str(self.total_steps))
            parts = "   ".join(
                f"{name} loss {loss:.4f} accuracy {acc:.4f}" for name, loss, acc in report
            )
            with bar.external_write_mode(file=sys.stdout):
                print(f"step {p.step:>{width}}/{self.total_steps}  epoch {epoch:5.2f}   {parts}")
        if self._plot is not None:
            self._plot.update()
        self._save()
        p.eval_seconds += time.perf_counter() - start

    def _save(self) -> None:
        p = self.progress
        p.rows = len(self.metrics.rows)
        arrays, text = self.learner.state()
        sums = self.team.gather(p.sums()[None])
        if self.team.rank == 0:
            Checkpoint(
                weights=self.learner.weights(),
                learner=arrays,
                learner_text=text,
                best=self.best_weights,
                progress=p.to_dict(sums),
            ).save(self.checkpoint_path)
        # None leaves before it is written: torchrun stops them all when the first one ends.
        self.team.agree_on("")
        self._saved_step = p.step

    def _check_weights(self) -> None:
        for name, array in self.learner.weights().items():
            if not np.isfinite(array).all():
                value = array[~np.isfinite(array)].flat[0]
                self._diverged(f"the weight {name} became {value}", self.progress.step)

    def _diverged(self, what: str, step: int) -> NoReturn:
        kept = "There is no checkpoint yet"
        if self._saved_step is not None:
            kept = f"The checkpoint of step {self._saved_step} stays: {self.checkpoint_path}"
        hint = "start again, in another folder, with a lower --lr or with --warmup-steps"
        if step == 0:
            hint = "start again with a lower --weight-std"
        raise DivergedError(
            f"{what} at step {step} (learning rate {self.schedule(step):g}); {hint}. {kept}"
        )

    def _bar(self) -> tqdm[Any]:
        p = self.progress
        n, size = len(self.train_loader.split), self.train_loader.batch_size
        epochs, rest = divmod(self.total_steps, len(self.train_loader))
        done_epochs, done_rest = divmod(p.step, len(self.train_loader))
        return tqdm(
            total=epochs * n + min(n, rest * size),
            initial=done_epochs * n + min(n, done_rest * size),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=self.quiet or sys.stderr is None or not sys.stderr.isatty(),
        )

    @contextmanager
    def _plotted(self, bar: tqdm[Any]) -> Iterator[None]:
        if not self.live or self.quiet:
            yield
            return
        with LivePlot(bar, self.metrics.rows) as self._plot:
            yield

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a request to stop after the step; a second one stops now."""

        def request_stop(number: int, frame: FrameType | None) -> None:
            if self._asked is not None:
                raise KeyboardInterrupt
            self._asked = number

        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            previous = {number: signal.signal(number, request_stop) for number in numbers}
        except ValueError:  # not the main thread: signals are somebody else's business
            yield
            return
        try:
            yield
        finally:
            # Whoever was told by the others to stop has its own signal still to come, and is to
            # end as calmly as they do.
            if self._asked is not None or self.stop_signal is None:
                for number, handler in previous.items():
                    signal.signal(number, handler)


class _BrokenOffError(Exception):
    """A signal came during an evaluation."""


class Evaluation(NamedTuple):
    """What :func:`evaluate` found.

    Attributes:
        loss: mean over the images.
        accuracy: share of correct predictions.
        predicted: class of each image, (N,).
    """

    loss: float
    accuracy: float
    predicted: NDArray[Any]


def evaluate(
    learner: Learner,
    loader: Loader,
    team: Team | None = None,
    between: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Evaluate a split, the processes of a team each their share of it.

    Args:
        learner: what to evaluate.
        loader: all images, or, in a team, this process's part of them; the parts follow each
            other in the order of the ranks.
        team: the processes; the same answer is given to all.
        between: called after each batch; may raise to break off.
    """
    team = team or Alone()
    total: Any = 0.0
    predicted = [np.empty(0, dtype=np.int64)]
    for images, labels in loader.batches(0):
        loss, classes = learner.eval_step(images, labels)
        total = total + loss * len(labels)
        predicted.append(np.asarray(classes))
        between()
    classes = np.concatenate(predicted)
    correct = np.count_nonzero(classes == loader.split.labels)
    sums = team.sum(np.array([float(total), float(correct), float(len(classes))]))
    loss, accuracy = float(sums[0] / sums[2]), float(sums[1] / sums[2])
    return Evaluation(loss, accuracy, team.gather(classes))


def probabilities(
    learner: Learner, loader: Loader, n_classes: int, team: Team | None = None
) -> NDArray[np.float32]:
    """Return the probabilities of the classes, (N, K), for the images of a split.

    In a team the processes look at their share each, as in :func:`evaluate`.
    """
    rows = [np.empty((0, n_classes), dtype=np.float32)]
    for images, _ in loader.batches(0):
        rows.append(np.asarray(learner.probabilities(images), dtype=np.float32))
    together: NDArray[np.float32] = (team or Alone()).gather(np.concatenate(rows))
    return together
