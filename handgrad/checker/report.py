"""What was found, as a table in the terminal and as JSON."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def passed(results: Sequence[Result]) -> bool:
    """Say whether everything was checked and nothing is wrong."""
    return all(f["verdict"] == "ok" for result in results for f in result["findings"])


def lines(results: Sequence[Result], skipped: Mapping[str, str]) -> Iterator[str]:
    """Yield the report, a line at a time.

    Args:
        results: of the classes, as :mod:`handgrad.checker.child` writes them.
        skipped: classes that were not looked at, and why.
    """
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    verdicts = [{f["verdict"] for f in result["findings"]} for result in results]
    named = list(zip([result["class"] for result in results], verdicts, strict=True))
    wrong = [name for name, verdict in named if "WRONG" in verdict]
    unknown = [name for name, verdict in named if "NOT CHECKED" in verdict - {"WRONG"}]
    unknown = [name for name in unknown if name not in wrong]
    several_files = len({result["file"] for result in results}) > 1
    for result in results:
        yield _title(result, several_files)
        names = max((len(f["variable"]) for f in result["findings"]), default=0)
        for finding in result["findings"]:
            yield from _finding(finding, max(names, 6), width)
        for note in [*result["notes"], *_of_layers(result, wrong)]:
            yield from textwrap.wrap(
                f"note: {note}", width, initial_indent="  ", subsequent_indent="  "
            )
    for name, why in skipped.items():
        yield f"{name}  not looked at; {why}"
    right = sum(verdict <= {"ok"} for verdict in verdicts)
    yield ""
    yield f"{right} of {len(results)} right" + "".join(
        f"; {label}: {', '.join(names)}"
        for label, names in (("wrong", wrong), ("not checked", unknown))
        if names
    )


def _of_layers(result: Result, wrong: Sequence[str]) -> list[str]:
    """Return what is to be mended before a network is."""
    bad = [layer for layer in result["layers"] if layer in wrong]
    if not bad or all(finding["verdict"] == "ok" for finding in result["findings"]):
        return []
    return [f"it is made of {name}, which is wrong by itself" for name in bad]


def _title(result: Result, with_file: bool) -> str:
    if result["kind"] == "import":
        return str(result["class"])
    settings = ", ".join(
        str(value) if key.isdecimal() else f"{key}={value}"
        for key, value in result["settings"].items()
    )
    file = f"  {Path(result['file']).name}" if with_file else ""
    return f"{result['class']}({settings})  [{result['kind']}]{file}"


def _finding(finding: Mapping[str, Any], names: int, width: int) -> Iterator[str]:
    head = f"  {finding['variable']:<{names}}  {finding['verdict']:<5}"
    if finding["error"] is not None and finding["where"] is not None:
        where = "(" + ", ".join(map(str, finding["where"])) + ")"
        head += (
            f"  worst relative error {finding['error']:.1e} at {where}: "
            f"backward {finding['analytic']:.8g}, numerical {finding['numerical']:.8g}"
        )
    yield head.rstrip()
    if finding["diagnosis"]:
        text = f"{finding['diagnosis']}: {finding['explanation']}"
        if finding["point"]:
            text += f" [{finding['point']}]"
        indent = " " * (names + 4)
        yield from textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
