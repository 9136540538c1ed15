"""A dataset as splits of uint8 images, and the registry of those that can be asked for."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.sources import cifar10, digits, mnist
from handgrad.errors import UserError
from handgrad.files import user_path
from handgrad.seeding import check_seed, generator

VALIDATION_IMAGES = ("random", "last")
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8, with labels (N,), int64."""

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        assert self.images.ndim == 4 and self.images.dtype == np.uint8, self.images.shape
        assert self.labels.shape == self.images.shape[:1], (self.labels.shape, self.images.shape)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, where: slice | NDArray[np.bool_]) -> Split:
        """Return the images and labels in ``where``; those of a slice are views."""
        return Split(self.images[where], self.labels[where])


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test splits.

    Attributes:
        name: its name in the registry.
        train: images to learn from, the validation images taken out.
        validation: held-out training images; empty when none were asked for.
        test: the official test images.
        class_names: one name a class, in the order of the labels.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.images.shape[1:]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Return a checksum of all images and labels, to notice when they have changed."""
        crc = 0
        for split in filter(len, (self.train, self.validation, self.test)):
            crc = zlib.crc32(split.images.data, crc)
            crc = zlib.crc32(split.labels.data, crc)
        return f"crc32:{crc:08x}"

    def split(self, name: str) -> Split:
        """Return the split called ``name``."""
        found: Split = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        return found


@dataclass(frozen=True)
class _Source:
    # load(data_dir, download) -> train images, train labels, test images, test labels
    load: Callable[[Path | None, bool], tuple[NDArray[Any], ...]]
    class_names: tuple[str, ...]


DATASETS = {
    "digits": _Source(digits.load, digits.CLASS_NAMES),
    "mnist": _Source(mnist.load, mnist.CLASS_NAMES),
    "cifar10": _Source(cifar10.load, cifar10.CLASS_NAMES),
}


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    validation_size: float = 0.1,
    validation_images: str = "random",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load a dataset, looking below ``data_dir`` and downloading what is not there.

    Args:
        name: ``digits``, ``mnist`` or ``cifar10``.
        data_dir: folder to search; the default is a per-user cache.
        validation_size: number of training images to hold out, or, below 1, their share.
        validation_images: which: ``random`` ones, or the ``last``, for results that are to be
            compared with those of a course that holds out those.
        seed: decides which random ones; the split depends on nothing else.
        download: whether the network may be used.

    Raises:
        DataError: the files are missing and cannot be downloaded, or are damaged.
        UserError: there is no such dataset, the validation split would leave nothing to train on,
            or an argument is not among those that there are.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise UserError(f"dataset {name!r} is unknown; expected one of: {', '.join(DATASETS)}")
    if validation_images not in VALIDATION_IMAGES:
        raise UserError(
            f"validation_images {validation_images!r} is unknown; expected one of: "
            f"{', '.join(VALIDATION_IMAGES)}"
        )
    if not isinstance(validation_size, Real) or not 0 <= validation_size < math.inf:
        raise UserError(
            f"validation_size {validation_size!r}: expected a number of images, or a share below 1"
        )
    check_seed(seed)
    source = DATASETS[name]
    folder = None if data_dir is None else user_path(data_dir)
    if folder is not None and folder.is_file():
        raise UserError(f"--data-dir {folder} is a file; a folder is expected")
    train_images, train_labels, test_images, test_labels = source.load(folder, download)
    n = len(train_labels)
    held_out = round(validation_size * n) if validation_size < 1 else int(validation_size)
    if not 0 <= held_out < n:
        raise UserError(
            f"--validation-size {validation_size:g} asks for {held_out} of the {n} training images "
            f"of {name}; give a number below {n}, or a share below 1"
        )
    order = np.arange(n)[::-1]
    if validation_images == "random":
        order = generator(seed, "validation split").permutation(n)
    validation, train = np.sort(order[:held_out]), np.sort(order[held_out:])
    if held_out == 0:
        train_split = Split(train_images, train_labels)
    else:
        train_split = Split(train_images[train], train_labels[train])
    return Dataset(
        name=name,
        train=train_split,
        validation=Split(train_images[validation], train_labels[validation]),
        test=Split(test_images, test_labels),
        class_names=source.class_names,
    )
