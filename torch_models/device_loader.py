"""Batches made on the device, from images that stay there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


class _Split(Protocol):
    @property
    def images(self) -> NDArray[Any]: ...
    @property
    def labels(self) -> NDArray[Any]: ...
    def __len__(self) -> int: ...


class _Preprocessing(Protocol):
    mean: NDArray[Any]
    scale: NDArray[Any]
    dtype: Any


class _Loader(Protocol):
    split: Any
    batch_size: int
    preprocessing: Any
    augmentation: Any

    def __len__(self) -> int: ...
    def order(self, epoch: int) -> NDArray[Any] | None: ...
    def window(self, batch: int) -> slice: ...


class DeviceLoader:
    """The batches of another loader, gathered and preprocessed on a device.

    The uint8 images are copied there once. A batch then needs no transfer but the order of its
    epoch, and no step waits for the host. Orders and values are the other loader's.

    Args:
        loader: an image loader without augmentation.
        device: where the images go.

    Shapes: images (B, C, H, W), floating-point; labels (B,), int64.
    """

    def __init__(self, loader: _Loader, device: torch.device) -> None:
        assert loader.augmentation is None, "augmentation works on the host's pixels"
        self.loader, self.device = loader, device
        self.split, self.batch_size = loader.split, loader.batch_size
        split: _Split = loader.split
        preprocessing: _Preprocessing = loader.preprocessing
        self._images = torch.from_numpy(split.images).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        scale, shift = preprocessing.scale, -preprocessing.mean * preprocessing.scale
        self._scale = torch.from_numpy(scale.astype(preprocessing.dtype)).to(device)
        self._shift = torch.from_numpy(shift.astype(preprocessing.dtype)).to(device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch, from batch number ``start`` on."""
        order = self.loader.order(epoch)
        chosen = None if order is None else torch.from_numpy(order).to(self.device)
        for batch in range(start, len(self)):
            window = self.loader.window(batch)
            index = window if chosen is None else chosen[window]
            yield self._images[index] * self._scale + self._shift, self._labels[index]
