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
import sys
from collections.abc import Sequence
from pathlib import Path

from handgrad.checker.guesses import parse_arguments
from handgrad.checker.process import Outcome, check
from handgrad.checker.report import lines, passed
from handgrad.console import Parser, guarded
from handgrad.errors import UserError

_LARGEST = 2_000  # entries of an input: each costs four forward passes


def _target(text: str) -> tuple[Path, list[str]]:
    """Return the path and the class names in TARGET."""
    if not text:
        raise UserError("TARGET is empty; give a .py file, file.py:ClassName, or a package")
    path, names = text, ""
    head, colon, tail = text.rpartition(":")
    if colon and all(name.isidentifier() for name in tail.split(",")):
        path, names = head, tail
    if not Path(path).exists() and all(part.isidentifier() for part in path.split(".")):
        try:
            spec = importlib.util.find_spec(path)
        except ImportError:
            spec = None
        if spec is not None and spec.origin and Path(spec.origin).exists():
            origin = Path(spec.origin)
            return (origin.parent if origin.name == "__init__.py" else origin), _split(names)
    if not Path(path).exists():
        raise UserError(
            f"{path} does not exist; TARGET is a .py file, file.py:ClassName, or a package"
        )
    if Path(path).is_file() and not path.endswith(".py"):
        raise UserError(f"{path} is no Python file; TARGET is a .py file, or a package")
    return Path(path), _split(names)


def _split(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


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
    shape = [int(part) for part in parts]
    size = 1
    for length in shape:
        size *= length
    if size > _LARGEST:
        raise UserError(
            f"--input-shape {text} has {size:,} entries, each of which costs four forward passes; "
            f"take at most {_LARGEST:,}: a small input shows as much"
        )
    return shape


def _range(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not -1e9 < low < high < 1e9:
        raise UserError(f"--input-range {text!r} is not a range; expected the like of 0.1,0.9")
    return [low, high]


def _number(option: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= most:
        raise UserError(
            f"{option} {text} is out of range; expected a number above 0, up to {most:g}"
        )
    return value


def _main(argv: Sequence[str] | None) -> int:
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
    arguments = parser.parse_args(_with_negative_ranges(sys.argv[1:] if argv is None else argv))
    order = {
        "init": _arguments(arguments.init or ""),
        "shapes": [_shape(text) for text in arguments.input_shape],
        "range": _range(arguments.input_range),
        "tolerance": _number("--tolerance", arguments.tolerance, 1.0),
    }
    time_limit = _number("--time-limit", arguments.time_limit, 86_400.0)
    targets = [_target(text) for text in arguments.target]
    whole = Outcome()
    for path, names in targets:
        outcome = check(path, {**order, "names": names}, time_limit)
        if all(result["kind"] != "import" for result in outcome.results):
            for name in names:
                if name not in outcome.classes:
                    raise UserError(_missing(path, name, outcome))
            if not outcome.results:
                raise UserError(
                    f"{path} holds nothing to check: no class with forward and backward"
                )
        whole.results += outcome.results
        whole.skipped |= {} if names else outcome.skipped
    if arguments.json:
        report = {
            "passed": passed(whole.results),
            "tolerance": order["tolerance"],
            "classes": whole.results,
            "skipped": whole.skipped,
        }
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(lines(whole.results, whole.skipped)))
    return 0 if passed(whole.results) else 1


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
