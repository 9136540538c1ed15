"""Run a command so that it ends in a result or in one line."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import functools
import os
import re
import stat
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from handgrad.errors import DivergedError, StorageError, UserError
from handgrad.files import user_path
from handgrad.version import __version__

# What stands for a character that a stream cannot encode: one for one, where columns stand below
# one another. Others are written as Python writes them, \u732b.
_STANDS_FOR = {
    "×": "x", "·": "*", "±": "+-", "²": "^2", "√": "sqrt", "Σ": "sum", "∂": "d", "Δ": "d",
    "α": "alpha", "≤": "<=", "≥": ">=", "→": "->", "⇒": "=>", "–": "-", "−": "-", "—": "-",
    "…": "...", "│": "|", "█": "#", "�": "?",
}  # fmt: skip
_ERRORS = "handgrad"  # name of the handler below, as "replace" is one


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions by their paragraphs; in one with indented lines, a table, each line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_wrapped(paragraph, width) for paragraph in text.split("\n\n"))


def _wrapped(paragraph: str, width: int) -> str:
    if "\n  " not in f"\n{paragraph}":
        return textwrap.fill(paragraph, width)
    lines = []
    for line in paragraph.splitlines():
        first_column = re.match(r"  +\S+ +", line)
        indent = " " * (first_column.end() if first_column else 0)
        lines.append(textwrap.fill(line, width, subsequent_indent=indent))
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose complaints are one line, from :func:`guarded`.

    Arguments of ``type=Path`` may begin with ``~``.
    """

    other_names: Iterable[str] = ()  # of options, beside those it knows

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Formatter, **options})
        self.register("type", Path, _path)
        self.add_argument("--version", action="version", version=f"handgrad {__version__}")

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        if match := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            # Without the hyphens, which would make short names alike.
            known = [name.lstrip("-") for name in (*self._option_string_actions, *self.other_names)]
            close = difflib.get_close_matches(match[1].lstrip("-"), known, n=1)
            hint = f"; did you mean --{close[0]}?" if close else "; --help lists them all"
            message = f"unknown option {match[1]}{hint}"
        message = message.replace("unrecognized arguments:", "unexpected argument:")
        raise UserError(message.removeprefix("argument "))


def _path(text: str) -> Path:
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Make ``main(argv)`` a command: by default of ``sys.argv``, and :func:`guarded`."""

    @functools.wraps(main)
    def guarded_main(argv: Sequence[str] | None = None) -> int:
        return guarded(lambda: main(sys.argv[1:] if argv is None else argv))

    return guarded_main


def guarded(main: Callable[[], int]) -> int:
    """Return ``main()``'s status, or another one after one line about what went wrong.

    Mistakes of the user and of the data give status 2; a disk that gave out while training, 3;
    Ctrl-C gives 130, a closed pipe (``| head``) ends quietly with 141. Mistakes of this program
    keep their traceback. Where standard output or error is closed, what goes there is lost.
    """
    with streams():
        return _guarded(main)


def _guarded(main: Callable[[], int]) -> int:
    try:
        status = main()
        sys.stdout.flush()
        return status
    except StorageError as error:
        _complain(str(error))
        return 3
    except DivergedError as error:  # of several processes only one may have seen it
        return _complain(str(error), everywhere=True)
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}; what was written before is kept")
    except MemoryError as error:
        wanted = f" ({error})" if str(error) else ""
        return _complain(
            f"out of memory{wanted}; give it more, or try a smaller --batch-size or network"
        )
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint, if there is one, is whole", file=sys.stderr)
        return 130


@contextmanager
def streams() -> Iterator[None]:
    """Make standard output and error take whatever is printed.

    In place of one that is closed, for which Python has None, stands one that leads nowhere:
    print(file=None) would write to the other one. What one cannot encode is spelled out.
    """
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                setattr(sys, name, nowhere)
                stack.callback(setattr, sys, name, None)
            elif hasattr(stream, "reconfigure"):
                stack.callback(_set_errors, stream, stream.errors)
                _set_errors(stream, _ERRORS)
        yield


def _set_errors(stream: Any, errors: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it writes first what it holds
        stream.reconfigure(errors=errors)


def _spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no character
        return bytes([ord(character) - 0xDC00]), error.start + 1
    plain = character.encode("ascii", "backslashreplace").decode()
    return _STANDS_FOR.get(character, plain), error.start + 1


codecs.register_error(_ERRORS, _spell_out)


def let_go_of_lost_terminals() -> None:
    """Let what is printed go nowhere from here on, where it went to a terminal that is gone.

    Printing there raises an error, at the moment when there is a run to be saved.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = stream.fileno()
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and not os.isatty(descriptor):  # as one that hangs up is none
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def requires_torch() -> None:
    """Raise UserError where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"PyTorch cannot be imported ({error}); install it with: "
            f"{sys.executable} -m pip install 'handgrad[torch]'"
        ) from None


def requires_torchvision() -> None:
    """Raise UserError where torchvision is missing, or was built for another PyTorch."""
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # whatever its compiled operators raise when they do not fit
        raise UserError(
            f"torchvision cannot be imported ({_one_line(error)}): torch {_version('torch')} and "
            f"torchvision {_version('torchvision')} do not go together; install both at once: "
            f"{sys.executable} -m pip install --upgrade 'handgrad[torch]'"
        ) from None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _complain(message: str, everywhere: bool = False) -> int:
    remark(f"error: {message}", everywhere)
    return 2


def remark(message: str, everywhere: bool = False) -> None:
    """Print one line to standard error."""
    # Of several processes on a machine that all say the same, the first speaks.
    if everywhere or os.environ.get("LOCAL_RANK", "0") == "0":
        print(_one_line(message), file=sys.stderr)


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))


def printable(text: object) -> str:
    """Return ``text`` with � for what a terminal would obey or cannot be encoded.

    The name of a file may hold control characters, and bytes that are no characters.
    """
    return "".join(c if c.isprintable() else "�" for c in str(text))
