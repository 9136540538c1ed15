"""What a comparison found: a table as it goes, a verdict, a JSON file and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.environment import describe_environment
from handgrad.errors import UserError
from handgrad.files import write_atomically
from handgrad.lockstep.comparison import Comparison, Contestant, Distance
from handgrad.runs.settings import TrainSettings

_MARKS = ("o", "s", "^", "D")


def begin_table(comparison: Comparison, steps: int) -> Callable[[int], None]:
    """Print the head of a table of differences; return what prints the row of a step.

    Rows are those of the steps 1, 2, 5, 10, 20, ... and the last.
    """
    width = max(len(contestant.name) for contestant in comparison.contestants)
    print(
        f"{'step':>6}  {f'loss ({comparison.reference})':<16}  {'engine':<{width}}  {'Δ loss':>8}  "
        f"{'Δ weights':>9}  {'relative':>8}  where"
    )

    def row(step: int) -> None:
        if str(step).rstrip("0") not in ("1", "2", "5") and step != steps:
            return
        start = f"{step:>6}  {comparison.losses[-1]:<16.12f}"
        for contestant in comparison.contestants:
            if len(contestant.distances) == step:
                d = contestant.distances[-1]
                print(
                    f"{start:<24}  {contestant.name:<{width}}  {d.loss:>8.1e}  "
                    f"{d.parameter:>9.1e}  {d.relative:>8.1e}  {d.where}",
                    flush=True,
                )
                start = ""

    return row


def verdict(comparison: Comparison, contestant: Contestant) -> str:
    """Return what is to be said of an engine at the end."""
    reference, steps = comparison.reference, len(comparison.losses)
    if contestant.first is None:
        d = contestant.worst
        if contestant.cause is not None:
            return (
                f"{contestant.name} differs from {reference}, though losses and weights agree "
                f"within {d.worst:.1e} over {steps} steps\n  {contestant.cause.text}"
            )
        return (
            f"{contestant.name} agrees with {reference} within {d.worst:.1e} over {steps} steps "
            f"(tolerance {comparison.tolerance:g})"
        )
    step = contestant.first[0]
    worst = contestant.distances[step - 1].worst
    assert contestant.cause is not None
    text = (
        f"{contestant.name} differs from {reference}: step {step} is the first beyond the "
        f"tolerance {comparison.tolerance:g}, "
        + (f"by {worst:.1e}\n" if math.isfinite(worst) else "as it is not finite\n")
        + f"  {contestant.cause.text}"
    )
    return text + (f"\n  it stopped at {contestant.stopped}" if contestant.stopped else "")


def check_out(out: Path) -> None:
    """Raise UserError where nothing can be written into the folder ``out``; make nothing yet."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file; a folder is expected")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: {there} cannot be written to; choose another folder")


def write(out: Path, comparison: Comparison, settings: TrainSettings) -> None:
    """Write ``engines.json`` and ``engines.png`` into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "reference": comparison.reference,
        "agrees": comparison.agrees,
        "tolerance": comparison.tolerance,
        "seconds": round(comparison.seconds, 3),
        "losses": comparison.losses,
        "engines": {c.name: _described(comparison, c) for c in comparison.contestants},
        "settings": dataclasses.asdict(settings),
        **describe_environment(),
    }
    write_atomically(out / "engines.json", (json.dumps(content, indent=2) + "\n").encode())
    from handgrad.pictures.figures import default_style  # Matplotlib takes a while to import

    with default_style():
        _draw(out / "engines.png", comparison)


def _described(comparison: Comparison, contestant: Contestant) -> dict[str, Any]:
    cause = contestant.cause
    return {
        "agrees": contestant.agrees,
        "verdict": verdict(comparison, contestant),
        "first_step_beyond": None if contestant.first is None else contestant.first[0],
        "finding": None if cause is None else dataclasses.asdict(cause),
        "steps": [_plain(distance) for distance in contestant.distances],
    }


def _plain(distance: Distance) -> dict[str, Any]:
    """Return a distance for JSON, which knows no infinity."""
    values = dataclasses.asdict(distance).items()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values}


def _drawn(values: Sequence[float]) -> NDArray[np.float64]:
    """Return what an axis can be made for: beyond, Matplotlib's own arithmetic overflows."""
    array = np.array(values, np.float64)
    return np.where(np.abs(array) < 1e100, array, np.nan)


def _draw(path: Path, comparison: Comparison) -> None:
    from matplotlib.figure import Figure

    from handgrad.pictures.figures import BLUE, GREEN, ORANGE, PURPLE, save

    colours = (BLUE, ORANGE, GREEN, PURPLE)
    figure = Figure(figsize=(8, 7.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    for number, contestant in enumerate(comparison.contestants):
        colour = colours[number % len(colours)]
        steps = np.arange(1, len(contestant.distances) + 1)
        for quantity, style in (("parameter", "-"), ("loss", "")):
            values = _drawn([getattr(d, quantity) for d in contestant.distances])
            values[values == 0] = np.nan
            above.plot(
                steps,
                values,
                linestyle=style,
                linewidth=1.5,
                marker=_MARKS[number % len(_MARKS)],
                markersize=3,
                markevery=1 if quantity == "loss" else max(1, len(values) // 12),
                markerfacecolor="none" if quantity == "loss" else colour,
                color=colour,
                label=f"{contestant.name}: {'weights' if quantity == 'parameter' else quantity}",
            )
        if contestant.first is not None:
            step = contestant.first[0]
            label = f"{contestant.name}: first beyond the tolerance, step {step}"
            above.axvline(step, color=colour, linestyle="-.", linewidth=1, label=label)
    for height, style, label in (
        (comparison.tolerance, "--", f"tolerance {comparison.tolerance:g}"),
        (comparison.epsilon, ":", f"machine epsilon {comparison.epsilon:.1e}"),
    ):
        above.axhline(height, color="black", linestyle=style, linewidth=1, label=label)
    above.set_yscale("log")
    above.set_ylabel("largest absolute difference")
    above.set_title(
        f"differences from {comparison.reference}, from the same weights, on the same batches\n"
        "(neither 0 nor what is beyond 1e100 is drawn)",
        fontsize=10,
    )
    above.grid(alpha=0.3)
    figure.legend(
        *above.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=2
    )
    steps = np.arange(1, len(comparison.losses) + 1)
    below.plot(steps, _drawn(comparison.losses), color="#555555", linewidth=1.5)
    below.set_ylabel(f"loss of {comparison.reference}\n(nats)")
    below.set_xlabel("step")
    below.locator_params("x", integer=True)
    below.grid(alpha=0.3)
    save(path, figure)
