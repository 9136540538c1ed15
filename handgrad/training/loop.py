"""The training loop, one for every backend: it talks to a learner and to its observers."""

from __future__ import annotations

import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from handgrad.console import let_go_of_lost_terminals
from handgrad.errors import DataError, DivergedError
from handgrad.training.checkpoint import Checkpoint, check_finite
from handgrad.training.evaluation import evaluate
from handgrad.training.learner import Learner, Loader
from handgrad.training.metrics import Row
from handgrad.training.observers import Observer
from handgrad.training.progress import Progress
from handgrad.training.team import Alone, Team

# What a learner, and the generators of NumPy and PyTorch, make of a state that is not theirs.
_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows


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
        checkpoint_path: where checkpoints go, at every evaluation and on a signal.
        checkpoint_every: steps between further checkpoints; None for no others.
        observers: told what happens, in this order; what they write of an evaluation is there
            before the checkpoint that counts its rows.
        team: the processes that train together. Each runs a loop of its own, in step with the
            others.
    """

    learner: Learner
    train_loader: Loader
    eval_loaders: Mapping[str, Loader]
    schedule: Callable[[int], float]
    total_steps: int
    eval_every: int
    checkpoint_path: Path
    checkpoint_every: int | None = None
    observers: Sequence[Observer] = ()
    team: Team = field(default_factory=Alone)
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    stop_signal: int | None = None
    # When this run would have begun, had it not stopped.
    _clock: float = field(default=0.0, init=False)
    # The signal that this process got. Any moment may change it; what they all agreed on, and act
    # on, is stop_signal.
    _asked: int | None = field(default=None, init=False)
    _saved_step: int | None = field(default=None, init=False)

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
        except _MISFITS as error:
            raise DataError(f"{self.checkpoint_path} does not fit this run: {error}") from None
        for arrays in (checkpoint.weights, checkpoint.best):
            check_finite(arrays, self.checkpoint_path)
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
        with self._signals_caught(), self._observed():
            if self._evaluation_is_due():
                self._evaluate()
            while p.step < self.total_steps and not self._stopping():
                epoch, first = divmod(p.step, len(loader))
                for images, labels in loader.batches(epoch, first):
                    self._step(images, labels)
                    if self._evaluation_is_due():
                        self._evaluate()
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
        return self.done

    @property
    def done(self) -> bool:
        """Whether the last step is made, and evaluated."""
        return self.progress.step == self.total_steps and not self._evaluation_is_due()

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

    def _step(self, images: Any, labels: Any) -> None:
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
        for observer in self.observers:
            observer.step(self, len(labels))

    def running_row(self) -> Row:
        """Return this process's training since the last evaluation as a row, at least a step."""
        p = self.progress
        loss, accuracy = float(p.loss_sum) / p.count, float(p.correct_sum) / p.count
        return self._row("train", loss, accuracy, time.perf_counter() - self._clock)

    def _row(self, split: str, loss: float, accuracy: float, seconds: float) -> Row:
        step = self.progress.step
        epoch = step / len(self.train_loader)
        return Row(step, epoch, split, loss, accuracy, self.schedule(step), seconds)

    def images_until(self, step: int) -> int:
        """Return how many training images the first ``step`` steps see."""
        epochs, rest = divmod(step, len(self.train_loader))
        n = len(self.train_loader.split)
        return epochs * n + min(n, rest * self.train_loader.batch_size)

    def _evaluate(self) -> None:
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
        rows = [self._row(name, loss, accuracy, p.seconds) for name, loss, accuracy in report]
        p.rows += len(rows)
        for observer in self.observers if rows else ():
            observer.evaluated(self, rows)
        self._save()
        p.eval_seconds += time.perf_counter() - start

    def _save(self) -> None:
        p = self.progress
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
        self.team.wait()  # till it is written: torchrun stops them all when the first one ends
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
        epoch = step / len(self.train_loader)
        raise DivergedError(
            f"{what} at step {step} (learning rate {self.schedule(step):g}, epoch {epoch:.2f}); "
            f"{hint}. {kept}"
        )

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Tell the observers of the beginning and of the end, whatever it is."""
        with ExitStack() as stack:
            for observer in self.observers:
                stack.push(functools.partial(self._end, observer))
                observer.begin(self)
            yield

    def _end(
        self,
        observer: Observer,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # the exit of a context, and one that swallows no error
        observer.end(self, error)

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Turn Ctrl-C, SIGTERM and SIGHUP into a request to stop after the step.

        A second one stops now, but for SIGHUP: when a terminal closes, kernel and shell send it.
        """

        def request_stop(number: int, frame: FrameType | None) -> None:
            if number == _HANGUP:
                let_go_of_lost_terminals()
            if self._asked is None:
                self._asked = number
            elif _HANGUP not in (number, self._asked):
                raise KeyboardInterrupt

        numbers = [signal.SIGINT, signal.SIGTERM]
        if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:  # as by nohup
            numbers.append(_HANGUP)
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
