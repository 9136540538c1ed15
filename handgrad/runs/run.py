"""One run, from settings to a folder with its curves, its metrics and its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from handgrad.data import BatchLoader, Dataset, load_dataset
from handgrad.data.augment import Augmentation, compose
from handgrad.data.dataset import Split
from handgrad.data.preprocess import Preprocessing, fit_preprocessing
from handgrad.environment import describe_environment, peak_memory_bytes
from handgrad.errors import DataError, StorageError, UserError
from handgrad.files import temporary_path, write_atomically
from handgrad.lock import locked
from handgrad.runs.command_line import (
    Command,
    SettingsT,
    TrainSettings,
    override,
    settings_from_dict,
)
from handgrad.training.checkpoint import Checkpoint, save_arrays
from handgrad.training.learner import Learner
from handgrad.training.loop import Evaluation, Loader, Loop, evaluate, probabilities
from handgrad.training.metrics import MetricsFile, confusion_matrix_to_metrics, count_confusions
from handgrad.training.team import Alone, Team, share

_CHECKPOINT = "checkpoint.safetensors"
_REPORT = "report.html"
_EVAL_BATCH = 500  # inputs of this many CIFAR-10 images stay in a processor's cache


@dataclass(frozen=True)
class Backend(Generic[SettingsT]):
    """What a training command adds to the shared half.

    Attributes:
        name: first part of the default run folder's name.
        build: makes the learner for the settings and the dataset.
        schedule: makes the learning-rate schedule for the settings and the number of steps.
        resolve: replaces what the settings leave to be decided on the spot (``auto``), so that
            what was decided is recorded, and a resumed run goes on with it.
        adapt: may replace a loader by one that yields the same batches elsewhere.
        augmentation: makes what changes the training images.
        team: the processes that train together.
    """

    name: str
    build: Callable[[SettingsT, Dataset], Learner]
    schedule: Callable[[SettingsT, int], Callable[[int], float]]
    resolve: Callable[[SettingsT, Dataset], SettingsT] = lambda settings, dataset: settings
    adapt: Callable[[SettingsT, BatchLoader], Loader] = lambda settings, loader: loader
    augmentation: Callable[[SettingsT], Augmentation | None] = lambda s: compose(s.augment)
    team: Team = dataclasses.field(default_factory=Alone)


def run(command: Command[SettingsT], backend: Backend[SettingsT]) -> int:
    """Train as ``command`` says and return the exit status.

    0: done; 1: done, below ``--target-accuracy``; 128 + n: stopped by signal n, and can go on.

    Raises:
        UserError: something the user can mend.
    """
    team = backend.team
    if team.may_restart and command.resume is None and command.settings.out is None:
        raise UserError("give --out FOLDER: restarted processes look there for what to go on from")
    if team.restarted:
        command = _restarted(command, team)
    settings = command.settings
    if command.resume is not None:
        settings = _settings_of_run(command, backend)
    if team.rank:
        settings = dataclasses.replace(settings, quiet=True)
    with ExitStack() as stack:
        if settings.threads is not None:
            stack.enter_context(threadpool_limits(settings.threads))
        return _run(command, settings, backend)


def _run(command: Command[SettingsT], settings: SettingsT, backend: Backend[SettingsT]) -> int:
    folder, team = command.resume, backend.team
    if settings.batch_size % team.size:
        raise UserError(
            f"--batch-size {settings.batch_size} cannot be divided among {team.size} processes; "
            f"choose a multiple of {team.size}"
        )
    if folder is None and settings.out is not None and not team.rank:
        _check_out(Path(settings.out))
    data_dir = data_folder(settings)
    if data_dir is not None:
        settings = dataclasses.replace(settings, data_dir=str(data_dir))
    if team.rank:
        team.agree_on("")  # to wait until process 0 has downloaded what was missing
    with _memory_for(f"the images of {settings.dataset}"):
        dataset = load_dataset(
            settings.dataset,
            data_dir,
            validation_size=settings.validation_size,
            validation_images=settings.validation_images,
            seed=settings.seed,
        )
    if not team.rank:
        team.agree_on("")
    settings = backend.resolve(settings, dataset)
    dtype = getattr(settings, "dtype", "float32")
    preprocessing = fit_preprocessing(settings.preprocess, dataset.train.images, dtype)
    train_loader = BatchLoader(
        dataset.train,
        settings.batch_size,
        preprocessing,
        shuffle=True,
        augmentation=backend.augmentation(settings),
        seed=settings.seed,
        rank=team.rank,
        size=team.size,
    )
    total_steps = settings.max_steps or (settings.epochs or 1) * len(train_loader)
    with _memory_for("the network and its optimizer"):
        learner = backend.build(settings, dataset)
    schedule = backend.schedule(settings, total_steps)
    fingerprint = dataset.fingerprint()
    is_new = folder is None
    if folder is None:
        folder = Path() if team.rank else _make_folder(settings, backend.name)
    folder = Path(team.agree_on(str(folder)))
    loop = Loop(
        learner=learner,
        train_loader=backend.adapt(settings, train_loader),
        eval_loaders={
            name: backend.adapt(
                settings, BatchLoader(_part(dataset, name, team), _EVAL_BATCH, preprocessing)
            )
            for name in settings.eval_splits
            if len(dataset.split(name))
        },
        schedule=schedule,
        total_steps=total_steps,
        eval_every=settings.eval_every or len(train_loader),
        metrics=MetricsFile(None if team.rank else folder / "metrics.csv"),
        checkpoint_path=folder / _CHECKPOINT,
        checkpoint_every=settings.checkpoint_every,
        quiet=settings.quiet,
        live=settings.live,
        team=team,
    )
    test = BatchLoader(_part(dataset, "test", team), _EVAL_BATCH, preprocessing)
    test_loader = backend.adapt(settings, test)
    with nullcontext() if team.rank else locked(folder):
        if is_new and not team.rank:
            _check_out(folder)  # another process may have been here since
        if not is_new:
            _take_up(loop, Checkpoint.load(folder / _CHECKPOINT), folder, fingerprint)
        try:
            with _storage(folder, command):
                # Only now: a run that cannot be resumed as asked keeps what it has.
                if not team.rank:
                    before = [] if is_new else _read_config(folder).get("commands", [])
                    config = {
                        "commands": [*before, command.text],
                        "settings": asdict(settings),
                        "data": fingerprint,
                        "processes": team.size,
                        "launch": team.launch,
                        **describe_environment(),
                    }
                    write_atomically(folder / "config.json", _json(config))
                loop.metrics.create()
                return _train(command, settings, dataset, preprocessing, loop, test_loader, folder)
        except BaseException:
            if is_new and not team.rank and not os.path.lexists(loop.checkpoint_path):
                remove_stillborn(folder)
            raise


def data_folder(settings: TrainSettings) -> Path | None:
    """Return ``--data-dir``, absolute, so that a run can be resumed from any folder.

    Raises:
        UserError: there is no such folder.
    """
    if settings.data_dir is None:
        return None
    folder = Path(settings.data_dir).expanduser().absolute()
    if not folder.is_dir():
        state = "is a file; a folder is expected" if folder.exists() else "does not exist"
        hint = "" if folder.exists() else "; make it first if the data are to go there"
        raise UserError(f"--data-dir {settings.data_dir} {state}{hint}")
    return folder


@contextmanager
def _memory_for(what: str) -> Iterator[None]:
    """Say in a MemoryError what the memory was wanted for, beside how much of it."""
    try:
        yield
    except (MemoryError, ImportError) as error:
        # A library that is loaded late may be the one that does not fit.
        if isinstance(error, ImportError) and "map segment" not in str(error):
            raise
        amount = f": {error}" if str(error) else ""
        raise MemoryError(f"for {what}{amount}") from None


@contextmanager
def _storage(folder: Path, command: Command[SettingsT]) -> Iterator[None]:
    """Turn what the disk does to a run into one error, that says what is kept."""
    try:
        yield
    except OSError as error:
        # Writing to a file says which; anything else, standard output, say, is not the run's disk.
        where = Path(os.fsdecode(error.filename or os.devnull)).absolute()
        if not where.is_relative_to(folder.absolute()):
            raise
        if not os.path.isdir(folder):  # noqa: PTH112 (Path's raises where the parent is shut)
            raise StorageError(f"the run folder {folder} has disappeared while training") from None
        kept = "there is no checkpoint yet"
        with contextlib.suppress(DataError, OSError, KeyError, MemoryError):
            step = Checkpoint.load(folder / _CHECKPOINT).progress["step"]
            kept = (
                f"the checkpoint of step {step} is whole; once that is mended, go on with: "
                f"{command.invocation} --resume {shlex.quote(str(folder.absolute()))}"
            )
        raise StorageError(
            f"cannot write {error.filename}: {error.strerror or error}; {kept}"
        ) from None


def _restarted(command: Command[SettingsT], team: Team) -> Command[SettingsT]:
    """Return what processes do that replace others: go on with the run which those began.

    A folder that another command began is left to the checks that every command makes.
    """
    folder = command.resume or Path(command.settings.out or "")
    found = ""
    if team.rank == 0:
        with contextlib.suppress(DataError):
            if _read_config(folder).get("launch") == team.launch:
                whole = (folder / _CHECKPOINT).exists()
                found = "checkpoint" if whole else "beginning"
    found = team.agree_on(found)
    if found == "checkpoint":  # config.json holds all that this command asked for
        return dataclasses.replace(command, resume=folder, overrides={})
    if found == "beginning" and not team.rank:
        remove_stillborn(folder)
    return command


def _part(dataset: Dataset, name: str, team: Team) -> Split:
    """Return this process's share of a split to be evaluated."""
    split = dataset.split(name)
    return split.part(share(len(split), team.rank, team.size))


