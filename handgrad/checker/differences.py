"""The truth about a gradient: differences of the forward pass, and how far they may be off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handgrad.checker.subject import Array, ContractError, Session, Subject, Variables

MOST_ENTRIES = 400  # of a variable: each costs four forward passes
STEP, STEP_FLOAT32 = 1e-4, 2**-6


@dataclass
class Case:
    """A subject at a point: the truth there, and what ``backward`` gives.

    Attributes:
        warm: where a forward and a backward pass went before on the same object, or None.
        outputs: of forward, there.
    """

    subject: Subject
    variables: dict[str, Array]
    douts: tuple[Array, ...]
    warm: Variables | None = None
    step: float = STEP
    outputs: tuple[Array, ...] = ()

    @classmethod
    def of(cls, subject: Subject, rng: np.random.Generator, warm: Variables | None = None) -> Case:
        """Return a subject where it stands, with a random upstream gradient.

        An all-ones one makes the input gradient of a softmax or of a batch normalisation zero,
        whatever the code. A loss whose backward takes none has ∂L/∂L = 1 for it.
        """
        outputs = subject.evaluate(subject.variables, warm)
        douts = tuple(
            rng.standard_normal(out.shape) if subject.upstream else np.ones(out.shape)
            for out in outputs
        )
        return cls(subject, subject.variables, douts, warm, outputs=outputs)

    def truth(
        self,
        name: str,
        variables: Variables | None = None,
        douts: tuple[Array, ...] | None = None,
    ) -> tuple[Array, Array]:
        """Return the numerical gradient for a variable, and how far it may be off.

        With D(h) = (f(x+h) - f(x-h)) / 2h, whose error is O(h²), (4 D(h/2) - D(h)) / 3 has an error
        of O(h⁴) (Richardson 1911), and D(h) - D(h/2) bounds it where f is smooth. Near a kink the
        two differ, so that the bound says that nothing can be told there. To it comes the rounding
        of f, a few units in the last place over h. Of a variable with many entries some are looked
        at, the others are NaN.
        """
        variables, douts = variables or self.variables, douts or self.douts
        x = variables[name]
        gradient, doubt = np.full(x.shape, np.nan), np.zeros(x.shape)
        for place in _entries(x.size):
            index = tuple(int(i) for i in np.unravel_index(place, x.shape))
            coarse, _ = self._difference(name, variables, douts, index, self.step)
            fine, rounding = self._difference(name, variables, douts, index, self.step / 2)
            gradient[index] = (4 * fine - coarse) / 3
            doubt[index] = abs(fine - coarse) + rounding
        return gradient, doubt

    def _difference(
        self,
        name: str,
        variables: Variables,
        douts: tuple[Array, ...],
        index: tuple[int, ...],
        step: float,
    ) -> tuple[float, float]:
        values = []
        for sign in (1, -1):
            moved = variables[name].copy()
            moved[index] += sign * step
            values.append(self.subject.evaluate({**variables, name: moved}, self.warm))
        total = size = 0.0
        for right, left, dout in zip(*values, douts, strict=True):
            if right.shape != left.shape:
                raise ContractError("random-forward", "the shape of the output changes by itself")
            total += float(np.sum((right.astype(np.float64) - left) * dout))
            size += float(np.sum(np.abs(right * dout)))
        return total / (2 * step), 2 * np.finfo(np.float64).eps * size / step

    def given(
        self, variables: Variables | None = None, douts: tuple[Array, ...] | None = None
    ) -> tuple[dict[str, Array | None], Session]:
        """Return what ``backward`` gives, and the session."""
        at = variables or self.variables
        return self.subject.differentiate(at, douts or self.douts, self.warm)


def _entries(size: int) -> Array:
    """Return the places that are looked at: all, or some of many, first and last among them."""
    if size <= MOST_ENTRIES:
        return np.arange(size)
    rng = np.random.default_rng(size)
    inner = rng.choice(np.arange(1, size - 1), MOST_ENTRIES - 2, replace=False)
    return np.concatenate([[0], np.sort(inner), [size - 1]])


def is_float32(array: Array) -> bool:
    """Say whether every value is one of single precision, which random ones are not by chance."""
    if array.dtype.kind != "f":
        return False
    if array.dtype.itemsize < 8:
        return True
    with np.errstate(over="ignore"):
        same = bool((array.astype(np.float32) == array).all())
    return same and bool((array != np.round(array * 1024) / 1024).any())


def compare(
    analytic: Array, numerical: Array, doubt: Array, tolerance: float
) -> tuple[float, tuple[int, ...], bool]:
    """Return the worst relative error, its index, and whether all errors are small.

    An error is relative to the entry, or, for small entries, to a thousandth of the largest, below
    which a difference tells nothing; what the numerical gradient may be off is forgiven.
    """
    least = 1e-3 * np.abs(numerical).max(initial=0.0) + 1e-6
    scale = np.maximum(np.maximum(np.abs(analytic), np.abs(numerical)), least)
    difference = np.abs(analytic - numerical)
    excess = np.maximum(difference - 3 * doubt, 0) / scale
    if not excess.size:
        return 0.0, (), True
    excess = np.where(np.isnan(excess), np.inf, excess)
    passed = bool(excess.max() <= tolerance)
    relative = difference / scale
    chosen = relative if passed else excess
    where = tuple(int(i) for i in np.unravel_index(int(chosen.argmax()), chosen.shape))
    return float(relative[where]), where, passed
