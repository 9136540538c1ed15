"""The process in which a user's code runs: find what can be checked, check it, write it down.

An event for every class that is begun, and one for its result, so that whoever waits knows what was
under way when the process died.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from handgrad.checker import guesses
from handgrad.checker.check import Finding, check
from handgrad.checker.diagnosis import diagnose
from handgrad.checker.guesses import Given, NoInputError, Point, Sizes
from handgrad.checker.subject import (
    ContractError,
    Subject,
    hold_generators,
    seed_unseeded_generators,
)
from handgrad.user_code.importing import import_file, python_files
from handgrad.user_code.isolated import Guard

_PLAIN, _OTHER = Sizes(5, 4, 3), Sizes(9, 6, 2)
_ONE, _SQUARE = Sizes(1, 4, 3), Sizes(4, 4, 4)
# What cannot run unless all sizes are equal, and then is wrong.
_HIDDEN_BY_SQUARES = (
    "transposed-factor", "transposed-gradient", "flipped-kernel", "wrong-sum-axis"
)  # fmt: skip
_LARGER = "after a larger batch"
Builder = Callable[..., list[Subject]]
_FORWARD = ("forward", "__call__")
_BACKWARD = ("backward", "backward_pass", "backprop", "gradient", "grad", "derivative")


@dataclasses.dataclass(frozen=True)
class Found:
    """A class that has a backward pass."""

    cls: Any
    kind: str
    build: Builder


def find(modules: Sequence[ModuleType]) -> tuple[list[Found], dict[str, str]]:
    """Return the classes that can be checked, and why others that look like it cannot.

    Args:
        modules: what the user's files define.
    """
    found: dict[Any, Found] = {}
    skipped: dict[str, str] = {}
    for module in modules:
        for name, cls in vars(module).items():
            if isinstance(cls, type) and cls.__module__ == module.__name__ and cls not in found:
                what = _kind(cls)
                if isinstance(what, str):
                    skipped[name] = what
                elif what is not None:
                    found[cls] = what
    return list(found.values()), skipped


def _kind(cls: type) -> Found | str | None:
    torch = sys.modules.get("torch")
    if torch is not None and issubclass(cls, torch.autograd.Function):
        return Found(cls, "torch function", guesses.torch_function_subjects)
    if torch is not None and issubclass(cls, torch.nn.Module):
        if getattr(cls, "forward") is torch.nn.Module.forward:  # noqa: B009
            return "abstract: it has no forward of its own"
        return Found(cls, "torch module", guesses.torch_module_subjects)
    forward, backward = getattr(cls, "forward", None), getattr(cls, "backward", None)
    if not callable(forward) or not callable(backward):
        return _by_other_names(cls)
    if inspect.isabstract(cls) or (
        cls.__subclasses__() and (_unwritten(forward) or _unwritten(backward))
    ):
        return "a base class: its forward or backward is left to others"
    first = next(iter(inspect.signature(forward).parameters), "")
    if first in ("context", "ctx"):
        return Found(cls, "op", guesses.op_subjects)
    return Found(cls, "module", guesses.module_subjects)


def _by_other_names(cls: type) -> str | None:
    """Return why a class with passes of other names is left out, or None where it has none."""
    names = []
    for known in (_FORWARD, _BACKWARD):
        names += [name for name in known if callable(cls.__dict__.get(name))][:1]
    if len(names) < 2:
        return None
    return f"it has {names[0]} and {names[1]}, where forward and backward are looked for"


def _unwritten(function: Any) -> bool:
    """Say whether a function does nothing, or raises an exception before anything else."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    if not isinstance(definition, ast.FunctionDef):
        return False
    body = [s for s in definition.body if not _says_nothing(s)]
    return not body or isinstance(body[0], ast.Raise)


def _says_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


@dataclasses.dataclass
class Checked:
    """What came of a class.

    Attributes:
        findings: one for each variable, and for what concerns the class as a whole.
        settings: with which it was made.
        notes: what is left unchecked, or looks odd where nobody may have meant it to work.
        layers: names of the classes that it is made of.
    """

    findings: dict[str, Finding] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    layers: list[str] = dataclasses.field(default_factory=list)


