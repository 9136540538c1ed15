"""The pictures of a run. Figures are built without pyplot: no global state, no display."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.data.dataset import Images
from training.files import write_atomically
from training.metrics import Row

# Okabe and Ito's palette: distinguishable without full colour vision.
_COLOURS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}


def plot_curve(path: Path, rows: Sequence[Row], quantity: str, steps_per_epoch: int) -> None:
    """Draw ``loss`` or ``accuracy`` of every evaluated split over steps, with epochs on top."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for split, colour in _COLOURS.items():
        points = [(row.step, getattr(row, quantity)) for row in rows if row.split == split]
        if points:
            steps, values = zip(*points, strict=True)
            mark = "o" if len(points) <= 40 else None
            label = f"{split} (mean since the last point)" if split == "train" else split
            axes.plot(
                steps, values, color=colour, marker=mark, markersize=3, linewidth=1.5, label=label
            )
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy loss (nats)" if quantity == "loss" else quantity)
    axes.grid(alpha=0.3)
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
    _save(figure, path)


def plot_confusion_matrix(
    path: Path, counts: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Draw the confusion matrix, shaded by the share of each true class."""
    n = len(class_names)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[true, predicted] > 0.5 else "black"
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
    axes.set_title(f"test accuracy {np.trace(counts) / max(1, counts.sum()):.4f}")
    _save(figure, path)


def plot_predictions(
    path: Path,
    images: Images,
    labels: NDArray[Any],
    predicted: NDArray[Any],
    class_names: Sequence[str],
) -> None:
    """Draw the first test images with the predicted class, and the true one where it differs."""
    rows, columns = 4, 8
    n = min(rows * columns, len(images))
    right = int((labels[:n] == predicted[:n]).sum())
    # One picture of all of them: an axes each would take longer to draw than to train a network.
    _, channels, height, width = images.shape
    cell_height, cell_width = round(height * 1.55), round(width * 1.25)
    sheet = np.ones((channels, rows * cell_height, columns * cell_width))
    figure = Figure(figsize=(10, 10 * sheet.shape[1] / sheet.shape[2] + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set_title(f"the first {n} test images: {right} right, {n - right} wrong", fontsize=12)
    for i in range(n):
        top = i // columns * cell_height + (cell_height - height)
        left = i % columns * cell_width + (cell_width - width) // 2
        sheet[:, top : top + height, left : left + width] = images[i] / 255.0
        name, wrong = class_names[predicted[i]], labels[i] != predicted[i]
        text = f"{name}\n(is {class_names[labels[i]]})" if wrong else name
        colour = "#C03000" if wrong else "#006644"
        middle = left + width / 2
        axes.text(middle, top - 1, text, fontsize=9, color=colour, ha="center", va="bottom")
    axes.imshow(_displayable(sheet), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _save(figure, path)


def plot_first_layer(path: Path, weight: NDArray[Any], image_shape: tuple[int, int, int]) -> None:
    """Draw the weights of the first layer's units as images, each stretched to its own range.

    Args:
        path: where the picture goes.
        weight: (n_filters, C·h·w), with h = w where it is not the whole image.
        image_shape: (C, H, W) of the dataset.
    """
    channels, height, width = image_shape
    if weight.shape[1] != channels * height * width:
        height = width = math.isqrt(weight.shape[1] // channels)
    filters = weight[:256].reshape(-1, channels, height, width).astype(np.float64)
    # Symmetric about zero, so that grey is no weight at all, whatever the filter's range.
    limit = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    filters = 0.5 + 0.5 * filters / np.where(limit == 0, 1, limit)
    columns = math.ceil(math.sqrt(len(filters)))
    rows = math.ceil(len(filters) / columns)
    gap = 1 if height < 16 else 2
    sheet = np.ones((channels, rows * (height + gap) + gap, columns * (width + gap) + gap))
    for i, image in enumerate(filters):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    figure = Figure(figsize=(7, 7 * sheet.shape[1] / sheet.shape[2] + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_displayable(sheet), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    shown = (
        f"the first {len(filters)} of {len(weight)}" if len(weight) > 256 else f"all {len(weight)}"
    )
    axes.set_title(f"weights of the first layer, {shown} units (grey is zero)", fontsize=11)
    _save(figure, path)


def _displayable(image: NDArray[Any]) -> NDArray[Any]:
    """Return (C, H, W) as what ``imshow`` takes: (H, W, 3), or (H, W) of the first channel."""
    return image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())
