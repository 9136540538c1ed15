"""Read a pickle that may hold arrays, numbers, strings and containers of them, and nothing else.

A pickle is a program, and an ordinary unpickler runs whatever it names. This one resolves only the
names by which NumPy 1 and 2 pickle an array or a number, and to functions of its own: they build an
array from bytes that are in the file, so that a header cannot ask for more memory than the file is
long.
"""

from __future__ import annotations

import codecs
import io
import math
import pickle
from pickle import BINBYTES8, BYTEARRAY8
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from handgrad.errors import FETCH_AGAIN, DataError


class _PickledDtype:
    """Stands for ``numpy.dtype`` while a pickle is read."""

    def __init__(self, name: Any, *_: Any) -> None:
        name = _text(name)
        self.dtype = np.dtype(name) if isinstance(name, str) else None
        if self.dtype is None or self.dtype.kind not in "biuf":
            raise DataError(f"an array of type {name!r}, expected numbers")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and _text(state[1]) in (">", "<"):
            assert self.dtype is not None
            self.dtype = self.dtype.newbyteorder(_text(state[1]))


class _PickledArray:
    """Stands for ``numpy.ndarray`` while a pickle is read."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
        raise DataError("an array whose content is not plain bytes")
    assert dtype.dtype is not None
    if not all(type(size) is int and size >= 0 for size in shape) or (
        math.prod(shape) * dtype.dtype.itemsize != len(data)
    ):
        raise DataError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype.dtype).reshape(shape, order=order)


class _Reconstruct:
    """Stands for NumPy's ``_reconstruct``; without attributes, so that a pickle cannot set any."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _PickledArray:
        return _PickledArray()


class _FromBuffer:
    """Stands for NumPy's ``_frombuffer``, by which protocol 5 writes arrays without a gap."""

    __slots__ = ()

    def __call__(
        self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> _PickledArray:
        found = _PickledArray()
        found.array = _array(data, dtype, shape, "C" if order == "K" else order)
        if order == "K":  # neither rows nor columns first, since NumPy 2.3
            found.array = found.array.transpose(tuple(axes))
        return found


class _Scalar:
    """Stands for NumPy's ``scalar``: one number, which becomes one of Python's."""

    __slots__ = ()

    def __call__(self, dtype: Any, data: Any) -> Any:
        return _array(data, dtype, (), "C").item()


class _Encode:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin-1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise DataError("bytes in an unexpected encoding")
        return codecs.encode(text, "latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # NumPy 1 and 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Reconstruct()),
            ("multiarray", "scalar", _Scalar()),
            ("numeric", "_frombuffer", _FromBuffer()),
        )
    },
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _Encode(),
}


# Not the unpickler in C, which a few bytes can make allocate gigabytes: its memo is an array as
# long as the largest index the file names. The one in Python has a dictionary.
class _Unpickler(pickle._Unpickler):
    # The one instruction that takes memory for what it has not read yet: here it reads first.
    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        BYTEARRAY8[0]: pickle._Unpickler.dispatch[BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"it asks for {module}.{name}, which data has no use for") from None

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it refers to an object outside the file")


class _Bounded:
    """A file that is not asked for more than it holds: memory for that would come first."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        start = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(start)

    def read(self, n: int) -> bytes:
        if n > self._end - self._file.tell():
            raise EOFError("it ends early")
        try:
            return self._file.read(n)
        except MemoryError:  # which here does not say how much
            raise MemoryError(f"Unable to allocate {n / 2**20:.1f} MiB") from None

    def readline(self) -> bytes:
        return self._file.readline()


def load(file: IO[bytes], where: str) -> Any:
    """Return the object pickled in ``file``.

    Args:
        file: a pickle, of Python 2 or 3, at most as long as its reader is willing to hold.
        where: how an error calls it.

    Raises:
        DataError: the pickle is truncated, damaged, or holds anything but data.
    """
    try:
        # As bytes, Python 2's strings need no decoding: an image file would be copied twice over.
        return _plain(_Unpickler(_Bounded(file), encoding="bytes").load())
    except DataError as error:
        raise DataError(f"{where} is refused: {error}; fetch the data again") from None
    except MemoryError:  # not the file's fault: it asks for no more than it holds
        raise
    except Exception as error:  # a damaged pickle can raise anything at all
        raise DataError(
            f"{where} is truncated or not a pickle ({type(error).__name__}: {error}); {FETCH_AGAIN}"
        ) from None


def _plain(value: Any) -> Any:
    """Replace the stand-ins for arrays by arrays, and let nothing through that is not data."""
    if isinstance(value, _PickledArray) and value.array is not None:
        return value.array
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise DataError(f"it holds an object of type {type(value).__name__}")


def _text(value: Any) -> Any:
    """Return Python 2's strings, which are bytes here, as strings; other values unchanged."""
    return value.decode("latin-1") if isinstance(value, bytes) else value
