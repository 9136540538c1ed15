"""The assignment's two datasets, as its library returns them."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Splits = tuple[tuple[Array, Array], tuple[Array, Array], int]
# Folders of datasets with files of the same names.
_NAMESAKES = re.compile(r"(fashion.?mnist|fashion|[kqe]mnist)", re.IGNORECASE)


def load_synth(
    num_train: int = 60_000, num_val: int = 10_000, *, seed: int | None = None
) -> Splits:
    """Return points in the plane, and on which side of a hyperbola each is.

    The class of x is 1 where x₁² + 1.5 x₁x₂ + 0.2 x₂² > 0.6.

    Args:
        num_train: number of training points.
        num_val: number of validation points.
        seed: of the points; NumPy's global generator by default.

    Returns:
        ``(xtrain, ytrain), (xval, yval), 2``: points (N, 2) and classes (N,).
    """
    shape = (num_train + num_val, 2)
    if seed is None:
        x = np.random.standard_normal(shape)  # noqa: NPY002
    else:
        x = np.random.default_rng(seed).standard_normal(shape)
    # xᵀ Q x with Q = [[1, 0.5], [1, 0.2]] = x₁² + 1.5 x₁x₂ + 0.2 x₂².
    form = x[:, 0] ** 2 + 1.5 * x[:, 0] * x[:, 1] + 0.2 * x[:, 1] ** 2
    y = (form > 0.6).astype(np.int64)
    return (x[:num_train], y[:num_train]), (x[num_train:], y[num_train:]), 2


def load_mnist(
    final: bool = False, flatten: bool = True, *, data_dir: str | Path | None = None
) -> Splits:
    """Return MNIST, its pixels as they are, 0 to 255.

    Args:
        final: whether the second pair is the test set; else it is the last 5,000 training images,
            which the first pair then lacks.
        flatten: images as (N, 784) rather than (N, 28, 28).
        data_dir: folder with the IDX files in it or anywhere below; default: the environment's
            ``HANDGRAD_DATA_DIR``, or the working directory.

    Returns:
        ``(xtrain, ytrain), (xval, yval), 10``.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not an IDX file of bytes, or is truncated.
    """
    folder = Path(data_dir or os.environ.get("HANDGRAD_DATA_DIR") or ".").expanduser()
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    xtrain, ytrain, xtest, ytest = (_read(folder, f"{name}-ubyte") for name in names)
    if flatten:
        xtrain, xtest = xtrain.reshape(len(xtrain), -1), xtest.reshape(len(xtest), -1)
    if final:
        return (xtrain, ytrain), (xtest, ytest), 10
    return (xtrain[:-5000], ytrain[:-5000]), (xtrain[-5000:], ytrain[-5000:]), 10


def _read(folder: Path, name: str) -> Array:
    # As tools that unpack may call it.
    kinds = (name, f"{name}.gz", name.replace("-idx", ".idx"))
    found = sorted(
        path
        for kind in kinds
        for path in folder.rglob(kind)
        if path.is_file() and not any(map(_NAMESAKES.fullmatch, path.relative_to(folder).parts))
    )
    if not found:
        raise FileNotFoundError(
            f"no {name} or {name}.gz in {folder.absolute()} or below; give data_dir, or set "
            f"HANDGRAD_DATA_DIR to the folder with MNIST's files"
        )
    data = found[0].read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{found[0]} is truncated or damaged ({error})") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{found[0]} is not an IDX file of bytes")
    header = 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    if len(data) != header + math.prod(shape):
        raise ValueError(f"{found[0]} has {len(data)} bytes, its header announces {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape).copy()
