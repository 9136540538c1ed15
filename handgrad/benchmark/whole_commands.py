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
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from handgrad.benchmark.report import Report, interleave
from handgrad.benchmark.workers import ROOT, environment
from handgrad.data import BatchLoader, load_dataset
from handgrad.data.preprocess import fit_preprocessing
from handgrad.data.sources import cifar10
from handgrad.data.sources.inventory import inventory
from handgrad.errors import UserError
from handgrad.files import user_path

_PRESET = ("--preset", "uva-2018")
_BATCH_SIZES = (32, 200, 512)
# ``train-mlp-numpy`` that prints, at last, the seconds of its loop, and of the learner within it.
_TIMED = """\
import json, sys, time
from handgrad.backends.command import train_mlp_numpy
from handgrad.training.loop import Loop
from numpy_mlp.learner import NumpyLearner
spent = {'learner': 0.0, 'loop': 0.0}
def timed(function, key):
    def call(*args, **options):
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[key] += time.perf_counter() - start
    return call
NumpyLearner.train_step = timed(NumpyLearner.train_step, 'learner')
NumpyLearner.eval_step = timed(NumpyLearner.eval_step, 'learner')
Loop.run = timed(Loop.run, 'loop')
status = train_mlp_numpy(sys.argv[1:])
print(json.dumps(spent))
sys.exit(status)
"""


def run(arguments: argparse.Namespace) -> Report:
    """Time whole commands, from start to exit: the preset uva-2018, and the digits."""
    data = _data_dir(arguments)
    numpy, pytorch = "train-mlp-numpy", "train-mlp-pytorch"
    scripts = {
        pytorch: [str(ROOT / "scripts/train_mlp_pytorch.py"), "--precision", "float32"],
        numpy: [str(ROOT / "scripts/train_mlp_numpy.py")],
    }
    report = Report("run", {}, (pytorch,))
    for workload, options in (
        ("uva-2018, CIFAR-10, 1,500 steps", [*_PRESET, "--data-dir", str(data)]),
        ("digits, no options", []),
    ):
        calls = {
            name: partial(_run_command, [*script, *options], arguments.threads)
            for name, script in scripts.items()
        }
        report.seconds[workload] = interleave(calls, min(arguments.repeats, 5))
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
    start = time.perf_counter()
    said = _run_command(["-c", _TIMED, *_PRESET, "--data-dir", str(data)], threads)
    whole = time.perf_counter() - start
    spent = cast("Mapping[str, float]", json.loads(said.splitlines()[-1]))
    return (spent["loop"] - spent["learner"]) / whole


def _run_command(command: list[str], threads: int) -> str:
    """Run Python with a training command, in a folder of its own; return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--threads", str(threads), "--out", f"{folder}/run"]
        return subprocess.run(
            [sys.executable, *command, *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        ).stdout


def _data_dir(arguments: argparse.Namespace) -> Path:
    folder = arguments.data_dir or os.environ.get("HANDGRAD_DATA_DIR")
    if not folder:
        raise UserError("this measures a run on CIFAR-10: give --data-dir DIR with the data in it")
    if not (found := user_path(folder)).is_dir():
        raise UserError(f"--data-dir {folder} does not exist")
    if not cifar10.is_below(found):
        raise UserError(
            f"--data-dir {folder} holds {inventory(found)}; this measures a run on "
            f"CIFAR-10: give the folder with its files"
        )
    return found
