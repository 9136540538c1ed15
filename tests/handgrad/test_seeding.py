"""Streams for different purposes never coincide."""

from __future__ import annotations

import itertools

from handgrad.seeding import generator


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
