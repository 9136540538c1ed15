"""Kill training processes at random moments, resume them, compare with runs nobody disturbed.

    python tests/faults/kill_and_resume.py                           1,000 kills, three backends
    python tests/faults/kill_and_resume.py --count 60 --jobs 2       fewer, two at once
    python tests/faults/kill_and_resume.py --only "PyTorch 17"       one of them once more

A third of the kills hit the writing of a checkpoint, at a point of it that is drawn at random; a
third run for longer, and are killed in their first or their last second; the others end the process
after a step, in a row of metrics, while it writes its result, or at a moment measured in time. A
run is resumed as often as it takes, and may be killed again on the way. Then the weights must be
those of the undisturbed run, byte for byte, and so must be metrics.csv but for its times.

A third of the victims are new processes. The others are forked from this one, which has imported
everything and computed nothing: that saves the seconds in which PyTorch is imported.

Every kill that is made up for is a line of --results. Begun again with the same file, the campaign
goes on where it was, however it ended.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import campaign
import torch  # noqa: F401 (before any fork)
import victim

IN_A_CHECKPOINT = ("open", "half", "written", "flushed", "renamed")
STEPS, EVAL_EVERY, CHECKPOINT_EVERY = 90, 30, 7
OPTIONS = (
    "--hidden-dims 24 --dropout 0.2 --batch-norm --momentum 0.9 --schedule cosine --augment crop "
    "--quiet --threads 1"
)
LENGTHS = {
    "short": f"--max-steps {STEPS} --eval-every {EVAL_EVERY} --checkpoint-every {CHECKPOINT_EVERY}",
    "long": "--max-steps 1000 --eval-every 200 --checkpoint-every 30",  # a second or so
}
NEAR_THE_END = b"\n800,"  # a row of metrics.csv in a long run
BACKENDS = {
    "NumPy modules": ("numpy", ["--engine", "modules"]),
    "NumPy graph": ("numpy", ["--engine", "graph"]),
    "PyTorch": ("pytorch", ["--device", "cpu", "--precision", "float32"]),
}
# What is passed on the way: checkpoints at evaluations and between them, rows of two splits,
# the beginning and the end of the writing of two files.
WRITES = len({*range(0, STEPS + 1, EVAL_EVERY), *range(CHECKPOINT_EVERY, STEPS, CHECKPOINT_EVERY)})
PASSED = {"step": STEPS, "row": 1 + 2 * (STEPS // EVAL_EVERY), "result": 4}
# Where the kills are, in turn, and which of them hit a new process.
PLAN = [
    ("checkpoint", False), ("first second", True), ("spread", False),
    ("checkpoint", True), ("last second", True), ("spread", False),
    ("checkpoint", False), ("first second", False), ("spread", True),
    ("checkpoint", False), ("last second", False), ("spread", False),
]  # fmt: skip

Content = tuple[bytes, list[str]]


class LostError(AssertionError):
    """A resumed run is not the run that nobody disturbed."""


@dataclass
class Process:
    """A victim: a new process, or one forked from this one.

    Args:
        backend: of :data:`BACKENDS`.
        point: of :data:`victim.POINTS`.
        count: how often it is passed; 0 for no kill.
        arguments: of the command.
        new: begin a new process.

    Attributes:
        error: what it said on standard error, once it is waited for.
    """

    backend: str
    point: str
    count: int
    arguments: list[str]
    new: bool = False

    def __post_init__(self) -> None:
        kind, _ = BACKENDS[self.backend]
        self._error: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._popen: subprocess.Popen[bytes] | None = None
        if self.new:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, victim.__file__, kind, self.point, str(self.count), "--"),
                    *self.arguments,
                ],
                stdout=subprocess.DEVNULL,
                stderr=self._error,
                env=campaign.environment(),
            )
            self.pid = self._popen.pid
            return
        self.pid = os.fork()
        if not self.pid:
            campaign.end_with_parent()
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(self._error.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                status = victim.run(kind, self.point, self.count, self.arguments)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)

    def wait(self) -> int:
        """Return its exit status, or minus the signal that it died of."""
        _, ended = os.waitpid(self.pid, 0)
        status = os.waitstatus_to_exitcode(ended)
        if self._popen is not None:
            self._popen.returncode = status
        self._error.seek(0)
        self.error = self._error.read()
        self._error.close()
        return status

    def kill(self) -> None:
        """Kill it; it is not waited for yet."""
        os.kill(self.pid, signal.SIGKILL)

    def near_its_end(self, folder: Path) -> None:
        """Wait until it has written :data:`NEAR_THE_END`, or is gone."""
        metrics, flags = folder / "metrics.csv", os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not os.waitid(os.P_PID, self.pid, flags):
            if metrics.exists() and NEAR_THE_END in metrics.read_bytes():
                break
            time.sleep(0.002)


def content(folder: Path) -> Content:
    """Return the weights' file, and metrics.csv without its times."""
    rows = (folder / "metrics.csv").read_text().splitlines()
    return (folder / "model.safetensors").read_bytes(), [row.rpartition(",")[0] for row in rows]


