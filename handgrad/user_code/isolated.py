"""A process of its own for what runs a user's code, so that it cannot hang or crash the command."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handgrad.console import streams
from handgrad.user_code.blame import PROJECT, is_theirs

_MOST_SAID = 2**20  # bytes of standard error that are kept
_GRACE = 5.0  # seconds in which a process that is late may end by itself, and say where it was


class Guard:
    """What the process of its own tells the command.

    Args:
        folder: both look into it.
        limit: seconds that may pass from one event to the next; none counts before the first.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self._events = (folder / "events").open("a", encoding="utf-8")
        self._running = (folder / "running").open("w", encoding="utf-8")
        self._trace = (folder / "trace").open("w", encoding="utf-8")
        self._limit = limit
        faulthandler.enable(self._trace)

    def tell(self, event: str, **about: Any) -> None:
        """Tell of an event, with what JSON can hold: the time limit counts from here on."""
        line = json.dumps({"event": event, **about}, allow_nan=False)
        print(line, file=self._events, flush=True)
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._trace)

    def running(self, what: str) -> None:
        """Note what of the user's is running, for the case that it does not come back."""
        self._running.seek(0)
        self._running.truncate()
        self._running.write(what)
        self._running.flush()


@dataclass(frozen=True)
class Ending:
    """What came of a process of its own.

    Attributes:
        events: what it told, in order; each has a name, ``event``, and what else there is.
        late: whether it had to end as its time was over.
        status: its exit status; that of a signal is negative.
        running: what of the user's was running.
        trace: the calls it was in, the latest first, where a signal or the time limit ended it.
        said: the end of its standard error, if it was to be quiet.
    """

    events: list[dict[str, Any]]
    late: bool = False
    status: int = 0
    running: str = ""
    trace: str = ""
    said: str = ""

    @property
    def cause(self) -> str:
        """What ended it: ``signal SIGSEGV`` or ``exit status 3``."""
        if self.status < 0:
            return f"signal {signal.Signals(-self.status).name}"
        return f"exit status {self.status}"

    def place(self, path: Path) -> tuple[str, str, str] | None:
        """Return file, line and function of the user's code in ``path`` that it was in, if any."""
        frames = re.findall(r'^  File "(.+)", line (\d+) in (.+)$', self.trace, flags=re.M)
        return next((frame for frame in frames if is_theirs(frame[0], path.absolute())), None)


def run_isolated(
    target: Callable[[Any, Guard], None], argument: Any, limit: float, *, quiet: bool = False
) -> Ending:
    """Run ``target(argument, guard)`` in a process of its own, which ends with this one.

    Whatever script, notebook or folder this process was started in: nothing of it is imported.

    Args:
        target: a function of a module. It tells ``guard`` what it has to say: without its last
            event it has not come to its end, whatever the exit status.
        argument: handed to it, through JSON.
        limit: seconds that may pass from one event to the next.
        quiet: do without its standard output, and keep the end of its standard error.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order = [target.__module__, target.__name__, argument]
        (folder / "order").write_text(json.dumps(order), encoding="utf-8")
        files = [folder / file for file in ("events", "running", "trace", "stderr")]
        for file in files:
            file.touch()
        code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from {__name__} import serve; "
        code += f"serve({name!r}, {limit}, {os.getpid()})"
        with files[-1].open("ab") as stderr:  # at the end, wherever that is
            child = subprocess.Popen(
                # -P: a "handgrad" in the current folder is not ours.
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if quiet else None,
                stderr=stderr if quiet else None,
                start_new_session=True,  # Ctrl-C is this process's to answer
            )
        try:
            late = _wait(child, files[0], files[-1], limit)
        finally:
            _end(child)
        events, running, trace, said = (
            file.read_text(encoding="utf-8", errors="replace") for file in files
        )
    whole = events.split("\n")[:-1]  # a line that it was about to write does not count
    told = [json.loads(line) for line in whole]
    late = late or trace.startswith("Timeout")
    return Ending(told, late, child.returncode, running, trace, said)


def _wait(child: subprocess.Popen[bytes], events: Path, said: Path, limit: float) -> bool:
    """Wait for the child; return whether it did not end by itself when its time was over."""
    size, since = 0, time.monotonic()
    while child.poll() is None:
        if (now := events.stat().st_size) != size:
            size, since = now, time.monotonic()
        if size and time.monotonic() - since > limit + _GRACE:
            return True
        if said.stat().st_size > _MOST_SAID:  # an endless loop that prints fills no disk
            os.truncate(said, 0)
        time.sleep(0.01)
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it has started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def serve(folder: str, limit: float, parent: int) -> None:
    """Be the process of its own: do what the order in ``folder`` says."""
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    else:  # in the session of the command, which answers Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 1
    try:
        guard = Guard(Path(folder), limit)
        module, name, argument = json.loads((Path(folder) / "order").read_text(encoding="utf-8"))
        with streams():
            getattr(importlib.import_module(module), name)(argument, guard)
        status = 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)  # whatever threads a user's code has left


def _end_with(parent: int) -> None:
    """End this process when ``parent`` has ended, however it did."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
