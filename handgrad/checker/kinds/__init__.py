"""The kinds of subject, a row each: what is one, what is left out, how it is built at a point."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from handgrad.checker.kinds.course_module import module_subjects
from handgrad.checker.kinds.op import OpKind
from handgrad.checker.kinds.torch_code import TorchFunction, TorchModule
from handgrad.checker.probe import Given, Point, Probe
from handgrad.checker.subject import Subject
from handgrad.user_code.parameters import is_module

_Builder = Callable[[Probe], list[Subject]]


@dataclass(frozen=True)
class Found:
    """A class that has a backward pass."""

    cls: Any
    kind: str
    build: _Builder

    def subjects(
        self, given: Given, point: Point, rng: np.random.Generator, like: Subject | None = None
    ) -> list[Subject]:
        """Return it at a point: with inputs that it takes, and perhaps with others as well.

        Raises:
            NoInputError: none of the inputs that were tried could be run.
            Exception: whatever the constructor raises.
        """
        return self.build(Probe(self.cls, given, point, rng, like))


def _is_torch_function(cls: type) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and issubclass(cls, torch.autograd.Function)


def _is_torch_module(cls: type) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and issubclass(cls, torch.nn.Module)


def _is_op(cls: type) -> bool:
    if not is_module(cls):
        return False
    first = next(iter(inspect.signature(getattr(cls, "forward")).parameters), "")  # noqa: B009
    return first in ("context", "ctx")


def _abstract(cls: type) -> str:
    own = getattr(cls, "forward") is not sys.modules["torch"].nn.Module.forward  # noqa: B009
    return "" if own else "abstract: it has no forward of its own"


def _base(cls: Any) -> str:
    hooks = [method for method in vars(cls).values() if inspect.isfunction(method)]
    leaves = cls.__subclasses__() and (
        unwritten(cls.forward)
        or unwritten(cls.backward)
        or any(unwritten(hook, raises=True) for hook in hooks)
    )
    if inspect.isabstract(cls) or leaves or getattr(cls, "_is_protocol", False):
        return "a base class: its forward or backward is left to others"
    signature = inspect.signature(cls.forward)
    if signature.return_annotation in (None, "None") and len(signature.parameters) > 3:
        return "no layer: its forward returns nothing"
    return ""


class _Row(NamedTuple):
    name: str
    is_one: Callable[[type], bool]
    left_out: Callable[[type], str]  # why a class of the kind cannot be checked
    build: _Builder


KINDS = (
    _Row("torch function", _is_torch_function, lambda _: "", lambda p: TorchFunction(p).subjects()),
    _Row("torch module", _is_torch_module, _abstract, lambda p: TorchModule(p).subjects()),
    _Row("op", _is_op, _base, lambda p: OpKind(p).subjects()),
    _Row("module", is_module, _base, module_subjects),
)


def recognise(cls: type) -> Found | str | None:
    """Return a class that can be checked; or why it cannot, where it looks like it; or None."""
    for row in KINDS:
        if row.is_one(cls):
            return row.left_out(cls) or Found(cls, row.name, row.build)
    return _by_other_names(cls)


def find(modules: Sequence[ModuleType]) -> tuple[list[Found], dict[str, str]]:
    """Return the classes in a user's files that can be checked, and why others cannot."""
    found: dict[Any, Found] = {}
    skipped: dict[str, str] = {}
    for module in modules:
        for name, cls in vars(module).items():
            if isinstance(cls, type) and cls.__module__ == module.__name__ and cls not in found:
                what = recognise(cls)
                if isinstance(what, str):
                    skipped[name] = what
                elif what is not None:
                    found[cls] = what
    return list(found.values()), skipped


_FORWARD = ("forward", "__call__")
_BACKWARD = ("backward", "backward_pass", "backprop", "gradient", "grad", "derivative")


def _by_other_names(cls: type) -> str | None:
    """Return why a class with passes of other names is left out, or None where it has none."""
    names = []
    for known in (_FORWARD, _BACKWARD):
        names += [name for name in known if callable(cls.__dict__.get(name))][:1]
    if len(names) < 2:
        return None
    return f"it has {names[0]} and {names[1]}, where forward and backward are looked for"


def unwritten(function: Any, *, raises: bool = False) -> bool:
    """Say whether a function does nothing, or raises an exception before anything else."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    if not isinstance(definition, ast.FunctionDef):
        return False
    body = [s for s in definition.body if not _says_nothing(s)]
    return isinstance(body[0], ast.Raise) if body else not raises


def _says_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)
