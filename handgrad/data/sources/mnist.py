"""MNIST: 60,000 training and 10,000 test images of 28×28 (LeCun et al., 1998)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.sources.download import default_data_dir, fetch, find_file
from handgrad.data.sources.idx import parse_idx
from handgrad.errors import DataError

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
# Number of entries and MD5 of the values themselves, however they are packed.
_OFFICIAL = {
    "train-images-idx3-ubyte": (60_000, "6510e85a72c3e9475c492d559d3770d2"),
    "train-labels-idx1-ubyte": (60_000, "e86ee40d66677c011a9abda399ec8c4d"),
    "t10k-images-idx3-ubyte": (10_000, "240610fa99e73bfa49df8e7fc24d3206"),
    "t10k-labels-idx1-ubyte": (10_000, "073c3904dfbd3e141ff8aa01cfde6b15"),
}


def is_below(folder: Path) -> bool:
    """Say whether there are MNIST files in ``folder`` or below it."""
    return find_file(folder, (_NAMES[0], f"{_NAMES[0]}.gz")) is not None


def load(data_dir: Path | None = None, download: bool = True) -> tuple[NDArray[Any], ...]:
    """Return train images (N, 1, 28, 28) and labels, test images and labels.

    Raises:
        DataError: a file is missing and cannot be fetched, or is damaged.
    """
    root = data_dir or default_data_dir()
    found = find_file(root, (_NAMES[0], f"{_NAMES[0]}.gz"))
    # All four from one folder: another with the same names may belong to another dataset.
    folder = root / "MNIST" / "raw" if found is None else found.parent
    arrays = []
    for prefix in ("train", "t10k"):
        images = _read(folder, f"{prefix}-images-idx3-ubyte", root, download)
        labels = _read(folder, f"{prefix}-labels-idx1-ubyte", root, download)
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"MNIST below {root}: {prefix} images have shape {images.shape} and labels "
                f"{labels.shape}; expected (N, 28, 28) and (N,)"
            )
        if labels.size == 0 or labels.max() > 9:
            raise DataError(f"MNIST below {root}: {prefix} labels must be digits, 0 to 9")
        arrays += [images[:, None], labels.astype(np.int64)]
    return tuple(arrays)


def _read(folder: Path, name: str, root: Path, download: bool) -> NDArray[Any]:
    paths = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if paths:
        path = paths[0]
    else:
        urls = [f"{mirror}{name}.gz" for mirror in _MIRRORS]
        path = fetch("mnist", urls, folder / f"{name}.gz", f"md5:{_MD5[name]}", root, download)
    array = parse_idx(path.read_bytes(), str(path))
    size, digest = _OFFICIAL[name]
    if (
        len(array) == size
        and hashlib.md5(array.tobytes(), usedforsecurity=False).hexdigest() != digest
    ):
        raise DataError(
            f"{path} has MNIST's size but not its content: damaged, or another dataset under the "
            f"same name; delete it and fetch it again"
        )
    return array