def command(backend: str, length: str, folder: Path) -> list[str]:
    """Return the arguments of a run in ``folder``."""
    options = f"{OPTIONS} {LENGTHS[length]}".split()
    return [*options, *BACKENDS[backend][1], "--out", str(folder)]


@dataclass
class Undisturbed:
    """A run from beginning to end, which the others must equal.

    Attributes:
        content: of its folder.
        seconds: that it takes, forked and as a new process.
        tail: how long it goes on after :data:`NEAR_THE_END`, forked and as a new process.
    """

    content: Content
    seconds: dict[bool, float]
    tail: dict[bool, float]


def undisturbed(backend: str, length: str, work: Path) -> Undisturbed:
    """Return how a run ends that nobody disturbs, forked or not."""
    contents, seconds, tail = [], {}, {}
    for new in (False, True):
        start = time.monotonic()
        folder = work / f"{backend} {length} {new}"
        process = Process(backend, "step", 0, command(backend, length, folder), new)
        if length == "long":
            process.near_its_end(folder)
        near = time.monotonic()
        if process.wait():
            raise LostError(f"the undisturbed run failed: {process.error}")
        seconds[new], tail[new] = time.monotonic() - start, time.monotonic() - near
        contents.append(content(folder))
        shutil.rmtree(folder)
    if contents[0] != contents[1]:
        raise LostError(f"{backend}: a forked process computes something else than a new one")
    return Undisturbed(contents[0], seconds, tail)


def compare(folder: Path, wanted: Content) -> None:
    """Raise LostError unless the run in ``folder`` is the one that nobody disturbed."""
    weights, rows = content(folder)
    if rows != wanted[1]:
        raise LostError(f"metrics.csv differs in {folder}: {rows} instead of {wanted[1]}")
    if weights != wanted[0]:
        raise LostError(f"the weights differ in {folder}")
    if left := [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]:
        raise LostError(f"{folder} still holds {left[0]}")


def kill(backend: str, number: int, seed: int, folder: Path, whole: Undisturbed) -> str:
    """Begin the run of a number in ``folder`` and kill it; return where it was killed."""
    rng = random.Random(f"{backend} {seed} {number}")
    place, new = PLAN[number % len(PLAN)]
    moment, point, count = None, "step", 0
    seconds = whole.seconds[new]
    if place == "checkpoint":
        point, count = rng.choice(IN_A_CHECKPOINT), rng.randint(1, WRITES)
    elif place == "first second":
        moment = rng.uniform(0, min(1.0, seconds))
    elif place == "last second":
        moment = rng.uniform(0, min(1.0, whole.tail[new]))
    else:
        point = rng.choice((*PASSED, "clock"))
        if point == "clock":
            point, moment = "step", rng.uniform(0, seconds)
        else:
            count = rng.randint(1, PASSED[point])
    while True:
        process = Process(backend, point, count, command(backend, length_of(number), folder), new)
        if place == "last second":
            process.near_its_end(folder)
        if moment is not None:
            time.sleep(moment)
            process.kill()
        status = process.wait()
        if status == -signal.SIGKILL:
            break
        if status or moment is None:
            raise LostError(f"status {status} where a kill was due: {process.error}")
        shutil.rmtree(folder)  # it was faster this time
        moment *= 0.95
    return point if place == "checkpoint" else point if place == "spread" and count else place


def length_of(number: int) -> str:
    """Return which of :data:`LENGTHS` the run of a number has."""
    return "long" if "second" in PLAN[number % len(PLAN)][0] else "short"


def resume(backend: str, number: int, seed: int, folder: Path) -> int:
    """Bring a killed run to its end; return how often it was started again."""
    rng = random.Random(f"again {backend} {seed} {number}")
    length = length_of(number)
    starts = 0
    while not (folder / "model.safetensors").exists():
        starts += 1
        if starts > 9:
            raise LostError("nine more starts did not bring it to its end")
        if (folder / "checkpoint.safetensors").exists():
            arguments = ["--resume", str(folder)]
        else:  # it was killed before its first checkpoint: there is nothing to resume
            shutil.rmtree(folder, ignore_errors=True)
            arguments = command(backend, length, folder)
        again = rng.randint(1, STEPS) if starts == 1 and rng.random() < 0.25 else 0
        new = starts == 1 and rng.random() < 0.1
        process = Process(backend, "step", again, arguments, new)
        status = process.wait()
        if status not in (0, -signal.SIGKILL if again else 0):
            raise LostError(f"resuming failed with status {status}: {process.error}")
    return starts


