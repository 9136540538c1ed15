from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import idx_bytes, write_mnist

from handgrad.data.sources import mnist
from handgrad.errors import DataError

TRAIN_IMAGES, TEST_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def _load(folder: Path) -> tuple[np.ndarray, ...]:
    return mnist.load(folder, download=False)


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_files_are_found(tmp_path: Path, below: str, gzipped: bool) -> None:
    expected = write_mnist(tmp_path / below)
    if gzipped:
        for path in (tmp_path / below).iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    for array, wanted in zip(_load(tmp_path), expected, strict=True):
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=f"{TEST_LABELS}.gz was not found below .*--dataset digits"):
        _load(tmp_path)


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "truncated": (TRAIN_IMAGES, lambda content: content[:-1]),
    "too long": (TRAIN_IMAGES, lambda content: content + b"\0"),
    "foreign": (TEST_LABELS, lambda content: b"<html>404</html>"),
    "truncated gz": (TRAIN_IMAGES, lambda content: gzip.compress(content)[:-20]),
    "other image size": (TRAIN_IMAGES, lambda _: idx_bytes(np.zeros((30, 8, 8), np.uint8))),
    "labels for images": (TRAIN_IMAGES, lambda _: idx_bytes(np.zeros(30, np.uint8))),
    "a label less": (TEST_LABELS, lambda _: idx_bytes(np.zeros(9, np.uint8))),
    "label 10": (TEST_LABELS, lambda _: idx_bytes(np.full(10, 10, np.uint8))),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError) as caught:
        _load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert name.partition("-")[0] in str(caught.value)


def test_real_data(real_data: Path) -> None:
    train, train_labels, test, test_labels = _load(real_data)
    assert train.shape == (60_000, 1, 28, 28) and train.dtype == np.uint8
    assert test.shape == (10_000, 1, 28, 28) and test.dtype == np.uint8
    # LeCun's own counts.
    assert np.bincount(train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert train.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train.std() / 255 == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.parametrize("namesake", ["FashionMNIST", "KMNIST"])
def test_another_dataset_with_the_same_file_names_is_passed_over(
    tmp_path: Path, namesake: str
) -> None:
    write_mnist(tmp_path / namesake / "raw", n=7)
    expected = write_mnist(tmp_path / "MNIST" / "raw", n=30)
    for array, other in zip(mnist.load(tmp_path, download=False), expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_one_flipped_bit_of_the_real_files_is_noticed(real_data: Path, tmp_path: Path) -> None:
    for path in (real_data / "MNIST" / "raw").iterdir():
        content = gzip.decompress(path.read_bytes())
        if path.name.startswith("t10k-images"):
            content = content[:5000] + bytes([content[5000] ^ 4]) + content[5001:]
        (tmp_path / path.name.removesuffix(".gz")).write_bytes(content)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte has MNIST's size but not"):
        mnist.load(tmp_path, download=False)
