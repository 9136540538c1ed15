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

DeviceAugmentation = Callable[[Tensor, np.random.Generator], Tensor]


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for what is under way there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; (N, C, H, W) -> the same."""
    mirrored = to_device(rng.random(len(images)) < 0.5, images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size each way, zeros moving in."""
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    top, left = to_device(rng.integers(0, 2 * pad + 1, size=(2, n)), images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=images.device)  # (N, W)
    index = torch.arange(n, device=images.device)[:, None, None]
    # The three index arrays stand together, so that C comes last: (N, H, W, C).
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


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


DEVICE_AUGMENTATIONS: dict[str, DeviceAugmentation] = {"flip": flip, "crop": crop, "cutout": cutout}
