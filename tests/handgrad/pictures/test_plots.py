from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from handgrad.data import Split
from handgrad.pictures import plots
from handgrad.training.evaluation import surest_mistakes
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
    p = rng.dirichlet(np.ones(3), len(images))[predicted != labels]
    names, mistakes = (
        ("one", "two", "a name of many letters"),
        surest_mistakes(p, predicted, labels),
    )
    test = Split(images, labels)
    plots.plot_predictions(tmp_path / "sheet.png", test, predicted, mistakes, names)
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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn."""
    drawn: list[Figure] = []

    def keep(path: Path, figure: Figure, dpi: int = 110) -> None:
        FigureCanvasAgg(figure).draw()
        drawn.append(figure)

    monkeypatch.setattr(plots, "save", keep)
    return drawn


@pytest.mark.parametrize("accuracies", [[0.1, 0.9, 0.97, 0.999], [1.0, 1.0], [0.0, 1.0]], ids=str)
def test_accuracies_have_an_even_axis_and_nothing_lies_on_the_frame(
    figures: list[Figure], accuracies: list[float]
) -> None:
    rows = [replace(_row(step, "test"), accuracy=a) for step, a in enumerate(accuracies)]
    plots.plot_curve(Path(), rows, "accuracy", 10, "title", best_step=len(rows) - 1)
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "linear"
    np.testing.assert_allclose(np.diff(axes.get_yticks(), 2), 0, atol=1e-12)
    assert min(axes.get_yticks()) >= 0 and max(axes.get_yticks()) <= 1
    low, high = axes.get_ylim()
    margin = 0.02 * (high - low)
    assert low + margin < min(accuracies) and max(accuracies) < high - margin
    left, right = axes.get_xlim()
    assert left < 0 and right > len(rows) - 1
    (legend,) = figures[0].legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert axes.get_legend() is None


@pytest.mark.parametrize("n_wrong", [0, 1, 9, 40])
def test_the_surest_mistakes_come_first_with_their_probabilities(
    figures: list[Figure], rng: np.random.Generator, n_wrong: int
) -> None:
    labels = np.zeros(50, np.int64)
    predicted = np.where(np.arange(50) < n_wrong, 1, 0)
    p = rng.dirichlet(np.ones(2), n_wrong)
    test = Split(rng.integers(0, 256, (50, 1, 8, 8), dtype=np.uint8), labels)
    mistakes = surest_mistakes(p, predicted, labels)
    plots.plot_predictions(Path(), test, predicted, mistakes, ("cat", "dog"))
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    wrong = sorted(p[:, 1], reverse=True)[:24]
    assert texts[: len(wrong)] == [f"dog {q:.3f}\nis cat {1 - q:.3f}" for q in wrong]
    assert texts[len(wrong) :] == ["cat"] * (min(32, len(wrong) + 50 - n_wrong) - len(wrong))
    title = figures[0].get_suptitle()
    assert ("the 24 surest of 40 mistakes" in title) == (n_wrong == 40)
    assert ("no mistake among 50" in title) == (n_wrong == 0)
    assert len(figures[0].axes[0].patches) == len(wrong)


def test_no_row_has_one_image_of_several() -> None:
    for n in range(2, 33):
        rows, columns = plots._grid(n, 8)
        assert columns <= 8 and 1 < n - (rows - 1) * columns <= columns


def test_all_units_are_on_one_scale_the_largest_first(figures: list[Figure]) -> None:
    weight = np.linspace(0.1, 1.0, 40)[:, None] * np.ones(64)
    plots.plot_first_layer(Path(), weight, (1, 8, 8))
    axes, bar = figures[0].axes
    assert bar.get_xlabel() == "weight"
    (image,) = axes.images
    assert image.get_clim() == (-1, 1)
    shown = np.asarray(image.get_array())
    assert shown[1, 1] == pytest.approx(1) and shown[-2, -2] == pytest.approx(weight[4, 0])
    title = figures[0].get_suptitle()
    assert "the 36 units of largest norm, of 40" in title and "−1, white 0, red 1" in title


def test_units_of_three_channels_are_on_one_scale_too(figures: list[Figure]) -> None:
    weight = np.array([[0.5], [-0.25]]) * np.ones(27)
    plots.plot_first_layer(Path(), weight, (3, 32, 32))
    image = np.asarray(figures[0].axes[0].images[0].get_array())
    np.testing.assert_allclose(image[1:4, 1:4], 1)
    np.testing.assert_allclose(image[1:4, 5:8], 0.25)
    assert "dark −0.5, grey 0, bright 0.5" in figures[0].get_suptitle()
