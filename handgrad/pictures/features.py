"""A picture of what a convolutional network makes of some images on its way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from handgrad.pictures.figures import save

_CHANNELS = 6  # shown of each layer
_SIZE = 32  # pixels of each, down and across


def plot_feature_maps(
    path: Path, images: NDArray[np.uint8], maps: Sequence[tuple[str, NDArray[Any]]]
) -> None:
    """Draw, for each image, the outputs of some layers: the channels that tell images apart most.

    A row is an image; the channels are the same ones in each row. All channels of a layer are on
    one scale, from its smallest value, black, to its largest, white.

    Args:
        path: where the picture goes.
        images: (N, C, H, W), 0 to 255.
        maps: names of layers with their outputs (N, channels, h, w), in the order of the network.
    """
    columns = 1 + len(maps) * _CHANNELS
    figure = Figure(figsize=(0.62 * columns, 0.72 * len(images) + 0.5), layout="constrained")
    widths = [1, *[_CHANNELS] * len(maps)]
    all_axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    shown = images.transpose(0, 2, 3, 1)
    shown = _enlarged(shown if shown.shape[3] == 3 else shown[..., 0])
    all_axes[0].imshow(_stack(shown, 255), cmap="gray", vmin=0, vmax=255)
    all_axes[0].set_title("image", fontsize=9)
    for axes, (name, outputs) in zip(all_axes[1:], maps, strict=True):
        contrast = outputs.std(axis=(2, 3)).mean(axis=0) + outputs.mean(axis=(2, 3)).std(axis=0)
        chosen = np.sort(np.argsort(-contrast, kind="stable")[:_CHANNELS])
        low, high = float(outputs[:, chosen].min()), float(outputs[:, chosen].max())
        rows = [_stack(_enlarged(row), high, axis=1) for row in outputs[:, chosen]]
        axes.imshow(_stack(np.array(rows), high), cmap="gray", vmin=low, vmax=high)
        n, height, width = outputs.shape[1:]
        axes.set_title(f"{name}: {len(chosen)} of {n}, {height}×{width}", fontsize=9)
    for axes in all_axes:
        axes.axis("off")
    save(path, figure)


def _enlarged(images: NDArray[Any]) -> NDArray[Any]:
    """Return images (N, h, w, ...) at one size, so that rows of all layers are in line."""
    down, across = (np.arange(_SIZE) * size // _SIZE for size in images.shape[1:3])
    return images[:, down][:, :, across]


def _stack(images: NDArray[Any], gap: float, axis: int = 0) -> NDArray[Any]:
    """Return images one below, or with ``axis`` 1 beside, the other, a line between them."""
    parts: list[NDArray[Any]] = []
    for image in images:
        shape = list(image.shape)
        shape[axis] = max(1, shape[axis] // 12)
        parts += [np.full(shape, gap, image.dtype), image]
    return np.concatenate(parts[1:], axis=axis)
