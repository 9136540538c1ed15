"""A wrong gradient, and ways of asking about it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from handgrad.checker.differences import Case
from handgrad.checker.subject import Array

# A row of the table of mistakes: its name, a sentence, and the gradient it would give, up to a
# factor; or whether it is this one.
Row = tuple[str, str, Array | np.bool_ | bool]
Rows = Iterator[Row]


class Look:
    """A wrong gradient ``a`` of a variable ``x``, and the right one ``n``."""

    def __init__(self, case: Case, name: str, analytic: Array, numerical: Array) -> None:
        self.case, self.name, self.a, self.n = case, name, analytic, numerical
        self.subject = case.subject
        self.x = case.variables[name]
        self.dout = case.douts[0]
        batch = case.variables[self.subject.inputs[0]].shape
        # Of a function all variables are inputs; some are parameters all the same.
        self.is_input = name in self.subject.inputs and self.x.shape == batch
        self.batch = batch[-1 if self.subject.columns else 0] if batch else 1
        self.other = tuple(np.random.default_rng(5).standard_normal(d.shape) for d in case.douts)

    @property
    def y(self) -> Array:
        """The first output."""
        return self.evaluate()[0]

    @property
    def elementwise(self) -> bool:
        """Whether each entry of the output may be that of one entry of the input."""
        return self.is_input and self.x.shape == self.dout.shape

    @property
    def target(self) -> Array | None:
        """What a loss compares its input with, entry by entry, or None."""
        target = getattr(self.subject.start(), "target", None)
        shaped = isinstance(target, np.ndarray) and target.shape == self.x.shape
        return target if shaped and self.is_input else None

    @property
    def off(self) -> float:
        """The largest error, relative to the largest entry."""
        return float(np.abs(self.a - self.n).max() / np.abs(self.n).max())

    def numbers(self) -> dict[str, float]:
        """Return the numbers that the object holds, or was made with, by name."""
        module = getattr(self.subject.start(), "module", None)
        own = {k: v for k, v in getattr(module, "__dict__", {}).items() if not k.startswith("_")}
        return {
            key: float(value)
            for key, value in {**own, **self.subject.settings}.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def evaluate(self, **changed: Array) -> tuple[Array, ...]:
        """Return the outputs where variables are replaced."""
        return self.subject.evaluate({**self.case.variables, **changed}, self.case.warm)

    def truth(self, **changed: Array) -> Array:
        """Return the true gradient where variables are replaced."""
        return self.case.truth(self.name, {**self.case.variables, **changed})[0]

    def truth_for(self, *douts: Array) -> Array:
        """Return the true gradient for another upstream gradient."""
        return self.case.truth(self.name, douts=douts)[0]

    def given_for(self, *douts: Array, **changed: Array) -> Array:
        """Return what ``backward`` gives for another upstream gradient, at other variables."""
        gradient = self.case.given({**self.case.variables, **changed}, douts)[0][self.name]
        assert gradient is not None
        return gradient

    def at(self, x: Array) -> tuple[Array, Array]:
        """Return what ``backward`` gives, and the truth, at another value of the variable."""
        changed = {self.name: x}
        return self.given_for(*self.case.douts, **changed), self.truth(**changed)

    def rolled(self, shift: int = 1) -> Array:
        """Return the variable with its values moved on, so that others stand everywhere."""
        return np.roll(self.x.ravel(), shift).reshape(self.x.shape)

    def slices(self, axis: int) -> list[Array]:
        """Return what each slice of the upstream gradient contributes to the true gradient."""
        found = []
        for index in range(self.dout.shape[axis]):
            only = np.zeros_like(self.dout)
            here = (slice(None),) * axis + (index,)
            only[here] = self.dout[here]
            found.append(self.truth_for(only, *self.case.douts[1:]))
        return found

    def jacobians(self) -> tuple[Array, Array] | None:
        """Return ∂y[j]/∂x[i], rows j, as the backward pass has it and as it is; None if large."""
        size = self.x.size
        if not self.elementwise or size > 40:
            return None
        ones = [one.reshape(self.dout.shape) for one in np.eye(size)]
        ours, true = zip(
            *((self.given_for(one).ravel(), self.truth_for(one).ravel()) for one in ones),
            strict=True,
        )
        return np.array(ours, np.float64), np.array(true)

    def slopes(self) -> tuple[Array, Array] | None:
        """Return ∂y/∂x as backward has it and as it is, of a function of each entry alone."""
        if not self.elementwise:
            return None
        return np.round(self.a / self.dout, 5), np.round(self.n / self.dout, 5)


def same(a: Array, b: Array, rtol: float = 1e-5) -> bool:
    """Say whether two gradients agree; agreement on nothing but zeros does not count."""
    if a.shape != b.shape or not a.size:
        return False
    size = np.abs(b).max()
    return bool(size > 1e-14 and np.abs(a - b).max() <= rtol * size)


def ratio(a: Array, b: Array) -> float | None:
    """Return c where a = c · b, or None; of two numbers each is a multiple of the other: only 1."""
    if a.shape != b.shape or not a.size or np.abs(b).max() < 1e-14:
        return None
    if a.size == 1:
        return 1.0 if same(a, b) else None
    c = float(np.sum(a * b) / np.sum(b * b))
    return c if c and same(a, c * b) else None


def differs(ours: Array, true: Array) -> Array:
    """Return where two gradients disagree."""
    wrong: Array = np.abs(ours - true) > 1e-5 * np.abs(true).max()
    return wrong
