"""Batches made on the device, from images that stay there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_models.device_augment import DEVICE_AUGMENTATIONS, to_device


class _Loader(Protocol):
    split: Any  # with images (N, C, H, W) and labels (N,), uint8 and integers
    batch_size: int
    preprocessing: Any  # with mean, scale and dtype

    def __len__(self) -> int: ...
    def order(self, epoch: int) -> NDArray[Any] | None: ...
    def window(self, batch: int) -> slice: ...
    def augmentation_rng(self, epoch: int, batch: int) -> np.random.Generator: ...
    def mirrored(self, epoch: int) -> NDArray[np.bool_]: ...


class DeviceLoader:
    """The batches of another loader, gathered and preprocessed on a device.

    The uint8 images are copied there once. A batch then needs no transfer but the order of its
    epoch and the random numbers of its augmentation, and no step waits for the host. Orders and
    values are the other loader's.

    Args:
        loader: an image loader.
        device: where the images go.
        augment: names in :data:`DEVICE_AUGMENTATIONS`: those that ``loader`` applies.

    Shapes: images (B, C, H, W), floating-point; labels (B,), int64.
    """

    def __init__(self, loader: _Loader, device: torch.device, augment: Sequence[str] = ()) -> None:
        self.loader, self.device = loader, device
        self.augment = augment
        self.split, self.batch_size = loader.split, loader.batch_size
        split, preprocessing = loader.split, loader.preprocessing
        # A copy where the array came read-only from a file's bytes: PyTorch cannot mark it so.
        self._images = torch.from_numpy(np.require(split.images, requirements="W")).to(device)
        self._labels = torch.from_numpy(np.require(split.labels, requirements="W")).to(device)
        scale, shift = preprocessing.scale, -preprocessing.mean * preprocessing.scale
        self._scale = torch.from_numpy(scale.astype(preprocessing.dtype)).to(device)
        self._shift = torch.from_numpy(shift.astype(preprocessing.dtype)).to(device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch, from batch number ``start`` on."""
        order = self.loader.order(epoch)
        chosen = None if order is None else to_device(order, self.device)
        mirrored = to_device(self.loader.mirrored(epoch), self.device) if self.augment else None
        for batch in range(start, len(self)):
            window = self.loader.window(batch)
            index = window if chosen is None else chosen[window]
            pixels = self._images[index]
            rng = self.loader.augmentation_rng(epoch, batch) if self.augment else None
            for name in self.augment:
                assert rng is not None and mirrored is not None
                alternating = name == "alternating-flip"
                pixels = DEVICE_AUGMENTATIONS[name](pixels, mirrored[index] if alternating else rng)
            yield pixels * self._scale + self._shift, self._labels[index]
