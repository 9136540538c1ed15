"""The pictures of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from handgrad.data.dataset import Split
from handgrad.pictures.curves import curves_of, scale_of, wants_logarithm
from handgrad.pictures.figures import SPLIT_COLOURS, default_style, save
from handgrad.training.evaluation import Mistakes
from handgrad.training.metrics import Row

_MOST_IMAGES, _MOST_MISTAKES = 32, 24
_NAME = 12  # characters of a class that fit above an image
_SHOWN_UNITS = 36
_WITHIN = (
    0.995  # share of the weights that one scale is made for: outliers would make the rest pale
)


@default_style()
def plot_curve(
    path: Path, rows: Sequence[Row], quantity: str, steps_per_epoch: int, title: str, best_step: int
) -> None:
    """Draw ``loss`` or ``accuracy`` of every evaluated split over steps, with epochs on top.

    A dotted line marks the step whose weights were kept. Training values are means over an interval
    and stand at its middle.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    curves = curves_of(rows, quantity)
    for split, (steps, values) in curves.items():
        mark = "o" if len(values) <= 40 else None
        label = "train (mean of each interval)" if split == "train" else split
        colour = SPLIT_COLOURS[split]
        axes.plot(steps, values, colour, marker=mark, markersize=3, linewidth=1.5, label=label)
    set_scale(axes, quantity, np.concatenate([np.empty(0), *(y for _, y in curves.values())]))
    if best_step:
        axes.axvline(best_step, color="black", linestyle=":", linewidth=1, label="weights kept")
    axes.set_xlabel("step")
    axes.locator_params("x", integer=True)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    if axes.has_data():
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    above = axes.secondary_xaxis(
        "top",
        functions=(
            lambda step: np.asarray(step) / steps_per_epoch,
            lambda epoch: np.asarray(epoch) * steps_per_epoch,
        ),
    )
    above.set_xlabel("epoch")
    save(path, figure)