def check_class(found: Found, given: Given, tolerance: float) -> Checked:
    """Check a class at several points.

    Two sizes, with and without the defaults of arguments; large inputs; a batch of one; the second
    pass of one object, and one after a larger batch; and, where it takes them, inputs of another
    rank.
    """
    rng = np.random.default_rng(0)
    checked = Checked()

    def build(point: Point) -> list[Subject]:
        like = first[0] if first else None
        return found.build(found.cls, given, point, rng, like)

    first: list[Subject] = []
    first = build(Point(_PLAIN))
    main = first[0]
    main.elsewhere = lambda: build(Point(_OTHER))[0]
    checked.settings = main.settings
    checked.notes += main.notes
    checked.layers = main.layers
    for name in main.ungraded:
        text = "it changes the output, and no gradient of it was found: looked for in grads, as "
        text += f"attributes such as d{name} or {name}_grad, and in what backward returns"
        checked.findings[name] = Finding(name, "NOT CHECKED", "no-gradient", text)
    plans: list[tuple[str, Callable[[], Subject], int | None]] = [("", lambda: main, None)]
    again = found.kind in ("module", "torch module")
    plans += [("second pass of one object", lambda: main, 0)] * again
    for vary in (2, 1):
        other = Point(_OTHER, vary)
        plans.append(("other sizes and settings", lambda p=other: build(p)[0], None))  # type: ignore[misc]
    large = Point(_PLAIN, scale=4.0)
    plans.append(("large values", lambda: build(large)[0], None))
    if not given.shapes:
        plans.append(("a batch of one", lambda: build(Point(_ONE))[0], None))
    plans += [(_LARGER, lambda: main, 1)] * (again and main.batch_axis and main.kind != "loss")
    for number, (title, make, warm) in enumerate(plans):
        try:
            subject = make()
        except Exception:  # other sizes and settings may not be allowed
            continue
        for finding in _checked(found, given, subject, rng, tolerance, warm):
            finding = dataclasses.replace(finding, point=_point(subject, title))
            # Switches that are changed may ask for what is not there, arrays may be made once.
            if finding.diagnosis == "crash" and ("settings" in title or title == _LARGER):
                continue
            if finding.verdict == "WRONG" and title == _LARGER:
                text = "right on a new object, wrong after a larger batch: it still uses something "
                text += "of that one"
                finding = dataclasses.replace(finding, diagnosis="stale-cache", explanation=text)
            _keep(checked.findings, finding, number)
        if any(f.variable == "" and not f.passed for f in checked.findings.values()):
            break
    for subject in first[1:]:
        for finding in _checked(found, given, subject, rng, tolerance, None):
            if finding.passed:
                _keep(checked.findings, finding, 1)
            elif all(f.passed for f in checked.findings.values()):
                text = f"forward runs on {_point(subject, '')} too, and backward does not agree "
                text += "with it there: if such inputs are meant, give --input-shape"
                checked.notes.append(text)
    return checked


def _keep(findings: dict[str, Finding], finding: Finding, number: int) -> None:
    key = finding.variable or finding.diagnosis
    before = findings.get(key)
    worse = before is None or (
        before.passed and (not finding.passed or (finding.error or 0) > (before.error or 0))
    )
    # At other sizes and settings than the first, what cannot be judged says nothing.
    if worse and (finding.verdict != "NOT CHECKED" or not number):
        findings[key] = finding


def _checked(
    found: Found,
    given: Given,
    subject: Subject,
    rng: np.random.Generator,
    tolerance: float,
    warm: int | None,
) -> Iterator[Finding]:
    try:
        with np.errstate(all="ignore"):
            yield from check(subject, rng, diagnose, tolerance=tolerance, warm=warm)
    except ContractError as error:
        yield Finding(error.variable, "WRONG", error.kind, str(error))
    except NotImplementedError as error:
        yield Finding("", "NOT CHECKED", "not-written", _their_error(error))
    except (Exception, SystemExit) as error:
        kind, text = "crash", _their_error(error)
        more = _as_squares(found, given, tolerance)
        if more is not None:
            kind = more.diagnosis
            text += f"; where all sizes are equal it runs, and then {more.variable} is wrong: "
            text += more.explanation
        elif advice := _blamed(found, given, error):
            yield Finding("", "NOT CHECKED", kind, f"{text}; {advice}")
            return
        yield Finding("", "WRONG", kind, text)


def _blamed(found: Found, given: Given, error: BaseException) -> str:
    """Return what to do where an error tells of our arguments, and of no mistake: else nothing.

    Those of backward may be others than are expected; those of a constructor were made up.
    """
    if isinstance(error, TypeError) and "backward() missing" in str(error):
        return "backward(dout) is expected"
    made_up = guesses.invented(found.cls, given) if found.kind.endswith("module") else []
    if not made_up:
        return ""
    return f"what {' and '.join(made_up)} should be was guessed: give --init"


def _as_squares(found: Found, given: Given, tolerance: float) -> Finding | None:
    """Return what is wrong where a transposed matrix fits, or None."""
    rng = np.random.default_rng(1)
    try:
        for subject in found.build(found.cls, given, Point(_SQUARE), rng)[:1]:
            with np.errstate(all="ignore"):
                for finding in check(subject, rng, diagnose, tolerance=tolerance):
                    if finding.diagnosis in _HIDDEN_BY_SQUARES:
                        return finding
    except (Exception, SystemExit):
        return None
    return None


