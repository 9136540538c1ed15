"""Files that are old or new, never half of it; folders for one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handgrad.errors import DataError, UserError


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as a user gave it, the home folder in place of ``~``.

    Raises:
        UserError: it is no path, or nobody's home folder.
    """
    try:
        found = Path(path)
        if os.fspath(path).startswith("~"):
            return found.expanduser()
        # What really is called ~ is given as ./~, of which Path would drop the dot.
        return found.absolute() if str(found).startswith("~") else found
    except TypeError:
        raise UserError(f"{path!r} is not a path; give a text or a Path") from None
    except RuntimeError:
        raise UserError(
            f"{path}: there is no home folder for {Path(path).parts[0]} here; write the folder out"
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: a temporary file, flushed to disk, then renamed over it."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say of what
        temporary.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no names and values")
    return content


def temporary_path(path: Path) -> Path:
    """Return where the new content of ``path`` is written before it takes its place."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep all who ask for the lock of ``folder`` out of it while the context lasts.

    The lock is the system's, on the folder itself: it leaves no file behind, and ends with the
    process however that ends. Where the system has no such locks (Windows, some network drives)
    there is none.

    Args:
        folder: exists.
        wait: until whoever holds the lock is done, rather than give up.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(
                f"another process is training in {folder}; wait until it ends, or choose another "
                "folder with --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
