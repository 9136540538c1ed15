"""The process in which a user's code runs: find what can be checked, check it, write it down.

An event for every class that is begun, and one for its result, so that whoever waits knows what was
under way when the process died.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from handgrad.checker import plan
from handgrad.checker.check import Finding
from handgrad.checker.guesses import parse_arguments
from handgrad.checker.kinds import find
from handgrad.checker.probe import Given
from handgrad.console import requires_torch
from handgrad.errors import UserError
from handgrad.user_code.blame import their_error, their_files
from handgrad.user_code.importing import import_file, python_files
from handgrad.user_code.isolated import Guard
from handgrad.user_code.randomness import hold_generators, seed_unseeded_generators

NEEDS_TORCH = "needs-torch"
"""What the diagnosis is called where only PyTorch is missing."""


def _not_imported(guard: Guard, about: dict[str, str], diagnosis: str, text: str) -> None:
    nothing: dict[str, Any] = {"settings": {}, "seconds": None, "notes": [], "layers": []}
    findings = [plan.as_json(Finding("", "NOT CHECKED", diagnosis, text))]
    guard.tell("result", **about, **nothing, findings=findings)


def _what_to_install() -> str:
    try:
        requires_torch()
    except UserError as error:
        return str(error)
    return "PyTorch cannot be imported from there"


def main(order: dict[str, Any], guard: Guard) -> None:
    """Check what ``order`` asks for and tell ``guard`` of each event."""
    seed_unseeded_generators()
    args, kwargs = parse_arguments(order["init"])
    shapes = tuple(tuple(shape) for shape in order["shapes"])
    given = Given(args, kwargs, shapes, tuple(order["range"]) if order["range"] else None)
    path, done = Path(order["path"]), set(order["done"])
    modules: list[ModuleType] = []
    without_torch: list[str] = []
    for file in python_files(path):
        their_files.add(str(file))
        about = {"key": str(file), "class": file.name, "kind": "import", "file": str(file)}
        if str(file) in done:
            continue
        guard.tell("begun", **about)
        sys.argv = [str(file)]
        try:
            modules.append(import_file(file))
            guard.tell("imported")
        except (Exception, SystemExit) as error:
            missing = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
            if missing == "torch":
                without_torch.append(file.name)
                guard.tell("imported")
                continue
            text = f"cannot be imported: {their_error(error)}"
            if missing.startswith("vugrad"):
                text += "; numpy_mlp.autograd stands in for it, with the import changed"
            _not_imported(guard, about, "crash", text)
    if without_torch and str(path) not in done:
        about = {"key": str(path), "class": path.name, "kind": "import", "file": str(path)}
        guard.tell("begun", **about)
        files = f"{', '.join(without_torch)}: " if modules else ""  # else it is all of them
        _not_imported(guard, about, NEEDS_TORCH, files + _what_to_install())
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
        guard.tell("result", **about, **plan.result(one, given, order["tolerance"]))
    guard.tell("done")
