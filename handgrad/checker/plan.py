"""At which points a class is checked, and what is made of what is found there."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from handgrad.checker.candidates import NoInputError, fits
from handgrad.checker.check import Finding, check, ties
from handgrad.checker.guesses import invented, parameters_of, shown
from handgrad.checker.kinds import Found, unwritten
from handgrad.checker.mistakes import diagnose
from handgrad.checker.probe import Given, Point, Sizes
from handgrad.checker.subject import ContractError, Subject
from handgrad.user_code.blame import their_error

_PLAIN, _OTHER = Sizes(5, 4, 3), Sizes(9, 6, 2)
_ONE, _SQUARE, _ELSEWHERE = Sizes(1, 4, 3), Sizes(4, 4, 4), Sizes(3, 2, 5)
# What cannot run unless all sizes are equal, and then is wrong.
_HIDDEN_BY_SQUARES = (
    "transposed-factor", "transposed-gradient", "flipped-kernel", "wrong-sum-axis"
)  # fmt: skip
_LARGER = "after a larger batch"


@dataclass
class Checked:
    """What came of a class.

    Attributes:
        settings: with which it was made.
        findings: one for each variable, and for what concerns the class as a whole.
        notes: what is left unchecked, or looks odd where nobody may have meant it to work.
        layers: names of the classes that it is made of.
    """

    settings: dict[str, Any]
    findings: dict[str, Finding] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def keep(self, finding: Finding, *, main: bool = False) -> None:
        """Remember a finding where it says more than what is known of that variable."""
        key = finding.variable or finding.diagnosis
        before = self.findings.get(key)
        worse = before is None or (
            before.passed and (not finding.passed or (finding.error or 0) > (before.error or 0))
        )
        # At other sizes and settings than the first, what cannot be judged says nothing.
        if worse and (finding.verdict != "NOT CHECKED" or main):
            self.findings[key] = finding


def check_class(found: Found, given: Given, tolerance: float) -> Checked:
    """Check a class at several points.

    Two sizes, with and without the defaults of arguments; large inputs; a batch of one; the second
    pass of one object, and one after a larger batch; and, where it takes them, inputs of another
    rank.
    """
    rng = np.random.default_rng(0)
    main, *others = found.subjects(given, Point(_PLAIN), rng)

    def at(sizes: Sizes, vary: int = 0, scale: float = 1.0) -> Callable[[], Subject]:
        return lambda: found.subjects(given, Point(sizes, vary, scale), rng, main)[0]

    main.elsewhere = at(_ELSEWHERE)
    checked = Checked(main.settings, notes=[*main.notes], layers=main.layers)
    for name in main.ungraded:
        text = "it changes the output, and no gradient of it was found: looked for in grads, as "
        text += f"attributes such as d{name} or {name}_grad, and in what backward returns"
        checked.findings[name] = Finding(name, "NOT CHECKED", "no-gradient", text)
    again = found.kind in ("module", "torch module")
    after_larger = again and not main.columns and main.kind != "loss"
    plans: list[tuple[bool, str, Callable[[], Subject], int | None]] = [
        (True, "", lambda: main, None),
        (again, "second pass of one object", lambda: main, 0),
        (True, "other sizes and settings", at(_OTHER, 2), None),
        (True, "other sizes and settings", at(_OTHER, 1), None),
        (True, "large values", at(_PLAIN, scale=4.0), None),
        (not given.shapes, "a batch of one", at(_ONE), None),
        (after_larger, _LARGER, lambda: main, 1),
    ]
    if any(p.name == "groups" for p in parameters_of(found.cls)):
        plans.append((True, "other sizes and settings", at(_SQUARE, 3), None))
    one = _Points(found, given, tolerance, rng)
    for number, (_, title, make, warm) in enumerate(plan for plan in plans if plan[0]):
        try:
            subject = make()
        except Exception:  # other sizes and settings may not be allowed
            continue
        known = {name for name, finding in checked.findings.items() if finding.verdict == "WRONG"}
        for finding in one.look_at(subject, warm, known):
            # Switches that are changed may ask for what is not there, arrays may be made once.
            if finding.diagnosis == "crash" and ("settings" in title or title == _LARGER):
                text = f"not checked at {_point(subject, '')}: {finding.explanation}"
                checked.notes += [text] * (title != _LARGER)
                continue
            if finding.verdict == "WRONG" and title == _LARGER:
                text = "right on a new object, wrong after a larger batch: it still uses something "
                finding = finding.called("WRONG", "stale-cache", f"{text}of that one")
            checked.keep(replace(finding, point=_point(subject, title)), main=not number)
        if any(f.variable == "" and not f.passed for f in checked.findings.values()):
            break
    if all(finding.passed for finding in checked.findings.values()):
        one.look_aside(checked, main, others)
    return checked


@dataclass
class _Points:
    """A class, looked at where it may raise an error."""

    found: Found
    given: Given
    tolerance: float
    rng: np.random.Generator

    def look_at(
        self, subject: Subject, warm: int | None = None, known: Container[str] = ()
    ) -> Iterator[Finding]:
        """Yield what is found, an error of the user's code as well; of what is known, nothing."""
        try:
            with np.errstate(all="ignore"):
                yield from check(
                    subject, self.rng, diagnose, tolerance=self.tolerance, warm=warm, known=known
                )
        except ContractError as error:
            yield Finding("", "WRONG", error.kind, str(error))
        except NotImplementedError as error:
            yield Finding("", "NOT CHECKED", "not-written", their_error(error))
        except (Exception, SystemExit) as error:
            verdict, kind, text = "WRONG", "crash", their_error(error)
            if (more := self._as_squares()) is not None:
                kind = more.diagnosis
                text += f"; where all sizes are equal it runs, and then {more.variable} is wrong: "
                text += more.explanation
            elif advice := _blamed(self.found, self.given, error):
                verdict, text = "NOT CHECKED", f"{text}; {advice}"
            yield Finding("", verdict, kind, text)

    def look_aside(self, checked: Checked, main: Subject, others: Sequence[Subject]) -> None:
        """Look at ties, at inputs of another rank, and at evaluation mode, of what is right."""
        with contextlib.suppress(Exception, SystemExit):
            for finding in ties(main, self.rng):
                checked.keep(finding)
        for subject in others:
            text = f"forward runs on {_point(subject, '')} too, and backward does not agree with "
            text += "it there: if such inputs are meant, give --input-shape"
            checked.notes += [text] * (not self._agrees(subject))
        if self.found.kind == "module" and callable(getattr(self.found.cls, "eval", None)):
            with contextlib.suppress(Exception, SystemExit):
                point = Point(_PLAIN, evaluation=True)
                subject, *_ = self.found.subjects(self.given, point, self.rng, main)
                text = "in evaluation mode backward does not agree with forward; that of training "
                text += "was checked"
                agrees = not fits(subject, subject.inputs) or self._agrees(subject)
                checked.notes += [text] * (not agrees)

    def _agrees(self, subject: Subject) -> bool:
        return all(finding.passed for finding in self.look_at(subject))

    def _as_squares(self) -> Finding | None:
        """Return what is wrong where a transposed matrix fits, or None."""
        rng = np.random.default_rng(1)
        try:
            subject, *_ = self.found.subjects(self.given, Point(_SQUARE), rng)
            with np.errstate(all="ignore"):
                for finding in check(subject, rng, diagnose, tolerance=self.tolerance):
                    if finding.diagnosis in _HIDDEN_BY_SQUARES:
                        return finding
        except (Exception, SystemExit):
            return None
        return None


