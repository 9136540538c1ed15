"""One training step of an MLP: ours against the others, engine against engine."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from typing import Any

from handgrad.benchmark.report import Report
from handgrad.benchmark.workers import Race
from handgrad.environment import held_by


def _workload(
    letter: str, batch_size: int, *sizes: int, momentum: float = 0.0
) -> tuple[str, dict[str, Any]]:
    name = f"{letter} {'-'.join(map(str, sizes))}, batch {batch_size}"
    name += ", momentum" if momentum else ""
    return name, {"sizes": sizes, "batch_size": batch_size, "lr": 0.01, "momentum": momentum}


WORKLOADS = dict(
    (
        _workload("A", 200, 3072, 100, 10),
        _workload("A2", 128, 3072, 128, 10),
        _workload("B", 128, 784, 1568, 784, 392, 10, momentum=0.9),
        _workload("C", 200, 3072, 200, 200, 100, 10, momentum=0.9),
        _workload("D", 512, 3072, 1024, 1024, 10, momentum=0.9),
    )
)
"""What ``step`` measures: the courses' networks, and larger ones."""

_OURS, _EAGER, _COMPILED = "ours", "PyTorch eager", "PyTorch compiled"
# Shown name, contender, whether the kernels of OpenBLAS matter to it.
_RACE = (
    (_EAGER, "eager", False),
    (_COMPILED, "compiled", False),
    ("PyTorch bf16", "bf16", False),
    (_OURS, "ours", True),
    ("scikit-learn", "sklearn", True),
    ("textbook, float64", "textbook", True),
)
_HELD = ", held"
_SGEMM_SIZES = (1024, 2048, 3072)
_COPIED_BYTES = 1 << 28  # more than a cache holds


def flops(workload: dict[str, Any]) -> int:
    """Return the multiplications and additions of a step's matrix products.

    Three products a layer, of 2·N·in·out each; the first layer's gradient of the input is not
    needed.
    """
    pairs = list(itertools.pairwise(workload["sizes"]))
    products = 3 * sum(n_in * n_out for n_in, n_out in pairs) - pairs[0][0] * pairs[0][1]
    return int(2 * workload["batch_size"] * products)


def step(arguments: argparse.Namespace) -> Report:
    """Time a training step of five networks: ours, PyTorch, scikit-learn, a textbook's."""
    threads, rounds = arguments.threads, arguments.repeats
    report = Report("step", {}, (_EAGER, _COMPILED))
    limits = measure_limits(threads, rounds, report)
    ratios: dict[str, list[float]] = {}
    for name, workload in WORKLOADS.items():
        with Race(threads) as race:
            for shown, contender, numpy in _RACE:
                for suffix in _choices() if numpy else ("",):
                    try:
                        race.enter(shown + suffix, contender, workload, own_choice=not suffix)
                    except ImportError as error:
                        _say_once(report, f"{shown} is left out: {error}")
            timings = report.seconds[name] = race.run(rounds)
        for suffix in _choices():
            ratios.setdefault(suffix, []).append(report.ratios(name)[_OURS + suffix])
            rate = flops(workload) / timings[_OURS + suffix].median
            peak = limits["sgemm" + suffix]
            report.facts.setdefault("share_of_sgemm_peak", {})[name + suffix] = rate / peak
            report.lines.append(
                f"{name.split()[0]}{suffix}: {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the "
                "peak of sgemm"
            )
    for suffix, values in ratios.items():
        mean = math.prod(values) ** (1 / len(values))
        report.facts["geometric_mean" + suffix] = mean
        report.lines.append(f"geometric mean of ours{suffix}: {mean:.2f}")
    return report


def growth(arguments: argparse.Namespace) -> Report:
    """Time our step as its work doubles: twice the batch, twice the width."""
    with Race(arguments.threads) as race:
        for width, batch_size in ((128, 128), (128, 256), (256, 128), (256, 256), (512, 256)):
            _, workload = _workload("", batch_size, 3072, width, 10)
            race.enter(f"w = {width}, batch {batch_size}", "ours", workload, own_choice=True)
        results = race.run(arguments.repeats)
    return Report("growth", {"3072-w-10": results}, (next(iter(results)),))


def engine(arguments: argparse.Namespace) -> Report:
    """Time a training step of the NumPy MLP: hand-written backward passes, the graph's."""
    name = next(name for name in WORKLOADS if name.startswith("B"))
    with Race(arguments.threads) as race:
        for shown, contender in (("modules", "ours"), ("graph", "graph")):
            race.enter(shown, contender, WORKLOADS[name])
        return Report("engine", {name: race.run(arguments.repeats)}, ("modules",))


def _choices() -> tuple[str, ...]:
    """Return a suffix for each choice of OpenBLAS's kernels: its own, and the environment's."""
    return ("", _HELD) if held_by() else ("",)


def _say_once(report: Report, line: str) -> None:
    if line not in report.lines:
        report.lines.append(line)
        print(line, file=sys.stderr)


def measure_limits(threads: int, rounds: int, report: Report) -> dict[str, float]:
    """Measure what the machine can do: FLOP/s of sgemm under each choice, bytes/s of memory."""
    limits: dict[str, float] = {}
    rounds = max(2, rounds // 4)
    for suffix in _choices():
        rates = []
        for n in _SGEMM_SIZES:
            with Race(threads) as race:
                about = race.enter("matmul", "matmul", {"n": n}, own_choice=not suffix).about
                rates.append(2 * n**3 / race.run(rounds)["matmul"].median)
        limits["sgemm" + suffix] = max(rates)
        report.facts["blas" + suffix] = about
        report.lines.append(
            f"{about['blas']} {about['version']}, {about['core']} kernels"
            f"{', as the environment has it' if suffix else ', its own choice'}, "
            f"{threads} threads: sgemm reaches {max(rates) / 1e9:.0f} GFLOP/s"
        )
    with Race(threads) as race:
        race.enter("copy", "copy", {"n_bytes": _COPIED_BYTES})
        rate = 2 * _COPIED_BYTES / race.run(rounds)["copy"].median
    limits["memory"] = rate
    report.lines.append(f"memory: {rate / 1e9:.1f} GB/s, read and written by a copy")
    report.facts["limits"] = limits
    return limits