def _take_up(loop: Loop, checkpoint: Checkpoint, folder: Path, fingerprint: str) -> None:
    """Put ``loop`` where ``checkpoint`` was written; nothing on disk changes."""
    saved = _read_config(folder).get("data")
    if saved not in (None, fingerprint):
        raise DataError(
            f"the data are not those that the run in {folder} began with (now {fingerprint}, then "
            f"{saved}); point --data-dir at the same files"
        )
    loop.resume(checkpoint)
    if loop.progress.step > loop.total_steps:
        raise UserError(
            f"the run in {folder} is at step {loop.progress.step} already, beyond "
            f"{loop.total_steps}"
        )
    if loop.metrics.path is not None:
        loop.metrics = MetricsFile.reopen(loop.metrics.path, loop.progress.rows)


def _train(
    command: Command[SettingsT],
    settings: SettingsT,
    dataset: Dataset,
    preprocessing: Preprocessing,
    loop: Loop,
    test_loader: Loader,
    folder: Path,
) -> int:
    learner, total_steps = loop.learner, loop.total_steps
    if not settings.quiet:
        _announce(settings, dataset, learner, loop, folder)
    begun = loop.progress.step
    with _memory_for(f"training, in batches of {settings.batch_size} images"):
        done = loop.run()
    if not done:
        assert loop.stop_signal is not None
        if not loop.team.rank:
            print(
                f"stopped after step {loop.progress.step} of {total_steps}; go on with: "
                f"{command.invocation} --resume {shlex.quote(str(folder.absolute()))}",
                file=sys.stderr,
            )
        return 128 + loop.stop_signal
    if loop.best_weights:
        learner.load_weights(loop.best_weights)
    with _memory_for("the evaluation on the test images"):
        evaluation = evaluate(learner, test_loader, loop.team)
        certainties = None
        if settings.report:
            certainties = probabilities(learner, test_loader, dataset.n_classes, loop.team)
    if loop.team.rank:
        loop.team.agree_on("")  # to wait until process 0 has written: it is the one to fail
        return 0
    with _memory_for("the tables and pictures of the result"):
        measured = _measured(folder, begun) if begun == loop.progress.step else {}
        summary = _finish(folder, settings, dataset, preprocessing, loop, evaluation, measured)
        if certainties is not None:
            _report(folder, command, settings, dataset, loop, summary, evaluation, certainties)
    loop.team.agree_on("")
    best = summary["best_validation_accuracy"]
    print(
        f"test accuracy {summary['test_accuracy']:.4f}, test loss {summary['test_loss']:.4f}"
        + (f", best validation accuracy {best:.4f}" if best is not None else "")
        + f"; {summary['seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s"
        + f"\nrun folder: {folder}"
        + (f"\nreport: {folder / _REPORT}" if settings.report else "")
    )
    target = settings.target_accuracy
    if target is not None and evaluation.accuracy < target:
        print(
            f"test accuracy {summary['test_accuracy']:.4f} is below --target-accuracy {target:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def _finish(
    folder: Path,
    settings: SettingsT,
    dataset: Dataset,
    preprocessing: Preprocessing,
    loop: Loop,
    test: Evaluation,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Write summary, weights and pictures of the best weights there are.

    Args:
        measured: what is known of speed and memory from before, where nothing was trained.
    """
    progress = loop.progress
    confusions = count_confusions(test.predicted, dataset.test.labels, dataset.n_classes)
    scores = confusion_matrix_to_metrics(confusions)
    weights = loop.learner.weights()
    images = _images_seen(progress.step, loop.train_loader)
    summary = {
        "dataset": dataset.name,
        "test_accuracy": scores["accuracy"],
        "test_loss": test.loss,
        "best_validation_accuracy": progress.best_accuracy,
        "weights_of_step": progress.best_step if loop.best_weights else progress.step,
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(images / max(1e-9, progress.seconds - progress.eval_seconds), 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters": count_parameters(weights),
        "per_class": {
            name: {
                "precision": float(scores["precision"][i]),
                "recall": float(scores["recall"][i]),
                "f1": float(scores["f1_beta"][i]),
                "images": int(confusions[i].sum()),
            }
            for i, name in enumerate(dataset.class_names)
        },
        **measured,
    }
    write_atomically(folder / "summary.json", _json(summary))
    save_arrays(
        folder / "model.safetensors", weights, _model_metadata(settings, dataset, preprocessing)
    )
    _draw(folder, settings, dataset, loop, confusions, test.predicted)
    return summary


def _measured(folder: Path, step: int) -> dict[str, Any]:
    """Return what was measured when the run in ``folder`` came to ``step``, its end."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        names = ("seconds", "images_per_second", "peak_memory_bytes")
        return {name: summary[name] for name in names} if summary["steps"] == step else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _draw(
    folder: Path,
    settings: TrainSettings,
    dataset: Dataset,
    loop: Loop,
    confusions: NDArray[np.int64],
    predicted: NDArray[Any],
) -> None:
    # Matplotlib takes as long to import as a small network to train.
    from handgrad.pictures import plots

    accuracy = np.trace(confusions) / confusions.sum()
    title = (
        f"{dataset.name}, {settings.optimizer}, learning rate {settings.lr:g}, batches of "
        f"{settings.batch_size}: test accuracy {accuracy:.4f}"
    )
    best_step = loop.progress.best_step if loop.best_weights else 0
    rows, steps_per_epoch = loop.metrics.rows, len(loop.train_loader)
    for quantity in ("loss", "accuracy"):
        path = folder / f"{quantity}.png"
        plots.plot_curve(path, rows, quantity, steps_per_epoch, title, best_step)
    plots.plot_confusion_matrix(folder / "confusion_matrix.png", confusions, dataset.class_names)
    plots.plot_predictions(
        folder / "predictions.png",
        dataset.test.images,
        dataset.test.labels,
        predicted,
        dataset.class_names,
    )
    weight = loop.learner.first_layer()
    plots.plot_first_layer(folder / "first_layer.png", weight, dataset.image_shape)


def _report(
    folder: Path,
    command: Command[SettingsT],
    settings: SettingsT,
    dataset: Dataset,
    loop: Loop,
    summary: Mapping[str, Any],
    test: Evaluation,
    certainties: NDArray[np.float32],
) -> None:
    from handgrad.pictures import page
    from handgrad.runs.command_line import LOOKING, changed_settings, options_for, text_of

    changed = {n: v for n, v in changed_settings(settings).items() if n not in LOOKING}
    result = page.Result(
        folder=folder,
        settings={name: text_of(value) for name, value in asdict(settings).items()},
        defaults={name: text_of(default) for name, (_, default) in changed.items()},
        options=options_for(settings),
        config=_read_config(folder),
        summary=summary,
        rows=loop.metrics.rows,
        dataset=dataset,
        confusions=count_confusions(test.predicted, dataset.test.labels, dataset.n_classes),
        predicted=test.predicted,
        probabilities=certainties,
        first_layer=loop.learner.first_layer(),
        invocation=command.invocation,
    )
    page.write_report(folder / _REPORT, result)


def count_parameters(weights: Mapping[str, NDArray[Any]]) -> int:
    """Return the number of trained values; running statistics do not count."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(int(a.size) for name, a in weights.items() if not name.endswith(statistics))


def _announce(
    settings: SettingsT, dataset: Dataset, learner: Learner, loop: Loop, folder: Path
) -> None:
    sizes = ", ".join(
        f"{len(dataset.split(name)):,} {name}"
        for name in ("train", "validation", "test")
        if len(dataset.split(name))
    )
    print(f"{dataset.name}: {sizes} images of {'×'.join(map(str, dataset.image_shape))}")
    print(
        f"{count_parameters(learner.weights()):,} parameters, {settings.optimizer}, learning rate "
        f"{settings.lr:g}, {loop.total_steps:,} steps of {settings.batch_size} images"
    )
    if loop.progress.step:
        print(f"going on from step {loop.progress.step} of {folder}")


def _images_seen(step: int, loader: Loader) -> int:
    epochs, rest = divmod(step, len(loader))
    return epochs * len(loader.split) + min(len(loader.split), rest * loader.batch_size)


def _check_out(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise UserError(
                f"--out {out} exists and is not empty; choose another folder, or go on with the "
                f"run in it: --resume {out}"
            )
    elif out.exists():
        raise UserError(f"--out {out} is a file; a folder is expected")


def _make_folder(settings: SettingsT, name: str) -> Path:
    if settings.out is not None:
        folder = Path(settings.out)
    else:
        stem = f"runs/{name}-{settings.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = Path(stem)
        number = 2
        while folder.exists():
            folder, number = Path(f"{stem}-{number}"), number + 1
    try:
        # Of two that choose the same name at the same moment, one is told to choose again.
        folder.mkdir(parents=True, exist_ok=settings.out is not None)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder} ({error.strerror}); choose another with --out"
        ) from None
    return folder


def _settings_of_run(command: Command[SettingsT], backend: Backend[SettingsT]) -> SettingsT:
    """Return the settings of the run to be resumed, with this command's options on top."""
    assert command.resume is not None
    path = command.resume / "config.json"
    saved = _read_config(command.resume).get("settings")
    return override(settings_from_dict(type(command.settings), saved, str(path)), command.overrides)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of the run in ``folder``."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"--resume {folder}: no run there ({path} is missing)") from None
    except NotADirectoryError:
        raise DataError(f"--resume {folder} is a file; a run folder is expected") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} is damaged: it holds no settings")
    return config


