"""Run a command so that it ends in a result or in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from training.errors import UserError


def guarded(main: Callable[[], int]) -> int:
    """Return ``main()``'s status, or 2 after one line about what went wrong.

    Mistakes of the user, of the data and of the disk get a line; mistakes of this program keep
    their traceback. Ctrl-C gives 130, a closed pipe (``| head``) ends quietly.
    """
    try:
        status = main()
        sys.stdout.flush()
        return status
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}; what was written before is kept")
    except MemoryError as error:
        return _complain(
            f"out of memory ({error}); try a smaller --batch-size or fewer hidden units"
        )
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint, if there is one, is whole", file=sys.stderr)
        return 130


def requires_torch() -> None:
    """Raise UserError where PyTorch is missing, or torchvision does not go with it."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"PyTorch cannot be imported ({error}); install it with: "
            f"{sys.executable} -m pip install 'handgrad[torch]'"
        ) from None


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
