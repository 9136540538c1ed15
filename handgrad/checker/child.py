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
from handgrad.user_code.blame import their_error, their_files
from handgrad.user_code.importing import import_file, python_files
from handgrad.user_code.isolated import Guard
from handgrad.user_code.randomness import hold_generators, seed_unseeded_generators


def main(order: dict[str, Any], guard: Guard) -> None:
    """Check what ``order`` asks for and tell ``guard`` of each event."""
    seed_unseeded_generators()
    args, kwargs = parse_arguments(order["init"])
    shapes = tuple(tuple(shape) for shape in order["shapes"])
    given = Given(args, kwargs, shapes, tuple(order["range"]) if order["range"] else None)
    path, done = Path(order["path"]), set(order["done"])
    modules: list[ModuleType] = []
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
            text = f"cannot be imported: {their_error(error)}"
            if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("vugrad"):
                text += "; numpy_mlp.autograd stands in for it, with the import changed"
            findings = [plan.as_json(Finding("", "NOT CHECKED", "crash", text))]
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
        guard.tell("result", **about, **plan.result(one, given, order["tolerance"]))
    guard.tell("done")
