"""A training command, run so that it does not outlive the process that began it.

``python -m handgrad.reproduction.child COMMAND ARGUMENTS``: standard input is a pipe, of which the
parent holds the other end and into which it never writes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from handgrad.backends.command import train


def _stop_with_parent() -> None:
    os.read(0, 1)  # returns when the pipe is closed, as it is when the parent is killed
    os.kill(os.getpid(), signal.SIGTERM)  # the training stops at a checkpoint


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    name, *arguments = sys.argv[1:]
    sys.exit(train(name.removeprefix("train-"), arguments))
