"""Where to look: a class, sizes, what the user has given, and values for its variables.

Sizes differ from one another, so that a transposed matrix does not fit by chance, and no value
stands at 0 or close to another, where a kink or a tie could be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from handgrad.checker.subject import Array, Subject

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes: batch, features or channels in, out, and of an image's sides."""

    n: int
    d: int
    c: int
    h: int = 3
    w: int = 2


@dataclass(frozen=True)
class Point:
    """Where to look.

    Attributes:
        sizes: of the inputs.
        vary: 0 to keep the defaults of arguments, 1 for other numbers, 2 for other switches too,
            3 for groups.
        scale: what inputs are multiplied with.
        evaluation: whether a module is in evaluation mode, where it has one.
    """

    sizes: Sizes
    vary: int = 0
    scale: float = 1.0
    evaluation: bool = False


@dataclass(frozen=True)
class Given:
    """What the user said instead of leaving it to be guessed.

    Attributes:
        args, kwargs: of the constructor.
        shapes: of the inputs.
        range: of their values.
        instance: an object that is to be checked as it is.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: Shapes = ()
    range: tuple[float, float] | None = None
    instance: Any = None

    @property
    def arguments(self) -> bool:
        """Whether arguments of the constructor were given."""
        return bool(self.args or self.kwargs)


def draw(rng: np.random.Generator, shape: Sequence[int], domain: str = "real") -> Array:
    """Return values that are apart from one another and from 0.

    Args:
        rng: source of their order and signs.
        shape: any.
        domain: ``real``, ``positive`` or ``unit``: (0, 1).
    """
    n = int(np.prod(shape, dtype=int))
    low, high = (0.1, 0.9) if domain == "unit" else (0.3, 2.0)
    gap = (high - low) / max(n, 1)
    values = low + gap * (rng.permutation(n) + rng.uniform(0.2, 0.8, n))
    if domain == "real":
        values *= np.where(rng.permutation(n) < n / 2, -1, 1)
    return values.reshape(tuple(shape))


@dataclass(frozen=True)
class Probe:
    """A class, and where it is looked at.

    Attributes:
        rng: source of the values.
        like: only inputs of the kind that this subject has, or None.
    """

    cls: Any
    given: Given
    point: Point
    rng: np.random.Generator
    like: Subject | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """What values inputs may have to be: any, positive, or between 0 and 1."""
        return ("given",) if self.given.range else ("real", "positive", "unit")

    def values(self, shape: Sequence[int], domain: str) -> Array:
        """Return values of an input."""
        if domain == "given" and self.given.range is not None:
            low, high = self.given.range
            return low + (high - low) * (draw(self.rng, shape, "unit") - 0.1) / 0.8
        return draw(self.rng, shape, domain) * (1.0 if domain == "unit" else self.point.scale)

    def inputs(self, names: Sequence[str], shapes: Shapes, domain: str) -> dict[str, Array]:
        """Return values of all inputs."""
        pairs = zip(names, shapes, strict=True)
        return {name: self.values(shape, domain) for name, shape in pairs}

    def parameters(self, own: dict[str, Array]) -> Iterator[dict[str, Array]]:
        """Yield values for parameters: never the initial ones, whose ones and zeros hide mistakes.

        Args:
            own: those initial values.
        """
        yield {name: draw(self.rng, value.shape) for name, value in own.items()}
        if own:
            yield {name: draw(self.rng, value.shape, "positive") for name, value in own.items()}
            near = {name: draw(self.rng, value.shape) for name, value in own.items()}
            yield {name: value + 0.1 * near[name] * np.abs(value) for name, value in own.items()}
