from __future__ import annotations

import numpy as np

from handgrad.data.sources import digits


def test_bundled_digits() -> None:
    train, train_labels, test, test_labels = digits.load()
    assert train.shape[1:] == test.shape[1:] == (1, 8, 8)
    assert len(train) + len(test) == 1797 and len(test) == 357
    assert train.dtype == test.dtype == np.uint8
    assert train_labels.dtype == test_labels.dtype == np.int64
    # The published counts of UCI's 1,797 test digits.
    counts = np.bincount(np.concatenate([train_labels, test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(test_labels).min() >= 30


def test_pixels_use_the_whole_range() -> None:
    train, _, test, _ = digits.load()
    assert set(np.unique(np.concatenate([train, test]))) == {*range(0, 241, 16), 255}


def test_no_image_is_in_both_splits() -> None:
    train, _, test, _ = digits.load()
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_first_image_is_the_known_zero() -> None:
    train, labels, _, _ = digits.load()
    assert labels[0] == 0
    # First row of the first image as UCI published it: 0 0 5 13 9 1 0 0.
    assert (train[0, 0, 0] // 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
