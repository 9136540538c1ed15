"""Several runs beside each other: what differs between them, their curves, their results."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from handgrad.console import printable
from handgrad.pictures.curves import QUANTITIES, Values, curve, mean_curve
from handgrad.pictures.figures import PALETTE, default_style, save
from handgrad.pictures.plots import set_scale
from handgrad.runs.declare import text_of
from handgrad.runs.record import RunRecord
from handgrad.runs.settings import DATASET_DEFAULTS, LOOKING

# With the palette's seven colours they make 28 looks, as 7 and 4 have no common factor.
_STYLES = ("-", "--", "-.", ":")
_LEGEND = 130  # characters in a line
_PREFERRED = ("validation", "test")
_NAMED = 3  # settings that a label names even at their defaults
# Where a run is and how it is watched does not tell one training from another.
_IGNORED = LOOKING | {"data_dir", "checkpoint_every", "tta", "seed"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: in what they differ from the other runs.
        runs: one or more.
    """

    label: str
    runs: Sequence[RunRecord]


@dataclass(frozen=True)
class Panel:
    """Runs on one dataset.

    Attributes:
        dataset: its name.
        split: whose curves are drawn.
        groups: of the runs.
    """

    dataset: str
    split: str
    groups: Sequence[Group]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, those that were not evaluated on the split too."""
        return [run for group in self.groups for run in group.runs]

    def has(self, run: RunRecord) -> bool:
        """Say whether ``run`` was evaluated on the split."""
        return any(row.split == self.split for row in run.rows)


def make_panels(
    runs: Sequence[RunRecord], defaults: Mapping[str, Any], split: str | None
) -> list[Panel]:
    """Return ``runs`` by their datasets.

    Args:
        runs: to be compared.
        defaults: of all commands' settings, by name.
        split: whose curves are wanted; None for validation or test, what more of the runs on a
            dataset have, and for train where none has either.
    """
    found = []
    for dataset in dict.fromkeys(str(run.settings.get("dataset", "?")) for run in runs):
        mine = [run for run in runs if str(run.settings.get("dataset", "?")) == dataset]
        groups = group_runs(mine, defaults)
        panels = [Panel(dataset, s, groups) for s in ([split] if split else _PREFERRED)]
        best = max(panels, key=lambda panel: sum(map(panel.has, mine)))
        nothing = split is None and not any(map(best.has, mine))
        found.append(Panel(dataset, "train", groups) if nothing else best)
    return found


def group_runs(runs: Sequence[RunRecord], defaults: Mapping[str, Any]) -> list[Group]:
    """Return ``runs`` by what differs between them; those that differ in their seeds together.

    A setting that only some of the commands have counts where it differs among those. Where runs
    differ in many settings, a label leaves out those at their defaults. Runs that differ in
    nothing, seeds included, are called by their folders.

    Args:
        runs: to be told apart.
        defaults: of all commands' settings, by name.
    """
    values = [{"program": run.program, **_plain(run.settings)} for run in runs]
    names = dict.fromkeys(name for mine in values for name in mine)
    differing = [n for n in names if len({mine[n] for mine in values if n in mine}) > 1]
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for run, mine in zip(runs, values, strict=True):
        groups.setdefault(tuple((n, mine.get(n)) for n in differing), []).append(run)
    found = []
    for key, members in groups.items():
        own = DATASET_DEFAULTS.get(str(members[0].settings.get("dataset")), {})
        usual = _plain({**defaults, **own}) if len(differing) > _NAMED else {}
        named = (_label(name, value) for name, value in key if value != usual.get(name, ""))
        label = _joined(*named) or ("defaults" if usual else "")
        # What differs is, here, that nothing is set.
        label = label or ", ".join(f"{name.replace('_', '-')} none" for name, _ in key)
        if len({run.settings.get("seed") for run in members}) == len(members):
            found.append(Group(label, members))
        else:
            found += [Group(_joined(label, str(run.folder)), [run]) for run in members]
    if len(found) == 1 and not found[0].label:
        return [Group(str(runs[0].folder) if len(runs) == 1 else "all", found[0].runs)]
    return found


def _plain(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what may tell one training from another, as texts."""
    return {
        name: text_of(tuple(value) if isinstance(value, list) else value)
        for name, value in settings.items()
        if name not in _IGNORED
    }


def _label(name: str, value: str | None) -> str:
    if value is None or (name in ("epochs", "max_steps") and value == "none"):
        return ""
    if name == "program":
        return value.removeprefix("train-")
    if value in ("yes", "no"):
        return f"{'no ' if value == 'no' else ''}{name}".replace("_", "-")
    return f"{name.replace('_', '-')} {value}"


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def name_of(group: Group) -> str:
    """Return what a group is called beside the others."""
    return group.label + (f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else "")


@default_style()
def plot_panels(path: Path, panels: Sequence[Panel], over: str) -> None:
    """Draw loss and accuracy of runs, a row a dataset, and write it to ``path``.

    Args:
        path: its name ends in ``.png``, ``.svg`` or ``.pdf``.
        panels: from :func:`make_panels`, each with a run that was evaluated on its split.
        over: ``step``, ``epoch`` or ``seconds``.
    """
    names = [
        [textwrap.fill(printable(name_of(group)), _LEGEND) for group in panel.groups]
        for panel in panels
    ]
    n_columns = [2 if len(n) > 3 and max(map(len, n)) <= _LEGEND / 2 else 1 for n in names]
    heights = [
        4.8 + 0.2 * (sum(name.count("\n") + 1 for name in mine) / n + 1)
        for mine, n in zip(names, n_columns, strict=True)
    ]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, panel, mine, n in zip(parts, panels, names, n_columns, strict=True):
        _draw_panel(part, panel, over, mine, n)
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the table has it.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        save(path, figure, dpi=130)


