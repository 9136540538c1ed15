"""MNIST: 60,000 training and 10,000 test images of 28×28 (LeCun et al., 1998)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.download import default_data_dir, fetch, find_file
from training.data.idx import parse_idx
from training.errors import DataError

CLASS_NAMES = tuple("0123456789")

# The first host refuses most clients nowadays and is asked last.
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


def load(data_dir: Path | None = None, download: bool = True) -> tuple[NDArray[Any], ...]:
    """Return train images (N, 1, 28, 28) and labels, test images and labels.

    Raises:
        DataError: a file is missing and cannot be fetched, or is damaged.
    """
    root = data_dir or default_data_dir()
    arrays = []
    for prefix in ("train", "t10k"):
        images = _read(root, f"{prefix}-images-idx3-ubyte", download)
        labels = _read(root, f"{prefix}-labels-idx1-ubyte", download)
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"MNIST below {root}: {prefix} images have shape {images.shape} and labels "
                f"{labels.shape}; expected (N, 28, 28) and (N,)"
            )
        if labels.size == 0 or labels.max() > 9:
            raise DataError(f"MNIST below {root}: {prefix} labels must be digits, 0 to 9")
        arrays += [images[:, None], labels.astype(np.int64)]
    return tuple(arrays)


def _read(root: Path, name: str, download: bool) -> NDArray[Any]:
    path = find_file(root, (name, f"{name}.gz"))
    if path is None:
        urls = [f"{mirror}{name}.gz" for mirror in _MIRRORS]
        target = root / "MNIST" / "raw" / f"{name}.gz"
        path = fetch("mnist", urls, target, f"md5:{_MD5[name]}", root, download)
    return parse_idx(path.read_bytes(), str(path))
