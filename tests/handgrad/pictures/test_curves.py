from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from handgrad.pictures.curves import Scale, curve, even_scale, linear_scale, log_scale, scale_of
from handgrad.training.metrics import Row


def _row(step: int, split: str, loss: float = 1.0) -> Row:
    return Row(step, step / 10, split, loss, 0.5, 0.1, 2.0 * step)


def test_training_values_stand_in_the_middle_of_their_interval() -> None:
    rows = [_row(0, "validation"), _row(10, "train"), _row(10, "validation"), _row(30, "train")]
    assert curve(rows, "train", "loss")[0].tolist() == [5, 20]
    assert curve(rows, "train", "loss", "seconds")[0].tolist() == [10, 40]
    assert curve(rows, "validation", "accuracy", "epoch")[0].tolist() == [0, 1]


def test_points_that_are_not_finite_are_left_out() -> None:
    losses = [float("nan"), 3.0, float("inf"), 1e308, -1e308]
    x, y = curve([_row(i, "test", loss) for i, loss in enumerate(losses)], "test", "loss")
    assert (x.tolist(), y.tolist()) == ([1], [3])


VALUES = {
    "loss, falling far": ("loss", [2.3, 1e-3]),
    "loss, falling little": ("loss", [2.3, 1.5]),
    "loss of zero": ("loss", [1.0, 0.0]),
    "a wide loss": ("loss", [1e-6, 1e9]),
    "as wide as can be": ("loss", [-9e299, 9e299]),
    "hardly apart": ("loss", [0.0, 5e-324]),
    "one value": ("loss", [0.7]),
    "all zero": ("loss", [0.0, 0.0]),
    "low accuracy": ("accuracy", [0.1, 0.4]),
    "high accuracy": ("accuracy", [0.1, 0.97]),
    "perfect accuracy": ("accuracy", [1.0]),
    "nothing, then everything": ("accuracy", [0.05, 1.0]),
    "nearly perfect": ("accuracy", [0.95, 0.9999]),
}


@pytest.mark.parametrize("make", [scale_of, even_scale, log_scale])
@pytest.mark.parametrize(("quantity", "values"), VALUES.values(), ids=VALUES.keys())
def test_a_scale_holds_its_values_in_order(
    make: Callable[..., Scale], quantity: str, values: list[float]
) -> None:
    scale = make(quantity, np.array(values))
    places = scale.place(np.sort(values))
    assert (places >= -1e-9).all() and (places <= 1 + 1e-9).all()
    assert (np.diff(places) >= 0).all()
    assert 1 <= len(scale.ticks) <= 10
    heights = scale.place(np.array(scale.ticks))
    assert (np.diff(heights) > 0).all() and heights.min() >= -1e-6 and heights.max() <= 1 + 1e-6


@pytest.mark.parametrize("values", [[0.1, 0.998], [1.0, 1.0], [0.0], [0.2, 0.3]], ids=str)
def test_accuracies_stand_evenly_between_nothing_and_everything(values: list[float]) -> None:
    scale = scale_of("accuracy", np.array(values))
    assert not scale.is_logarithmic and 0 <= scale.low < scale.high <= 1
    np.testing.assert_allclose(np.diff(scale.ticks), scale.ticks[1] - scale.ticks[0])
    np.testing.assert_allclose(np.diff(scale.place(np.array(scale.ticks)), 2), 0, atol=1e-12)


def test_late_improvements_take_room_on_a_logarithmic_scale() -> None:
    loss = scale_of("loss", np.array([2.0, 0.02]))
    assert loss.is_logarithmic and loss.place(0.2) == pytest.approx(0.5)
    accuracy = log_scale("accuracy", np.array([0.1, 0.998]))
    assert accuracy.place(0.98) - accuracy.place(0.8) > accuracy.place(0.8) - accuracy.place(0.1)


def test_ticks_are_round() -> None:
    assert linear_scale(np.array([0.0, 1230.0])).ticks == (0, 500, 1000)
    assert linear_scale(np.array([0.11, 0.31])).ticks == (0.15, 0.2, 0.25, 0.3)
