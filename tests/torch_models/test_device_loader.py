"""Batches made on the device are the host's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handgrad.data.augment import AUGMENTATIONS, compose
from handgrad.data.dataset import Split
from handgrad.data.loader import BatchLoader
from handgrad.data.preprocess import fit_preprocessing
from torch_models.device_augment import DEVICE_AUGMENTATIONS
from torch_models.device_loader import DeviceLoader


@pytest.fixture
def split(rng: np.random.Generator) -> Split:
    return Split(rng.integers(0, 256, (23, 3, 4, 4), dtype=np.uint8), rng.integers(0, 10, 23))


@pytest.mark.parametrize("kind", ["standardize", "mean-image"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_are_the_hosts(split: Split, kind: str, shuffle: bool, start: int) -> None:
    preprocessing = fit_preprocessing(kind, split.images)
    host = BatchLoader(split, 5, preprocessing, shuffle=shuffle, seed=3)
    device = DeviceLoader(host, torch.device("cpu"))
    assert len(device) == len(host) == 5
    for epoch in (0, 1):
        pairs = zip(host.batches(epoch, start), device.batches(epoch, start), strict=True)
        for (x, y), (x_device, y_device) in pairs:
            np.testing.assert_array_equal(x, x_device.numpy())
            np.testing.assert_array_equal(y, y_device.numpy())
            assert x_device.dtype == torch.float32


@pytest.mark.parametrize(
    "augment",
    [
        *((name,) for name in DEVICE_AUGMENTATIONS),
        ("crop", "flip", "cutout"),
        ("alternating-flip", "translate"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_augmentations_are_the_hosts(
    rng: np.random.Generator, augment: tuple[str, ...], rank: int
) -> None:
    split = Split(rng.integers(0, 256, (23, 3, 16, 12), dtype=np.uint8), rng.integers(0, 10, 23))
    preprocessing = fit_preprocessing("standardize", split.images)
    host = BatchLoader(
        split, 6, preprocessing, shuffle=True, augmentation=compose(augment), rank=rank, size=2
    )
    device = DeviceLoader(host, torch.device("cpu"), augment)
    plain = BatchLoader(split, 6, preprocessing, shuffle=True, rank=rank, size=2)
    changed = 0
    for epoch in (0, 1):
        batches = (loader.batches(epoch) for loader in (host, device, plain))
        for (x, _), (x_device, _), (unchanged, _) in zip(*batches, strict=True):
            np.testing.assert_array_equal(x, x_device.numpy())
            changed += int((x != unchanged).any())
    assert changed >= 6
    assert DEVICE_AUGMENTATIONS.keys() == AUGMENTATIONS.keys()


def test_images_from_a_file_may_be_read_only(split: Split) -> None:
    images = np.frombuffer(split.images.tobytes(), np.uint8).reshape(split.images.shape)
    preprocessing = fit_preprocessing("standardize", images)
    loader = BatchLoader(Split(images, split.labels), 5, preprocessing)
    (x, _), *_ = DeviceLoader(loader, torch.device("cpu")).batches(0)  # warnings are errors
    assert x.shape == (5, 3, 4, 4)