def _blamed(found: Found, given: Given, error: BaseException) -> str:
    """Return what to do where an error tells of our arguments, and of no mistake: else nothing.

    Those of backward may be others than are expected; those of a constructor were made up.
    """
    if isinstance(error, TypeError) and "backward() missing" in str(error):
        return "backward(dout) is expected"
    made_up = invented(found.cls, given) if found.kind.endswith("module") else []
    return f"what {' and '.join(made_up)} should be was guessed: give --init" if made_up else ""


def _point(subject: Subject, title: str) -> str:
    shapes = ", ".join(f"{name} {subject.variables[name].shape}" for name in subject.inputs)
    settings = ", ".join(f"{key}={_brief(value)}" for key, value in subject.settings.items())
    return "; ".join(filter(None, (shapes, settings if len(settings) < 80 else "", title)))


def _brief(value: Any) -> str:
    is_large = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return f"array{value.shape}" if is_large else repr(value)


def result(found: Found, given: Given, tolerance: float) -> dict[str, Any]:
    """Return what came of a class, for the report and for JSON."""
    start = time.perf_counter()
    try:
        checked = check_class(found, given, tolerance)
    except (Exception, SystemExit) as error:
        finding = Finding("", "NOT CHECKED", *_why_not(found, given, error))
        checked = Checked(shown(given.args, given.kwargs), {"": finding})
    return {
        "settings": {key: _plain(value) for key, value in checked.settings.items()},
        "seconds": round(time.perf_counter() - start, 3),
        "notes": list(dict.fromkeys(checked.notes)),
        "layers": checked.layers,
        "findings": [as_json(finding) for finding in checked.findings.values()],
    }


def _why_not(found: Found, given: Given, error: BaseException) -> tuple[str, str]:
    """Return why a class could not be checked: it takes no input, or its constructor failed."""
    if not isinstance(error, NoInputError):
        text = f"its constructor: {their_error(error)}"
        return "crash", text + "; where other arguments are what it needs: --init" * (
            not given.arguments
        )
    if unwritten(found.cls.forward) or unwritten(getattr(found.cls, "backward", None)):
        return "not-written", "forward or backward is not written yet"
    cause, text = error.__cause__, str(error)
    if cause is not None:
        text = f"forward did not run on inputs of shape {error}: {their_error(cause)}"
        if advice := _blamed(found, given, cause):
            text += f"; {advice}"
        elif isinstance(cause, FloatingPointError):
            text += "; give --input-range"
        elif not given.shapes and not isinstance(cause, ContractError):
            text += "; give --input-shape"
            if made_up := invented(found.cls, given):
                text += f", or --init: what {' and '.join(made_up)} should be was guessed"
    return "no-input", text


def as_json(finding: Finding) -> dict[str, Any]:
    """Return a finding for JSON, which knows no NaN and no infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(finding).items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _brief(value) if value.dtype.kind == "f" else value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isinstance(value, int | float | str | bool | type(None)) else str(value)
