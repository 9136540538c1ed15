"""Where random numbers come from: what ``rng`` may be, everywhere in this package."""

from __future__ import annotations

from types import ModuleType

import numpy as np

Source = np.random.Generator | np.random.RandomState | int | ModuleType | None
"""A source of random numbers, as :func:`as_generator` takes it."""


def as_generator(rng: Source = None) -> np.random.Generator:
    """Return the generator that ``rng`` stands for.

    Args:
        rng: a generator, which is returned itself; a whole number, the seed of a new one; or a
            ``RandomState``, from which the seed of a new one is drawn. None, or ``np.random``,
            stands for NumPy's global one, so that ``np.random.seed(0)`` decides.

    Raises:
        TypeError: ``rng`` is something else.
        ValueError: a seed is negative.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None or rng is np.random:
        return np.random.default_rng(np.random.randint(0, 2**32, 4, np.uint32))  # noqa: NPY002
    if isinstance(rng, np.random.RandomState):
        return np.random.default_rng(rng.randint(0, 2**32, 4, np.uint32))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        if rng < 0:
            raise ValueError(f"rng is {rng}; a seed must be 0 or more")
        return np.random.default_rng(int(rng))
    raise TypeError(
        f"rng is {type(rng).__name__}; expected a Generator, a RandomState, a whole number or None"
    )
