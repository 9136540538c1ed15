"""The rows one after another, each seed a run, and the page after each of them."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from handgrad.errors import DataError, UserError
from handgrad.files import write_atomically
from handgrad.reproduction.page import duration, write_page
from handgrad.reproduction.rows import SECTIONS, Experiment
from handgrad.reproduction.runs import Commands, Result, Run


def chosen(names: Sequence[str] | None) -> list[Experiment]:
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

        quick, out = self._arguments.quick, self._arguments.out
        results = {e.name: self._finished(e) for e in self._every}
        name = "results-quick" if quick else "results"
        out.mkdir(parents=True, exist_ok=True)
        if any(results.values()):
            (out / name).mkdir(exist_ok=True)
        for e in self._every if changed is None else changed:
            if e.figure and results[e.name]:
                pictures.draw_curves(out / name / f"{e.name}.png", e, results[e.name], quick)
        pictures.draw_overview(out / name / "overview.png", self._every, results)
        seeds = {e.name: sorted({*self.seeds(e), *results[e.name]}) for e in self._every}
        path: Path = out / f"{name}.md"
        write_atomically(path, write_page(SECTIONS, results, seeds, name, quick).encode())
        return path


def reproduce(arguments: argparse.Namespace) -> int:
    """Train what is asked for and not finished, write the page, and return the exit status."""
    reproduction, commands = _Reproduction(arguments), Commands()
    runs = [run for e in chosen(arguments.only) for run in reproduction.runs(e)]
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
    if run.experiment.network.needs_torch and importlib.util.find_spec("torch") is None:
        raise UserError(
            f"needs PyTorch; install it with: {sys.executable} -m pip install 'handgrad[torch]'"
        )
    return run.execute(data_dir, commands)
