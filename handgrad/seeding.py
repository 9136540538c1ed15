"""Random generators, each for one purpose, that never share a stream."""

from __future__ import annotations

import zlib

import numpy as np

from handgrad.errors import UserError

LARGEST_SEED = 2**64 - 1  # PyTorch's


def check_seed(seed: int) -> None:
    """Raise UserError unless ``seed`` is a whole number that every generator takes."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed {seed!r}: expected a whole number from 0 to {LARGEST_SEED}")


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the generator that ``seed`` gives for ``purpose`` and, say, an epoch and a batch.

    The same arguments give the same stream, and any others an independent one: the purpose and the
    numbers are the spawn key of a ``numpy.random.SeedSequence``.
    """
    key = (zlib.crc32(purpose.encode()), *numbers)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