def _draw_panel(
    part: SubFigure, panel: Panel, over: str, names: Sequence[str], n_columns: int
) -> None:
    """Draw a colour a group, its runs as thin lines around their mean.

    Where the runs were evaluated at different points, they are lines of the group's colour.
    """
    handles: dict[int, Any] = {}
    for axes, quantity in zip(part.subplots(1, 2), QUANTITIES, strict=True):
        shown: list[Values] = [np.empty(0)]
        for i, group in enumerate(panel.groups):
            # Neighbours differ in colour and in style: one shows through another on top of it.
            look = {"color": PALETTE[i % len(PALETTE)], "linestyle": _STYLES[i % len(_STYLES)]}
            curves, mean = curves_and_mean(group, panel.split, quantity, over)
            thin = {"linewidth": 0.7, "alpha": 0.5} if mean else {"linewidth": 1.8}
            for x, y in curves:
                marker = "o" if len(x) == 1 else None
                handles[i] = axes.plot(x, y, marker=marker, **look, **thin)[0]
                shown.append(y)
            if mean:
                handles[i] = axes.plot(*mean, linewidth=2.2, **look)[0]
        set_scale(axes, quantity, np.concatenate(shown))
        axes.set_xlabel(over if over == "seconds" else f"{over}s")
        axes.locator_params("x", integer=over == "step")
        axes.set_title(f"{panel.split} {quantity}", fontsize=11)
        axes.grid(alpha=0.3, which="both")
    part.suptitle(printable(panel.dataset), fontsize=12, parse_math=False)
    legend = part.legend(
        handles.values(),
        ["run"] * len(handles),
        loc="outside lower center",
        ncols=n_columns,
        fontsize=9,
        handlelength=4,
    )
    # As they are: Matplotlib leaves out labels that begin with _, and reads formulas between $.
    for text, i in zip(legend.get_texts(), handles, strict=True):
        text.set(text=names[i], parse_math=False)


def curves_and_mean(
    group: Group, split: str, quantity: str, over: str
) -> tuple[list[tuple[Values, Values]], tuple[Values, Values] | None]:
    """Return the curves of a group's runs, and the mean of several over the same points."""
    curves = [curve(run.rows, split, quantity, over) for run in group.runs]
    curves = [points for points in curves if len(points[0])]
    return curves, mean_curve(curves) if len(curves) > 1 else None


def results(panels: Sequence[Panel]) -> list[tuple[str, ...]]:
    """Return cells: the names of the columns, a line a run, and one for the mean of several seeds.

    The first is the folder of the run, the last what differs.
    """
    lines = [("run", "dataset", "test accuracy", "best validation", "seconds", "what differs")]
    for dataset, group in ((panel.dataset, group) for panel in panels for group in panel.groups):
        several = len(group.runs) > 1
        for run in group.runs:
            what = _joined(group.label, f"seed {run.settings.get('seed')}" if several else "")
            if run.summary is None:
                test, seconds = f"unfinished, step {run.last_step}", run.rows[-1].seconds
            else:
                test, seconds = f"{run.summary['test_accuracy']:.4f}", run.summary["seconds"]
            best = run.best_validation
            validation = "-" if best is None else f"{best:.4f}"
            folder = str(run.folder)
            lines.append((folder, dataset, test, validation, f"{seconds:.1f}", what))
        if several:
            done = [run.summary["test_accuracy"] for run in group.runs if run.summary]
            best_ones = [best for run in group.runs if (best := run.best_validation) is not None]
            counts = [len(values) for values in (done, best_ones) if len(values) > 1]
            if counts:
                of = " and ".join(map(str, dict.fromkeys(counts)))
                what = _joined(group.label, f"mean ± deviation of {of}")
                lines.append(("", dataset, _mean(done), _mean(best_ones), "", what))
    return [tuple(printable(cell) for cell in line) for line in lines]


def table(panels: Sequence[Panel], columns: int | None = None) -> list[str]:
    """Return the results as lines of text.

    Args:
        panels: from :func:`make_panels`.
        columns: room for a line; what does not fit goes below, indented. None for any.
    """
    cells = results(panels)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    found = []
    for folder, *numbers_of_run, what in cells:
        numbers = "  ".join(map(str.rjust, numbers_of_run, widths[1:5]))
        line = f"{folder:<{widths[0]}}  {numbers}"
        if columns is None or sum(widths) + 10 <= columns:
            found.append(f"{line}  {what}".rstrip())
            continue
        found += [line] if len(line) <= columns else [folder, f"    {numbers}"]
        found += textwrap.wrap(what, columns, initial_indent="    ", subsequent_indent="    ")
    return found


def _mean(values: Sequence[float]) -> str:
    """Return the mean, and the deviation of the single values around it (that of a sample)."""
    if len(values) < 2:
        return "-"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
