"""Random numbers that repeat: what a forward pass draws, it draws again."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_generators: list[tuple[Any, Any]] = []  # those that the user's files hold, and their states
_unseeded = [0]  # generators made without a seed since the last reseed()


def hold_generators(namespaces: Sequence[Mapping[str, Any]]) -> None:
    """Remember the state of every generator in modules and classes, for :func:`reseed`."""
    for namespace in namespaces:
        for value in list(namespace.values()):
            if isinstance(value, np.random.Generator):
                _generators.append((value.bit_generator, copy.deepcopy(value.bit_generator.state)))


def seed_unseeded_generators() -> None:
    """Make ``np.random.default_rng()`` give what it gave before, in the order of the calls."""
    original = np.random.default_rng

    def default_rng(seed: Any = None) -> np.random.Generator:
        if seed is None:
            _unseeded[0] += 1
            seed = 1000 + _unseeded[0]
        return original(seed)

    np.random.default_rng = default_rng


def reseed() -> None:
    """Put every generator where it was."""
    np.random.seed(7)  # noqa: NPY002 (a student's code may use it)
    random.seed(7)
    _unseeded[0] = 0
    _put_back()
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(7)


def _put_back() -> None:
    for generator, state in _generators:
        generator.state = copy.deepcopy(state)


@contextlib.contextmanager
def repeatable(namespaces: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Let random numbers repeat inside, and put every generator back afterwards."""
    numpy_state, own_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    original, torch = np.random.default_rng, sys.modules.get("torch")
    states = None if torch is None else _states_of(torch)
    try:
        hold_generators(namespaces)
        seed_unseeded_generators()
        yield
    finally:
        np.random.default_rng = original
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(own_state)
        _put_back()
        _generators.clear()
        if torch is not None and states is not None:
            torch.set_rng_state(states[0])
            if states[1]:
                torch.cuda.set_rng_state_all(states[1])


def _states_of(torch: Any) -> tuple[Any, list[Any]]:
    on_gpus = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpus else []
