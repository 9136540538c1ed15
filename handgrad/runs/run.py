"""One run, from settings to a folder with its curves, its metrics and its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

import numpy as np

from handgrad.data import BatchLoader, Split, load_dataset
from handgrad.data.augment import views_at_test_time
from handgrad.data.loader import share
from handgrad.data.preprocess import fit_preprocessing
from handgrad.environment import describe_environment
from handgrad.errors import DataError, StoppedError, UserError
from handgrad.files import locked, write_atomically
from handgrad.runs import resumption, telling
from handgrad.runs.backend import Backend
from handgrad.runs.command_line import Command
from handgrad.runs.folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    REPORT,
    check_out,
    data_folder,
    make_folder,
    memory_for,
    read_config,
    remove_stillborn,
    storage,
    to_json,
)
from handgrad.runs.result import Result, measured_before
from handgrad.runs.settings import DISPLAY, SettingsT, override, settings_from_dict
from handgrad.training.checkpoint import Checkpoint
from handgrad.training.evaluation import (
    accuracy_of_mean,
    evaluate,
    probabilities,
    surest_mistakes,
)
from handgrad.training.learner import Loader
from handgrad.training.loop import Loop
from handgrad.training.metrics import MetricsFile
from handgrad.training.observers import MetricsRecorder, Observer, ProgressBar

_EVAL_BATCH = 500  # inputs of this many CIFAR-10 images stay in a processor's cache


def run(command: Command[SettingsT], backend: Backend[SettingsT]) -> int:
    """Train as ``command`` says and return the exit status.

    0: done; 1: done, below ``--target-accuracy``; 128 + n: stopped by signal n, and can go on.

    Raises:
        UserError: something the user can mend.
    """
    with backend.session():
        try:
            training = Run(command, backend)
            summary = training.complete()
        except StoppedError as stopped:
            if not backend.team.rank:
                print(stopped, file=sys.stderr)
            return 128 + stopped.signal
    target = training.settings.target_accuracy
    if summary is None or target is None:
        return 0
    what, name = "test accuracy", "test_accuracy"
    if "test_accuracy_tta" in summary:
        what, name = f"{what} with --tta", "test_accuracy_tta"
    if summary[name] >= target:
        return 0
    print(f"{what} {summary[name]:.4f} is below --target-accuracy {target:g}", file=sys.stderr)
    return 1


class Run(Generic[SettingsT]):
    """A training and all that belongs to it: data, learner, loop and folder.

    Args:
        command: what was asked for.
        backend: what trains, within its session.
        observers: told what happens, beside those that every run has.

    Attributes:
        settings: in force; of a run to be resumed, its own, with what was said now on top.
        folder: of the run, once it has begun.

    Raises:
        UserError: what was asked for cannot be, or is not there.
    """

    folder: Path
    _before: SettingsT  # of the run so far, where it is resumed

    def __init__(
        self,
        command: Command[SettingsT],
        backend: Backend[SettingsT],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.backend, self.team, self._observers = backend, backend.team, observers
        if self.team.may_restart and command.resume is None and command.settings.out is None:
            raise UserError(
                "give --out FOLDER: restarted processes look there for what to go on from"
            )
        self.command = self._restarted(command) if self.team.restarted else command
        self.is_new = self.command.resume is None
        self.settings = self._settings()
        if self.settings.batch_size % self.team.size:
            raise UserError(
                f"--batch-size {self.settings.batch_size} cannot be divided among "
                f"{self.team.size} processes; choose a multiple of {self.team.size}"
            )

    @np.errstate(under="ignore")  # no error, whatever the user's program has set
    def complete(self) -> dict[str, Any] | None:
        """Train to the end, evaluate on the test images, and write down what came of it.

        Returns:
            What ``summary.json`` says; None in all processes of a team but the first.

        Raises:
            StoppedError: a signal stopped it; it can be resumed.
            UserError: something the user can mend.
        """
        with self.backend.hold_threads(self.settings):
            self._prepare()
            with nullcontext() if self.team.rank else locked(self.folder):
                if self.is_new and not self.team.rank:
                    check_out(self.folder)  # another process may have been here since
                if not self.is_new:
                    self._take_up(Checkpoint.load(self.folder / CHECKPOINT))
                    done, summary = self._finished_before()
                    if done:
                        return summary
                try:
                    with storage(self.folder, self.command.go_on(self.folder)):
                        # Only now: a run that cannot be resumed as asked keeps what it has.
                        self._begin()
                        return self._train()
                except BaseException:
                    begun = os.path.lexists(self.loop.checkpoint_path)
                    if self.is_new and not self.team.rank and not begun:
                        remove_stillborn(self.folder)
                    raise

    def _settings(self) -> SettingsT:
        command = self.command
        settings = command.settings
        if command.resume is not None:
            path = command.resume / CONFIG
            config = resumption.config_of(command.resume, command.text)
            self._before = settings_from_dict(type(settings), config.get("settings"), str(path))
            settings = override(self._before, command.overrides)
        return dataclasses.replace(settings, quiet=True) if self.team.rank else settings

    def _restarted(self, command: Command[SettingsT]) -> Command[SettingsT]:
        """Return what processes do that replace others: go on with the run which those began.

        A folder that another command began is left to the checks that every command makes.
        """
        folder = command.resume or Path(command.settings.out or "")
        found = ""
        if self.team.rank == 0:
            with contextlib.suppress(DataError):
                if read_config(folder).get("launch") == self.team.launch:
                    whole = (folder / CHECKPOINT).exists()
                    found = "checkpoint" if whole else "beginning"
        found = self.team.agree_on(found)
        if found == "checkpoint":  # config.json holds all that this command asked for
            shown = {name: getattr(command.settings, name) for name in DISPLAY}
            return dataclasses.replace(command, resume=folder, overrides=shown)
        if found == "beginning" and not self.team.rank:
            remove_stillborn(folder)
        return command

    def _prepare(self) -> None:
        """Load the data, build the learner, choose the folder and set up the loop."""
        self._load()
        self.settings = settings = self.backend.resolve(self.settings, self.dataset)
        dtype = getattr(settings, "dtype", "float32")
        train = self.dataset.train
        self.preprocessing = fit_preprocessing(settings.preprocess, train.images, dtype)
        train_loader = BatchLoader(
            train,
            settings.batch_size,
            self.preprocessing,
            shuffle=True,
            augmentation=self.backend.augmentation(settings),
            seed=settings.seed,
            rank=self.team.rank,
            size=self.team.size,
        )
        total_steps = settings.total_steps(len(train_loader))
        with memory_for("the network and its optimizer"):
            learner = self.backend.build(settings, self.dataset)
        schedule = self.backend.schedule(settings, total_steps)
        self.fingerprint = self.dataset.fingerprint()
        folder = self.command.resume
        if folder is None:
            folder = Path() if self.team.rank else make_folder(settings, self.backend.name)
        self.folder = Path(self.team.agree_on(str(folder)))
        self.metrics = MetricsFile(None if self.team.rank else self.folder / METRICS)
        self.loop = Loop(
            learner=learner,
            train_loader=self.backend.adapt(settings, train_loader),
            eval_loaders={
                name: self._eval_loader(self.dataset.split(name))
                for name in settings.eval_splits
                if len(self.dataset.split(name))
            },
            schedule=schedule,
            total_steps=total_steps,
            eval_every=settings.eval_every or len(train_loader),
            checkpoint_path=self.folder / CHECKPOINT,
            checkpoint_every=settings.checkpoint_every,
            team=self.team,
        )
        self.test_loader = self._eval_loader(self.dataset.test)

    def _load(self) -> None:
        settings, is_first = self.settings, not self.team.rank
        if self.is_new and settings.out is not None and is_first:
            check_out(Path(settings.out))
        data_dir = data_folder(settings)
        if data_dir is not None:
            self.settings = settings = dataclasses.replace(settings, data_dir=str(data_dir))
        if not is_first:
            self.team.wait()  # until process 0 has downloaded what was missing
        with memory_for(f"the images of {settings.dataset}"):
            self.dataset = load_dataset(
                settings.dataset,
                data_dir,
                validation_size=settings.validation_size,
                validation_images=settings.validation_images,
                seed=settings.seed,
                download=self.is_new or data_dir is None,
            )
        if is_first:
            self.team.wait()

    def _eval_loader(self, split: Split) -> Loader:
        """Return this process's share of a split to be evaluated."""
        part = split.part(share(len(split), self.team.rank, self.team.size))
        return self.backend.adapt(self.settings, BatchLoader(part, _EVAL_BATCH, self.preprocessing))

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """Put the loop where ``checkpoint`` was written; nothing on disk changes."""
        saved = read_config(self.folder).get("data")
        if saved not in (None, self.fingerprint):
            raise DataError(
                f"the data are not those that the run in {self.folder} began with (now "
                f"{self.fingerprint}, then {saved}); point --data-dir at the same files"
            )
        loop = self.loop
        loop.resume(checkpoint)
        step, n = loop.progress.step, len(loop.train_loader)
        resumption.check_end(self.folder, self.settings, step, n)
        if self.metrics.path is not None:
            self.metrics = MetricsFile.reopen(self.metrics.path, loop.progress.rows)

    def _finished_before(self) -> tuple[bool, dict[str, Any] | None]:
        """Say whether nothing is left to do, and return the summary; None but in process 0."""
        summary = None
        if self.loop.done and not self.team.rank and "report" not in self.command.overrides:
            step, report = self.loop.progress.step, self.settings.report
            summary = resumption.whole_result(self.folder, step, report=report)
        if summary is not None:
            line = resumption.finished_line(self.folder, self.settings, summary)
            print(self.command.spelled(line), flush=True)
        return self.team.agree_on("" if summary is None else "done") == "done", summary

    def _place(self) -> str:
        return self.settings.place(self.loop.progress.step, len(self.loop.train_loader))

    def _begin(self) -> None:
        """Write ``config.json`` and the beginning of ``metrics.csv``."""
        if not self.team.rank:
            saved = {} if self.is_new else read_config(self.folder)
            here = {"threads": self.backend.threads(self.settings), "processes": self.team.size}
            began = saved.get("began_with")
            if not isinstance(began, dict):  # of a new run, or one that an older version began
                began = here
            if not self.is_new:
                self._warn(began, here)
            config = {
                "commands": [*saved.get("commands", []), self.command.text],
                "settings": asdict(self.settings),
                "data": self.fingerprint,
                "processes": self.team.size,
                "began_with": began,
                "launch": self.team.launch,
                **describe_environment(),
            }
            write_atomically(self.folder / CONFIG, to_json(config))
        self.metrics.create()

    def _warn(self, began: dict[str, Any], here: dict[str, Any]) -> None:
        """Say what a resumed run, begun and now ``here`` on so many threads, does otherwise."""
        step, n = self.loop.progress.step, len(self.loop.train_loader)
        for line in (
            *resumption.changed_course(self.backend, self._before, self.settings, step, n),
            *resumption.changed_circumstances(began, here),
        ):
            print(f"warning: {self.command.spelled(line)}", file=sys.stderr)

    def _train(self) -> dict[str, Any] | None:
        loop, settings = self.loop, self.settings
        loop.observers = [MetricsRecorder(self.metrics), *self._spectators(), *self._observers]
        if not settings.quiet:
            cost = self._petaflop(loop.total_steps)
            for line in telling.beginning(self.dataset, settings, loop, cost):
                print(line)
            if loop.progress.step:
                print(f"going on from {self._place()} in {self.folder}")
        begun = loop.progress.step
        with memory_for(f"training, in batches of {settings.batch_size} images"):
            done = loop.run()
        if not done:
            assert loop.stop_signal is not None
            raise StoppedError(
                f"stopped after {self._place()}; go on with: {self.command.go_on(self.folder)}",
                loop.stop_signal,
            )
        return self._finish(begun)

    def _spectators(self) -> list[Observer]:
        """Return what shows the training on the terminal."""
        if self.settings.quiet:
            return []
        progress = ProgressBar()
        if not self.settings.live:
            return [progress]
        from handgrad.pictures.live import LiveCurves

        return [progress, LiveCurves(progress, self.metrics.rows)]

    def _finish(self, begun: int) -> dict[str, Any] | None:
        """Evaluate on the test images and write down what came of it, begun at a step."""
        loop, learner, team = self.loop, self.loop.learner, self.team
        if loop.best_weights:
            learner.load_weights(loop.best_weights)
        with memory_for("the evaluation on the test images"):
            test = evaluate(learner, self.test_loader, team)
            labels, n_classes = self.dataset.test.labels, self.dataset.n_classes
            wrong = self._eval_loader(self.dataset.test.part(test.predicted != labels))
            certainties = probabilities(learner, wrong, n_classes, team)
            accuracy_tta = self._accuracy_tta() if self.settings.tta else None
        if team.rank:
            team.wait()  # until process 0 has written: it is the one to fail
            return None
        with memory_for("the tables and pictures of the result"):
            result = Result(
                self.folder,
                self.settings,
                self.dataset,
                self.preprocessing,
                loop,
                self.metrics.rows,
                test,
                surest_mistakes(certainties, test.predicted, labels),
                accuracy_tta,
            )
            trained = begun != loop.progress.step
            measured = {} if trained else measured_before(self.folder, begun)
            if (cost := self._petaflop(loop.progress.step)) is not None:
                measured["petaflop"] = cost
            summary = result.write(measured)
            print(f"{telling.result(summary)}\nrun folder: {self.folder}", flush=True)
            result.draw()
            if self.settings.report:
                result.report(summary, self.command.invocation)
                print(f"report: {self.folder / REPORT}")
        team.wait()
        return summary

    def _accuracy_tta(self) -> float:
        """Return the accuracy on the test images with test-time augmentation."""
        test, mirrors = self.dataset.test, {"flip", "alternating-flip"} & {*self.settings.augment}
        views = (
            (weight, self._eval_loader(Split(view, test.labels)))
            for weight, view in views_at_test_time(test.images, mirror=bool(mirrors))
        )
        return accuracy_of_mean(self.loop.learner, views, self.dataset.n_classes, self.team)

    def _petaflop(self, steps: int) -> float | None:
        """Return the products that so many steps cost; None if nobody counts them."""
        shape = self.dataset.image_shape
        operations = self.backend.training_operations(self.loop.learner, shape)
        return None if operations is None else operations * self.loop.images_until(steps) / 1e15
