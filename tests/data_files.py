"""Small data files for the tests, byte for byte in the layout of the official ones."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
# The official archive is not in the order of the names.
ARCHIVE_ORDER = ["data_batch_4", "test_batch", *(f"data_batch_{i}" for i in (3, 2, 5, 1))]


def _string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text  # SHORT_BINSTRING, a Python 2 string


def _array(array: np.ndarray, claimed_shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if claimed_shape is None else claimed_shape
    content = array.tobytes()
    sizes = b"".join(b"J" + struct.pack("<i", size) for size in shape)
    name = array.dtype.str[1:].encode()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _string(b"b")
        + b"\x87R(K\x01(" + sizes + b"tcnumpy\ndtype\nX" + struct.pack("<i", len(name)) + name
        + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + struct.pack("<i", len(content)) + content + b"tb"
    )  # fmt: skip


def cifar_batch(
    images: np.ndarray, labels: list[int], claimed_shape: tuple[int, ...] | None = None
) -> bytes:
    """Return what Python 2 pickled for a CIFAR-10 batch: ``images`` (N, 3072), uint8."""
    numbers = b"".join(b"J" + struct.pack("<i", label) for label in labels)
    names = b"".join(_string(b"image_%d.png" % i) for i in range(len(labels)))
    return (
        b"\x80\x02}(" + _string(b"batch_label") + _string(b"training batch 1 of 5")
        + _string(b"labels") + b"](" + numbers + b"e"
        + _string(b"data") + _array(images, claimed_shape)
        + _string(b"filenames") + b"](" + names + b"eu."
    )  # fmt: skip


def write_cifar(folder: Path, n: int = 40) -> tuple[np.ndarray, ...]:
    """Write six batches of ``n`` random images; return what reading them must give."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (6 * n, 3072), dtype=np.uint8)
    labels = rng.integers(0, 10, 6 * n)
    for i, name in enumerate(BATCHES):
        part = slice(i * n, (i + 1) * n)
        (folder / name).write_bytes(cifar_batch(images[part], labels[part].tolist()))
    images = images.reshape(-1, 3, 32, 32)
    return images[: 5 * n], labels[: 5 * n], images[5 * n :], labels[5 * n :]


def pack_cifar(folder: Path, archive: Path, names: list[str] = ARCHIVE_ORDER) -> None:
    """Put the batches of ``folder`` and a page beside them into a gzipped tar archive."""
    with tarfile.open(archive, "w:gz") as tar:
        for name in ["readme.html", *names]:
            content = b"<html/>" if name == "readme.html" else (folder / name).read_bytes()
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def idx_bytes(array: np.ndarray, claimed_shape: tuple[int, ...] | None = None) -> bytes:
    """Return ``array``, uint8, as an IDX file."""
    shape = array.shape if claimed_shape is None else claimed_shape
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + array.tobytes()


def write_mnist(folder: Path, n: int = 30) -> tuple[np.ndarray, ...]:
    """Write four plain IDX files; return what reading them must give."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(6)
    arrays = []
    for prefix, size in (("train", n), ("t10k", n // 3)):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        arrays += [images[:, None], labels.astype(np.int64)]
    return tuple(arrays)
