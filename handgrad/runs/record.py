"""What the folder of a run says, read while another process may be training in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handgrad.errors import DataError, UserError
from handgrad.files import read_json
from handgrad.pictures.curves import SPLITS
from handgrad.training.metrics import Row, read_metrics


@dataclass(frozen=True)
class RunRecord:
    """What the folder of a run says.

    Attributes:
        folder: where it is.
        program: the command that trained it.
        settings: by name.
        rows: of ``metrics.csv``, as far as they are whole.
        summary: of ``summary.json``; None while the run is not finished.
    """

    folder: Path
    program: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    summary: Mapping[str, Any] | None

    @property
    def last_step(self) -> int:
        """Step of the last evaluation."""
        return max((row.step for row in self.rows), default=0)

    @property
    def best_validation(self) -> float | None:
        """Best validation accuracy so far; None without a validation split."""
        return max((r.accuracy for r in self.rows if r.split == "validation"), default=None)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the folders of runs among ``paths`` and below those that are none, each once.

    Raises:
        UserError: a path does not exist, or there is no run below it.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            state = "is a file; a folder is expected" if path.exists() else "does not exist"
            raise UserError(f"{path} {state}; give the folder of a run, or one with runs below it")
        runs = [path] if _is_run(path) else sorted(p.parent for p in path.rglob("config.json"))
        if not runs:
            raise UserError(f"{path} is no run, and there is none below it: no config.json")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / "metrics.csv").exists()


def read_run(folder: Path) -> RunRecord:
    """Return what ``folder`` says; another process may be training in it.

    Raises:
        DataError: a file is missing or damaged, or there is no evaluation yet.
    """
    config = read_json(folder / "config.json")
    settings, commands = config.get("settings"), config.get("commands")
    if not isinstance(settings, dict):
        raise DataError(f"{folder / 'config.json'} is damaged: it holds no settings")
    if type(settings.get("seed", 0)) is not int:
        raise DataError(f"{folder / 'config.json'} is damaged: its seed is {settings['seed']!r}")
    words = str(commands[0]).split() if isinstance(commands, list) and commands else []
    path = folder / "metrics.csv"
    try:
        # The last row may be half written yet: whole rows end in a newline.
        n_rows = path.read_bytes().count(b"\n") - 1
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    rows = read_metrics(path, max(0, n_rows))
    if not any(row.split in SPLITS for row in rows):
        raise DataError(f"{folder} has no evaluation of {', '.join(SPLITS)} yet")
    summary = None
    if (folder / "summary.json").exists():
        summary = read_json(folder / "summary.json")
        for name in ("steps", "test_accuracy", "seconds"):
            value: Any = summary.get(name)
            if type(value) not in (int, float) or not -(2**63) < value < 2**63:
                found = f"its {name} is {summary.get(name)!r}"
                raise DataError(f"{folder / 'summary.json'} is damaged: {found}")
        if summary["steps"] < max(row.step for row in rows):  # it goes on since
            summary = None
    return RunRecord(folder, words[0] if words else "", settings, rows, summary)
