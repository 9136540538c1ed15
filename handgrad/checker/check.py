"""Compare a backward pass with differences of its forward pass, at points that hide nothing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace

import numpy as np

from handgrad.checker.differences import STEP_FLOAT32, Case, compare, is_float32
from handgrad.checker.probe import draw
from handgrad.checker.subject import Array, Gradients, Subject, Variables

TOLERANCE = 1e-6
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

    def called(self, verdict: str, diagnosis: str, explanation: str) -> Finding:
        """Return the same with another verdict."""
        return replace(self, verdict=verdict, diagnosis=diagnosis, explanation=explanation)


Diagnose = Callable[[Case, str, Array, Array], tuple[str, str]]


@np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")  # as in a new process
def check(
    subject: Subject,
    rng: np.random.Generator,
    diagnose: Diagnose,
    *,
    tolerance: float = TOLERANCE,
    warm: int | None = None,
    known: Container[str] = (),
) -> list[Finding]:
    """Compare every gradient of a subject with differences; a finding a variable.

    A disagreement has to persist at a point close by, where a kink, if that was the cause, is not.

    Args:
        subject: what to check, and where.
        rng: source of the upstream gradient.
        diagnose: names the kind of a mistake, from the case, the variable, what ``backward`` gave
            and what it should have been.
        tolerance: largest relative error that passes.
        warm: check the second forward and backward of one object instead of the first, after a
            batch with as many samples more.
        known: variables of which no more need be known.

    Raises:
        ContractError: what came back is no gradient at all.
        Exception: whatever the subject raises.
    """
    case = Case.of(subject, rng, None if warm is None else _earlier(subject, warm))
    single = all(map(is_float32, case.outputs)) or _rounds(case)
    strict = tolerance < _AS_FLOAT32
    if single:
        case.step, tolerance = STEP_FLOAT32, max(tolerance, _TOLERANCE_FLOAT32)
    again = subject.evaluate(subject.variables, case.warm)
    if any(not np.array_equal(a, b) for a, b in zip(case.outputs, again, strict=True)):
        text = "forward draws random numbers from where they cannot be put back, so that its "
        return [Finding("", "NOT CHECKED", "random-forward", text + "differences say nothing")]
    gradients, session = case.given()
    findings: list[Finding] = []
    one = _Comparison(case, diagnose, tolerance, rng)
    for name in [name for name in subject.variables if name not in known]:
        finding = one.look_at(name, gradients.get(name))
        if single and strict and finding is not None and finding.passed:
            text = "forward computes in float32, so that only some three digits can be compared; "
            text += "those agree. Compute in the type of the input, or allow it: --tolerance 1e-3"
            finding = finding.called("WRONG", "float32-noise", text)
        findings += [] if finding is None else [finding]
    for kind, sentence in dict.fromkeys(session.modified):
        findings.append(Finding("", "WRONG", kind, sentence))
    if subject.kind == "torch function" and all(f.passed for f in findings):
        findings += _one_at_a_time(case, gradients)
    return findings


def ties(subject: Subject, rng: np.random.Generator) -> Iterator[Finding]:
    """Look at what picks entries of its input, as a maximum does, where several are equal.

    Differences tell nothing there. But such a y grows as all of x do, so that the gradients add up
    to what arrives, whichever of its equals a maximum takes, or shares it among.
    """
    name, x = next(iter(subject.variables.items()))
    tied = rng.choice(draw(rng, (3,), "unit"), x.shape)
    (y, *more) = subject.evaluate({name: tied})
    single = len(subject.variables) == 1 and not more and x.ndim > 1
    if not single or not np.isin(y, tied).all():
        return
    dout = rng.uniform(0.5, 1.5, y.shape)
    dx = subject.differentiate({name: tied}, (dout,))[0][name]
    assert dx is not None
    if abs(dx.sum() - dout.sum()) > 1e-6 * dout.sum():
        text = "where several entries are the largest, as zeros after a ReLU, each gets the whole "
        text += "gradient (a mask x == max): it belongs to one of them, by argmax"
        if dx.sum() < dout.sum():
            text = "where entries are equal, their gradients do not add up to what arrives"
        yield Finding(name, "WRONG", "tied-entries", text)


def _earlier(subject: Subject, more: int) -> Variables:
    """Return variables for an earlier pass, of a batch with ``more`` samples more."""
    first = dict(subject.variables)
    for name in subject.inputs:
        if first[name].ndim:
            flipped = 0.9 * np.flip(first[name], axis=0)
            first[name] = np.concatenate([flipped, 0.8 * flipped[:more]])
    return first


def _rounds(case: Case) -> bool:
    """Say whether forward makes float32 of its inputs, whatever it returns."""
    inputs = {name: case.variables[name] for name in case.subject.inputs}
    with np.errstate(over="ignore"):
        single = {name: x.astype(np.float32).astype(np.float64) for name, x in inputs.items()}
    if all(np.array_equal(single[name], x) for name, x in inputs.items()):
        return False
    close = {name: x * (1 + 1e-4) for name, x in inputs.items()}
    moved = [case.subject.evaluate({**case.variables, **at}, case.warm) for at in (single, close)]
    same, other = (all(map(np.array_equal, case.outputs, outputs)) for outputs in moved)
    return same and not other


@dataclass
class _Comparison:
    case: Case
    diagnose: Diagnose
    tolerance: float
    rng: np.random.Generator

    def look_at(self, name: str, analytic: Array | None) -> Finding | None:
        """Return what is found of a variable; None where there is no gradient, and need not be."""
        numerical, doubt = self.case.truth(name)
        seen = ~np.isnan(numerical)
        if not np.isfinite(numerical[seen]).all():
            return Finding(name, "NOT CHECKED", "not-finite", "forward is not finite close by")
        if analytic is None:
            return self._missing(name, numerical)
        if analytic.dtype.kind not in "fiu" or analytic.shape != numerical.shape:
            return Finding(name, "WRONG", *self.diagnose(self.case, name, analytic, numerical))
        finding, passed = self._compared(name, analytic, numerical, doubt)
        scale = np.nanmax(np.abs(numerical), initial=0.0) + 1e-6
        if (doubt[seen] > 1e-3 * scale).mean() > 0.25:
            text = "forward is not smooth here: its differences do not settle as they get smaller"
            return finding.called("NOT CHECKED", "not-smooth", text)
        flat = scale < 1.1e-6 and not np.abs(analytic).max(initial=0.0)
        if passed and flat and name in self.case.subject.inputs:
            text = "the output does not change with it here: try --init or --input-range"
            return finding.called("NOT CHECKED", "constant", text)
        noisy = is_float32(analytic) and self.tolerance < _AS_FLOAT32 and scale > 1e-3
        if passed and noisy:
            text = "the gradient is computed in float32, of numbers in float64"
            return finding.called("WRONG", "float32-noise", text)
        if passed:
            return finding
        near, passed = self._close_by(name)
        if passed:
            return near
        return finding.called("WRONG", *self.diagnose(self.case, name, analytic, numerical))

    def _missing(self, name: str, numerical: Array) -> Finding | None:
        subject = self.case.subject
        # A network may keep the gradient of its input to itself.
        kept = bool(subject.layers) and name in subject.inputs
        if name in subject.optional or kept or np.nanmax(np.abs(numerical), initial=0.0) < 1e-9:
            return None
        did = "returned None for it" if name in subject.inputs else "left none in grads"
        return Finding(name, "WRONG", "no-gradient", f"there is no gradient: backward {did}")

    def _compared(
        self, name: str, analytic: Array, numerical: Array, doubt: Array
    ) -> tuple[Finding, bool]:
        seen = ~np.isnan(numerical)
        filled = np.where(seen, numerical, analytic)  # what was not looked at does not disagree
        error, where, passed = compare(analytic, filled, doubt, self.tolerance)
        values = (float(filled[where]), float(analytic[where])) if filled.size else (0.0, 0.0)
        return Finding(name, "ok", "", "", error, where, *values), passed

    def _close_by(self, name: str) -> tuple[Finding, bool]:
        """Return what is found at a point close by, and whether all is well there."""
        near = {
            key: value * (1 + 0.01 * self.rng.uniform(-1, 1, value.shape))
            + 1e-3 * np.abs(value).max(initial=0.0) * self.rng.uniform(-1, 1, value.shape)
            for key, value in self.case.variables.items()
        }
        numerical, doubt = self.case.truth(name, near)
        analytic = self.case.given(near)[0].get(name)
        if analytic is None or analytic.shape != numerical.shape:
            return Finding(name, "WRONG"), False
        return self._compared(name, analytic, numerical, doubt)


def _one_at_a_time(case: Case, together: Gradients) -> list[Finding]:
    """Ask a function for the gradient of one input alone, as of a layer whose others are frozen."""
    findings = []
    for name, expected in together.items():
        if expected is None or len(together) < 2:
            continue
        session = case.subject.start()
        session.only = name
        session.forward(case.variables)
        alone = session.backward(case.douts).get(name)
        if alone is None or not np.allclose(alone, expected, rtol=1e-9, atol=1e-12):
            text = "its gradient is another when no other input wants one (needs_input_grad)"
            findings.append(Finding(name, "WRONG", "needs-input-grad", text))
    return findings