@dataclass
class Kills:
    """The campaign.

    Args:
        results: where its lines go.
        work: an empty folder for the runs.
        keep: where the folders of runs go that lost something.
    """

    results: campaign.Results
    work: Path
    keep: Path

    def begin(self, tasks: list[tuple[str, int]]) -> None:
        """Make the undisturbed runs that ``tasks`` are compared with."""
        needed = dict.fromkeys((backend, length_of(number)) for backend, number in tasks)
        self.whole = {which: undisturbed(*which, self.work) for which in needed}

    def do(self, task: tuple[str, int]) -> None:
        """Kill one run and resume it, and add its line."""
        backend, number = task
        folder = self.work / f"{backend} {number}"
        whole = self.whole[backend, length_of(number)]
        where, starts, lost = "", 0, None
        try:
            where = kill(backend, number, self.results.seed, folder, whole)
            starts = resume(backend, number, self.results.seed, folder)
            compare(folder, whole.content)
        except LostError as error:
            lost = str(error)
            if folder.exists():
                shutil.copytree(folder, self.keep / folder.name, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        new = PLAN[number % len(PLAN)][1]
        line = {"number": number, "where": where, "new": new, "starts": starts, "lost": lost}
        self.results.add(backend=backend, **line)

    def tables(self) -> str:
        """Return the counts for docs/reliability.md."""
        rows = []
        starts = new = 0
        lines = self.results.lines("backend")
        for backend in BACKENDS:
            of = [line for line in lines if line["backend"] == backend]
            where = Counter(line["where"] for line in of)
            inside = sum(where.pop(point, 0) for point in IN_A_CHECKPOINT)
            points = Counter(line["where"] for line in of)
            detail = ", ".join(f"{point} {points[point]}" for point in IN_A_CHECKPOINT)
            names = {"step": "after a step", "row": "in a row of metrics"}
            names |= {"result": "in the result", "spread": "by the clock"}
            names |= {"first second": "in the first second", "last second": "in the last second"}
            others = [f"{where[name]} {words}" for name, words in names.items() if where[name]]
            text = ", ".join([f"{inside} in a checkpoint ({detail})", *others])
            rows.append([f"runs killed, {backend}", f"{len(of):,}: {text}"])
            starts += sum(line["starts"] for line in of)
            new += sum(line["new"] for line in of)
        rows.append(["of them new processes", new])
        rows.append(["started again", f"{starts:,} times"])
        rows.append(["lost", len([x for x in lines if x["lost"]]) or "nothing"])
        return campaign.table(["", ""], rows)

    def losses(self) -> list[dict[str, str]]:
        """Return what was lost, and how to see it again."""
        return [
            {
                "what": f"{line['backend']}, killed in {line['where']!r}: {line['lost']}",
                "again": f"python {Path(__file__).name} --seed {self.results.seed} "
                f"--only {line['backend'] + ' ' + str(line['number'])!r}",
            }
            for line in self.results.lines("backend")
            if line["lost"]
        ]


def plan(count: int) -> list[tuple[str, int]]:
    """Return backend and number of ``count`` kills."""
    backends = list(BACKENDS)
    return [(backends[i % len(backends)], i // len(backends)) for i in range(count)]


def run(arguments: argparse.Namespace) -> int:
    """Do what is left of the campaign, and print what came of it."""
    results = campaign.Results(arguments.results, arguments.seed)
    results.tell_machine(["numpy", "torch"])
    tasks = plan(arguments.count)
    if arguments.only:
        backend, _, number = arguments.only.rpartition(" ")
        tasks = [(backend, int(number))]
        results = campaign.Results(results.path.with_suffix(".only"), results.seed)
        results.path.write_text("")

    def done() -> set[tuple[str, int]]:
        return {(line["backend"], line["number"]) for line in results.lines("backend")}

    keep = results.path.with_suffix(".lost")
    with campaign.work_folder(results, memory=False) as folder:
        kills = Kills(results, folder, keep)
        whole = True
        if left := [task for task in tasks if task not in done()]:
            kills.begin(left)
            whole = campaign.work(
                left, kills.do, arguments.jobs, lambda: len(done()), len(tasks), " kills"
            )
        again = " ".join(["python", *sys.argv])
        return campaign.finish(results, whole, kills.tables(), kills.losses(), again)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 where a run lost something, or is left."""
    parser = campaign.parser(__doc__, 1000, "kills", "kills.jsonl")
    parser.add_argument("--only", metavar="'BACKEND NUMBER'", help="this one once more")
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
