"""Errors that end a command with one line instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: the message names the value, what was expected, what to do.

    Of a message that a damaged file makes long, the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > 1000:
            message = f"{message[:600]} … {message[-200:]}"
        super().__init__(message)


class DataError(UserError):
    """A data file is missing, truncated, damaged or not what it should be."""


# What a line about a damaged file advises. Nobody is told to delete what may be all they have.
FETCH_AGAIN = "move it away and fetch it again, or point --data-dir at another folder"


class StorageError(UserError):
    """The disk or the folder of a run gave out while it was training; exit status 3."""


class DivergedError(UserError):
    """The loss or a weight became NaN or infinite."""


class StoppedError(Exception):
    """A signal stopped a training, which is saved and can go on; the message says how.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
