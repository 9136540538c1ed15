from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from handgrad.pictures import plots
from handgrad.training.metrics import Row


def _row(step: int, split: str, loss: float = 1.0) -> Row:
    return Row(step, step / 10, split, loss, 0.5, 0.1, 1.0)


def _assert_picture(path: Path) -> np.ndarray:
    image = imread(path)
    assert image.ndim == 3 and min(image.shape[:2]) > 200
    assert image[..., :3].std() > 0.01, "not blank"
    return image


CURVES = {
    "no rows": [],
    "one point": [_row(0, "validation")],
    "three splits": [_row(s, n) for s in (5, 10) for n in ("train", "validation", "test")],
    "many points": [_row(step, "test") for step in range(200)],
    "a wide range": [_row(0, "train", 1e-6), _row(1, "train", 1e9)],
}


@pytest.mark.parametrize("rows", CURVES.values(), ids=CURVES.keys())
@pytest.mark.parametrize("quantity", ["loss", "accuracy"])
def test_curve(tmp_path: Path, rows: list[Row], quantity: str) -> None:
    plots.plot_curve(tmp_path / "curve.png", rows, quantity, 10, "title", best_step=5)
    _assert_picture(tmp_path / "curve.png")


def test_curves_of_other_rows_differ(tmp_path: Path) -> None:
    for name, losses in (("a", [1.0, 2.0]), ("b", [2.0, 1.0])):
        rows = [_row(step, "test", loss) for step, loss in enumerate(losses)]
        plots.plot_curve(tmp_path / f"{name}.png", rows, "loss", 10, "title", 0)
    a, b = (_assert_picture(tmp_path / f"{name}.png") for name in "ab")
    assert a.shape != b.shape or not np.array_equal(a, b)


@pytest.mark.parametrize(
    "counts",
    [np.eye(3, dtype=np.int64) * 10, np.zeros((3, 3), np.int64), np.arange(9).reshape(3, 3)],
    ids=["perfect", "empty", "mixed"],
)
@pytest.mark.parametrize("names", ["012", ("airplane", "bird", "cat")])
def test_confusion_matrix(tmp_path: Path, counts: np.ndarray, names: tuple[str, ...]) -> None:
    plots.plot_confusion_matrix(tmp_path / "matrix.png", counts, names)
    _assert_picture(tmp_path / "matrix.png")


@pytest.mark.parametrize("shape", [(40, 1, 8, 8), (5, 3, 32, 32), (1, 1, 28, 28)], ids=str)
def test_predictions(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels, predicted = rng.integers(0, 3, (2, len(images)))
    names = ("one", "two", "three")
    plots.plot_predictions(tmp_path / "sheet.png", images, labels, predicted, names)
    _assert_picture(tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("n_filters", "filter_shape", "image_shape"),
    [
        (10, (1, 8, 8), (1, 8, 8)),
        (100, (3, 32, 32), (3, 32, 32)),
        (1, (1, 28, 28), (1, 28, 28)),
        (300, (1, 8, 8), (1, 8, 8)),
        (64, (3, 3, 3), (3, 32, 32)),
    ],
    ids=str,
)
def test_first_layer(
    tmp_path: Path,
    rng: np.random.Generator,
    n_filters: int,
    filter_shape: tuple[int, int, int],
    image_shape: tuple[int, int, int],
) -> None:
    weight = rng.normal(size=(n_filters, int(np.prod(filter_shape)))).astype(np.float32)
    weight[0] = 0  # a dead unit must not divide by zero
    before = weight.copy()
    plots.plot_first_layer(tmp_path / "filters.png", weight, image_shape)
    _assert_picture(tmp_path / "filters.png")
    np.testing.assert_array_equal(weight, before)
