"""The augmentations of ``handgrad.data.augment`` on a device, pixel for pixel the same.

Random numbers are drawn on the host, by the same generators in the same order: a few for each
image. The pixels never leave the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DeviceAugmentation = Callable[..., Tensor]


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for what is under way there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; (N, C, H, W) -> the same."""
    return alternating_flip(images, to_device(rng.random(len(images)) < 0.5, images.device))


def alternating_flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images left to right whose turn it is, (N,)."""
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size each way, zeros moving in."""
    pad = max(1, images.shape[2] // 8)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    return _gathered(padded, *(place + pad for place in _shifted(images, rng, pad)))


def translate(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to a sixteenth of its size each way, its border reflected."""
    rows, columns = _shifted(images, rng, max(1, images.shape[2] // 16))
    height, width = images.shape[2:]
    rows, columns = (
        last - (last - place.abs()).abs()
        for place, last in ((rows, height - 1), (columns, width - 1))
    )
    return _gathered(images, rows, columns)


def _shifted(images: Tensor, rng: np.random.Generator, pad: int) -> tuple[Tensor, Tensor]:
    """Return where rows (N, H) and columns (N, W) come from, up to ``pad`` outside the image."""
    n, _, height, width = images.shape
    top, left = to_device(rng.integers(0, 2 * pad + 1, size=(2, n)) - pad, images.device)
    return (
        top[:, None] + torch.arange(height, device=images.device),
        left[:, None] + torch.arange(width, device=images.device),
    )


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    index = torch.arange(len(images), device=images.device)[:, None, None]
    # The three index arrays stand together, so that C comes last: (N, H, W, C).
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def cutout(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blank one square, a quarter of the height a side, at a random place of each image."""
    n, _, height, width = images.shape
    size = height // 4
    row, column = (
        torch.arange(length, device=images.device)
        - to_device(rng.integers(0, length, size=(n, 1)) - size // 2, images.device)
        for length in (height, width)
    )
    inside_rows, inside_columns = (row >= 0) & (row < size), (column >= 0) & (column < size)
    hole = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return images.masked_fill(hole, 0)


DEVICE_AUGMENTATIONS: dict[str, DeviceAugmentation] = {
    "flip": flip,
    "alternating-flip": alternating_flip,
    "crop": crop,
    "translate": translate,
    "cutout": cutout,
}
