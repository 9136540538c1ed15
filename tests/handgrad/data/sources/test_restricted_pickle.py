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


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "?", "<i4", ">i4", "<f4", ">f8"])
def test_arrays_pickled_by_python_3(protocol: int, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 11 % 7).astype(dtype)
    found = _load(pickle.dumps({"a": array, "labels": [1, 2], "x": 0.5}, protocol=protocol))
    assert found["labels"] == [1, 2] and found["x"] == 0.5
    assert found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
ORDERS = [np.asfortranarray(ARRAY), ARRAY.transpose(1, 2, 0), ARRAY[:, ::2], np.array(7)]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ORDERS, ids=["F", "axes", "gaps", "one number"])
def test_arrays_in_any_order(protocol: int, array: np.ndarray) -> None:
    found = _load(pickle.dumps({"a": array}, protocol=protocol))["a"]
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "number", [np.uint8(200), np.int64(-3), np.float32(0.5), np.bool_(True)], ids=str
)
def test_numbers_of_numpy_become_python_s(protocol: int, number: Any) -> None:
    (found,) = _load(pickle.dumps([number], protocol=protocol))
    assert found == number and type(found) is type(number.item())


def _protocol_5(array: np.ndarray, core: bytes) -> bytes:
    """Return ``array`` pickled by protocol 5 as NumPy 1 or 2 does, which call their core so."""
    content = pickle.dumps(array, protocol=5)
    frame, body = content[2:11], content[11:]
    assert frame[0] == 0x95, "what holds the length of all"
    for name in (b"numpy._core.numeric", b"numpy.core.numeric"):
        body = body.replace(b"\x8c" + bytes([len(name)]) + name, b"\x8c\x04HOME")
    home = b"numpy." + core + b".numeric"
    return content[:2] + body.replace(b"\x8c\x04HOME", b"\x8c" + bytes([len(home)]) + home)


@pytest.mark.parametrize("core", [b"core", b"_core"], ids=["NumPy 1", "NumPy 2"])
def test_protocol_5_of_both_versions(core: bytes) -> None:
    np.testing.assert_array_equal(_load(_protocol_5(ARRAY, core)), ARRAY)


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
    "another length": _protocol_5(ARRAY, b"core").replace(b"K\x02K\x03", b"K\x02K\x04"),
    "no axes": _protocol_5(ARRAY, b"core").replace(b"\x8c\x01C", b"\x8c\x01K"),
    "number of another length": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02i8tRU\x04abcdtR."
    ),
    "number without a type": b"cnumpy.core.multiarray\nscalar\n(U\x02i8U\x08abcdefghtR.",
    "function of NumPy's core": b"cnumpy._core.numeric\nfromfile\n.",
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
    "bytearray beyond all memory": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc.",
    "bytearray of a gigabyte": b"\x80\x05\x96" + struct.pack("<Q", 2**30) + b"abc.",
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
    with pytest.raises(DataError, match="it ends early"):
        load(io.BytesIO(NOT_PICKLES["bytearray of a gigabyte"]), "file")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02c_codecs\nencode\n.",  # a function as such
        b"\x80\x02c_codecs\nencode\n}U\x0c__defaults__U\x05rot13sb.",  # and one that is changed
        b"\x80\x02]cnumpy\ndtype\na.",
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x02cnumpy.core.numeric\n_frombuffer\n.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n}U\x05dtypeK\x01sb.",
    ],
)
def test_nothing_but_data_comes_out(pickled: bytes) -> None:
    with pytest.raises(DataError):
        load(io.BytesIO(pickled), "file")
    assert load(io.BytesIO(pickle.dumps({"a": b"\xff"}, protocol=2)), "file") == {"a": b"\xff"}
