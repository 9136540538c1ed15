from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from handgrad.data.sources.inventory import inventory

FOLDERS = {
    "no files": [".hidden", "empty/"],
    "CIFAR-100 (meta, test, train)": [f"cifar-100-python/{n}" for n in ("meta", "test", "train")],
    "CIFAR-100 (test, train)": ["renamed/train", "renamed/test"],
    "CIFAR-100 (cifar-100-python.tar.gz)": ["cifar-100-python.tar.gz"],
    "CIFAR-10's binary version (data_batch_1.bin)": ["data_batch_1.bin"],
    "CIFAR-10's Matlab version (test_batch.mat)": ["x/test_batch.mat"],
    "CIFAR-10 in another form (cifar10.npz)": ["cifar10.npz"],
    "Fashion-MNIST (t10k-labels-idx1-ubyte.gz)": ["FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"],
    "EMNIST (emnist-letters-train-images-idx3-ubyte)": [
        "gzip/emnist-letters-train-images-idx3-ubyte"
    ],
    "KMNIST (kmnist-train-imgs.npz)": ["kmnist-train-imgs.npz"],
    "MNIST in another form (mnist.npz)": ["mnist.npz"],
    "a part of a set in MNIST's format (t10k-labels.idx1-ubyte)": ["t10k-labels.idx1-ubyte"],
    "SVHN (train_32x32.mat)": ["train_32x32.mat"],
    "1 picture": ["cat.JPG"],
    "3 pictures in 2 folders, labels.csv": ["cats/1.png", "cats/2.png", "dogs/1.png", "labels.csv"],
    "a, b, c, d": ["a", "b", "c", "d"],
    "a, b, c and 2 more files": ["a", "b", "c", "d", "e"],
}


@pytest.mark.parametrize(("expected", "files"), FOLDERS.items(), ids=FOLDERS)
def test_what_is_there_is_named(tmp_path: Path, expected: str, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert inventory(tmp_path) == expected


def test_the_folders_own_name_counts(tmp_path: Path) -> None:
    (tmp_path / "CIFAR-100-Python").mkdir()
    (tmp_path / "CIFAR-100-Python" / "meta").touch()
    assert inventory(tmp_path / "CIFAR-100-Python") == "CIFAR-100 (meta)"


def test_no_folder_and_one_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inventory(tmp_path / "missing") == "no files"

    def refuse(_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert inventory(tmp_path) == "nothing that can be read (Permission denied)"
