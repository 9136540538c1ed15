from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import cifar_batch

from handgrad.data.sources.restricted_pickle import load
from handgrad.errors import DataError


def _load(content: bytes) -> Any:
    return load(io.BytesIO(content), "some/file")


def test_python_2_batch() -> None:
    images = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    batch = _load(cifar_batch(images, [7, 3]))
    assert batch["labels"] == [7, 3]
    assert batch["batch_label"] == b"training batch 1 of 5"
    np.testing.assert_array_equal(batch["data"], images)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("dtype", ["u1", "?", "<i4", ">i4", "<f4", ">f8"])
def test_arrays_pickled_by_python_3(protocol: int, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 11 % 7).astype(dtype)
    found = _load(pickle.dumps({"a": array, "labels": [1, 2], "x": 0.5}, protocol=protocol))
    assert found["labels"] == [1, 2] and found["x"] == 0.5
    assert found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)


def test_column_major_array() -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    np.testing.assert_array_equal(_load(pickle.dumps(array, protocol=2)), array)


class _Call:
    """Pickles to a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def _attacks(marker: Path) -> dict[str, Any]:
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": _Call(os.system, f"touch {marker}"),
        "eval": _Call(builtins.eval, touch),
        "exec": _Call(builtins.exec, touch),
        "open": _Call(builtins.open, str(marker), "w"),
        "Popen": _Call(subprocess.Popen, ["touch", str(marker)]),
        "mkdir": _Call(os.mkdir, str(marker)),
        "getattr": _Call(getattr, "", "upper"),
        "nested": {"data": [_Call(os.system, f"touch {marker}")]},
        "numpy": _Call(np.memmap, str(marker), np.uint8, "w+", 0, 4),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", _attacks(Path()))
def test_calls_are_refused_and_do_not_run(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    content = pickle.dumps(_attacks(marker)[name], protocol=protocol)
    with pytest.raises(DataError, match=r"^some/file is refused: it asks for "):
        _load(content)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(_attacks(marker)["eval"]))
    assert marker.exists()


ASKS = {
    "Python 2's name": b"cposix\nsystem\n(S'true'\ntR.",
    "attribute of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "allowed name of another module": b"cos\n_reconstruct\n.",
    "old-style instance": b"(S'true'\nios\nsystem\n.",
    "object array": pickle.dumps(np.array([None, {}], dtype=object), protocol=2),
    "structured array": pickle.dumps(np.zeros(2, dtype="i4,f4"), protocol=2),
    "object outside the file": b"Pelsewhere\n.",
    "extension registry": b"\x80\x02\x82\x01.",
    "bare array": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\x00tU\x01b\x87R.",
}


@pytest.mark.parametrize("content", ASKS.values(), ids=ASKS.keys())
def test_other_requests_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^some/file is "):
        _load(content)


NOT_PICKLES = {
    "empty": b"",
    "text": b"hello, world\n",
    "zeros": bytes(100),
    "only a protocol": b"\x80\x02",
    "unknown protocol": b"\x80\x63.",
    "stack underflow": b"\x80\x02R.",
    "string beyond the end": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "bytes beyond all memory": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "itself as its value": b"\x80\x02}q\x00U\x01ah\x00s.",
}


@pytest.mark.parametrize("content", NOT_PICKLES.values(), ids=NOT_PICKLES.keys())
def test_damage(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^some/file is "):
        _load(content)


def test_every_truncation_is_noticed() -> None:
    content = cifar_batch(np.zeros((1, 3072), np.uint8), [4])
    assert _load(content)["labels"] == [4]
    for end in [*range(300), *range(300, len(content), 97)]:
        with pytest.raises(DataError):
            _load(content[:end])


@pytest.mark.parametrize("shape", [(10**9, 3072), (2**31 - 1, 2**31 - 1), (3072,), (0, 3072)])
def test_header_that_claims_another_size(shape: tuple[int, ...]) -> None:
    content = cifar_batch(np.zeros((40, 3072), np.uint8), [0] * 40, claimed_shape=shape)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^some/file is refused: an array of shape"):
        _load(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(content)


def test_a_few_bytes_cannot_ask_for_gigabytes() -> None:
    # LONG_BINPUT with a huge index: a memo kept as an array would be that long.
    pickled = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."
    tracemalloc.start()
    assert load(io.BytesIO(pickled), "file") == {}
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02c_codecs\nencode\n.",  # a function as such
        b"\x80\x02c_codecs\nencode\n}U\x0c__defaults__U\x05rot13sb.",  # and one that is changed
        b"\x80\x02]cnumpy\ndtype\na.",
        b"\x80\x02cnumpy\nndarray\n.",
    ],
)
def test_nothing_but_data_comes_out(pickled: bytes) -> None:
    with pytest.raises(DataError):
        load(io.BytesIO(pickled), "file")
    assert load(io.BytesIO(pickle.dumps({"a": b"\xff"}, protocol=2)), "file") == {"a": b"\xff"}
