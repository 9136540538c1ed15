from __future__ import annotations

import gzip
import tracemalloc

import numpy as np
import pytest
from data_files import idx_bytes

from handgrad.data.sources import idx
from handgrad.data.sources.idx import parse_idx
from handgrad.errors import DataError


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 1, 3, 2), (0, 28, 28)])
@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gz"])
def test_round_trip(rng: np.random.Generator, shape: tuple[int, ...], gzipped: bool) -> None:
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    content = idx_bytes(array)
    found = parse_idx(gzip.compress(content) if gzipped else content, "file")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


GOOD = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
ZIPPED = gzip.compress(GOOD)
FLIPPED = bytearray(ZIPPED)
FLIPPED[-6] ^= 1  # in the checksum

BAD = {
    "empty": b"",
    "text": b"<html></html>",
    "floats": b"\x00\x00\x0d" + GOOD[3:],
    "no dimensions": b"\x00\x00\x08\x00",
    "200 dimensions": b"\x00\x00\x08\xc8" + bytes(900),
    "header cut": GOOD[:9],
    "cut": GOOD[:-1],
    "too long": GOOD + b"\x00",
    "huge dimensions": idx_bytes(np.zeros(9, np.uint8), (2**32 - 1,) * 3),
    "product overflowing 64 bits": idx_bytes(np.zeros(0, np.uint8), (2**16,) * 4),
    "gz cut": ZIPPED[:-9],
    "gz damaged": ZIPPED[:15] + b"\xff\xff" + ZIPPED[17:],
    "gz checksum": bytes(FLIPPED),
    "gz of text": gzip.compress(b"hello"),
    "gz magic only": b"\x1f\x8b",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_damage(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^some/file "):
        parse_idx(content, "some/file")


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_LIMIT", 10_000)
    content = gzip.compress(bytes(20_000_000))
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than"):
        parse_idx(content, "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
