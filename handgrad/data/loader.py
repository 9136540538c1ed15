"""Batches: shuffle, gather, augment, preprocess."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.augment import Augmentation, Mirrored
from handgrad.data.dataset import Split
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import UserError
from handgrad.seeding import generator


class BatchLoader:
    """Iterate over a split in batches ``(images, labels)``.

    Every epoch has an order of its own, a function of ``seed`` and the epoch's number alone, and
    every batch its own augmentation: any epoch can be replayed from any batch on, which is what
    makes a resumed run identical to one that was never stopped.

    Args:
        split: the images, uint8.
        batch_size: images a batch; the last one of an epoch may be smaller.
        preprocessing: turns pixels into inputs.
        shuffle: whether each epoch has a random order.
        augmentation: applied to the pixels before preprocessing.
        seed: of the orders and augmentations.
        rank, size: yield the share of process ``rank`` of ``size`` of every batch only. It may be
            empty where the last batch of an epoch is small.

    Shapes: images (B, C, H, W) in the dtype of ``preprocessing``; labels (B,), int64.

    Raises:
        UserError: the split is smaller than one batch of a shuffled loader.

    Example:
        >>> for images, labels in loader:  # one epoch; the next iteration is the next epoch
        ...     ...
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        preprocessing: Preprocessing,
        *,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        assert batch_size >= 1, batch_size
        if shuffle and batch_size > len(split):
            raise UserError(
                f"--batch-size {batch_size} is larger than the {len(split)} training images"
            )
        self.split, self.batch_size, self.preprocessing = split, batch_size, preprocessing
        self.shuffle, self.augmentation, self.seed = shuffle, augmentation, seed
        self.rank, self.size = rank, size
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)

    def order(self, epoch: int) -> NDArray[np.int64] | None:
        """Return the order of the images in an epoch; None for that of the split."""
        if not self.shuffle:
            return None
        return generator(self.seed, "order", epoch).permutation(len(self.split))

    def window(self, batch: int) -> slice:
        """Return where in the order of an epoch this process's share of a batch is."""
        start = batch * self.batch_size
        part = share(min(self.batch_size, len(self.split) - start), self.rank, self.size)
        return slice(start + part.start, start + part.stop)

    def augmentation_rng(self, epoch: int, batch: int) -> np.random.Generator:
        """Return what decides the augmentation of this process's share of a batch."""
        numbers = (epoch, batch, self.rank) if self.rank else (epoch, batch)
        return generator(self.seed, "augmentation", *numbers)

    def mirrored(self, epoch: int) -> Mirrored:
        """Return which images of the split an alternating flip mirrors in an epoch."""
        coins = generator(self.seed, "alternating flip").random(len(self.split)) < 0.5
        return coins ^ (epoch % 2 == 1)

    def batches(
        self, epoch: int, start: int = 0
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield the batches of one epoch, from batch number ``start`` on."""
        images, labels = self.split.images, self.split.labels
        order = self.order(epoch)
        mirrored = None if self.augmentation is None else self.mirrored(epoch)
        for batch in range(start, len(self)):
            window = self.window(batch)
            chosen = window if order is None else order[window]
            pixels = images[chosen]
            if self.augmentation is not None and mirrored is not None:
                rng = self.augmentation_rng(epoch, batch)
                pixels = self.augmentation(pixels, rng, mirrored[chosen])
            yield self.preprocessing(pixels), labels[chosen]


def share(n: int, rank: int, size: int) -> slice:
    """Return which of ``n`` things process ``rank`` of ``size`` takes.

    The shares follow each other, and differ by one at most: the first ones are the larger.
    """
    each, more = divmod(n, size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))
