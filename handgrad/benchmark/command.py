"""Measure what things cost, as ratios within one run: in turn, medians, with their spread."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from handgrad.benchmark import convnets, norms, steps
from handgrad.benchmark import whole_commands as runs
from handgrad.benchmark.report import Report
from handgrad.console import Parser, command
from handgrad.errors import UserError

_COMMANDS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "step": steps.step,
    "growth": steps.growth,
    "engine": steps.engine,
    "convnet": convnets.convnet,
    "norm": norms.norm,
    "run": runs.run,
    "loader": runs.loader,
}


def _positive(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{option} {text} is out of range; expected a whole number, 1 or more")
    return int(text)


@command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    subjects = "\n".join(f"  {name:<8} {(f.__doc__ or '')}" for name, f in _COMMANDS.items())
    parser = Parser(
        prog="handgrad benchmark",
        description=f"{__doc__}\n\nsubjects:\n{subjects}",
    )
    parser.add_argument("what", choices=_COMMANDS, metavar="SUBJECT", help="what to measure")
    parser.add_argument("--repeats", default="20", metavar="N", help="rounds (default: 20)")
    parser.add_argument(
        "--threads", default="2", metavar="N", help="threads of everyone (default: 2)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where CIFAR-10 is (default: HANDGRAD_DATA_DIR)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), metavar="DIR")
    arguments = parser.parse_args(argv)
    arguments.repeats = _positive("--repeats", arguments.repeats)
    arguments.threads = _positive("--threads", arguments.threads)
    report = _COMMANDS[arguments.what](arguments)
    report.print()
    report.write(arguments.out)
    print(f"written to {arguments.out / report.name}.json and .png")
    return 0
