"""Train what the course reports trained, seed by seed, and write a page of the results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from handgrad.console import Parser, command
from handgrad.errors import UserError
from handgrad.files import locked
from handgrad.reproduction.reproduce import chosen, reproduce
from handgrad.reproduction.rows import SECTIONS
from handgrad.seeding import LARGEST_SEED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="handgrad reproduce",
        description=__doc__,
        epilog="Runs that are finished are not run again, an interrupted one goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="as of the training commands")
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="where the runs are kept (default: runs/reproduce; with --quick runs/reproduce-quick)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results.md and its pictures go (default: the folder of --runs)",
    )
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="run this row; may be given several times"
    )
    parser.add_argument("--seeds", nargs="+", metavar="N", help="run these seeds of every row")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="shortened trainings of one seed, some minutes in all: shows that every row works",
    )
    arguments = parser.parse_args(argv)
    for seed in arguments.seeds or ():
        if not seed.isdecimal() or len(seed) > 20 or int(seed) > LARGEST_SEED:
            raise UserError(f"--seeds {seed}: expected whole numbers from 0 to {LARGEST_SEED}")
    default = Path("runs/reproduce-quick" if arguments.quick else "runs/reproduce")
    arguments.runs = arguments.runs or default
    arguments.out = arguments.out or arguments.runs
    for option in ("runs", "out"):
        folder = getattr(arguments, option)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--{option} {folder} is a file; a folder is expected")
    if arguments.data_dir is not None:
        arguments.data_dir = arguments.data_dir.absolute()
        if not arguments.data_dir.is_dir():
            raise UserError(f"--data-dir {arguments.data_dir} is not a folder; name one that is")
    return arguments


@command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = _parse(argv)
    if arguments.list:
        for section in SECTIONS:
            print(section.title)
            for e in section.experiments:
                seeds = f"{len(e.seeds)} seed{'s' * (len(e.seeds) > 1)}"
                print(f"  {e.name:<18} {e.command}  ({seeds}; reported: {e.said})")
        return 0
    chosen(arguments.only)  # a mistyped name makes no folder
    arguments.runs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(arguments.runs))
        except UserError:  # speaks of a training
            raise UserError(
                f"another reproduce is at work in {arguments.runs}; wait until it ends, or choose "
                "another place with --runs"
            ) from None
        return reproduce(arguments)