def set_scale(axes: Any, quantity: str, values: NDArray[Any]) -> None:
    """Name the vertical axis of ``loss`` or ``accuracy``, and give it the scale for ``values``.

    The accuracy has an even axis, and the loss a logarithmic one where it falls far.
    """
    if quantity == "accuracy":
        axes.set_ylabel("accuracy")
        scale = scale_of(quantity, values)
        axes.set_yticks(scale.ticks)
        margin = 0.03 * (scale.high - scale.low)
        axes.set_ylim(scale.low - margin, scale.high + margin)
        return
    axes.set_ylabel("cross-entropy loss (nats)")
    if wants_logarithm(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


@default_style()
def plot_confusion_matrix(
    path: Path, counts: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Draw the confusion matrix, shaded by the share of each true class."""
    n = len(class_names)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.add_subplot()
    # The root brings out the few mistakes of a good network.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[true, predicted] > 0.3 else "black"
            axes.text(
                predicted, true, str(count), ha="center", va="center", fontsize=8, color=colour
            )
    axes.set_xticks(range(n), class_names)
    if max(map(len, class_names)) > 2:
        axes.tick_params("x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(
        f"numbers of test images; accuracy {np.trace(counts) / max(1, counts.sum()):.4f}",
        fontsize=11,
    )
    save(path, figure)


@default_style()
def plot_predictions(
    path: Path,
    test: Split,
    predicted: NDArray[Any],
    mistakes: Mistakes,
    class_names: Sequence[str],
) -> None:
    """Draw the mistakes that the network is surest of, and test images that it gets right.

    Above a mistake, in a frame, stand the predicted class and the true one, with the probabilities
    that the network gives them; above the others the class.
    """
    worst = mistakes.images[:_MOST_MISTAKES]
    right = np.flatnonzero(predicted == test.labels)[: _MOST_IMAGES - len(worst)]
    rows, columns = _grid(len(worst) + len(right), 8)
    # One picture of all of them: an axes each would take longer to draw than to train a network.
    _, channels, height, width = test.images.shape
    cell_height, cell_width = round(height * 1.6), round(width * 1.3)
    sheet = np.ones((channels, rows * cell_height, columns * cell_width))
    size = (1.3 * columns, 1.3 * columns * sheet.shape[1] / sheet.shape[2] + 0.6)
    figure = Figure(figsize=(max(7.0, size[0]), size[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    figure.suptitle(_told(len(worst), len(mistakes.images), len(right), len(test)), fontsize=11)
    for place, i in enumerate([*worst, *right]):
        top = place // columns * cell_height + (cell_height - height)
        left = place % columns * cell_width + (cell_width - width) // 2
        sheet[:, top : top + height, left : left + width] = test.images[i] / 255.0
        text, colour = _short(class_names[predicted[i]]), "#006644"
        if place < len(worst):
            colour = "#C03000"
            text += f" {mistakes.predicted[place]:.3f}\n"
            text += f"is {_short(class_names[test.labels[i]])} {mistakes.true[place]:.3f}"
            corner = (left - 0.5, top - 0.5)
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, lw=2))
        middle = left + (width - 1) / 2
        axes.annotate(
            text, (middle, top - 0.5), (0, 3), textcoords="offset points", fontsize=8, color=colour,
            ha="center", va="bottom", parse_math=False,
        )  # fmt: skip
    axes.imshow(_displayable(sheet), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    save(path, figure)


def _grid(n: int, most_columns: int) -> tuple[int, int]:
    """Return how many rows and columns hold ``n`` images, no row with a single one of several."""
    rows = max(1, -(-n // most_columns))
    return rows, max(1, -(-n // rows))


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _told(n_worst: int, n_wrong: int, n_right: int, n: int) -> str:
    if not n_wrong:
        return f"no mistake among {n:,} test images; the first {n_right}"
    which = f"the {n_worst} surest of " if n_worst < n_wrong else ""
    told = f"{which}{n_wrong:,} mistakes among {n:,} test images: predicted and true class, with "
    told += "their probabilities"
    return told + (f"\nthen the first {n_right} that it gets right" if n_right else "")


@default_style()
def plot_first_layer(path: Path, weight: NDArray[Any], image_shape: tuple[int, int, int]) -> None:
    """Draw the weights of the first layer's units as images, those of largest norm first.

    All are on one scale, symmetric about zero. Of one channel: blue is negative, red positive,
    white zero. Of three: the weights of red, green and blue, grey is zero.

    Args:
        path: where the picture goes.
        weight: (n_filters, C·h·w), with h = w where it is not the whole image.
        image_shape: (C, H, W) of the dataset.
    """
    sheet = first_layer_sheet(weight, image_shape, _SHOWN_UNITS)
    channels, rows, columns = sheet.weights.shape
    below = 0.6 if channels == 3 else 1.2  # of a bar of colours
    figure = Figure(figsize=(7, 7 * rows / columns + below), layout="constrained")
    axes = figure.add_subplot()
    if channels == 3:
        shown = np.nan_to_num(sheet.brightness(), nan=1.0)
        axes.imshow(_displayable(shown), interpolation="nearest")
    else:
        image = axes.imshow(
            sheet.weights[0],
            cmap="RdBu_r",
            vmin=-sheet.limit,
            vmax=sheet.limit,
            interpolation="nearest",
        )
        figure.colorbar(
            image, ax=axes, location="bottom", label="weight", shrink=0.6, aspect=40, extend="both"
        )
    axes.axis("off")
    figure.suptitle("\n".join(sheet.told()), fontsize=10)
    save(path, figure)


@dataclass(frozen=True)
class FirstLayer:
    """Units of the first layer side by side.

    Attributes:
        weights: (C, rows, columns); NaN between the units and where a weight is not finite.
        limit: the weight that is drawn in full colour; few are beyond.
        n_shown: how many units there are.
        n_units: how many the layer has.
    """

    weights: NDArray[np.float64]
    limit: float
    n_shown: int
    n_units: int

    def brightness(self) -> NDArray[np.float64]:
        """Return the weights from 0 to 1, that of zero at 0.5."""
        return 0.5 + 0.5 * np.clip(self.weights / self.limit, -1, 1)

    def told(self) -> tuple[str, str]:
        """Say what is shown, and on what scale."""
        which = f"the {self.n_shown} units of largest norm, of {self.n_units}"
        if self.n_shown == self.n_units:
            which = f"all {self.n_units} units" if self.n_units > 1 else "its only unit"
        low, high = f"−{self.limit:.2g}", f"{self.limit:.2g}"
        scale = f"on one scale: blue {low}, white 0, red {high}"
        if len(self.weights) == 3:
            scale = f"red, green and blue on one scale: dark {low}, grey 0, bright {high}"
        return f"weights of the first layer, {which}", scale


def first_layer_sheet(
    weight: NDArray[Any], image_shape: tuple[int, int, int], most: int
) -> FirstLayer:
    """Return the units of largest norm side by side: what they look for stands out from the start.

    Args:
        weight: (n_filters, C·h·w), with h = w where it is not the whole image.
        image_shape: (C, H, W) of the dataset.
        most: how many units to show.
    """
    channels, height, width = image_shape
    if weight.shape[1] != channels * height * width:
        height = width = math.isqrt(weight.shape[1] // channels)
    largest = np.argsort(-np.linalg.norm(weight, axis=1), kind="stable")[:most]
    filters = weight[largest].reshape(-1, channels, height, width).astype(np.float64)
    filters[~np.isfinite(filters)] = np.nan
    sizes = np.abs(filters[np.isfinite(filters)])
    limit = float(np.quantile(sizes, _WITHIN)) if len(sizes) else 0.0
    columns = math.ceil(math.sqrt(len(filters)))
    rows = math.ceil(len(filters) / columns)
    gap = 1 if height < 16 else 2
    shape = (channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    sheet = np.full(shape, np.nan)
    for i, image in enumerate(filters):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return FirstLayer(sheet, limit or 1.0, len(filters), len(weight))


def _displayable(image: NDArray[Any]) -> NDArray[Any]:
    """Return (C, H, W) as what ``imshow`` takes: (H, W, 3), or (H, W) of the first channel."""
    return image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]
