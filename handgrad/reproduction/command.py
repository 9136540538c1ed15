"""Train what the course reports trained, seed by seed, and write a page of the results."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from handgrad.console import Parser, guarded
from handgrad.errors import DataError, UserError
from handgrad.files import write_atomically
from handgrad.lock import locked
from handgrad.reproduction.page import duration, write_page
from handgrad.reproduction.rows import SECTIONS, Experiment
from handgrad.reproduction.runs import Commands, Result, Run

_LARGEST_SEED = 10**9  # as of the training commands


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="reproduce",
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
        if not seed.isdecimal() or int(seed) > _LARGEST_SEED:
            raise UserError(f"--seeds {seed}: expected whole numbers from 0 to {_LARGEST_SEED}")
    default = Path("runs/reproduce-quick" if arguments.quick else "runs/reproduce")
    arguments.runs = arguments.runs or default
    arguments.out = arguments.out or arguments.runs
    for option in ("runs", "out"):
        folder = getattr(arguments, option)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--{option} {folder} is a file; a folder is expected")
    if arguments.data_dir is not None:
        arguments.data_dir = arguments.data_dir.expanduser().absolute()
        if not arguments.data_dir.is_dir():
            raise UserError(f"--data-dir {arguments.data_dir} is not a folder; name one that is")
    return arguments


def _chosen(names: Sequence[str] | None) -> list[Experiment]:
    """Return the rows to be run, the short ones first."""
    every = {e.name: e for section in SECTIONS for e in section.experiments}
    for name in names or ():
        if name not in every:
            close = difflib.get_close_matches(name, every, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of: {', '.join(every)}"
            raise UserError(f"--only {name!r} is unknown; {hint}")
    return sorted((every[name] for name in dict.fromkeys(names or every)), key=lambda e: e.minutes)


class _Reproduction:
    """The runs, and the page about them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._every = [e for section in SECTIONS for e in section.experiments]

    def seeds(self, experiment: Experiment) -> Sequence[int]:
        """Return the seeds of an experiment."""
        if self._arguments.seeds:
            return list(dict.fromkeys(int(seed) for seed in self._arguments.seeds))
        return experiment.seeds[:1] if self._arguments.quick else experiment.seeds

    def runs(self, experiment: Experiment) -> list[Run]:
        """Return the runs of an experiment."""
        folder, quick = self._arguments.runs, self._arguments.quick
        return [Run(experiment, seed, folder, quick) for seed in self.seeds(experiment)]

    def _finished(self, experiment: Experiment) -> dict[int, Result]:
        """Return the finished runs of an experiment by their seeds, asked for or not."""
        folders = (self._arguments.runs / experiment.name).glob("seed-*")
        texts = [folder.name.removeprefix("seed-") for folder in folders]
        found = {}
        for seed in sorted(int(text) for text in texts if re.fullmatch("0|[1-9][0-9]*", text)):
            run = Run(experiment, seed, self._arguments.runs, self._arguments.quick)
            with suppress(UserError):  # whoever asks for this run is told
                if (result := run.result()) is not None:
                    found[seed] = result
        return found

    def write(self, changed: Sequence[Experiment] | None = None) -> Path:
        """Write the page, and the pictures of the rows that changed."""
        from handgrad.reproduction import pictures  # Matplotlib takes a second to import

        results = {experiment.name: self._finished(experiment) for experiment in self._every}
        name = "results-quick" if self._arguments.quick else "results"
        folder = self._arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for experiment in self._every if changed is None else changed:
            if experiment.figure and results[experiment.name]:
                path = folder / f"{experiment.name}.png"
                pictures.draw_curves(
                    path, experiment, results[experiment.name], self._arguments.quick
                )
        pictures.draw_overview(folder / "overview.png", self._every, results)
        page = write_page(
            SECTIONS,
            results,
            lambda e: sorted({*self.seeds(e), *results[e.name]}),
            name,
            self._arguments.quick,
        )
        path = Path(self._arguments.out) / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
        return path


def _reproduce(arguments: argparse.Namespace) -> int:
    reproduction, commands = _Reproduction(arguments), Commands()
    runs = [run for e in _chosen(arguments.only) for run in reproduction.runs(e)]
    for run in runs:
        with suppress(DataError):  # told when its turn comes
            run.check()
    failed: list[str] = []
    with commands.signals_caught():
        page = reproduction.write()
        for number, run in enumerate(runs, 1):
            name = f"{run.experiment.name}, seed {run.seed}"
            place = f"[{number}/{len(runs)}] {name}"
            try:
                if (result := run.result()) is not None:
                    print(f"{place}: finished before, test accuracy {result.test:.4f}")
                    continue
                print(f"{place}: begins", flush=True)
                status = _execute(run, arguments.data_dir, commands)
                if commands.stop_signal is not None and status:
                    print("stopped; the same command goes on from here", file=sys.stderr)
                    return 128 + commands.stop_signal
                if (result := run.result()) is None:
                    raise UserError(
                        f"exit status {status}: {run.last_line()} (all it said: {run.log})"
                    )
            except UserError as error:
                failed.append(name)
                print(f"{place}: {error}", file=sys.stderr)
                continue
            reproduction.write([run.experiment])
            took = f", {duration(result.cost.wall_seconds)}" if result.cost else ""
            print(f"{place}: test accuracy {result.test:.4f}{took}", flush=True)
            if commands.stop_signal is not None:
                return 128 + commands.stop_signal
    print(f"written: {page}")
    if failed:
        print(f"not finished: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _execute(run: Run, data_dir: Path | None, commands: Commands) -> int:
    if run.experiment.needs_torch and importlib.util.find_spec("torch") is None:
        raise UserError(
            f"needs PyTorch; install it with: {sys.executable} -m pip install 'handgrad[torch]'"
        )
    return run.execute(data_dir, commands)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parse(argv)
    if arguments.list:
        for section in SECTIONS:
            print(section.title)
            for e in section.experiments:
                seeds = f"{len(e.seeds)} seed{'s' * (len(e.seeds) > 1)}"
                print(f"  {e.name:<18} {e.command}  ({seeds}; reported: {e.said})")
        return 0
    _chosen(arguments.only)  # a mistyped name makes no folder
    arguments.runs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(arguments.runs))
        except UserError:  # speaks of a training
            raise UserError(
                f"another reproduce is at work in {arguments.runs}; wait until it ends, or choose "
                "another place with --runs"
            ) from None
        return _reproduce(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