def stillborn_files(folder: Path) -> list[Path]:
    """Return the files that a run may write before its first checkpoint."""
    written = [folder / "config.json", folder / "metrics.csv"]
    return [*written, *(temporary_path(path) for path in (*written, folder / _CHECKPOINT))]


def remove_stillborn(folder: Path) -> None:
    """Remove what a run wrote that ended before its first checkpoint, and nothing else."""
    with contextlib.suppress(OSError):
        for path in stillborn_files(folder):
            path.unlink(missing_ok=True)
        folder.rmdir()


def _model_metadata(
    settings: SettingsT, dataset: Dataset, preprocessing: Preprocessing
) -> dict[str, str]:
    """Return what a user of ``model.safetensors`` needs beside the weights, as JSON texts."""
    model = {
        key: value
        for key, value in asdict(settings).items()
        if key not in {field.name for field in dataclasses.fields(TrainSettings)}
    }
    return {
        "format": "handgrad-model-1",
        "model": json.dumps(
            {**model, "image_shape": dataset.image_shape, "class_names": dataset.class_names}
        ),
        "preprocessing": json.dumps(
            {"mean": preprocessing.mean.tolist(), "scale": preprocessing.scale.tolist()}
        ),
    }


def _json(value: Any) -> bytes:
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(entry) for key, entry in item.items()}
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return (json.dumps(plain(value), indent=2) + "\n").encode()
