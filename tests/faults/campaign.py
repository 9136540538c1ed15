"""What the two campaigns share: tasks for several processes, a file of results, how far it is.

A campaign appends a line of JSON to its file for every task that is done. Begun again with the
same file, it leaves those out: it may be killed at any moment, and lines may come from several
machines.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

# Before NumPy and PyTorch are imported: a forked process has none of its parent's threads.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

Line = dict[str, Any]
ROOT = Path(__file__).parents[2]


class Results:
    """The lines of a campaign's file, of one seed.

    Args:
        path: the file; made where there is none.
        seed: of the campaign. Lines of another one are none of its business.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def add(self, **line: Any) -> None:
        """Append a line, whole: several processes do."""
        content = json.dumps({"seed": self.seed, **line}) + "\n"
        with self.path.open("rb") as file:  # a line that a killed process left unfinished
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            unfinished = file.read(1) not in (b"", b"\n")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, ("\n" * unfinished + content).encode())
        finally:
            os.close(descriptor)

    def lines(self, kind: str) -> list[Line]:
        """Return the lines that have ``kind``."""
        found = []
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # unfinished
                continue
            if line.get("seed") == self.seed and kind in line:
                found.append(line)
        return found

    def tell_machine(self, versions: Sequence[str]) -> None:
        """Add a line about the machine, for the table."""
        names = ", ".join(f"{name} {metadata.version(name)}" for name in versions)
        about = f"Python {platform.python_version()}, {names}, {os.cpu_count()} processors"
        if about not in [line["machine"] for line in self.lines("machine")]:
            self.add(machine=about)


def parser(about: str | None, count: int, what: str, results: str) -> argparse.ArgumentParser:
    """Return the options that both campaigns have."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--count", type=int, default=count, metavar="N", help=f"{what} ({count:,})")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="at once")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument(
        "--results", type=Path, default=Path(results), metavar="FILE", help=f"({results})"
    )
    return made


@contextlib.contextmanager
def work_folder(results: Results, memory: bool) -> Iterator[Path]:
    """Yield an empty folder, the same for the same file of results: one that is left is removed.

    Args:
        results: of the campaign.
        memory: where there is a file system in memory, there.
    """
    fast = Path("/dev/shm")
    parent = fast if memory and fast.is_dir() else Path(tempfile.gettempdir())
    name = hashlib.sha1(os.fsencode(results.path.absolute())).hexdigest()[:12]
    folder = parent.resolve() / f"handgrad-campaign-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end_with_parent() -> None:
    """Let the system end this process when the one ends that forked it (on Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Stopped(BaseException):
    """SIGTERM came."""


def work(
    tasks: Sequence[Any],
    do: Callable[[Any], None],
    jobs: int,
    how_far: Callable[[], int],
    total: int,
    unit: str,
) -> bool:
    """Do ``tasks`` in ``jobs`` processes that are forked from this one; return False if stopped.

    Args:
        tasks: each is done once.
        do: does one, and adds its line to the results.
        jobs: processes at once.
        how_far: says how much of ``total`` is done.
        total: of the progress bar.
        unit: what it counts.
    """
    queue, filled = os.pipe()
    assert len(tasks) <= 16_000, "more than fit into a pipe"
    os.write(filled, b"".join(number.to_bytes(4, "little") for number in range(len(tasks))))
    os.close(filled)
    sys.stdout.flush()
    parent = os.getpid()
    running: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) sends it twice
        raise Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        for _ in range(min(jobs, len(tasks))):
            worker = os.fork()
            if not worker:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                end_with_parent()
                status = 1
                try:
                    os.setpgid(0, 0)
                    while (number := os.read(queue, 4)) and os.getppid() == parent:
                        do(tasks[int.from_bytes(number, "little")])
                    status = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(status)
            running.append(worker)
        with tqdm(total=total, unit=unit, smoothing=0.05, mininterval=1) as bar:
            while running:
                for worker in list(running):
                    ended, status = os.waitpid(worker, os.WNOHANG)
                    if ended:
                        running.remove(worker)
                        if status:
                            raise SystemExit(f"a worker ended with status {status}")
                bar.update(how_far() - bar.n)
                time.sleep(0.3 if running else 0)
        signal.signal(signal.SIGTERM, previous)
        return True
    except (KeyboardInterrupt, Stopped):
        return False
    finally:
        os.close(queue)
        for worker in running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker, signal.SIGKILL)  # with all that it started
            os.waitpid(worker, 0)


def environment() -> dict[str, str]:
    """Return the environment of a new process, which finds handgrad where this one does."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; numbers get their commas."""
    texts = [[f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in rows]
    lines = [list(head), ["---"] * len(head), *texts]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def finish(
    results: Results, whole: bool, tables: str, found: Sequence[Mapping[str, Any]], again: str
) -> int:
    """Print what came of it; return the exit status: 1 where something was found or is left."""
    print(f"\n{tables}\n")
    print("\n".join(line["machine"] for line in results.lines("machine")))
    for line in found:
        print(f"\nFOUND: {line['what']}\n  again with: {line['again']}")
    if not whole:
        print(f"\nnot done yet; go on with: {again}")
    return 1 if found or not whole else 0
