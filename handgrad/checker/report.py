"""What was found, as a table in the terminal and as JSON."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handgrad.checker.check import Finding
from handgrad.checker.child import NEEDS_TORCH

_Result = Mapping[str, Any]


@dataclass(repr=False)
class Report:
    """What was found of one class, or of several; printed, it is the text of ``check-gradients``.

    Attributes:
        tolerance: largest relative error that passes.
        results: of the classes, as :mod:`handgrad.checker.child` tells of them.
        skipped: classes that were not looked at, and why.
        single: whether it is about one class, by itself.
    """

    tolerance: float
    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    single: bool = False

    @property
    def passed(self) -> bool:
        """Whether everything was checked and nothing is wrong."""
        return all(finding.passed for finding in self.findings)

    @property
    def findings(self) -> list[Finding]:
        """What was found of each input and parameter, one class after another."""
        found = [finding for result in self.results for finding in result["findings"]]
        return [Finding(**f | {"where": f["where"] and tuple(f["where"])}) for f in found]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints; of one class by itself, its entry there."""
        if self.single:
            return self.results[0]
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "classes": self.results,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self.results, self.skipped))

    __repr__ = __str__  # what a notebook shows


def _lines(results: Sequence[_Result], skipped: Mapping[str, str]) -> Iterator[str]:
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    verdicts = [{f["verdict"] for f in result["findings"]} for result in results]
    named = list(zip([result["class"] for result in results], verdicts, strict=True))
    wrong = [name for name, verdict in named if "WRONG" in verdict]
    unknown = [name for name, verdict in named if "NOT CHECKED" in verdict and name not in wrong]
    several_files = len({result["file"] for result in results}) > 1
    for result in results:
        title = _title(result, several_files)
        if result["findings"] and result["findings"][0]["diagnosis"] == NEEDS_TORCH:
            yield f"{title}  not checked; {result['findings'][0]['explanation']}"
            continue
        yield from textwrap.wrap(title, width, subsequent_indent="    ")
        names = max((len(f["variable"]) for f in result["findings"]), default=0)
        for finding in result["findings"]:
            yield from _finding(finding, max(names, 6), width)
        notes = [*result["notes"]]
        if any(f["verdict"] != "ok" for f in result["findings"]):  # what is to be mended first
            bad = [layer for layer in result["layers"] if layer in wrong]
            notes += [f"it is made of {layer}, which is wrong by itself" for layer in bad]
        for note in notes:
            yield from _wrapped(f"note: {note}", width, "  ")
    for name, why in skipped.items():
        yield f"{name}  not looked at; {why}"
    right = sum(verdict <= {"ok"} for verdict in verdicts)
    yield ""
    total = f"{right} of {len(results)} right" + "".join(
        f"; {label}: {', '.join(names)}"
        for label, names in (("wrong", wrong), ("not checked", unknown))
        if names
    )
    yield from textwrap.wrap(total, width, subsequent_indent="  ")


def _title(result: _Result, with_file: bool) -> str:
    if result["kind"] == "import":
        return str(result["class"])
    settings = ", ".join(
        str(value) if key.isdecimal() else f"{key}={value}"
        for key, value in result["settings"].items()
    )
    file = f"  {Path(result['file']).name}" if with_file else ""
    return f"{result['class']}({settings})  [{result['kind']}]{file}"


def _finding(finding: _Result, names: int, width: int) -> Iterator[str]:
    head = f"  {finding['variable']:<{names}}  {finding['verdict']:<5}"
    if finding["error"] is not None and finding["where"] is not None:
        where = "(" + ", ".join(map(str, finding["where"])) + ")"
        head += f"  worst relative error {finding['error']:.1e} at {where}:"
        values = f"backward {finding['analytic']:.8g}, numerical {finding['numerical']:.8g}"
        if len(head) + 1 + len(values) <= width:
            head += f" {values}"
        else:
            yield head
            head = " " * (names + 11) + values
    yield head.rstrip()
    if finding["diagnosis"]:
        text = f"{finding['diagnosis']}: {finding['explanation']}"
        if finding["point"]:
            text += f" [{finding['point']}]"
        yield from _wrapped(text, width, " " * (names + 4))


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
