"""A training step of a convolutional network: NumPy against PyTorch, and layer by layer."""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad.benchmark.report import Report
from handgrad.benchmark.steps import measure_limits
from handgrad.benchmark.workers import Race, Worker
from numpy_mlp.convnet import CONVNETS
from numpy_mlp.cost import operations_of_layers, training_operations
from numpy_mlp.modules import Conv2dModule, LinearModule, Module
from numpy_mlp.modules.module import is_trained

_PLAIN, _OURS = "PyTorch's defaults", "ours"
_NUMPY, _TORCH = "NumPy", "PyTorch float32"
_VGG_BATCHES = (32, 128)
_NETWORKS = (("fast", 500), ("vgg", 32))  # each at the batch of its preset
_SHAPE = (3, 32, 32)
_TURN = 0.3  # seconds, about


def convnet(arguments: argparse.Namespace) -> Report:
    """Time a training step of ConvNets: NumPy and PyTorch float32; PyTorch's defaults and ours."""
    threads, rounds = arguments.threads, arguments.repeats
    report = Report("convnet", {}, (_PLAIN, _TORCH))
    limits = measure_limits(threads, rounds, report)
    for model, batch_size in _NETWORKS:
        _against_torch(report, model, batch_size, threads, rounds, limits["sgemm"])
    report.markdown = "\n".join(_ratio_table(report))
    for model, batch_size in _NETWORKS:
        report.markdown += _layer_by_layer(report, model, batch_size, threads, rounds, limits)
    for batch_size in _VGG_BATCHES:
        _precisions(report, batch_size, threads, rounds)
    return report


def _against_torch(
    report: Report, model: str, batch_size: int, threads: int, rounds: int, sgemm: float
) -> None:
    operations = batch_size * training_operations(CONVNETS[model](_SHAPE, 10), _SHAPE)
    for update in (True, False):
        workload = {"model": model, "batch_size": batch_size, "update": update}
        name = f"{model}, batch {batch_size}, {'with' if update else 'without'} the update"
        with Race(threads) as race:
            race.enter(_TORCH, "torch_convnet", workload)
            numpy = race.enter(_NUMPY, "numpy_convnet", workload, own_choice=True)
            timings = report.seconds[name] = race.run(rounds, _TURN)
        rate, peak = operations / timings[_NUMPY].median, numpy.about["peak_memory"] or math.nan
        report.facts.setdefault("share_of_sgemm_peak", {})[name] = rate / sgemm
        report.facts.setdefault("peak_memory_bytes", {})[name] = peak
        report.lines.append(
            f"{name}: NumPy at {rate / 1e9:.0f} GFLOP/s of direct convolution, {rate / sgemm:.0%} "
            f"of sgemm; its process had at most {peak / 2**30:.2f} GiB"
        )


def _precisions(report: Report, batch_size: int, threads: int, rounds: int) -> None:
    """Time the assignment's VGG in PyTorch: by its plain defaults, and as ``train-convnet``."""
    with Race(threads) as race:
        for shown, contender in ((_PLAIN, "convnet"), (_OURS, "tuned_convnet")):
            race.enter(shown, contender, {"batch_size": batch_size})
        name = f"VGG, 3×32×32, batch {batch_size}"
        timings = report.seconds[name] = race.run(rounds, _TURN)
    rates = {shown: batch_size / timing.median for shown, timing in timings.items()}
    report.facts.setdefault("images_per_second", {})[name] = rates
    report.lines.append(
        f"batch {batch_size}: {_PLAIN} {rates[_PLAIN]:.0f} images/s, ours {rates[_OURS]:.0f}: "
        f"{rates[_OURS] / rates[_PLAIN]:.2f} times as many"
    )


@dataclass
class LayerCost:
    """What a layer of a batch has to do: operations and bytes of its passes, forward and back.

    The bytes are the least that there can be: x and y, dy and dx, each once.
    """

    name: str
    kind: str
    operations: tuple[int, int]
    n_bytes: tuple[int, int]


def layer_costs(model: str, batch_size: int) -> list[LayerCost]:
    """Return the cost of each layer of a network, from the input to the logits."""
    network = CONVNETS[model](_SHAPE, 10, dtype=np.float32)
    operations = operations_of_layers(network, _SHAPE)
    network.eval()
    x, costs, something_trained = np.zeros((1, *_SHAPE), np.float32), [], False
    for name, layer in zip(network.names, network.chain, strict=False):
        y = layer.forward(x)
        forward, back = (batch_size * n for n in operations.get(layer, (0, 0)))
        through = batch_size * (x.nbytes + y.nbytes)
        trained = is_trained(layer)
        seen = through if something_trained else batch_size * y.nbytes * trained  # no dx
        costs.append(LayerCost(name, _kind(layer), (forward, back), (through, seen)))
        x, something_trained = y, something_trained or trained
    return costs


def _kind(layer: Module) -> str:
    kind = type(layer).__name__.removesuffix("Module")
    if isinstance(layer, Conv2dModule):
        return f"{kind} {layer.in_channels}→{layer.out_channels}"
    if isinstance(layer, LinearModule):
        return f"{kind} {layer.in_features}→{layer.out_features}"
    return kind


def _layer_by_layer(
    report: Report, model: str, batch_size: int, threads: int, rounds: int, limits: dict[str, Any]
) -> str:
    """Time each layer; return a table for a page."""
    costs = layer_costs(model, batch_size)
    workload = {"model": model, "batch_size": batch_size}
    with contextlib.closing(Worker("numpy_layers", workload, threads, own_choice=True)) as worker:
        worker.run(1)
        seconds = np.median([worker.run(1)[0] for _ in range(rounds)], axis=0)
    forward, back = seconds[: len(costs)], seconds[len(costs) :]
    back = np.concatenate([np.zeros(len(costs) - len(back)), back])  # before what is trained
    lines = [
        f"\n`{model}`, batch {batch_size}:\n",
        "| layer | | forward | GFLOP/s | sgemm | memory | backward | GFLOP/s | sgemm | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for cost, *passes in zip(costs, forward, back, strict=True):
        cells = []
        for took, operations, n_bytes in zip(passes, cost.operations, cost.n_bytes, strict=True):
            bounds = operations / limits["sgemm"], n_bytes / limits["memory"]
            rate = f"{operations / took / 1e9:.0f}" if operations else ""
            cells += [_ms(took), rate, *(_ms(bound) if bound else "" for bound in bounds)]
        rows.append({**vars(cost), "seconds": passes})
        lines.append(f"| {cost.name} | {cost.kind} | {' | '.join(cells)} |")
    total = [f"{_ms(part.sum())} | | | " for part in (forward, back)]
    lines.append(f"| all | | {'| '.join(total)}|")
    report.facts.setdefault("layers", {})[model] = rows
    report.lines += lines
    return "\n".join([*lines, ""])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _ratio_table(report: Report) -> list[str]:
    lines = [f"| workload | {_TORCH} | {_NUMPY} | of sgemm | memory |", "|---|---|---|---|---|"]
    for name, share in report.facts["share_of_sgemm_peak"].items():
        ratios, timings = report.ratios(name), report.seconds[name]
        cells = [f"{ratios[c]:.2f} ({_ms(timings[c].median)} ms)" for c in (_TORCH, _NUMPY)]
        peak = report.facts["peak_memory_bytes"][name] / 2**30
        lines.append(f"| {name} | {' | '.join(cells)} | {share:.0%} | {peak:.2f} GiB |")
    return [*lines, ""]
