"""Prove a backward pass, or say where it is wrong and what kind of wrong it looks like.

TARGET is a file, file.py:ClassName, or a package (a folder or a dotted name). Looked for are
modules in the course's style (forward, backward, params, grads), losses, torch.autograd.Functions,
nn.Modules around them, and Ops of a graph engine. Every gradient is compared with differences of
the forward pass in float64, at random parameters, with a random upstream gradient and sizes that
differ.

The code is run as it is, in a process of its own.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handgrad.checker.guesses import parse_arguments
from handgrad.checker.process import Outcome, check
from handgrad.checker.report import Report
from handgrad.console import Parser, command
from handgrad.errors import UserError
from handgrad.files import user_path

_LARGEST = 2_000  # entries of an input: each costs four forward passes


def _target(text: str) -> tuple[Path, list[str]]:
    """Return the path and the class names in TARGET."""
    if not text:
        raise UserError("TARGET is empty; give a .py file, file.py:ClassName, or a package")
    name, classes = text, ""
    head, colon, tail = text.rpartition(":")
    if colon and all(word.isidentifier() for word in tail.split(",")):
        name, classes = head, tail
    path = user_path(name)
    if not path.exists():
        path = _package(name) or path
    expected = "TARGET is a .py file, file.py:ClassName, or a package"
    if not path.exists():
        raise UserError(f"{path} does not exist; {expected}")
    if path.is_file() and path.suffix != ".py":
        raise UserError(f"{path} is no Python file; TARGET is a .py file, or a package")
    return path, [word for word in classes.split(",") if word]


def _package(name: str) -> Path | None:
    """Return where a package or module of a dotted name is, or None."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    if spec is None or not spec.origin or not Path(spec.origin).exists():
        return None
    origin = Path(spec.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def _arguments(text: str) -> str:
    try:
        parse_arguments(text)
    except ValueError:
        raise UserError(
            f"--init {text!r} is not a list of plain arguments; expected the like of "
            f"--init '4, 3, alpha=0.5'"
        ) from None
    return text


def _shape(text: str) -> list[int]:
    parts = [part.strip() for part in text.strip("() ,").split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--input-shape {text!r} is not a shape; expected the like of 5,4")
    return not_too_large([int(part) for part in parts], f"--input-shape {text}")


def not_too_large(shape: list[int], says: str) -> list[int]:
    """Return a shape whose entries can be looked at; UserError, which ``says`` begins, if not."""
    if (size := math.prod(shape)) > _LARGEST:
        raise UserError(
            f"{says} has {size:,} entries, each of which costs four forward passes; take at most "
            f"{_LARGEST:,}: a small input shows as much"
        )
    return shape


def limits(given: Any, says: str, like: str) -> tuple[float, float]:
    """Return the lowest and the highest value of an input; UserError if they are none."""
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not -1e9 < low < high < 1e9:
        raise UserError(f"{says} is not a range; expected the like of {like}")
    return low, high


def number(option: str, given: Any, most: float) -> float:
    """Return a number above 0, up to ``most``; UserError if it is none."""
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 < value <= most:
        raise UserError(
            f"{option} {given} is out of range; expected a number above 0, up to {most:g}"
        )
    return value


@command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = Parser(
        prog="check-gradients",
        description=__doc__,
    )
    parser.add_argument("target", metavar="TARGET", nargs="+", help="what to check")
    parser.add_argument("--init", metavar="ARGS", help="constructor arguments: '4, 3, alpha=0.5'")
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="N,D",
        help="shape of the input; once for each where there are several",
    )
    parser.add_argument(
        "--input-range", metavar="LOW,HIGH", help="values of the inputs, where not all are allowed"
    )
    parser.add_argument(
        "--tolerance", default="1e-6", metavar="E", help="largest relative error (default: 1e-6)"
    )
    parser.add_argument(
        "--time-limit", default="60", metavar="S", help="seconds a class may take (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args(_with_negative_ranges(argv))
    text = arguments.input_range
    says = f"--input-range {text!r}"
    order = {
        "init": _arguments(arguments.init or ""),
        "shapes": [_shape(text) for text in arguments.input_shape],
        "range": None if text is None else limits(text.split(","), says, "0.1,0.9"),
        "tolerance": number("--tolerance", arguments.tolerance, 1.0),
    }
    time_limit = number("--time-limit", arguments.time_limit, 86_400.0)
    report = check_targets(arguments.target, order, time_limit)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    return 0 if report.passed else 1


def check_targets(targets: Sequence[str], order: dict[str, Any], time_limit: float) -> Report:
    """Check files, packages and classes in them, in processes of their own.

    Raises:
        UserError: one of them is not there, or holds nothing to check.
    """
    report = Report(order["tolerance"])
    for path, names in [_target(text) for text in targets]:
        outcome = check(path, {**order, "names": names}, time_limit)
        if all(result["kind"] != "import" for result in outcome.results):
            for name in names:
                if name not in outcome.classes:
                    raise UserError(_missing(path, name, outcome))
            if not outcome.results:
                raise UserError(
                    f"{path} holds nothing to check: no class with forward and backward"
                )
        report.results += outcome.results
        report.skipped |= {} if names else outcome.skipped
    return report


def _with_negative_ranges(argv: Sequence[str]) -> list[str]:
    """Return the arguments with ``--input-range -1,1`` as argparse would have it."""
    words = list(argv)
    for i in range(len(words) - 1, 0, -1):
        if words[i - 1] == "--input-range":
            words[i - 1 : i + 1] = [f"--input-range={words[i]}"]
    return words


def _missing(path: Path, name: str, outcome: Outcome) -> str:
    if name in outcome.skipped:
        return f"{name} in {path} cannot be checked: it is {outcome.skipped[name]}"
    close = difflib.get_close_matches(name, outcome.classes, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(outcome.classes)}"
    return f"{path} has no class {name} with forward and backward; {hint}"
