"""The pictures of the page: curves of a row, and all that was reported beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from handgrad.pictures.curves import QUANTITIES, curve, mean_curve
from handgrad.pictures.figures import BLUE, SPLIT_COLOURS, VERMILLION, default_style, save
from handgrad.pictures.plots import set_scale
from handgrad.reproduction.rows import Experiment
from handgrad.reproduction.runs import Result


@default_style()
def draw_curves(
    path: Path, experiment: Experiment, results: Mapping[int, Result], quick: bool
) -> None:
    """Draw loss and accuracy over steps, each seed thin and their mean bold.

    Training values are means over an interval and stand at its middle.
    """
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, quantity in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
        shown = [np.empty(0)]
        for split, colour in SPLIT_COLOURS.items():
            curves = [curve(result.rows, split, quantity) for result in results.values()]
            curves = [points for points in curves if len(points[0])]
            lines = [
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.6)[0]
                for steps, values in curves
            ]
            if curves and (mean := mean_curve(curves)):
                mark = "o" if len(mean[0]) < 3 else None
                lines = axes.plot(*mean, color=colour, linewidth=2, marker=mark)
            if lines:
                handles[split] = lines[0]
            shown += [y for _, y in curves]
        axes.set_xlabel("step")
        axes.locator_params("x", nbins=6)
        if quantity == "accuracy" and experiment.reported is not None:
            reported = axes.axhline(
                experiment.reported, color="black", linestyle=":", linewidth=1.2
            )
            handles["reported accuracy"] = reported
            shown.append(np.array([experiment.reported]))
        set_scale(axes, quantity, np.concatenate(shown))
        axes.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    seeds = ", ".join(map(str, sorted(results)))
    how = f"seeds {seeds} and their mean" if len(results) > 1 else f"seed {seeds}"
    shortened = ", shortened" if quick else ""
    figure.suptitle(f"{experiment.command}\n{how}{shortened}", fontsize=10)
    save(path, figure, dpi=80)


@default_style()
def draw_overview(
    path: Path, experiments: Sequence[Experiment], results: Mapping[str, Mapping[int, Result]]
) -> None:
    """Draw the accuracy of every row that was run, beside the reported one; a panel a dataset."""
    panels: dict[str, list[tuple[Experiment, list[float]]]] = {}
    for experiment in experiments:
        values = []
        for result in results.get(experiment.name, {}).values():
            value = result.validation if experiment.measure == "validation" else result.test
            if value is not None:
                values.append(value)
            dataset = result.settings.dataset
        if values:
            panels.setdefault(dataset, []).append((experiment, values))
    if not panels:
        return
    heights = [len(rows) for rows in panels.values()]
    figure = Figure(
        figsize=(8, 1.4 + 0.34 * sum(heights) + 0.7 * len(heights)), layout="constrained"
    )
    axes_of = figure.subplots(len(panels), 1, height_ratios=[h + 1 for h in heights], squeeze=False)
    for axes, (dataset, rows) in zip(axes_of[:, 0], panels.items(), strict=True):
        _draw_panel(axes, dataset, rows)
    shown = {
        label: handle
        for axes in axes_of[:, 0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=2, fontsize=9)
    save(path, figure, dpi=80)


def _draw_panel(axes: Any, dataset: str, rows: list[tuple[Experiment, list[float]]]) -> None:
    for y, (_, values) in enumerate(rows):
        axes.plot([min(values), max(values)], [y, y], color=BLUE, linewidth=3)
        label = "ours: mean, lowest to highest" if y == 0 else None
        axes.plot(np.mean(values), y, "o", color=BLUE, markersize=7, label=label)
    reported = [
        (experiment.reported, y)
        for y, (experiment, _) in enumerate(rows)
        if experiment.reported is not None
    ]
    if reported:
        x, y_of = zip(*reported, strict=True)
        axes.plot(x, y_of, "D", color=VERMILLION, fillstyle="none", markersize=8, label="reported")
    names = [
        experiment.name + (" (validation)" if experiment.measure == "validation" else "")
        for experiment, _ in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlabel(f"accuracy, {dataset}; of the test images where not said otherwise")
    axes.grid(alpha=0.3)
