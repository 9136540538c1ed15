"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from handgrad.errors import UserError


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
