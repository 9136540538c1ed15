"""Compare a backward pass with differences of its forward pass, at points that hide nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from handgrad.checker.subject import (
    Array,
    ContractError,
    Session,
    Subject,
    TorchSession,
    Variables,
)

TOLERANCE = 1e-6
MOST_ENTRIES = 400  # of a variable: each costs four forward passes
_STEP, _STEP_FLOAT32 = 1e-4, 2**-6
_TOLERANCE_FLOAT32 = 5e-3
_AS_FLOAT32 = 1e-4  # who asks for no more has nothing against float32


@dataclass(frozen=True)
class Finding:
    """What was found of one gradient, or of the class as a whole.

    Attributes:
        variable: the input or parameter; empty where it concerns all of them.
        verdict: ``ok``, ``WRONG`` or ``NOT CHECKED``.
        diagnosis: what kind of wrong, by name; empty where all is well.
        explanation: a sentence about it.
        error: worst relative error; where: its index; and the two values there.
        point: shapes, settings and circumstances.
    """

    variable: str
    verdict: str
    diagnosis: str = ""
    explanation: str = ""
    error: float | None = None
    where: tuple[int, ...] | None = None
    numerical: float | None = None
    analytic: float | None = None
    point: str = ""

    @property
    def passed(self) -> bool:
        """Whether all is well."""
        return self.verdict == "ok"


@dataclass
class Case:
    """A subject at a point: the truth there, and what ``backward`` gives.

    Attributes:
        warm: where a forward and a backward pass went before on the same object, or None.
    """

    subject: Subject
    variables: dict[str, Array]
    douts: tuple[Array, ...]
    warm: Variables | None = None
    step: float = _STEP

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
        variables = self.variables if variables is None else variables
        douts = self.douts if douts is None else douts
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
        return self.subject.differentiate(
            self.variables if variables is None else variables,
            self.douts if douts is None else douts,
            self.warm,
        )


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
    relative = difference / scale
    excess = np.maximum(difference - 3 * doubt, 0) / scale
    if not excess.size:
        return 0.0, (), True
    excess = np.where(np.isnan(excess), np.inf, excess)
    passed = bool(excess.max() <= tolerance)
    chosen = relative if passed else excess
    where = tuple(int(i) for i in np.unravel_index(int(chosen.argmax()), chosen.shape))
    return float(relative[where]), where, passed


Diagnose = Callable[[Case, str, Array, Array], tuple[str, str]]


def check(
    subject: Subject,
    rng: np.random.Generator,
    diagnose: Diagnose,
    *,
    tolerance: float = TOLERANCE,
    warm: int | None = None,
) -> list[Finding]:
    """Compare every gradient of a subject with differences; a finding a variable.

    The upstream gradient is random: an all-ones one makes the input gradient of a softmax or of a
    batch normalisation zero, whatever the code. A disagreement has to persist at a point close by,
    where a kink, if that was the cause, is not.

    Args:
        subject: what to check, and where.
        rng: source of the upstream gradient.
        diagnose: names the kind of a mistake, from the case, the variable, what ``backward`` gave
            and what it should have been.
        tolerance: largest relative error that passes.
        warm: check the second forward and backward of one object instead of the first, after a
            batch with as many samples more.

    Raises:
        ContractError: what came back is no gradient at all.
        Exception: whatever the subject raises.
    """
    first = None
    if warm is not None:
        first = dict(subject.variables)
        for name in subject.inputs:
            if first[name].ndim:
                flipped = 0.9 * np.flip(first[name], axis=0)
                first[name] = np.concatenate([flipped, 0.8 * flipped[:warm]])
    outputs = subject.evaluate(subject.variables, first)
    case = Case(subject, subject.variables, (), first)
    # A loss whose backward takes no upstream gradient has ∂L/∂L = 1 for it.
    case.douts = tuple(
        rng.standard_normal(out.shape) if subject.upstream else np.ones(out.shape)
        for out in outputs
    )
    single = all(is_float32(out) for out in outputs) or _rounds(subject, outputs, first)
    strict = tolerance < _AS_FLOAT32
    if single:
        case.step, tolerance = _STEP_FLOAT32, max(tolerance, _TOLERANCE_FLOAT32)
    again = subject.evaluate(subject.variables, first)
    if any(not np.array_equal(a, b) for a, b in zip(outputs, again, strict=True)):
        text = "forward draws random numbers from where they cannot be put back, so that its "
        return [Finding("", "NOT CHECKED", "random-forward", text + "differences say nothing")]
    gradients, session = case.given()
    findings: list[Finding] = []
    for name in subject.variables:
        finding = _check_one(case, name, gradients.get(name), diagnose, tolerance, rng)
        if single and strict and finding is not None and finding.passed:
            text = "forward computes in float32, so that only some three digits can be compared; "
            text += "those agree. Compute in the type of the input, or allow it: --tolerance 1e-3"
            finding = replace(finding, verdict="WRONG", diagnosis="float32-noise", explanation=text)
        findings += [] if finding is None else [finding]
    for kind, sentence in dict.fromkeys(session.modified):
        findings.append(Finding("", "WRONG", kind, sentence))
    if subject.kind == "torch function" and all(f.passed for f in findings):
        findings += _one_at_a_time(case, gradients)
    return findings


def _rounds(subject: Subject, outputs: tuple[Array, ...], warm: Variables | None) -> bool:
    """Say whether forward makes float32 of its inputs, whatever it returns."""
    inputs = {name: subject.variables[name] for name in subject.inputs}
    with np.errstate(over="ignore"):
        single = {name: x.astype(np.float32).astype(np.float64) for name, x in inputs.items()}
    if all(np.array_equal(single[name], x) for name, x in inputs.items()):
        return False
    close = {name: x * (1 + 1e-4) for name, x in inputs.items()}
    same, other = (
        all(map(np.array_equal, outputs, subject.evaluate({**subject.variables, **at}, warm)))
        for at in (single, close)
    )
    return same and not other


def _check_one(
    case: Case,
    name: str,
    analytic: Array | None,
    diagnose: Diagnose,
    tolerance: float,
    rng: np.random.Generator,
) -> Finding | None:
    """Return what is found of one variable; None where there is no gradient, and need not be."""
    subject = case.subject
    numerical, doubt = case.truth(name)
    seen = ~np.isnan(numerical)
    if not np.isfinite(numerical[seen]).all():
        return Finding(name, "NOT CHECKED", "not-finite", "forward is not finite close by")
    if analytic is None:
        network = subject.is_network and name in subject.inputs
        if name in subject.optional or network or np.nanmax(np.abs(numerical), initial=0.0) < 1e-9:
            return None
        did = "returned None for it" if name in subject.inputs else "left none in grads"
        return Finding(name, "WRONG", "no-gradient", f"there is no gradient: backward {did}")
    if analytic.dtype.kind not in "fiu" or analytic.shape != numerical.shape:
        kind, text = diagnose(case, name, analytic, numerical)
        return Finding(name, "WRONG", kind, text)
    finding, passed = _compared(name, analytic, numerical, doubt, tolerance)
    scale = np.nanmax(np.abs(numerical), initial=0.0) + 1e-6
    if (doubt[seen] > 1e-3 * scale).mean() > 0.25:
        text = "forward is not smooth here: its differences do not settle as they get smaller"
        return replace(finding, verdict="NOT CHECKED", diagnosis="not-smooth", explanation=text)
    flat = scale < 1.1e-6 and not np.abs(analytic).max(initial=0.0)
    if passed and flat and name in subject.inputs:
        text = "the output does not change with it here: try --init or --input-range"
        return replace(finding, verdict="NOT CHECKED", diagnosis="constant", explanation=text)
    if passed and is_float32(analytic) and tolerance < _AS_FLOAT32 and scale > 1e-3:
        text = "the gradient is computed in float32, of numbers in float64"
        return replace(finding, verdict="WRONG", diagnosis="float32-noise", explanation=text)
    if passed:
        return finding
    near, passed = _close_by(case, name, rng, tolerance)
    if passed:
        return near
    kind, text = diagnose(case, name, analytic, numerical)
    return replace(finding, verdict="WRONG", diagnosis=kind, explanation=text)


def _compared(
    name: str, analytic: Array, numerical: Array, doubt: Array, tolerance: float
) -> tuple[Finding, bool]:
    seen = ~np.isnan(numerical)
    filled = np.where(seen, numerical, analytic)  # what was not looked at does not disagree
    error, where, passed = compare(analytic, filled, doubt, tolerance)
    values = (float(filled[where]), float(analytic[where])) if filled.size else (0.0, 0.0)
    return Finding(name, "ok", "", "", error, where, *values), passed


def _close_by(
    case: Case, name: str, rng: np.random.Generator, tolerance: float
) -> tuple[Finding, bool]:
    """Return what is found at a point close by, and whether all is well there."""
    near = {
        key: value * (1 + 0.01 * rng.uniform(-1, 1, value.shape))
        + 1e-3 * np.abs(value).max(initial=0.0) * rng.uniform(-1, 1, value.shape)
        for key, value in case.variables.items()
    }
    numerical, doubt = case.truth(name, near)
    analytic = case.given(near)[0].get(name)
    if analytic is None or analytic.shape != numerical.shape:
        return Finding(name, "WRONG"), False
    return _compared(name, analytic, numerical, doubt, tolerance)


def _one_at_a_time(case: Case, together: dict[str, Array | None]) -> list[Finding]:
    """Ask a function for the gradient of one input alone, as of a layer whose others are frozen."""
    findings = []
    for name, expected in together.items():
        if expected is None or len(together) < 2:
            continue
        session = case.subject.start()
        assert isinstance(session, TorchSession)
        session.only = name
        session.forward(case.variables)
        alone = session.backward(case.douts).get(name)
        if alone is None or not np.allclose(alone, expected, rtol=1e-9, atol=1e-12):
            text = "its gradient is another when no other input wants one (needs_input_grad)"
            findings.append(Finding(name, "WRONG", "needs-input-grad", text))
    return findings
