"""``check_gradients``: what the command does, from Python, for a class or an object at hand."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.checker import plan
from handgrad.checker.command import check_targets, limits, not_too_large, number
from handgrad.checker.guesses import Arguments, parse_arguments
from handgrad.checker.kinds import Found, recognise
from handgrad.checker.probe import Given
from handgrad.checker.report import Report
from handgrad.errors import UserError
from handgrad.user_code.blame import their_files
from handgrad.user_code.parameters import owners
from handgrad.user_code.randomness import repeatable

_TIME_LIMIT = 60.0  # seconds, for a class of a file, as of the command
_IN_PYTHON = 1 << 9  # of the flags of a class: Py_TPFLAGS_HEAPTYPE


def check_gradients(
    target: Any,
    *,
    init: str | tuple[Any, ...] | dict[str, Any] = "",
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    input_range: tuple[float, float] | None = None,
    tolerance: float = 1e-6,
) -> Report:
    """Prove a backward pass, or say where it is wrong and what kind of wrong it looks like.

    >>> print(check_gradients(LinearModule, init=(4, 3)))  # doctest: +SKIP

    A class or an object is checked in this process, on copies; it, and the generators of random
    numbers, are afterwards what they were. An object is checked as it was made, in training mode,
    at parameters of its shapes that hide nothing. A file's classes are checked in processes of
    their own, as the command checks them.

    Args:
        target: a class or an object (a layer, a loss, an op, a ``torch.autograd.Function``, an
            ``nn.Module``), or text: a file, ``file.py:ClassName`` or a package.
        init: arguments of the constructor, which are guessed otherwise: a tuple, a dictionary by
            name, or text such as ``"4, 3, alpha=0.5"``.
        input_shape: shape of the input; a list of them where there are several.
        input_range: lowest and highest value of the inputs, where not all are allowed.
        tolerance: largest relative error that passes.

    Raises:
        UserError: an argument is not what is expected, or the target is nothing to check.
    """
    args, kwargs = _arguments(init)
    shapes, tolerance = _shapes(input_shape), number("tolerance", tolerance, 1.0)
    low_high = None
    if input_range is not None:
        low_high = limits(input_range, f"input_range {_brief(input_range)}", "(0.1, 0.9)")
    if isinstance(target, str | Path):
        order = {
            "init": _as_text(args, kwargs),
            "shapes": shapes,
            "range": low_high,
            "tolerance": tolerance,
        }
        return check_targets([str(target)], order, _TIME_LIMIT)
    found, instance = _found(target)
    if instance is not None and (args or kwargs):
        raise UserError("init is for a class; an object is checked as it was made")
    given = Given(args, kwargs, tuple(map(tuple, shapes)), low_high, instance)
    with _undisturbed(found.cls, instance):
        about = {"key": "", "class": found.cls.__name__, "kind": found.kind, "file": ""}
        with contextlib.suppress(TypeError, OSError):  # what was not read from a file
            about["file"] = inspect.getsourcefile(found.cls) or ""
        about["key"] = f"{about['file']}:{found.cls.__qualname__}"
        entry = {**about, **plan.result(found, given, tolerance)}
    return Report(tolerance, [entry], single=True)


def _found(target: Any) -> tuple[Found, Any]:
    """Return the class to check, and the object if it is one."""
    cls = target if isinstance(target, type) else type(target)
    found = recognise(cls)
    if isinstance(found, str):
        raise UserError(f"{cls.__name__} cannot be checked: {found}")
    if found is None:
        raise UserError(
            f"{_brief(target)} has no forward and backward; expected a class or an object that "
            f"has, a .py file, file.py:ClassName, or a package"
        )
    if target is cls or not found.kind.endswith("module"):  # the passes of others are static
        return found, None
    try:
        copy.deepcopy(target)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"this {cls.__name__} cannot be copied ({text}); give its class, and init"
        ) from error
    return found, target


def _arguments(init: Any) -> Arguments:
    if isinstance(init, tuple):
        return init, {}
    if isinstance(init, dict) and all(isinstance(name, str) for name in init):
        return (), init
    with contextlib.suppress(ValueError):
        if isinstance(init, str):
            return parse_arguments(init)
    raise UserError(
        f"init {_brief(init)} is no arguments of a constructor; expected a tuple such as (4, 3), "
        f"a dictionary such as {{'alpha': 0.5}}, or text such as '4, 3, alpha=0.5'"
    )


def _brief(value: Any) -> str:
    return " ".join(repr(value).split())[:80]


def _as_text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return plain arguments as a process of its own is given them."""
    text = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    try:
        parse_arguments(text)
    except ValueError:
        raise UserError(
            f"init {' '.join(text.split()):.80} holds more than plain values, which a file's "
            f"classes cannot be given; give the class itself"
        ) from None
    return text


def _shapes(given: Any) -> list[list[int]]:
    if given is None:
        return []
    several = isinstance(given, Sequence) and all(isinstance(one, Sequence) for one in given)
    try:
        shapes = [[index(n) for n in shape] for shape in (given if several else [given])]
    except TypeError:
        shapes = []
    if not shapes or not all(shape and min(shape) > 0 for shape in shapes):
        text = "is not a shape; expected the like of (5, 4), or of [(5, 4), (5, 3)]"
        raise UserError(f"input_shape {_brief(given)} {text}")
    return [not_too_large(shape, f"input_shape {tuple(shape)}") for shape in shapes]


@contextlib.contextmanager
def _undisturbed(cls: type, instance: Any) -> Iterator[None]:
    """Run a user's code as the command does; leave what is the caller's as it was."""
    involved = {*cls.__mro__}
    if instance is not None:
        involved |= {kind for _, one in owners(instance) for kind in type(one).__mro__}
    classes = [c for c in involved if c.__flags__ & _IN_PYTHON and c.__module__[:5] != "torch"]
    files = {file for kind in classes for file in _files(kind)} - their_files
    modules = [vars(sys.modules[k.__module__]) for k in classes if k.__module__ in sys.modules]
    torch = sys.modules.get("torch")
    with contextlib.ExitStack() as stack:
        stack.callback(their_files.difference_update, files)
        their_files.update(files)
        for kind in classes:
            stack.enter_context(_kept(kind))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(np.errstate(all="warn"))
        if torch is not None:
            stack.enter_context(torch.enable_grad())
        stack.enter_context(repeatable([*modules, *map(vars, classes)]))
        yield


def _files(cls: type) -> Iterator[str]:
    for value in vars(cls).values():
        function = inspect.unwrap(getattr(value, "__func__", value))  # of a static method
        if inspect.isfunction(function):
            yield function.__code__.co_filename


@contextlib.contextmanager
def _kept(cls: type) -> Iterator[None]:
    """Work on copies of the arrays and containers that belong to a class."""
    before = {name: value for name, value in vars(cls).items() if name[:2] != "__"}
    try:
        for name, value in before.items():
            if isinstance(value, np.ndarray | list | dict | set):
                with contextlib.suppress(Exception):  # what cannot be copied stays
                    setattr(cls, name, copy.deepcopy(value))
        yield
    finally:
        for name in [name for name in vars(cls) if name[:2] != "__"]:
            if name not in before:
                delattr(cls, name)
            elif vars(cls)[name] is not before[name]:
                setattr(cls, name, before[name])
