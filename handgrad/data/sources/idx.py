"""The IDX format of MNIST: a big-endian header, then the bytes of one array."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.errors import FETCH_AGAIN, DataError

_GZIP_MAGIC = b"\x1f\x8b"
_LIMIT = 256 * 2**20  # bytes; MNIST's largest file holds 47 million


def parse_idx(data: bytes, name: str) -> NDArray[Any]:
    """Return the array in an IDX file of unsigned bytes, gzipped or not.

    Format (LeCun, *The MNIST database*): 0, 0, 8 (unsigned byte), the number of dimensions; each
    dimension as a big-endian uint32; the values.

    Args:
        data: the file's content.
        name: how an error calls it.

    Raises:
        DataError: truncated, damaged, or not such a file.
    """
    if data[:2] == _GZIP_MAGIC:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                # In pieces: a read of that many bytes takes the memory for them at once.
                pieces, size = [], 0
                while size <= _LIMIT and (piece := file.read(1 << 16)):
                    pieces.append(piece)
                    size += len(piece)
                data = b"".join(pieces)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name} is truncated or damaged ({error}); {FETCH_AGAIN}") from None
        if len(data) > _LIMIT:
            raise DataError(
                f"{name} unpacks to more than {_LIMIT >> 20} MiB, MNIST's largest file to 45: "
                f"it is another dataset (EMNIST ByClass is as large), or none"
            )
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        begins = f"begins with {data[:4].hex(' ')!r}" if data else "is empty"
        raise DataError(f"{name} is not an IDX file of bytes (it {begins}); {FETCH_AGAIN}")
    n_dims = data[3]
    header = 4 + 4 * n_dims
    if not 1 <= n_dims <= 4 or len(data) < header:
        raise DataError(f"{name} has a damaged IDX header ({n_dims} dimensions)")
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], dtype=">u4"))
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise DataError(
            f"{name} has {len(data)} bytes where its header, {shape}, announces {expected}: "
            f"truncated or damaged; {FETCH_AGAIN}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
