"""Whose error it is: the user's, with file and line, where the user's code raised it."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handgrad.errors import UserError

PROJECT = Path(__file__).parents[2]
OURS = ("numpy_mlp", "custom_modules", "torch_models", "handgrad")


class UserCodeError(Exception):
    """The user's code raised an error, or broke what every layer promises; one line says where."""


def blame(what: str, path: Path, call: Callable[[], Any]) -> Any:
    """Return ``call()``, whose errors are those of the user's code in ``path``.

    Raises:
        UserCodeError: names file, line, function, ``what`` was called, and the error.
    """
    try:
        return call()
    except (UserError, UserCodeError):
        raise
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        if isinstance(error, SyntaxError) and error.filename:
            file, line, function = error.filename, error.lineno, "<module>"
        else:
            frames = [
                (frame.filename, frame.lineno, frame.name)
                for frame in traceback.extract_tb(error.__traceback__)
                if is_theirs(frame.filename, path)
            ]
            if not frames:  # the call itself failed: its arguments are not those expected
                raise UserCodeError(f"your {path.name}, {what}: {text}") from error
            file, line, function = frames[-1]
        code = linecache.getline(file, line or 0).strip()
        raise UserCodeError(
            f"{locate(file, line, function, what)}: {text}" + (f"   <- {code}" if code else "")
        ) from error


def locate(file: str, line: object, function: str, what: str) -> str:
    """Return ``your modules.py, line 12, in helper (backward of layers.0 (LinearModule))``."""
    within = what if function in ("<module>", what.partition(" ")[0]) else f"{function} ({what})"
    return f"your {Path(file).name}, line {line}, in {within}"


def is_theirs(file: str, path: Path) -> bool:
    """Say whether a file belongs to the user's code in ``path``: is it, or lies beside or below it.

    What Python, other people or we have written does not, wherever it lies.
    """
    if Path(file) == path:
        return True
    if any(part in ("site-packages", "dist-packages") for part in Path(file).parts):
        return False
    others = [PROJECT / name for name in OURS]
    others += [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    resolved = Path(file).resolve()
    if any(resolved.is_relative_to(folder.resolve()) for folder in others):
        return False
    return Path(file).is_relative_to(path if path.is_dir() else path.parent)


their_files: set[str] = set()
"""The files of the user's own code that is being run, for :func:`their_error`."""


def their_error(error: BaseException) -> str:
    """Return an exception with the last line of the user's own code that it came through."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: {text}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in their_files]
    if not frames:
        return text
    last = frames[-1]
    return f"{Path(last.filename).name}, line {last.lineno}, in {last.name}: {text}"
