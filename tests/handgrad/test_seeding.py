"""Streams for different purposes never coincide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from handgrad.errors import UserError
from handgrad.seeding import LARGEST_SEED, check_seed, generator


def test_same_arguments_same_stream_others_another() -> None:
    arguments = [
        (0, "order"), (1, "order"), (0, "augmentation"), (0, "order", 0), (0, "order", 1),
        (0, "order", 0, 0), (0, "order", 1, 0), (2**32, "order"), (5 + 7 * 2**32, "order", 0),
        (5, "order", 7),
    ]  # fmt: skip
    draws = [generator(*a).random(4).tolist() for a in arguments]  # type: ignore[arg-type]
    assert draws == [generator(*a).random(4).tolist() for a in arguments]  # type: ignore[arg-type]
    for one, other in itertools.combinations(draws, 2):
        assert one != other


def test_every_seed_of_64_bits_is_taken() -> None:
    for seed in (0, np.uint64(LARGEST_SEED), LARGEST_SEED):
        check_seed(seed)  # type: ignore[arg-type]
    one, other = generator(LARGEST_SEED, "order"), generator(LARGEST_SEED - 1, "order")
    assert one.random() != other.random()
    for bad in (-1, 2**64, 1.0, "1", None):
        with pytest.raises(UserError, match=r"seed .*: expected a whole number from 0 to 18446744"):
            check_seed(bad)  # type: ignore[arg-type]
