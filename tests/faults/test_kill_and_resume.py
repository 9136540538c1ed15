"""A sample of the campaign in kill_and_resume.py, and proof that it would notice a loss."""

from __future__ import annotations

import shutil
from pathlib import Path

import kill_and_resume
import pytest
from kill_and_resume import BACKENDS, LostError, campaign, compare, undisturbed
from victim import POINTS

KILLS = {"NumPy modules": 4, "NumPy graph": 2, "PyTorch": 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_and_resumed_is_as_never_killed(backend: str, tmp_path: Path) -> None:
    where = campaign(backend, KILLS[backend], 20, tmp_path / "work")
    assert sum(n for name, n in where.items() if name != "starts") == KILLS[backend]


@pytest.mark.parametrize("point", POINTS)
def test_every_failpoint_is_reached(point: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*kill_and_resume.OPTIONS, "--out", str(folder)]
    process = kill_and_resume._start("numpy", point, 3, options)
    process.communicate()
    assert process.returncode == -9
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    half = (folder / ".checkpoint.safetensors.tmp").exists()
    assert half == (point in ("open", "half", "written", "flushed"))
    if point == "row":
        assert (folder / "metrics.csv").read_text().endswith("0.")


def test_a_loss_would_be_noticed(tmp_path: Path) -> None:
    wanted = undisturbed("NumPy modules", tmp_path / "whole")
    compare(tmp_path / "whole", wanted)
    for name, damage in (
        ("metrics.csv", lambda old: old + old.splitlines(keepends=True)[-1]),  # a row twice
        ("metrics.csv", lambda old: b"".join(old.splitlines(keepends=True)[:-1])),  # one missing
        ("model.safetensors", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(LostError):
            compare(folder, wanted)
        shutil.rmtree(folder)
