"""The process in which a user's code runs: find what can be checked, check it, write it down.

A line of JSON for every class that is begun, and one for its result, so that whoever waits knows
what was under way when the process died.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np

from scripts.gradients import guesses
from scripts.gradients.checking import Finding, check
from scripts.gradients.diagnosis import diagnose
from scripts.gradients.guesses import Given, NoInputError, Sizes
from scripts.gradients.subjects import ContractError, Subject
from scripts.user_code import import_files

_PLAIN, _VARIED, _ONE, _SQUARE = Sizes(5, 4, 3), Sizes(3, 6, 2), Sizes(1, 4, 3), Sizes(4, 4, 4)
# What cannot run unless all sizes are equal, and then is wrong.
_HIDDEN_BY_SQUARES = ("transposed-factor", "transposed-gradient", "flipped-kernel")
Builder = Callable[[Any, Given, Sizes, bool, np.random.Generator], list[Subject]]


@dataclasses.dataclass(frozen=True)
class Found:
    """A class that has a backward pass."""

    cls: Any
    kind: str
    build: Builder


def find(modules: list[ModuleType]) -> tuple[list[Found], dict[str, str]]:
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
        return None
    if inspect.isabstract(cls) or _abstract(forward) or _abstract(backward):
        return "abstract: its forward or backward raises NotImplementedError"
    first = next(iter(inspect.signature(forward).parameters), "")
    if first in ("context", "ctx"):
        return Found(cls, "op", guesses.op_subjects)
    return Found(cls, "module", guesses.module_subjects)


def _abstract(function: Any) -> bool:
    try:
        lines = inspect.getsource(function).strip().splitlines()
    except (OSError, TypeError):
        return False
    return lines[-1].strip().startswith("raise NotImplementedError")


def check_class(
    found: Found, given: Given, tolerance: float
) -> tuple[list[Finding], dict[str, Any]]:
    """Check a class at several points and return a finding for each variable.

    Two sizes, with and without the defaults of numbers; a batch of one; the second pass of one
    object; every rank of input that it takes.
    """
    findings: dict[str, Finding] = {}
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {}
    subjects = found.build(found.cls, given, _PLAIN, False, rng)
    settings |= subjects[0].settings
    plans: list[tuple[str, Callable[[], list[Subject]], bool]] = [("", lambda: subjects, False)]
    if found.kind in ("module", "torch module"):
        plans.append(("second pass of one object", lambda: subjects[:1], True))
    varied = lambda: found.build(found.cls, given, _VARIED, True, rng)[:1]  # noqa: E731
    plans.append(("other sizes and settings", varied, False))
    if not given.shapes:
        one = lambda: found.build(found.cls, given, _ONE, False, rng)[:1]  # noqa: E731
        plans.append(("a batch of one", one, False))
    for number, (title, build, warm) in enumerate(plans):
        try:
            chosen = build()
        except Exception:  # other sizes and settings may not be allowed
            continue
        for subject in chosen:
            for finding in _checked(found, given, subject, rng, tolerance, warm):
                finding = dataclasses.replace(finding, point=_point(subject, title))
                _keep(findings, finding, number)
        if any(f.variable == "" and not f.passed for f in findings.values()):
            break
    return list(findings.values()), settings


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
    warm: bool,
) -> Iterator[Finding]:
    try:
        with np.errstate(all="ignore"):
            yield from check(subject, rng, diagnose, tolerance=tolerance, warm=warm)
    except ContractError as error:
        yield Finding(error.variable, "WRONG", error.kind, str(error))
    except Exception as error:
        kind, text = "crash", _their_error(error)
        more = _as_squares(found, given, tolerance)
        if more is not None:
            kind = more.diagnosis
            text += f"; where all sizes are equal it runs, and then {more.variable} is wrong: "
            text += more.explanation
        yield Finding("", "WRONG", kind, text)


def _as_squares(found: Found, given: Given, tolerance: float) -> Finding | None:
    """Return what is wrong where a transposed matrix fits, or None."""
    rng = np.random.default_rng(1)
    try:
        for subject in found.build(found.cls, given, _SQUARE, False, rng)[:1]:
            with np.errstate(all="ignore"):
                for finding in check(subject, rng, diagnose, tolerance=tolerance):
                    if finding.diagnosis in _HIDDEN_BY_SQUARES:
                        return finding
    except Exception:
        return None
    return None


def _point(subject: Subject, title: str) -> str:
    shapes = ", ".join(f"{name} {subject.variables[name].shape}" for name in subject.inputs)
    settings = ", ".join(f"{key}={value!r}" for key, value in subject.settings.items())
    return "; ".join(filter(None, (shapes, settings if len(settings) < 80 else "", title)))


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
    findings: list[Finding]
    settings: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        findings, settings = check_class(found, given, tolerance)
    except NoInputError as error:
        cause = error.__cause__
        why = _their_error(cause) if cause is not None else "nothing fits"
        text = f"forward did not run on inputs of shape {error}: {why}; give --input-shape"
        findings = [Finding("", "NOT CHECKED", "no-input", text)]
    except (Exception, SystemExit) as error:
        text = f"{_their_error(error)}; where constructor arguments are what it needs: --init"
        findings = [Finding("", "NOT CHECKED", "crash", text)]
    return {
        "class": found.cls.__name__,
        "kind": found.kind,
        "file": inspect.getsourcefile(found.cls),
        "settings": {key: _plain(value) for key, value in settings.items()},
        "seconds": round(time.perf_counter() - start, 3),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, int | float | str | bool | list | type(None)) else str(value)


def main(order: dict[str, Any], out: TextIO) -> None:
    """Check what ``order`` asks for and write a line of JSON for each event to ``out``."""

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=out, flush=True)

    tell(event="importing")
    path = Path(order["path"])
    try:
        _files.update(str(f.absolute()) for f in ([path] if path.is_file() else path.rglob("*.py")))
        modules = import_files(path)
    except (Exception, SystemExit) as error:
        tell(event="failed", why=f"cannot be imported: {_their_error(error)}")
        return
    found, skipped = find(modules)
    names = [f.cls.__name__ for f in found]
    tell(event="found", classes=names, skipped=skipped)
    given = Given(
        tuple(order["args"]),
        order["kwargs"],
        tuple(tuple(shape) for shape in order["shapes"]),
        tuple(order["range"]) if order["range"] else None,
    )
    for one in found:
        name = one.cls.__name__
        if (order["names"] and name not in order["names"]) or name in order["done"]:
            continue
        tell(event="begun", **{"class": name, "kind": one.kind})
        tell(event="result", **_result(one, given, order["tolerance"]))
    tell(event="done")


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a", encoding="utf-8") as stream:
        main(json.loads(sys.argv[1]), stream)
