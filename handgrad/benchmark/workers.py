"""Contenders in processes of their own, timed in turn.

Two libraries in one process share its memory pools and get in each other's threads' way, and the
kernels of OpenBLAS are chosen once, when it is loaded: each contender has a process, is told by a
line how many steps to run, and answers with the seconds of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handgrad.benchmark.report import Timing, turns
from handgrad.environment import HOLDS

ROOT = Path(__file__).parents[2]
_SETTLE = 0.05  # seconds in which the threads of the one before go to sleep


class Worker:
    """A process that runs a contender's steps on demand.

    Args:
        contender: a name in ``handgrad.benchmark.contenders.CONTENDERS``.
        workload: what its step works on.
        threads: of the process.
        own_choice: let OpenBLAS choose its kernels, whatever the environment says.

    Attributes:
        about: what the contender says of itself, the BLAS core, say.

    Raises:
        ImportError: the contender cannot begin: a library that it needs is missing, say.
    """

    def __init__(
        self, contender: str, workload: Mapping[str, Any], threads: int, own_choice: bool = False
    ) -> None:
        env = {k: v for k, v in environment().items() if not (own_choice and k in HOLDS)}
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "handgrad.benchmark.contenders"),
                json.dumps({"contender": contender, "workload": workload, "threads": threads}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**env, **dict.fromkeys(pools, str(threads))},
        )
        try:
            self.about: dict[str, Any] = self._answer()
        except RuntimeError as error:
            raise ImportError(str(error)) from None
        if missing := self.about.get("missing"):
            self.close()
            raise ImportError(missing)

    def run(self, steps: int) -> list[float]:
        """Return the seconds of each of ``steps`` steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        seconds: list[float] = self._answer()
        return seconds

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended with status {self._process.wait()}")
        return json.loads(line)


class Race(contextlib.ExitStack):
    """Workers that take turns; a context manager, which ends their processes.

    Args:
        threads: of each.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads
        self._workers: dict[str, Worker] = {}

    def enter(
        self, name: str, contender: str, workload: Mapping[str, Any], own_choice: bool = False
    ) -> Worker:
        """Start a worker under a name of its own; the other arguments are those of Worker."""
        worker = Worker(contender, workload, self.threads, own_choice)
        self._workers[name] = self.enter_context(contextlib.closing(worker))
        return worker

    def run(self, rounds: int, seconds: float = 0.08) -> dict[str, Timing]:
        """Return the time of a step of each worker, all of them in turn ``rounds`` times.

        Args:
            rounds: how often each has its turn.
            seconds: a turn takes about as long, or one step.
        """
        steps = {}
        for name, worker in self._workers.items():
            once = min(worker.run(6)[2:])
            steps[name] = max(1, round(seconds / once))
        times: dict[str, list[float]] = {name: [] for name in self._workers}
        for order in turns(list(self._workers), rounds):
            for name in order:
                time.sleep(_SETTLE)
                # The first step finds the caches as the one before left them.
                times[name] += self._workers[name].run(1 + steps[name])[1:]
        return {name: Timing.of(values) for name, values in times.items()}


def environment() -> dict[str, str]:
    """Return this process's environment, for one that finds the same packages."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
