"""The pictures of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from handgrad.data.dataset import Images
from handgrad.pictures.curves import ACCURACY_TICKS, curves_of, least_error, wants_logarithm
from handgrad.pictures.figures import SPLIT_COLOURS, default_style, save
from handgrad.training.metrics import Row

_SHOWN_UNITS = 100


@default_style()
def plot_curve(
    path: Path, rows: Sequence[Row], quantity: str, steps_per_epoch: int, title: str, best_step: int
) -> None:
    """Draw ``loss`` or ``accuracy`` of every evaluated split over steps, with epochs on top.

    The loss has a logarithmic axis, and the accuracy one in the logarithm of the error: what
    happens late in training can be seen beside the first steps. A dotted line marks the step whose
    weights were kept. Training values are means over an interval and stand at its middle.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for split, (steps, values) in curves_of(rows, quantity).items():
        mark = "o" if len(values) <= 40 else None
        label = "train (mean of each interval)" if split == "train" else split
        colour = SPLIT_COLOURS[split]
        axes.plot(steps, values, colour, marker=mark, markersize=3, linewidth=1.5, label=label)
    set_scale(axes, quantity, np.array([getattr(row, quantity) for row in rows]))
    if best_step:
        axes.axvline(best_step, color="black", linestyle=":", linewidth=1, label="weights kept")
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    if axes.has_data():
        axes.legend()
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
    """Name the vertical axis of ``loss`` or ``accuracy``, and give it the scale for ``values``."""
    if quantity == "loss":
        axes.set_ylabel("cross-entropy loss (nats)")
        if wants_logarithm(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.set_ylabel("accuracy")
    least = least_error(values)
    if least is None:
        return
    axes.set_ylabel("accuracy (errors on a logarithmic scale)")
    axes.set_yscale(
        "function",
        functions=(
            lambda accuracy: -np.log10(np.maximum(1 - np.asarray(accuracy), least / 2)),
            lambda height: 1 - 10.0 ** -np.asarray(height),
        ),
    )
    low, high = values.min(), 1 - least / 2
    axes.set_yticks([tick for tick in ACCURACY_TICKS if low - 0.1 <= tick < high])
    axes.yaxis.set_major_formatter(lambda accuracy, _: f"{accuracy:.3f}".rstrip("0").rstrip("."))
    axes.set_ylim(low, high)


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
    images: Images,
    labels: NDArray[Any],
    predicted: NDArray[Any],
    class_names: Sequence[str],
) -> None:
    """Draw the first test images and, below them, images that the network gets wrong.

    Above each image stands the predicted class, and in brackets the true one where it differs;
    wrong predictions also have a frame.
    """
    rows, columns = 4, 8
    half = rows * columns // 2
    wrong = predicted != labels
    mistakes = np.flatnonzero(wrong)
    mistakes = mistakes[mistakes >= half][:half]
    shown = [*range(min(half, len(images))), *mistakes]
    right = int((~wrong).sum())
    # One picture of all of them: an axes each would take longer to draw than to train a network.
    _, channels, height, width = images.shape
    cell_height, cell_width = round(height * 1.55), round(width * 1.25)
    sheet = np.ones((channels, rows * cell_height, columns * cell_width))
    figure = Figure(figsize=(10, 10 * sheet.shape[1] / sheet.shape[2] + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set_title(
        f"predicted class (true class): the first {min(half, len(images))} test images, then "
        f"{len(mistakes)} of the {len(images) - right} mistakes among {len(images)}",
        fontsize=11,
    )
    for place, i in enumerate(shown):
        place = place if place < half else place - min(half, len(images)) + half
        top = place // columns * cell_height + (cell_height - height)
        left = place % columns * cell_width + (cell_width - width) // 2
        sheet[:, top : top + height, left : left + width] = images[i] / 255.0
        name = class_names[predicted[i]]
        text = f"{name}\n({class_names[labels[i]]})" if wrong[i] else name
        colour = "#C03000" if wrong[i] else "#006644"
        middle = left + width / 2
        axes.text(middle, top - 1, text, fontsize=9, color=colour, ha="center", va="bottom")
        if wrong[i]:
            corner = (left - 0.5, top - 0.5)
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, lw=2))
    axes.imshow(_displayable(sheet), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    save(path, figure)


@default_style()
def plot_first_layer(path: Path, weight: NDArray[Any], image_shape: tuple[int, int, int]) -> None:
    """Draw the weights of the first layer's units as images: the hundred with the largest norm.

    Each image is stretched to its own range, symmetric about zero. Of one channel: blue is
    negative, red positive, white zero. Of three: the weights of red, green and blue, grey is zero.

    Args:
        path: where the picture goes.
        weight: (n_filters, C·h·w), with h = w where it is not the whole image.
        image_shape: (C, H, W) of the dataset.
    """
    sheet, n_shown = first_layer_sheet(weight, image_shape, _SHOWN_UNITS)
    channels, rows, columns = sheet.shape
    figure = Figure(figsize=(7, 7 * rows / columns + 0.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_displayable(sheet), cmap="RdBu_r", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    which = f"{n_shown} largest of {len(weight)}" if len(weight) > n_shown else "all"
    zero = "grey is zero" if channels == 3 else "blue negative, white zero, red positive"
    axes.set_title(
        f"weights of the first layer, {which} units\neach on its own scale: {zero}", fontsize=10
    )
    save(path, figure)


def first_layer_sheet(
    weight: NDArray[Any], image_shape: tuple[int, int, int], most: int
) -> tuple[NDArray[np.float64], int]:
    """Return the units of largest norm, ``most`` of them, side by side, and how many those are.

    Args:
        weight: (n_filters, C·h·w), with h = w where it is not the whole image.
        image_shape: (C, H, W) of the dataset.
        most: how many units to show.

    Returns:
        The sheet (C, rows, columns), 0 to 1, zero weights at 0.5. Between the units, and in place
        of those that are not finite, it is white where there are three channels, NaN otherwise.
    """
    channels, height, width = image_shape
    if weight.shape[1] != channels * height * width:
        height = width = math.isqrt(weight.shape[1] // channels)
    largest = np.argsort(-np.linalg.norm(weight, axis=1), kind="stable")[:most]
    filters = weight[largest].reshape(-1, channels, height, width).astype(np.float64)
    filters[~np.isfinite(filters)] = np.nan
    limit = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    filters = 0.5 + 0.5 * filters / np.where(limit == 0, 1, limit)
    columns = math.ceil(math.sqrt(len(filters)))
    rows = math.ceil(len(filters) / columns)
    gap = 1 if height < 16 else 2
    shape = (channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    blank = 1.0 if channels == 3 else np.nan
    sheet = np.full(shape, blank)
    for i, image in enumerate(filters):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return np.nan_to_num(sheet, nan=blank), len(filters)


def _displayable(image: NDArray[Any]) -> NDArray[Any]:
    """Return (C, H, W) as what ``imshow`` takes: (H, W, 3), or (H, W) of the first channel."""
    return image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]
