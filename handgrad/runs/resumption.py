"""What is to be said of a run that is taken up again: it is done, or goes on differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from handgrad.errors import DataError, UserError
from handgrad.files import read_json
from handgrad.runs.backend import Backend
from handgrad.runs.folder import MODEL, REPORT, SUMMARY, read_config
from handgrad.runs.result import PICTURES
from handgrad.runs.settings import TrainSettings


def config_of(folder: Path, text: str) -> dict[str, Any]:
    """Return ``config.json`` of the run in ``folder``, to be resumed by the command ``text``.

    Raises:
        UserError: there is none, it is damaged, or another command began the run.
    """
    config = read_config(folder)
    commands = config.get("commands")
    first = commands[0] if isinstance(commands, list) and commands else text
    began, now = str(first).split(" ")[0], text.split(" ")[0]
    if began != now:
        raise UserError(f"the run in {folder} is one of {began}, not of {now}")
    return config


def check_end(folder: Path, settings: TrainSettings, step: int, steps_per_epoch: int) -> None:
    """Raise UserError where the run in ``folder`` is beyond the end that ``settings`` give it."""
    if step > settings.total_steps(steps_per_epoch):
        at = f"epoch {step / steps_per_epoch:.2f}" if settings.epochs else f"step {step}"
        raise UserError(
            f"the run in {folder} is at {at} already, beyond {settings.end}; give more to extend "
            f"it, or leave it out"
        )


def whole_result(folder: Path, step: int, *, report: bool) -> dict[str, Any] | None:
    """Return the summary of the result at ``step``; None unless all of the result is there.

    Args:
        folder: of the run.
        step: the run's last.
        report: whether a page is part of it.
    """
    names = [MODEL, *PICTURES, *([REPORT] if report else [])]
    try:
        summary = read_json(folder / SUMMARY)
    except DataError:
        return None
    whole = all((folder / name).is_file() for name in names)
    has_accuracy = isinstance(summary.get("test_accuracy"), float)
    return summary if whole and has_accuracy and summary.get("steps") == step else None


def finished_line(folder: Path, settings: TrainSettings, summary: Mapping[str, Any]) -> str:
    """Return what is to be said of a run that is done."""
    return (
        f"the run in {folder} is finished, with {settings.end} and a test accuracy of "
        f"{summary['test_accuracy']:.4f}; a larger {settings.end.partition(' ')[0]} extends it"
    )


def changed_course(
    backend: Backend[Any],
    before: TrainSettings,
    now: TrainSettings,
    step: int,
    steps_per_epoch: int,
) -> Iterator[str]:
    """Yield a line if the learning rate, from ``step`` on, is not what it was to be.

    Args:
        backend: that trains.
        before: the settings so far.
        now: those from here on.
        step: where the run goes on.
        steps_per_epoch: of both.
    """
    old_end, end = before.total_steps(steps_per_epoch), now.total_steps(steps_per_epoch)
    old, new = backend.schedule(before, old_end), backend.schedule(now, end)
    for at in (step, min(old_end, end - 1)):  # it may jump here, or later be another
        if step <= at < end and old(at) != new(at):
            break
    else:
        return
    line = f"the learning rate changes from {old(at):g} to {new(at):g} at step {at}, as the "
    if now.schedule_steps != before.schedule_steps:
        yield f"{line}{now.schedule} schedule now spans --schedule-steps {now.schedule_steps}"
        return
    last = f"{old(old_end):g}" if old(old_end) else "0, at which nothing is learned"
    yield (
        f"{line}{now.schedule} schedule now spans {now.end} instead of {before.end}; to keep to "
        f"the old schedule, and after its end to its last rate ({last}), add "
        f"--schedule-steps {old_end}"
    )


def changed_circumstances(
    began: Mapping[str, int | None], now: Mapping[str, int | None]
) -> Iterator[str]:
    """Yield a line for each number of what computes together that is not what it was.

    Args:
        began: the numbers that the run began with.
        now: those from here on; None where nobody knows, or it does not matter.
    """
    for name, one in {"threads": "thread", "processes": "process"}.items():
        then, here = began.get(name), now.get(name)
        if None not in (then, here) and then != here:
            advice = f"; --threads {then} keeps them" if name == "threads" else ""
            yield (
                f"the run began with {then} {one if then == 1 else name} and goes on with {here}: "
                f"the last bits of its numbers will be others than if it had never stopped{advice}"
            )