def _point(subject: Subject, title: str) -> str:
    shapes = ", ".join(f"{name} {subject.variables[name].shape}" for name in subject.inputs)
    settings = ", ".join(f"{key}={_brief(value)}" for key, value in subject.settings.items())
    return "; ".join(filter(None, (shapes, settings if len(settings) < 80 else "", title)))


def _brief(value: Any) -> str:
    is_large = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return f"array{value.shape}" if is_large else repr(value)


_files: set[str] = set()


def _their_error(error: BaseException) -> str:
    """Return an exception with the last line of the user's own code that it came through."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: {text}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in _files]
    if not frames:
        return text
    return (
        f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name}: {text}"
    )


def _result(found: Found, given: Given, tolerance: float) -> dict[str, Any]:
    start = time.perf_counter()
    settings = guesses.shown(given.args, given.kwargs)
    try:
        checked = check_class(found, given, tolerance)
    except NoInputError as error:
        cause = error.__cause__
        text = str(error)
        if cause is not None:
            text = f"forward did not run on inputs of shape {error}: {_their_error(cause)}"
            if advice := _blamed(found, given, cause):
                text += f"; {advice}"
            elif isinstance(cause, FloatingPointError):
                text += "; give --input-range"
            elif not given.shapes and not isinstance(cause, ContractError):
                text += "; give --input-shape"
                if made_up := guesses.invented(found.cls, given):
                    text += f", or --init: what {' and '.join(made_up)} should be was guessed"
        kind = "no-input"
        if _unwritten(found.cls.forward) or _unwritten(getattr(found.cls, "backward", None)):
            kind, text = "not-written", "forward or backward is not written yet"
        checked = Checked({"": Finding("", "NOT CHECKED", kind, text)}, settings)
    except (Exception, SystemExit) as error:
        text = f"its constructor: {_their_error(error)}"
        if not (given.args or given.kwargs):
            text += "; where other arguments are what it needs: --init"
        checked = Checked({"": Finding("", "NOT CHECKED", "crash", text)}, settings)
    return {
        "settings": {key: _plain(value) for key, value in checked.settings.items()},
        "seconds": round(time.perf_counter() - start, 3),
        "notes": list(dict.fromkeys(checked.notes)),
        "layers": checked.layers,
        "findings": [_finite(finding) for finding in checked.findings.values()],
    }


def _finite(finding: Finding) -> dict[str, Any]:
    """Return a finding for JSON, which knows no NaN and no infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in dataclasses.asdict(finding).items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _brief(value) if value.dtype.kind == "f" else value.tolist()
    return value if isinstance(value, int | float | str | bool | list | type(None)) else str(value)


def main(order: dict[str, Any], guard: Guard) -> None:
    """Check what ``order`` asks for and tell ``guard`` of each event."""
    seed_unseeded_generators()
    args, kwargs = guesses.parse_arguments(order["init"])
    shapes = tuple(tuple(shape) for shape in order["shapes"])
    given = Given(args, kwargs, shapes, tuple(order["range"]) if order["range"] else None)
    path, done = Path(order["path"]), set(order["done"])
    modules: list[ModuleType] = []
    for file in python_files(path):
        _files.add(str(file))
        about = {"key": str(file), "class": file.name, "kind": "import", "file": str(file)}
        if str(file) in done:
            continue
        guard.tell("begun", **about)
        sys.argv = [str(file)]
        try:
            modules.append(import_file(file))
            guard.tell("imported")
        except (Exception, SystemExit) as error:
            text = f"cannot be imported: {_their_error(error)}"
            if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("vugrad"):
                text += "; numpy_mlp.autograd stands in for it, with the import changed"
            findings = [_finite(Finding("", "NOT CHECKED", "crash", text))]
            nothing: dict[str, Any] = {"settings": {}, "seconds": None, "notes": [], "layers": []}
            guard.tell("result", **about, **nothing, findings=findings)
    found, skipped = find(modules)
    hold_generators([vars(module) for module in modules])
    hold_generators([vars(one.cls) for one in found])
    guard.tell("found", classes=[one.cls.__name__ for one in found], skipped=skipped)
    for one in found:
        name, file_name = one.cls.__qualname__, inspect.getsourcefile(one.cls) or ""
        key = f"{file_name}:{name}"
        if (order["names"] and one.cls.__name__ not in order["names"]) or key in done:
            continue
        about = {"key": key, "class": one.cls.__name__, "kind": one.kind, "file": file_name}
        guard.tell("begun", **about)
        guard.tell("result", **about, **_result(one, given, order["tolerance"]))
    guard.tell("done")
