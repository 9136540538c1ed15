"""Draw the loss and accuracy of several runs over one another, and print their results."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from handgrad.backends.registry import NETWORKS
from handgrad.console import Parser, command, printable
from handgrad.errors import DataError, UserError
from handgrad.pictures.curves import SPLITS
from handgrad.runs.record import find_runs, read_run

_OVER = {"steps": "step", "epochs": "epoch", "seconds": "seconds"}
_FORMATS = (".png", ".svg", ".pdf")
_DEFAULTS = {
    field.name: field.default
    for network in reversed(NETWORKS.values())
    for field in dataclasses.fields(network.settings)
}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="plot-runs", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or one with runs below"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="whose curves (default: what most runs have, validation before test before train)",
    )
    parser.add_argument("--over", choices=_OVER, default="steps", help="x axis (default: steps)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs.png"),
        metavar="FILE",
        help="picture to write: .png, .svg or .pdf (default: runs.png)",
    )
    return parser.parse_args(argv)


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in _FORMATS:
        raise UserError(f"--out {out}: expected a name that ends in {', '.join(_FORMATS)}")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; a file is expected")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; make it first")


@command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = _parse(argv)
    _check_out(arguments.out)
    # Only now: Matplotlib takes a while to import.
    from handgrad.runs.overlay import group_runs, plot_groups, table

    runs = []
    for folder in find_runs(arguments.runs):
        try:
            runs.append(read_run(folder))
        except DataError as error:
            print(printable(f"left out: {error}"), file=sys.stderr)
    if not runs:
        raise UserError("no run is left to draw")
    having = {split: [r for r in runs if any(x.split == split for x in r.rows)] for split in SPLITS}
    preferred = ("validation", "test", "train")
    split = arguments.split or max(preferred, key=lambda name: len(having[name]))
    groups = group_runs(runs, _DEFAULTS)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(table(groups, columns)))
    if not having[split]:
        raise UserError(f"--split {split}: none of these runs was evaluated on it")
    for run in runs:
        if run not in having[split]:
            missing = printable(f"not drawn: {run.folder} has no evaluation of {split}")
            print(missing, file=sys.stderr)
    plot_groups(arguments.out, groups, split, _OVER[arguments.over])
    print(printable(f"{split} curves: {arguments.out}"))
    return 0
