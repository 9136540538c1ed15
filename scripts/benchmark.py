"""Measure what things cost, as ratios within one run: interleaved, medians, with their spread."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.cli import guarded, requires_torch
from training.environment import describe_environment
from training.errors import UserError
from training.files import write_atomically


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the quartiles that show the spread."""

    median: float
    lower: float
    upper: float


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Return the time of each call, all of them in turn ``repeats`` times, in a turning order.

    A machine that slows down, slows all of them down; and none is always measured right after
    the same other one, whose leftovers in the caches and idle threads it would find.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(*(float(q) for q in np.quantile(values, (0.5, 0.25, 0.75))))
        for name, values in seconds.items()
    }


def _positive(option: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{option} {text} is out of range; expected a whole number, 1 or more")
        return int(text)

    return parse


def norm(arguments: argparse.Namespace) -> dict[str, dict[str, Timing]]:
    """Time batch normalisation, forward and backward: PyTorch's, ours, and autograd's."""
    requires_torch()
    import torch
    from torch import nn

    from custom_modules import CustomBatchNormAutograd, CustomBatchNormManualModule

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = {}
    for shape, builtin, share in (
        ((128, 64, 32, 32), nn.BatchNorm2d, 1),
        ((256, 512), nn.BatchNorm1d, 20),
    ):
        x = torch.randn(shape, requires_grad=True)
        dout = torch.randn(shape)
        modules: dict[str, nn.Module] = {
            "built-in": builtin(shape[1]),
            "manual": CustomBatchNormManualModule(shape[1]),
            "autograd": CustomBatchNormAutograd(shape[1]),
        }

        def call(
            module: nn.Module, x: torch.Tensor = x, dout: torch.Tensor = dout
        ) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(module(x), (x, *module.parameters()), dout)

        calls = {name: (lambda m=module, c=call: c(m)) for name, module in modules.items()}
        results[" × ".join(map(str, shape))] = interleave(calls, share * arguments.repeats)
    return results


def engine(arguments: argparse.Namespace) -> dict[str, dict[str, Timing]]:
    """Time a training step of the NumPy MLP: hand-written backward passes, the graph's."""
    from threadpoolctl import threadpool_limits

    from numpy_mlp import MLP
    from numpy_mlp.autograd.learner import GraphLearner
    from numpy_mlp.learner import NumpyLearner
    from numpy_mlp.optim import SGD

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((128, 784), dtype=np.float32), rng.integers(0, 10, 128)

    def step(kind: type[NumpyLearner]) -> Callable[[], Any]:
        hidden = (1568, 784, 392)
        model = MLP(784, hidden, 10, dtype=np.float32, rng=np.random.default_rng(1))
        learner = kind(model, SGD(list(model.params.values()), 0.01, momentum=0.9))
        return lambda: learner.train_step(x, y, 0.01)

    with threadpool_limits(arguments.threads):
        steps = {"modules": step(NumpyLearner), "graph": step(GraphLearner)}
        return {"784-1568-784-392-10, batch 128": interleave(steps, 10 * arguments.repeats)}


# Each measures named contenders on named workloads; the first contender is the 1.00.
_COMMANDS = {"norm": norm, "engine": engine}


def _report(name: str, results: dict[str, dict[str, Timing]], out: Path) -> None:
    print(f"{'workload':>20}  {'':<10} {'median':>10} {'quartiles':>21} {'ratio':>6}")
    for workload, timings in results.items():
        first = next(iter(timings.values()))
        for contender, t in timings.items():
            print(
                f"{workload:>20}  {contender:<10} {1e3 * t.median:>7.3f} ms "
                f"{1e3 * t.lower:>7.3f} to {1e3 * t.upper:>7.3f} ms {t.median / first.median:>6.2f}"
            )
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "seconds": {w: {c: vars(t) for c, t in ts.items()} for w, ts in results.items()},
        "ratios": {
            w: {c: t.median / next(iter(ts.values())).median for c, t in ts.items()}
            for w, ts in results.items()
        },
        **describe_environment(),
    }
    write_atomically(out / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
    _draw(results, out / f"{name}.png")
    print(f"written to {out / name}.json and .png")


def _draw(results: dict[str, dict[str, Timing]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 1.3 * len(results)), layout="constrained")
    for axes, (workload, timings) in zip(
        figure.subplots(len(results), squeeze=False).ravel(), results.items(), strict=True
    ):
        medians = np.array([1e3 * t.median for t in timings.values()])
        spread = np.array([[t.median - t.lower, t.upper - t.median] for t in timings.values()]).T
        axes.barh(list(timings), medians, xerr=1e3 * spread, color="#0072B2", ecolor="black")
        axes.invert_yaxis()
        axes.set_title(workload, fontsize=10)
        axes.set_xlabel("milliseconds, median and quartiles")
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark", description=__doc__)
    parser.add_argument("what", choices=_COMMANDS, help="what to measure")
    parser.add_argument(
        "--repeats",
        type=_positive("--repeats"),
        default=20,
        metavar="N",
        help="rounds (default: 20)",
    )
    parser.add_argument(
        "--threads",
        type=_positive("--threads"),
        default=2,
        metavar="N",
        help="threads (default: 2)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), metavar="DIR")
    arguments = parser.parse_args(argv)
    _report(arguments.what, _COMMANDS[arguments.what](arguments), arguments.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
