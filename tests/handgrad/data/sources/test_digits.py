from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from handgrad.data.sources import digits
from handgrad.errors import DataError


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


@pytest.mark.parametrize(
    ("shape", "label_shape", "label"),
    [
        ((1797, 8, 8), (1797,), 10),
        ((1797, 8, 8), (1797, 1), 0),
        ((1797, 8, 8), (1796,), 0),
        ((1797, 64), (1797,), 0),
        ((0, 8, 8), (0,), 0),
    ],
    ids=str,
)
def test_other_whole_files_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    label_shape: tuple[int, ...],
    label: int,
) -> None:
    for kind, size, value in (("images-idx3", shape, 0), ("labels-idx1", label_shape, label)):
        header = bytes([0, 0, 8, len(size)]) + struct.pack(f">{len(size)}I", *size)
        content = header + bytes([value]) * int(np.prod(size))
        (tmp_path / f"digits-{kind}-ubyte.gz").write_bytes(content)
    monkeypatch.setattr(digits.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match="bundled digits are damaged"):
        digits.load()
