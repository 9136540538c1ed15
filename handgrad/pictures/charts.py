"""Curves for a page: the points, axes and texts that the template ``parts.html.j2`` draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.pictures.curves import Scale, Values, even_scale, linear_scale, log_scale, scale_of

MOST_POINTS = 300  # of a curve, drawn
_AREA = _LEFT, _TOP, _RIGHT, _BOTTOM = 62, 10, 464, 250  # of the curves, in 480 × 300
_INSET = 7  # of the curves in it: a value at the end of an axis does not lie on the frame
_NAMES = {"loss": "cross-entropy loss (nats)", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        look: classes of the style sheet.
        x: (n,).
        y: (n,).
    """

    look: str
    x: Values
    y: Values


def chart(
    quantity: str,
    lines: Sequence[Line],
    stops: Sequence[tuple[float, str]],
    over: str = "step",
    kept: int | None = None,
    of: str = "",
) -> dict[str, Any]:
    """Return a chart for the template, which draws it on a linear and on a logarithmic axis.

    Args:
        quantity: ``loss`` or ``accuracy``.
        lines: with a point at least.
        stops: places on the x axis, and what is told of the values there.
        over: what is on the x axis.
        kept: the step whose weights were kept, to be marked.
        of: tells it from another chart of the page.
    """
    values = np.concatenate([np.empty(0), *(line.y for line in lines)])
    across = linear_scale(np.array([0.0, max((x for x, _ in stops), default=0) or 1.0]))
    suited = scale_of(quantity, values)
    views = {"linear": even_scale(quantity, values)}
    if quantity == "accuracy" or (values > 0).any():
        views["logarithmic"] = log_scale(quantity, values)
    shown = "logarithmic" if suited.is_logarithmic else "linear"
    places = [(float(_column(across, x)), text) for x, text in stops]
    return {
        "quantity": quantity,
        "name": " ".join(filter(None, (quantity, of))),
        "area": _AREA,
        "over": over,
        "across": [
            (f"{tick:g}", _column(across, tick))
            for tick in across.ticks
            if over != "step" or tick.is_integer()
        ],
        "views": [
            {
                "scale": name,
                "shown": name == shown,
                "label": _label(quantity, name),
                "up": [(f"{tick:g}", _line(scale, tick)) for tick in scale.ticks],
                "paths": [(line.look, _path(line, across, scale)) for line in lines],
            }
            for name, scale in views.items()
        ],
        "kept": None if kept is None else (kept, _column(across, kept)),
        "stops": places,
        "stops_json": json.dumps(places, separators=(",", ":"), ensure_ascii=False),
    }


def _label(quantity: str, scale: str) -> str:
    if scale == "linear":
        return _NAMES[quantity]
    return f"{_NAMES[quantity]}, {scale}{' in the error' if quantity == 'accuracy' else ''}"


def _column(across: Scale, x: Any) -> Any:
    return np.round(_LEFT + _INSET + across.place(x) * (_RIGHT - _LEFT - 2 * _INSET), 1)


def _line(up: Scale, y: Any) -> Any:
    return np.round(_BOTTOM - _INSET - up.place(y) * (_BOTTOM - _TOP - 2 * _INSET), 1)


def _path(line: Line, across: Scale, up: Scale) -> str:
    keep = thinned(line.y, MOST_POINTS)
    points = zip(_column(across, line.x[keep]), _line(up, line.y[keep]), strict=True)
    path = "M" + "L".join(f"{a:g} {b:g}" for a, b in points)
    # A single point has no length, but its round cap can be seen.
    return path + ("h0" if len(keep) == 1 else "")


def thinned(values: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Return the indices of at most about ``most`` values that keep the outline of a curve.

    Of each of ``most / 2`` stretches those are the lowest and the highest, beside the first and
    last of all.
    """
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), most // 2):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    return np.array(sorted(kept))


def some(places: Sequence[Any], every: int) -> list[Any]:
    """Return every so many of ``places``, and the last."""
    kept = list(places[::every])
    return kept if kept[-1] == places[-1] else [*kept, places[-1]]
