"""Several runs on one page, which needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.files import write_atomically
from handgrad.pictures.charts import MOST_POINTS, Line, chart, some
from handgrad.pictures.curves import QUANTITIES, Values
from handgrad.pictures.page import render_template
from handgrad.runs.overlay import Panel, curves_and_mean, name_of, results

_COLOURS, _DASHES = 7, 4  # of the style sheet


def write_comparison(path: Path, panels: Sequence[Panel], over: str) -> None:
    """Write a page with curves and results of runs, a section a dataset, to ``path``.

    Args:
        path: of the page.
        panels: from :func:`handgrad.runs.overlay.make_panels`, each with a run that was evaluated
            on its split.
        over: ``step``, ``epoch`` or ``seconds``.
    """
    runs = sum(len(panel.runs) for panel in panels)
    datasets = ", ".join(panel.dataset for panel in panels)
    content = render_template(
        "comparison.html.j2",
        title=f"{datasets}: {runs} run{'s' if runs > 1 else ''}",
        sections=[_section(panel, over) for panel in panels],
    )
    write_atomically(path, content.encode("utf-8", "replace"))


def _section(panel: Panel, over: str) -> dict[str, Any]:
    columns, *rows = results([panel])
    # What differs stands beside the run, and the numbers at the end; the heading has the dataset.
    return {
        "panel": panel,
        "legend": [
            (_look(i), name_of(group))
            for i, group in enumerate(panel.groups)
            if any(map(panel.has, group.runs))
        ],
        "charts": [_chart(panel, quantity, over) for quantity in QUANTITIES],
        "columns": (columns[0], columns[-1], *columns[2:-1]),
        "rows": [(row[0], row[-1], *row[2:-1]) for row in rows],
    }


def _look(i: int) -> str:
    return f"colour{i % _COLOURS} dash{i % _DASHES}"


def _chart(panel: Panel, quantity: str, over: str) -> dict[str, Any]:
    """Return the chart of a panel; it tells of each group the mean, or the only curve."""
    lines: list[Line] = []
    told: list[tuple[str, Values, Values]] = []
    for i, group in enumerate(panel.groups):
        curves, mean = curves_and_mean(group, panel.split, quantity, over)
        lines += [Line(_look(i) + (" thin" if mean else ""), x, y) for x, y in curves]
        lines += [Line(_look(i), *mean)] if mean else []
        told += [(name_of(group), x, y) for x, y in ([mean] if mean else curves)]
    places = sorted({place for _, x, _ in told for place in x.tolist()}) or [0.0]
    stops = []
    for place in some(places, -(-len(places) // MOST_POINTS)):
        latest = [
            f"{y[np.searchsorted(x, place, 'right') - 1]:.4f} {name}"
            for name, x, y in told
            if x[0] <= place
        ]
        stops.append((place, f"by {over} {place:,.6g}: {'; '.join(latest)}"))
    return chart(quantity, lines, stops, over=over, of=f"on {panel.dataset}")
