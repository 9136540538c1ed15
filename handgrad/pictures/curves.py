"""What the curves of a run are: their points, and the scales that show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handgrad.training.metrics import Row

Values = NDArray[np.float64]

SPLITS = ("train", "validation", "test")
QUANTITIES = ("loss", "accuracy")
# Where a scale in the logarithm of the error has its marks.
_ACCURACY_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_LEAST_ERROR = 1e-4
# Beyond it the distance of two values may overflow, and below its inverse no mark fits between.
_LARGEST = 1e300
_TICKS = 5


def curve(
    rows: Sequence[Row], split: str, quantity: str, over: str = "step"
) -> tuple[Values, Values]:
    """Return the points x and y, (n,) each, of ``loss`` or ``accuracy`` of a split.

    Training values are means over an interval and stand at its middle. Points that are not finite,
    or beyond 1e300, are left out.

    Args:
        rows: of the run.
        split: ``train``, ``validation`` or ``test``.
        quantity: the column for y.
        over: the column for x: ``step``, ``epoch`` or ``seconds``.
    """
    mine = [row for row in rows if row.split == split]
    x = np.array([getattr(row, over) for row in mine], dtype=np.float64)
    y = np.array([getattr(row, quantity) for row in mine], dtype=np.float64)
    if split == "train":
        x = (x + np.concatenate(([0.0], x[:-1]))) / 2
    shown = (np.abs(x) < _LARGEST) & (np.abs(y) < _LARGEST)  # NaN is not
    return x[shown], y[shown]


def curves_of(rows: Sequence[Row], quantity: str) -> dict[str, tuple[Values, Values]]:
    """Return the curve of each split that has points, over steps."""
    curves = {split: curve(rows, split, quantity) for split in SPLITS}
    return {split: (x, y) for split, (x, y) in curves.items() if len(y)}


def mean_curve(curves: Sequence[tuple[Values, Values]]) -> tuple[Values, Values] | None:
    """Return the mean of curves over the same points, as far as all go; None where those differ."""
    length = min(len(x) for x, _ in curves)
    first = curves[0][0][:length]
    if length == 0 or any(not np.allclose(x[:length], first) for x, _ in curves):
        return None
    return first, np.mean([y[:length] for _, y in curves], axis=0)


def wants_logarithm(losses: Values) -> bool:
    """Say whether losses span so much that their scale should be logarithmic."""
    return len(losses) > 0 and losses.min() > 0 and bool(losses.max() > 4 * losses.min())


@dataclass(frozen=True)
class Scale:
    """Where values stand between the two ends of an axis.

    Attributes:
        low: value at the lower end.
        high: value at the upper end.
        ticks: round values in between.
        transform: increasing; what the axis is even in.
        is_logarithmic: of the loss, or of the error.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    transform: Callable[[Values], Values] = lambda values: values
    is_logarithmic: bool = False

    def place(self, values: Values | float) -> Values:
        """Return where ``values`` stand: 0 at the lower end, 1 at the upper one."""
        low, high = (self.transform(np.array(end)) for end in (self.low, self.high))
        return (self.transform(np.asarray(values)) - low) / (high - low)


def linear_scale(values: Values) -> Scale:
    """Return an even scale that holds ``values``, none of them beyond 1e300."""
    low, high = _ends(values)
    return Scale(low, high, _round_values(low, high))


def even_scale(quantity: str, values: Values) -> Scale:
    """Return an even scale that holds ``values``; that of accuracies ends at 0 and 1."""
    scale = linear_scale(values)
    if quantity == "loss":
        return scale
    margin = 0.05 * (scale.high - scale.low)
    return linear_scale(np.clip([scale.low - margin, scale.high + margin], 0, 1))


def scale_of(quantity: str, values: Values) -> Scale:
    """Return the scale that suits ``values`` of ``loss`` or ``accuracy``.

    It is even, but logarithmic for a loss that falls far: what happens late in training can be seen
    beside the first steps.
    """
    if quantity == "loss" and wants_logarithm(values):
        return log_scale(quantity, values)
    return even_scale(quantity, values)


def log_scale(quantity: str, values: Values) -> Scale:
    """Return a logarithmic scale: of the loss, or of the error, 1 - accuracy.

    What has no logarithm, a loss of zero or an accuracy of one, stands at the end.
    """
    if quantity == "accuracy":
        # Where nothing lies between 0.9 and a perfect 1, that is how far it goes.
        least = max(_LEAST_ERROR, 1 - float(values[values < 1].max(initial=0.9))) / 2
        low, high = min(float(values.min(initial=0.9)), 0.9), 1 - least
        ticks = tuple(tick for tick in _ACCURACY_TICKS if low <= tick < high)
        return Scale(low, high, ticks, lambda a: -np.log10(np.maximum(1 - a, least)), True)
    positive = values[values > 1 / _LARGEST]
    low, high = float(positive.min(initial=_LARGEST)), float(positive.max(initial=1 / _LARGEST))
    if not low < high:
        low, high = (low / 2, 2 * low) if len(positive) else (0.5, 2.0)
    ticks = _powers(low, high)
    ticks = ticks if len(ticks) > 1 else _round_values(low, high)
    return Scale(low, high, ticks, lambda v: np.log10(np.maximum(v, low)), True)


def _ends(values: Values) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low > max(1e-9 * max(abs(low), abs(high)), 1 / _LARGEST):
        return low, high
    margin = 0.1 * abs(low) or 0.5
    return low - margin, high + margin


def _round_values(low: float, high: float) -> tuple[float, ...]:
    power = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= _TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))


def _powers(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = tuple(
            float(f"{m}e{d}") for d in decades for m in digits if low <= m * 10.0**d <= high
        )
        if len(ticks) <= _TICKS + 1:
            return ticks
    return ticks[:: -(-len(ticks) // _TICKS)]
