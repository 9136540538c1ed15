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
_FORMATS = (".png", ".svg", ".pdf", ".html")
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
        help="whose curves (default, for each dataset: validation or test, what more runs have)",
    )
    parser.add_argument("--over", choices=_OVER, default="steps", help="x axis (default: steps)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs.png"),
        metavar="FILE",
        help="picture to write, .png, .svg or .pdf, or .html for a page (default: runs.png)",
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
    from handgrad.runs.comparison import write_comparison
    from handgrad.runs.overlay import make_panels, plot_panels, table

    runs = []
    for folder in find_runs(arguments.runs):
        try:
            runs.append(read_run(folder))
        except DataError as error:
            print(printable(f"left out: {error}"), file=sys.stderr)
    if not runs:
        raise UserError("no run is left to draw")
    panels = make_panels(runs, _DEFAULTS, arguments.split)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(table(panels, columns)))
    drawn = [panel for panel in panels if any(map(panel.has, panel.runs))]
    if not drawn:
        raise UserError(f"--split {arguments.split}: none of these runs was evaluated on it")
    for panel in panels:
        for run in panel.runs:
            if not panel.has(run):
                missing = printable(f"not drawn: {run.folder} has no evaluation of {panel.split}")
                print(missing, file=sys.stderr)
    write = write_comparison if arguments.out.suffix.lower() == ".html" else plot_panels
    write(arguments.out, drawn, _OVER[arguments.over])
    told = ", ".join(f"{panel.split} curves of {panel.dataset}" for panel in drawn)
    print(printable(f"{arguments.out}: {told}"))
    return 0
