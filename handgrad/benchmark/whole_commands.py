"""Whole commands, and what is not arithmetic in them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from handgrad.benchmark.report import Report, Timing, interleave, turns
from handgrad.data import BatchLoader, load_dataset
from handgrad.data.preprocess import fit_preprocessing
from handgrad.errors import UserError

_SCRIPTS = Path(__file__).parents[2] / "scripts"
_PRESET = ("--preset", "uva-2018")
_BATCH_SIZES = (32, 200, 512)


def run(arguments: argparse.Namespace) -> Report:
    """Time whole commands, from start to exit: the preset uva-2018, and the digits."""
    data = _data_dir(arguments)
    numpy, pytorch = "train-mlp-numpy", "train-mlp-pytorch"
    preset = [*_PRESET, "--data-dir", str(data)]
    commands: dict[str, dict[str, list[str]]] = {
        "uva-2018, CIFAR-10, 1,500 steps": {
            pytorch: ["train_mlp_pytorch.py", *preset, "--precision", "float32"],
            numpy: ["train_mlp_numpy.py", *preset],
        },
        "digits, no options": {
            pytorch: ["train_mlp_pytorch.py", "--precision", "float32"],
            numpy: ["train_mlp_numpy.py"],
        },
    }
    report = Report("run", {}, (pytorch,))
    for workload, contenders in commands.items():
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        # The first round brings the files into memory.
        for number, names in enumerate(turns(list(contenders), 1 + min(arguments.repeats, 5))):
            for name in names:
                took = _command_seconds(contenders[name], arguments.threads)
                if number:
                    seconds[name].append(took)
        report.seconds[workload] = {name: Timing.of(took) for name, took in seconds.items()}
    return report


def loader(arguments: argparse.Namespace) -> Report:
    """Time the loader alone, and what share of a whole command is not arithmetic."""
    data = _data_dir(arguments)
    dataset = load_dataset("cifar10", data, validation_size=0)
    report = Report("loader", {}, ("uint8, gathered",))
    for batch_size in _BATCH_SIZES:
        preprocessing = fit_preprocessing("mean-image", dataset.train.images)
        loaders = BatchLoader(dataset.train, batch_size, preprocessing, shuffle=True)
        order = np.random.default_rng(0).permutation(len(dataset.train))[:batch_size]
        batches = loaders.batches(0)
        calls: dict[str, Callable[[], Any]] = {
            "uint8, gathered": lambda order=order: dataset.train.images[order],  # type: ignore[misc]
            "a batch": lambda batches=batches: next(batches),  # type: ignore[misc]
        }
        rounds = min(5 * arguments.repeats, len(loaders) - 2)
        timings = interleave(calls, rounds)
        name = f"CIFAR-10, batch {batch_size}"
        report.seconds[name] = timings
        rate = batch_size / timings["a batch"].median
        report.lines.append(f"batch {batch_size}: {rate:,.0f} images/s")
    shares = [_share_of_the_rest(data, arguments.threads) for _ in range(3)]
    share = float(np.median(shares))
    report.facts["share_of_uva_2018"] = share
    report.lines.append(
        f"train-mlp-numpy --preset uva-2018: {share:.0%} of the whole command is neither the "
        "learner's steps nor start-up, files and pictures"
    )
    return report


def _share_of_the_rest(data: Path, threads: int) -> float:
    """Return the share of a command that its loop spends outside the learner."""
    script = (
        "import json, sys, time\n"
        "from handgrad.backends.command import train_mlp_numpy\n"
        "from handgrad.training.loop import Loop\n"
        "from numpy_mlp.learner import NumpyLearner as kind\n"
        "spent = {'learner': 0.0, 'loop': 0.0}\n"
        "def timed(function, key):\n"
        "    def call(*args, **options):\n"
        "        start = time.perf_counter()\n"
        "        try:\n"
        "            return function(*args, **options)\n"
        "        finally:\n"
        "            spent[key] += time.perf_counter() - start\n"
        "    return call\n"
        "kind.train_step = timed(kind.train_step, 'learner')\n"
        "kind.eval_step = timed(kind.eval_step, 'learner')\n"
        "Loop.run = timed(Loop.run, 'loop')\n"
        "status = train_mlp_numpy(sys.argv[1:])\n"
        "print(json.dumps(spent))\n"
        "sys.exit(status)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        options = [*_PRESET, "--data-dir", str(data), "--quiet"]
        options += ["--threads", str(threads), "--out", f"{folder}/run"]
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", script, *options],
            check=True,
            capture_output=True,
            text=True,
            env=_environment(),
        )
        whole = time.perf_counter() - start
    spent = cast("Mapping[str, float]", json.loads(result.stdout.splitlines()[-1]))
    return (spent["loop"] - spent["learner"]) / whole


def _command_seconds(command: list[str], threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--threads", str(threads), "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, str(_SCRIPTS / command[0]), *command[1:], *options],
            check=True,
            stdout=subprocess.DEVNULL,
            env=_environment(),
        )
        return time.perf_counter() - start


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(_SCRIPTS.parent), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _data_dir(arguments: argparse.Namespace) -> Path:
    folder = arguments.data_dir or os.environ.get("HANDGRAD_DATA_DIR")
    if not folder:
        raise UserError("this measures a run on CIFAR-10: give --data-dir DIR with the data in it")
    if not Path(folder).is_dir():
        raise UserError(f"--data-dir {folder} does not exist")
    return Path(folder)
