"""MNIST: 60,000 training and 10,000 test images of 28×28 (LeCun et al., 1998)."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.console import remark
from handgrad.data.sources.download import default_data_dir, fetch, find_beside, find_file, reading
from handgrad.data.sources.idx import parse_idx
from handgrad.data.sources.inventory import is_namesake
from handgrad.errors import FETCH_AGAIN, DataError

CLASS_NAMES = tuple("0123456789")

# The first host refuses most clients nowadays and is asked last.
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
_MD5 = {  # of the gzipped files, for downloads
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}

_NAMES = tuple(_MD5)
_SIZES = {"train": 60_000, "t10k": 10_000}
# Checksums of the first and the second half of the values, however they are packed: where one is
# right, the file is damaged; where none is, it is another dataset's.
_HALVES = {
    "train-images-idx3-ubyte": (0xB4C6BFA0, 0xD28D8930),
    "train-labels-idx1-ubyte": (0x9679AB66, 0x75562450),
    "t10k-images-idx3-ubyte": (0x5897E1BE, 0x4BA15A44),
    "t10k-labels-idx1-ubyte": (0x73C9B6E4, 0x1EF7002E),
}
_BY_TEST_LABELS = {  # other datasets, by the MD5 of their gzipped test labels
    "bb300cfdad3c16e7a12a480ee83cd310": "Fashion-MNIST",
    "7320c461ea6c1c855c0b718fb2a4b134": "KMNIST",
}


def is_below(folder: Path) -> bool:
    """Say whether the four files of MNIST are in ``folder`` or below it."""
    return len(_find(folder)) == len(_NAMES)


def load(data_dir: Path | None = None, download: bool = True) -> tuple[NDArray[Any], ...]:
    """Return train images (N, 1, 28, 28) and labels, test images and labels.

    Other sets of MNIST's format are read as they are; one that could be taken for MNIST, having its
    size, with a line that says so.

    Raises:
        DataError: a file is missing and cannot be fetched, is damaged, or holds anything but
            images of 28×28 and labels from 0 to 9.
    """
    root = data_dir or default_data_dir()
    paths = _find(root)
    arrays = {name: _read(path) for name, path in paths.items()}
    same = {name: _is_official(name, array, paths[name]) for name, array in arrays.items()}
    folder = next((path.parent for path in paths.values()), root / "MNIST" / "raw")
    if any(_has_size(name, arrays[name]) and not same[name] for name in arrays):
        remark(f"note: {folder} has MNIST's size but not its content{_name(paths)}: read as it is")
    for name in _NAMES:
        if name not in arrays:  # of another dataset, MNIST's mirrors do not have it
            urls = [f"{mirror}{name}.gz" for mirror in _MIRRORS]
            target, allowed = folder / f"{name}.gz", download and all(same.values())
            paths[name] = fetch("mnist", urls, target, f"md5:{_MD5[name]}", root, allowed)
            arrays[name] = _read(paths[name])
    splits = []
    for images, labels in (_NAMES[:2], _NAMES[2:]):
        _check(arrays[images], arrays[labels], paths[images], paths[labels])
        splits += [arrays[images][:, None], arrays[labels].astype(np.int64)]
    return tuple(splits)


def _find(root: Path) -> dict[str, Path]:
    """Return where those of the four files are that there are, plain or gzipped.

    All from one folder: another with the same names may belong to another dataset.
    """
    kinds = {name: (name, f"{name}.gz") for name in _NAMES}
    rest = [kind for either in kinds.values() for kind in either]
    first = find_file(root, kinds[_NAMES[0]]) or find_file(root, rest)
    if first is None:
        return {}
    found = {name: find_beside(first, either) for name, either in kinds.items()}
    return {name: path for name, path in found.items() if path is not None}


def _read(path: Path) -> NDArray[Any]:
    with reading(path):
        return parse_idx(path.read_bytes(), str(path))


def _has_size(name: str, array: NDArray[Any]) -> bool:
    return len(array) == _SIZES[name.partition("-")[0]]


def _is_official(name: str, array: NDArray[Any], path: Path) -> bool:
    if not _has_size(name, array):
        return False
    middle = len(array) // 2
    found = zlib.crc32(array[:middle].data), zlib.crc32(array[middle:].data)
    same = [crc == wanted for crc, wanted in zip(found, _HALVES[name], strict=True)]
    if any(same) and not all(same):
        raise DataError(f"{path} has MNIST's size but not all of its content; {FETCH_AGAIN}")
    return all(same)


def _name(paths: Mapping[str, Path]) -> str:
    """Return the name of the dataset that has MNIST's size and names, in parentheses."""
    labels = paths.get(_NAMES[3])
    if labels is None:
        return ""
    names = [part for part in labels.parts if is_namesake(part)]
    digest = hashlib.md5(labels.read_bytes(), usedforsecurity=False).hexdigest()
    name = _BY_TEST_LABELS.get(digest) or next(iter(names), "")
    return name and f" ({name})"


def _check(
    images: NDArray[Any], labels: NDArray[Any], images_path: Path, labels_path: Path
) -> None:
    """Raise DataError unless these are images of 28×28, with digits as their labels."""
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise DataError(
            f"{images_path} holds an array of {images.shape}; expected images of 28×28, (N, 28, 28)"
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{labels_path} holds labels of shape {labels.shape} for the {len(images)} images in "
            f"{images_path.name}"
        )
    if not labels.size:
        raise DataError(f"{images_path} holds no images")
    if labels.max() > 9:
        raise DataError(
            f"{labels_path} holds labels from {labels.min()} to {labels.max()}; expected MNIST's, "
            f"0 to 9 (EMNIST's go to 26, 46 or 61): point --data-dir at files with ten classes"
        )
