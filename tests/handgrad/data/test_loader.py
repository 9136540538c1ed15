from __future__ import annotations

import numpy as np
import pytest

from handgrad.data import BatchLoader, Split
from handgrad.data.augment import compose
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import UserError

IDENTITY = Preprocessing(np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.float32)


def _split(n: int) -> Split:
    """Images whose label is also their first pixel."""
    images = np.random.default_rng(1).integers(0, 256, (n, 2, 8, 8), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return Split(images, np.arange(n, dtype=np.int64))


def _loader(n: int, batch_size: int, **options: object) -> BatchLoader:
    return BatchLoader(_split(n), batch_size, IDENTITY, **options)  # type: ignore[arg-type]


def _order(batches: object) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (12, 4, [4, 4, 4]),
        (5, 1, [1] * 5),
        (5, 5, [5]),
        (9, 8, [8, 1]),
    ],
)
def test_batches(n: int, batch_size: int, sizes: list[int], shuffle: bool) -> None:
    loader = _loader(n, batch_size, shuffle=shuffle)
    batches = list(loader)
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in batches] == sizes
    assert [images.shape for images, _ in batches] == [(size, 2, 8, 8) for size in sizes]
    assert all(images.dtype == np.float32 for images, _ in batches)
    assert all(labels.dtype == np.int64 for _, labels in batches)


def test_every_image_once_an_epoch_with_its_own_label() -> None:
    loader = _loader(50, 8, shuffle=True)
    for _ in range(3):
        seen = []
        for images, labels in loader:
            np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
            seen += labels.tolist()
        assert sorted(seen) == list(range(50))


def test_each_epoch_has_another_order() -> None:
    loader = _loader(50, 8, shuffle=True)
    orders = [_order(loader) for _ in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(50)) not in orders


def test_unshuffled_order_is_the_splits() -> None:
    loader = _loader(10, 4)
    assert _order(loader) == _order(loader) == list(range(10))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = (_loader(50, 8, shuffle=True, seed=seed) for seed in (7, 7, 8))
    epochs = [_order(first) for _ in range(3)]
    assert _order(again.batches(2)) == epochs[2], "without the epochs before"
    assert _order(first.batches(0)) == epochs[0], "after others"
    assert _order(other) != epochs[0]


@pytest.mark.parametrize("start", [0, 1, 3, 6, 7])
def test_an_epoch_from_a_batch_on_is_its_tail(start: int) -> None:
    options = {"shuffle": True, "augmentation": compose(["flip", "crop", "cutout"])}
    whole = list(_loader(50, 8, **options).batches(3))
    tail = list(_loader(50, 8, **options).batches(3, start))
    assert len(tail) == 7 - start
    for (images, labels), (expected, expected_labels) in zip(tail, whole[start:], strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)


def test_augmentation_differs_from_epoch_to_epoch_and_batch_to_batch() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8)
    split = Split(np.repeat(image, 32, axis=0), np.zeros(32, np.int64))
    loader = BatchLoader(split, 16, IDENTITY, shuffle=True, augmentation=compose(["crop"]))
    batches = [images for _ in range(2) for images, _ in loader]
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(batches[i], batches[j])


def test_the_split_is_never_modified() -> None:
    loader = _loader(20, 8, shuffle=True, augmentation=compose(["flip", "crop", "cutout"]))
    images, labels = loader.split.images.copy(), loader.split.labels.copy()
    for batch, batch_labels in loader:
        batch += 1
        batch_labels += 1
    for batch, _ in BatchLoader(loader.split, 8, IDENTITY):
        batch += 1
    np.testing.assert_array_equal(loader.split.images, images)
    np.testing.assert_array_equal(loader.split.labels, labels)


def test_an_alternating_flip_shows_each_image_both_ways_in_turn() -> None:
    n = 60
    images = np.zeros((n, 1, 1, 2), np.uint8)
    images[:, 0, 0, 1] = 1  # mirrored when the first pixel is
    split = Split(images, np.arange(n, dtype=np.int64))
    loader = BatchLoader(
        split, 7, IDENTITY, shuffle=True, augmentation=compose(["alternating-flip"]), seed=4
    )
    shown = np.zeros((4, n))
    for epoch in range(4):
        for batch, labels in loader.batches(epoch):
            shown[epoch, labels] = batch[:, 0, 0, 0]
    assert 0.3 < shown[0].mean() < 0.7
    np.testing.assert_array_equal(shown[1], 1 - shown[0])
    np.testing.assert_array_equal(shown[2:], shown[:2])
    np.testing.assert_array_equal(loader.mirrored(2), shown[2])
    other = BatchLoader(split, 7, IDENTITY, seed=5)
    assert (other.mirrored(0) != loader.mirrored(0)).any()


def test_preprocessing_comes_after_augmentation() -> None:
    # What a crop moves in is a black pixel, not a zero after standardisation.
    split = Split(np.full((4, 1, 8, 8), 100, np.uint8), np.zeros(4, np.int64))
    shift = Preprocessing(np.full((1, 1, 1), 100.0), np.ones((1, 1, 1)), np.float64)
    loader = BatchLoader(split, 4, shift, shuffle=True, augmentation=compose(["crop"]))
    ((images, _),) = loader
    assert set(np.unique(images)) == {-100.0, 0.0}


def test_batch_larger_than_the_training_set() -> None:
    with pytest.raises(UserError, match=r"--batch-size 11 .* 10 training images"):
        _loader(10, 11, shuffle=True)
    assert len(_loader(10, 11)) == 1, "for evaluation it is no mistake"
