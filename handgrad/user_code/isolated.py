"""A process of its own for what runs a user's code, so that it cannot hang or crash the command."""

from __future__ import annotations

import faulthandler
import multiprocessing
import re
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from handgrad.user_code.blame import UserCodeError, is_theirs, locate


class Guard:
    """What the process of its own may tell: what it is at, and when its time begins to count."""

    def __init__(self, notes: TextIO, seconds: float) -> None:
        self._notes, self._seconds = notes, seconds

    def start(self) -> None:
        """Begin to count: after the time limit the process ends, wherever it is."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._notes)

    def running(self, what: str) -> None:
        """Note what of the user's is running, for the case that it does not come back."""
        self._notes.seek(0)
        self._notes.truncate()
        self._notes.write(f"{what}\n")
        self._notes.flush()


def run_guarded(
    target: Callable[[Any, Guard], int], argument: Any, path: Path, limit: float
) -> int:
    """Return ``target(argument, guard)``, run in a process of its own.

    Args:
        target: a function of a module, which returns an exit status.
        argument: handed to it; can be pickled.
        path: the user's code.
        limit: seconds from ``guard.start()`` on.

    Raises:
        UserCodeError: the process ended without a status; says where in the user's code it was.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        process = context.Process(
            target=_child, args=(target, argument, str(notes), limit, sender), daemon=True
        )
        process.start()
        sender.close()
        try:
            status = int(receiver.recv())
            process.join(10)  # a thread of the user's may go on
            return status
        except EOFError:
            process.join()
            status = process.exitcode or 0
        finally:
            process.kill()
            process.join()
        raise UserCodeError(_explain(notes, path, limit, status))


def _child(
    target: Callable[[Any, Guard], int], argument: Any, notes: str, limit: float, sender: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    with Path(notes).open("w", encoding="utf-8") as file:
        faulthandler.enable(file)
        status = target(argument, Guard(file, limit))
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        sender.send(status)


def _explain(notes: Path, path: Path, limit: float, status: int) -> str:
    text = notes.read_text(encoding="utf-8", errors="replace") if notes.exists() else ""
    what = text.partition("\n")[0]
    frames = re.findall(r'^  File "(.+)", line (\d+) in (.+)$', text, flags=re.M)
    theirs = [frame for frame in frames if is_theirs(frame[0], path.absolute())]
    place = ""
    if theirs:
        file, line, function = theirs[0]  # the latest call comes first
        place = locate(file, line, function, what)
    if "Timeout" in text:
        if theirs:
            return (
                f"{place}: did not come to an end within --time-limit {limit:g} seconds; if it is "
                f"only slow, raise the limit, or take fewer --steps"
            )
        return (
            f"the comparison took longer than --time-limit {limit:g} seconds; raise it, or take "
            f"fewer --steps"
        )
    cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    where = place or f"{what or 'the comparison'}, of your {path.name}"
    return f"{where}: the process ended with {cause}, and without a result"
