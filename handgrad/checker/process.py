"""Check a target in processes of its own, and keep what they tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from handgrad.checker import child
from handgrad.checker.check import Finding
from handgrad.user_code.isolated import Ending, run_isolated


@dataclass
class Outcome:
    """What came of a target."""

    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)


def check(path: Path, order: dict[str, Any], time_limit: float) -> Outcome:
    """Check a target in processes of its own: a new one after each crash and each time-out.

    Args:
        path: a file or a folder.
        order: what :func:`handgrad.checker.child.main` takes, less what was done.
        time_limit: seconds that importing a file, or a class, may take.
    """
    outcome = Outcome()
    while True:
        done = [result["key"] for result in outcome.results]
        asked = {**order, "path": str(path), "done": done}
        ending = run_isolated(child.main, asked, time_limit, quiet=True)
        begun = _taken_down(ending, outcome)
        if begun is None:
            return outcome
        finding = _unfinished(ending, path, time_limit)
        nothing: dict[str, Any] = {"settings": {}, "seconds": None, "notes": [], "layers": []}
        outcome.results.append({**begun, **nothing, "findings": [finding]})


def _taken_down(ending: Ending, outcome: Outcome) -> dict[str, Any] | None:
    """Add what a process has found to ``outcome``; return what it had begun when it died, if so."""
    begun: dict[str, Any] | None = None
    for event in ending.events:
        kind = event.pop("event")
        begun = event if kind == "begun" else None
        if kind == "found":
            outcome.classes, outcome.skipped = event["classes"], event["skipped"]
        elif kind == "result":
            outcome.results.append(event)
        elif kind == "done":
            return None
    if begun is None:  # not while it ran a user's code
        raise RuntimeError(f"the process that checks ended by itself: {_last(ending)}")
    return begun


def _last(ending: Ending) -> str:
    return (ending.said.strip().splitlines() or [""])[-1]


def _unfinished(ending: Ending, path: Path, time_limit: float) -> dict[str, Any]:
    """Return the finding for what a process that died had begun."""
    place = ""
    if at := ending.place(path):
        place = f"{Path(at[0]).name}, line {at[1]}, in {at[2]}"
    if ending.late:
        diagnosis = "time-out"
        why = f"did not finish within {time_limit:g} s (--time-limit): an endless loop?"
        why += f" It was at {place}" if place else ""
    else:
        diagnosis, why = "crash", f"this code ended its process with {ending.cause}"
        why += f", at {place}" if place else ""
        why += f": {_last(ending)}" if _last(ending) and ending.status > 0 else ""
    return asdict(Finding("", "WRONG", diagnosis, why))
