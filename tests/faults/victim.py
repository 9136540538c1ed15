"""A training command that dies where it is told to, without a word, as if the power went.

    python victim.py KIND POINT COUNT -- arguments of the command

KIND is ``numpy`` or ``pytorch``. At the COUNT-th time that POINT is passed the process sends itself
SIGKILL. The points lie in and around the writing of a file: ``step`` (a training step has ended),
``open`` (the temporary file is there, and empty), ``half`` (half of it is written), ``written``
(all of it is, nothing flushed), ``flushed``, ``renamed`` (the folder not flushed), ``row`` (half a
row of metrics.csv is written), ``result`` (before and after summary.json and model.safetensors,
which end a run). The other files are those of the checkpoint; COUNT counts its writings.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from handgrad import files
from handgrad.backends.command import train_mlp_numpy, train_mlp_pytorch
from handgrad.runs import result
from handgrad.training import checkpoint, loop, metrics

POINTS = ("step", "open", "half", "written", "flushed", "renamed", "row", "result")


def run(kind: str, point: str, count: int, arguments: list[str]) -> int:
    """Run the command with the failpoint in place: for a process of its own, which it changes."""
    assert point in POINTS, point
    passed = 0

    def reach(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(path: Path, content: bytes) -> None:
        temporary = files.temporary_path(path)
        with temporary.open("wb") as file:
            reach("open")
            file.write(content[: len(content) // 2])
            file.flush()
            reach("half")
            file.write(content[len(content) // 2 :])
            file.flush()
            reach("written")
            os.fsync(file.fileno())
        reach("flushed")
        temporary.replace(path)
        reach("renamed")
        files.sync_folder(path.parent)

    def write_result(path: Path, content: bytes) -> None:
        reach("result")
        original(path, content)
        reach("result")

    def append(self: metrics.MetricsFile, row: metrics.Row) -> None:
        if point == "row" and passed + 1 == count and self.path is not None:
            with self.path.open("a") as file:
                file.write(f"{row.step},0.")
        reach("row")
        original_append(self, row)

    def step(self: loop.Loop, *args: Any) -> None:
        original_step(self, *args)
        reach("step")

    original, original_append = files.write_atomically, metrics.MetricsFile.append
    original_step, original_save = loop.Loop._step, result.save_arrays
    checkpoint.write_atomically = write

    def save_weights(*args: Any) -> None:
        checkpoint.write_atomically = write_result
        original_save(*args)

    result.save_arrays = save_weights
    result.write_atomically = write_result
    metrics.MetricsFile.append = append  # type: ignore[method-assign]
    loop.Loop._step = step  # type: ignore[method-assign]
    result.draw_pictures = lambda *args: None  # pictures take longer than the training
    if kind == "numpy":
        return train_mlp_numpy(arguments)
    return train_mlp_pytorch(arguments)


if __name__ == "__main__":
    assert sys.argv[4] == "--", sys.argv
    sys.exit(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[5:]))
