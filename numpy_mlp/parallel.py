"""A batch in pieces that fit the processor's cache, by several threads.

NumPy lets go of the interpreter's lock while it computes, so threads that each work on images of
their own run at the same time, through every operation, where a threaded BLAS would share out the
products alone. The BLAS must be held to one thread meanwhile (``threadpoolctl`` does it): the
threads here are instead of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PIECE = 1 << 15
"""Values of an elementwise operation done at a time: 128 KiB an array in float32."""

_threads = 1
_pool: ThreadPoolExecutor | None = None


class _Here(threading.local):
    """Of each thread: whether it is at work."""

    working = False


_here = _Here()


def set_num_threads(n: int) -> None:
    """Let ``n`` threads work on a batch; 1, from the start, starts none.

    Sums over a batch are added up a thread at a time, so that another number rounds otherwise.

    Raises:
        ValueError: ``n`` is not positive.
    """
    global _threads
    if n < 1:
        raise ValueError(f"the number of threads must be positive, got {n!r}")
    _threads = int(n)
    _forget_pool()


def get_num_threads() -> int:
    """Return how many threads work on a batch."""
    return _threads


def for_chunks(n: int, size: int, work: Callable[[slice, int], None]) -> int:
    """Call ``work(chunk, lane)`` for chunks that together are ``range(n)``.

    A lane is a share of the batch, done chunk after chunk in order, at the same time as the others.
    What lanes there are depends on ``n`` and the number of threads alone.

    Args:
        n: length of the batch.
        size: most that a chunk may hold.
        work: told where its chunk is, and the number of its lane. It must not come back here:
            threads that wait for each other would wait for ever.

    Returns:
        The number of lanes.
    """
    assert not _here.working, "for_chunks was called by the work of for_chunks"
    lanes = max(1, min(_threads, n))
    errors, call = np.geterr(), np.geterrcall()  # what the caller lets overflow, its threads do

    def run(lane: int) -> None:
        start, stop = lane * n // lanes, (lane + 1) * n // lanes
        _here.working = True
        try:
            with np.errstate(call=call, **errors):  # type: ignore[arg-type]  # None is none
                for first in range(start, max(stop, start + 1), size):  # once, of an empty batch
                    work(slice(first, min(first + size, stop)), lane)
        finally:
            _here.working = False

    if lanes == 1:
        run(0)
    else:
        waiting = [_workers().submit(run, lane) for lane in range(1, lanes)]
        try:
            run(0)
        finally:
            for future in waiting:
                future.exception()  # nobody writes into the arrays any more
        for future in waiting:
            future.result()
    return lanes


def elementwise(work: Callable[..., None], *arrays: Array) -> None:
    """Call ``work`` with pieces of arrays of one shape, flat, small enough to stay in the cache.

    A formula of ten operations then reads each array from memory once, not ten times.

    Args:
        work: an elementwise formula that writes into some of its arguments.
        arrays: of one shape and one layout in memory, with no gaps; others are taken as a whole.
    """
    flat = _flat(arrays)
    if flat is None:
        work(*arrays)
    elif flat[0].size <= PIECE:
        work(*flat)
    else:
        for_chunks(flat[0].size, PIECE, lambda piece, lane: work(*(a[piece] for a in flat)))


def _flat(arrays: tuple[Array, ...]) -> list[Array] | None:
    """Return 1-d views in the order of the memory, if it is the same for all."""
    strides = [tuple(s // a.itemsize for s in a.strides) for a in arrays]
    if any(s != strides[0] for s in strides):
        return None
    if arrays[0].flags.c_contiguous:
        return [a.reshape(-1) for a in arrays]
    if arrays[0].ndim == 4 and arrays[0].transpose(0, 2, 3, 1).flags.c_contiguous:
        return [a.transpose(0, 2, 3, 1).reshape(-1) for a in arrays]
    return None


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads - 1, thread_name_prefix="numpy_mlp")
    return _pool


def _forget_pool() -> None:
    global _pool
    if _pool is not None:
        _pool.shutdown()
    _pool = None


def _forget_pool_in_child() -> None:
    global _pool
    _pool = None  # its threads stayed with the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool_in_child)
