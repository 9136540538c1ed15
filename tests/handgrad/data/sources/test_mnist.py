from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
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


LAYOUTS: dict[str, Callable[[str], str]] = {
    "dots": lambda name: name.replace("-idx", ".idx"),
    "a folder a file": lambda name: f"{name}/{name}",
    "a folder a file, dots": lambda name: f"{name}/{name.replace('-idx', '.idx')}",
    "other case": lambda name: f"Mnist/Raw/{name.upper()}",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_files_under_similar_names(tmp_path: Path, layout: Callable[[str], str]) -> None:
    expected = write_mnist(tmp_path / "official")
    for path in (tmp_path / "official").iterdir():
        target = tmp_path / "data" / layout(path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert mnist.is_below(tmp_path / "data")
    for array, wanted in zip(_load(tmp_path / "data"), expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_unpacked_beside_packed(tmp_path: Path) -> None:
    expected = write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(b"never opened")
    np.testing.assert_array_equal(_load(tmp_path)[0], expected[0])


def test_the_rest_of_another_dataset_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "get", None)
    write_mnist(tmp_path)
    (tmp_path / TEST_LABELS).unlink()
    assert not mnist.is_below(tmp_path)
    with pytest.raises(DataError, match=f"{TEST_LABELS}.gz was not found .*part of a set in MNIST"):
        mnist.load(tmp_path, download=True)


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
    "EMNIST's letters": (TEST_LABELS, lambda _: idx_bytes(np.arange(17, 27, dtype=np.uint8))),
    "no images": (TRAIN_IMAGES, lambda _: idx_bytes(np.zeros((0, 28, 28), np.uint8))),
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
    assert "delete" not in str(caught.value)


def test_labels_of_another_dataset_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / TEST_LABELS).write_bytes(idx_bytes(np.arange(17, 27, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"holds labels from 17 to 26; expected MNIST's, 0 to 9"):
        _load(tmp_path)


@pytest.mark.parametrize("folder", ["clothes", "fashion", "FashionMNIST"])
def test_another_dataset_of_mnist_s_size_is_read_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    write_mnist(tmp_path / folder, n=30)
    images = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    (tmp_path / folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    np.testing.assert_array_equal(_load(tmp_path / folder)[2][:, 0], images)
    name = "" if folder == "clothes" else f" ({folder})"
    assert capsys.readouterr().err == (
        f"note: {tmp_path / folder} has MNIST's size but not its content{name}: read as it is\n"
    )


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=f"{TRAIN_IMAGES} cannot be read: Permission denied"):
        _load(tmp_path)


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


@pytest.mark.parametrize("namesake", ["FashionMNIST", "KMNIST", "fashion-mnist", "fashion"])
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
