"""Kill training processes at random moments, resume them, compare with runs nobody disturbed.

    python tests/faults/kill_and_resume.py            50 kills of each of three backends
    python tests/faults/kill_and_resume.py --kills 4  fewer

Half of the kills hit the writing of a checkpoint, at a point of it that is drawn at random; the
others end the process after a step, in a row of metrics, or at a moment measured in time. A run is
resumed as often as it takes, and may be killed again on the way. Then the weights must be those of
the undisturbed run, byte for byte, and so must be metrics.csv but for its times.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

VICTIM = Path(__file__).with_name("victim.py")
ROOT = VICTIM.parents[2]
IN_A_CHECKPOINT = ("open", "half", "written", "flushed", "renamed")
STEPS, EVAL_EVERY, CHECKPOINT_EVERY = 90, 30, 7
OPTIONS = (
    f"--max-steps {STEPS} --eval-every {EVAL_EVERY} --checkpoint-every {CHECKPOINT_EVERY} "
    "--hidden-dims 24 --dropout 0.2 --batch-norm --momentum 0.9 --schedule cosine --augment crop "
    "--quiet"
).split()
BACKENDS = {
    "NumPy modules": ("numpy", ["--engine", "modules"]),
    "NumPy graph": ("numpy", ["--engine", "graph"]),
    "PyTorch": ("pytorch", ["--device", "cpu", "--precision", "float32"]),
}
# What is passed on the way: checkpoints at evaluations and between them, rows of two splits.
WRITES = len({*range(0, STEPS + 1, EVAL_EVERY), *range(CHECKPOINT_EVERY, STEPS, CHECKPOINT_EVERY)})
ROWS = 1 + 2 * (STEPS // EVAL_EVERY)


class LostError(AssertionError):
    """A resumed run is not the run that nobody disturbed."""


def _start(
    kind: str, point: str, count: int, arguments: list[str], threads: int = 1
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(VICTIM), kind, point, str(count), "--", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
    )


def content(folder: Path) -> tuple[bytes, list[str]]:
    """Return the weights' file, and metrics.csv without its times."""
    rows = (folder / "metrics.csv").read_text().splitlines()
    return (folder / "model.safetensors").read_bytes(), [row.rpartition(",")[0] for row in rows]


def undisturbed(backend: str, folder: Path) -> tuple[bytes, list[str]]:
    """Return the content of a run from beginning to end."""
    kind, options = BACKENDS[backend]
    process = _start(kind, "step", 0, [*OPTIONS, *options, "--out", str(folder)])
    _, error = process.communicate()
    if process.returncode:
        raise LostError(f"the undisturbed run failed: {error}")
    return content(folder)


def kill_once(
    backend: str, folder: Path, rng: random.Random, in_a_checkpoint: bool, seconds: float
) -> tuple[str, int]:
    """Begin a run in ``folder``, kill it, resume it to its end.

    Args:
        backend: one of :data:`BACKENDS`.
        folder: of the run; does not exist yet.
        rng: chooses the moment.
        in_a_checkpoint: kill while one is being written.
        seconds: how long an undisturbed run takes, for kills by the clock.

    Returns:
        Where the process was killed; how often it was started again.
    """
    kind, options = BACKENDS[backend]
    point, delay = rng.choice(IN_A_CHECKPOINT), None
    count = rng.randint(1, WRITES)
    if not in_a_checkpoint:
        point = rng.choice(("step", "row", "clock"))
        count = rng.randint(1, ROWS if point == "row" else STEPS)
    if point == "clock":
        point, count, delay = "step", 0, rng.uniform(0, seconds)
    process = _start(kind, point, count, [*OPTIONS, *options, "--out", str(folder)])
    if delay is not None:
        point = "clock"
        time.sleep(delay)
        process.kill()
    _, error = process.communicate()
    if process.returncode not in (-9, 0):
        raise LostError(f"status {process.returncode} where a kill was due: {error}")
    starts = 0
    while not (folder / "model.safetensors").exists():
        starts += 1
        if starts > 9:
            raise LostError("nine more starts did not bring it to its end")
        if (folder / "checkpoint.safetensors").exists():
            arguments = ["--resume", str(folder)]
        else:  # it was killed before its first checkpoint: there is nothing to resume
            shutil.rmtree(folder, ignore_errors=True)
            arguments = [*OPTIONS, *options, "--out", str(folder)]
        again = rng.randint(1, STEPS) if starts == 1 and rng.random() < 0.25 else 0
        process = _start(kind, "step", again, arguments)
        _, error = process.communicate()
        if process.returncode not in (0, -9 if again else 0):
            raise LostError(f"resuming failed with status {process.returncode}: {error}")
    return point, starts


def compare(folder: Path, wanted: tuple[bytes, list[str]]) -> None:
    """Raise LostError unless the run in ``folder`` is the one that nobody disturbed."""
    weights, rows = content(folder)
    if rows != wanted[1]:
        raise LostError(f"metrics.csv differs in {folder}: {rows} instead of {wanted[1]}")
    if weights != wanted[0]:
        raise LostError(f"the weights differ in {folder}")
    if left := [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]:
        raise LostError(f"{folder} still holds {left[0]}")


def campaign(backend: str, kills: int, seed: int, work: Path) -> Counter[str]:
    """Kill ``kills`` runs of a backend, half in a checkpoint; return how often where."""
    work.mkdir(parents=True)
    start = time.monotonic()
    wanted = undisturbed(backend, work / "whole")
    seconds = time.monotonic() - start
    where: Counter[str] = Counter()
    for number in range(kills):
        rng = random.Random(f"{backend} {seed} {number}")
        folder = work / str(number)
        point, starts = kill_once(backend, folder, rng, number % 2 == 0, seconds)
        compare(folder, wanted)
        shutil.rmtree(folder)
        where[point] += 1
        where["starts"] += starts
    return where


def main() -> int:
    """Run the whole campaign and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each backend")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for backend in BACKENDS:
            work = Path(folder) / backend.replace(" ", "-")
            where = campaign(backend, arguments.kills, arguments.seed, work)
            starts = where.pop("starts")
            places = ", ".join(f"{name} {n}" for name, n in sorted(where.items()))
            killed = sum(where.values())
            total += killed
            print(f"{backend}: killed {killed} ({places}), started again {starts} times: all equal")
    print(f"{total} runs killed and resumed, nothing lost, nothing twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
