"""A batch in pieces by threads: every image once, in order, and errors come back."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from numpy_mlp import parallel
from numpy_mlp.modules import Conv2dModule
from numpy_mlp.parallel import elementwise, for_chunks, get_num_threads, set_num_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    set_num_threads(1)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_image_is_in_one_chunk(threads: int, n: int, size: int) -> None:
    set_num_threads(threads)
    assert get_num_threads() == threads
    done: dict[int, list[slice]] = {}
    lanes = for_chunks(n, size, lambda chunk, lane: done.setdefault(lane, []).append(chunk))
    assert sorted(done) == list(range(lanes)) and lanes == max(1, min(threads, n))
    images = [i for lane in sorted(done) for chunk in done[lane] for i in range(n)[chunk]]
    assert images == list(range(n))
    assert all(chunk.stop - chunk.start <= size for chunks in done.values() for chunk in chunks)
    shares = [sum(chunk.stop - chunk.start for chunk in chunks) for chunks in done.values()]
    assert max(shares) - min(shares) <= 1


def test_lanes_work_at_the_same_time() -> None:
    set_num_threads(3)
    meeting, names = threading.Barrier(3, timeout=10), set()

    def work(chunk: slice, lane: int) -> None:
        meeting.wait()  # nobody comes back before all are there
        names.add(threading.current_thread().name)

    for_chunks(3, 1, work)
    assert len(names) == 3 and threading.current_thread().name in names


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_error_comes_back_when_the_others_are_done(where: int) -> None:
    set_num_threads(3)
    done = []

    def work(chunk: slice, lane: int) -> None:
        if lane == where:
            raise ZeroDivisionError(f"in lane {lane}")
        time.sleep(0.02)
        done.append(lane)

    with pytest.raises(ZeroDivisionError, match=f"in lane {where}"):
        for_chunks(3, 1, work)
    assert sorted(done) == [lane for lane in range(3) if lane != where]
    for_chunks(3, 1, lambda chunk, lane: done.append(lane))  # and the next one goes well
    assert len(done) == 5


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_within_chunks_are_refused(threads: int) -> None:
    """They would wait for a thread that waits for them."""
    set_num_threads(threads)
    large = np.zeros(parallel.PIECE + 1)
    with pytest.raises(AssertionError, match="by the work of for_chunks"):
        for_chunks(2, 1, lambda chunk, lane: elementwise(np.copy, large))
    assert for_chunks(2, 1, lambda chunk, lane: None) == threads


def test_errors_of_arithmetic_are_what_the_caller_lets_them_be() -> None:
    set_num_threads(2)
    zero, told = np.zeros(2), []

    def work(chunk: slice, lane: int) -> None:
        1 / zero[chunk]

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        for_chunks(2, 1, work)
    with np.errstate(divide="ignore"):
        for_chunks(2, 1, work)
    with np.errstate(divide="call", call=lambda kind, flag: told.append(kind)):
        for_chunks(2, 1, work)
    assert told == ["divide by zero"] * 2


def test_several_callers_at_once(rng: np.random.Generator) -> None:
    set_num_threads(2)
    x = rng.standard_normal((6, 3, 8, 8))
    module = Conv2dModule(3, 4, 3, rng=rng)
    want, got = module.forward(x), {}

    def call(i: int) -> None:
        got[i] = Conv2dModule.forward(module, x)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=20)
    assert sorted(got) == [0, 1, 2, 3]
    assert all(np.array_equal(y, want) for y in got.values())


def _in_child(answers: Any) -> None:
    answers.put(for_chunks(4, 1, lambda chunk, lane: None))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    set_num_threads(2)
    for_chunks(4, 1, lambda chunk, lane: None)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(answers,), daemon=True)
    child.start()
    assert answers.get(timeout=20) == 2
    child.join(timeout=20)
    assert child.exitcode == 0


def test_another_number_of_threads_ends_those_that_were() -> None:
    before = threading.active_count()
    set_num_threads(3)
    assert threading.active_count() == before  # none before there is work
    for_chunks(3, 1, lambda chunk, lane: time.sleep(0.01))
    assert threading.active_count() == before + 2
    set_num_threads(1)
    assert threading.active_count() == before


@pytest.mark.parametrize("n", [0, -1])
def test_no_threads_at_all_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"the number of threads must be positive, got {n}"):
        set_num_threads(n)
    assert get_num_threads() == 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (5, 4), (2, 3, 4, 5), (2, 1, 4, 1)])
def test_elementwise_of_any_shape_and_layout(
    threads: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    set_num_threads(threads)
    monkeypatch.setattr(parallel, "PIECE", 7)
    x = np.asarray(rng.standard_normal(shape))
    layouts = [x, np.asfortranarray(x), x[..., ::-1]] if shape else [x]
    if len(shape) == 4:
        layouts += [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)]
    for a in layouts:
        for b in layouts:
            out = np.empty_like(b)
            elementwise(lambda a, b, out: np.add(a, 2 * b, out=out), a, b, out)
            np.testing.assert_array_equal(out, a + 2 * b)
            mine = a.copy()  # and over an argument
            elementwise(lambda a, b: np.multiply(a, b, out=a), mine, b)
            np.testing.assert_array_equal(mine, a * b)


def test_elementwise_takes_pieces_that_stay_in_the_cache() -> None:
    sizes: list[int] = []
    x = np.zeros((3, parallel.PIECE))
    elementwise(lambda a: sizes.append(a.size), x)
    assert sizes == [parallel.PIECE] * 3
    small = np.zeros(5)
    set_num_threads(2)
    elementwise(lambda a: sizes.append(a.size), small)
    assert sizes[3:] == [5]  # no threads for that
