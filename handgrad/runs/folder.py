"""The folder of a run: made, looked at, and cleaned up where nothing came of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handgrad.errors import DataError, StorageError, UserError
from handgrad.files import temporary_path, user_path
from handgrad.runs.settings import TrainSettings
from handgrad.training.checkpoint import Checkpoint

CHECKPOINT, CONFIG, METRICS = "checkpoint.safetensors", "config.json", "metrics.csv"
MODEL, REPORT, SUMMARY = "model.safetensors", "report.html", "summary.json"


def data_folder(settings: TrainSettings) -> Path | None:
    """Return ``--data-dir``, absolute, so that a run can be resumed from any folder.

    Raises:
        UserError: there is no such folder.
    """
    if settings.data_dir is None:
        return None
    folder = user_path(settings.data_dir).absolute()
    if not folder.is_dir():
        state = "is a file; a folder is expected" if folder.exists() else "does not exist"
        hint = "" if folder.exists() else "; make it first if the data are to go there"
        raise UserError(f"--data-dir {settings.data_dir} {state}{hint}")
    return folder


def check_out(out: Path) -> None:
    """Raise UserError unless a run can begin in the folder ``out``."""
    if out.is_dir():
        if any(out.iterdir()):
            raise UserError(
                f"--out {out} exists and is not empty; choose another folder, or go on with the "
                f"run in it: --resume {out}"
            )
    elif out.exists():
        raise UserError(f"--out {out} is a file; a folder is expected")


def make_folder(settings: TrainSettings, name: str) -> Path:
    """Make the folder of a run, ``--out`` or one named after ``name``, dataset and time.

    Raises:
        UserError: nothing can be written there.
    """
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


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of the run in ``folder``.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"--resume {folder}: no run there ({path} is missing)") from None
    except NotADirectoryError:
        raise DataError(f"--resume {folder} is a file; a run folder is expected") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} is damaged: it holds no settings")
    return config


def to_json(value: Any) -> bytes:
    """Return a value as JSON, which knows no NaN and no infinity: they become null."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(entry) for key, entry in item.items()}
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return (json.dumps(plain(value), indent=2) + "\n").encode()


@contextmanager
def memory_for(what: str) -> Iterator[None]:
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
def storage(folder: Path, go_on: str) -> Iterator[None]:
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
            step = Checkpoint.load(folder / CHECKPOINT).progress["step"]
            kept = (
                f"the checkpoint of step {step} is whole; once that is mended, go on with: {go_on}"
            )
        raise StorageError(
            f"cannot write {error.filename}: {error.strerror or error}; {kept}"
        ) from None


def stillborn_files(folder: Path) -> list[Path]:
    """Return the files that a run may write before its first checkpoint."""
    written = [folder / CONFIG, folder / METRICS]
    return [*written, *(temporary_path(path) for path in (*written, folder / CHECKPOINT))]


def remove_stillborn(folder: Path) -> None:
    """Remove what a run wrote that ended before its first checkpoint, and nothing else."""
    with contextlib.suppress(OSError):
        for path in stillborn_files(folder):
            path.unlink(missing_ok=True)
        folder.rmdir()
