"""A sample of the campaign in kill_and_resume.py, and proof that it would notice a loss."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import campaign
import kill_and_resume
import pytest
from kill_and_resume import LostError, Process, command, compare, content
from victim import POINTS

FAULTS = Path(__file__).parent


def start(*arguments: str, results: Path, code: str = "") -> subprocess.Popen[str]:
    """Begin a campaign; ``code`` comes before it in the same process."""
    call = f"import sys, kill_and_resume\n{code}\nsys.exit(kill_and_resume.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", call, *arguments, "--jobs", "2", "--results", str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=campaign.environment() | {"PYTHONPATH": f"{campaign.ROOT}:{FAULTS}"},
    )


def lines(results: Path) -> list[dict[str, object]]:
    found = map(json.loads, results.read_text().splitlines()) if results.exists() else ()
    return [line for line in found if "backend" in line]


def test_a_campaign_that_is_killed_itself_goes_on(tmp_path: Path) -> None:
    results = tmp_path / "kills.jsonl"
    process = start("--count", "6", results=results)
    while len(lines(results)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with results.open("a") as file:
        file.write('{"seed": 0, "backend": "PyTo')  # and a line was not finished
    before = results.read_text()
    process = start("--count", "6", results=results)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "| lost | nothing |" in output
    assert results.read_text().startswith(before)
    results.write_text(results.read_text().replace('{"seed": 0, "backend": "PyTo\n', ""))
    done = [(line["backend"], line["number"]) for line in lines(results)]
    assert sorted(done) == sorted(kill_and_resume.plan(6))
    inside = [x for x in lines(results) if x["where"] in kill_and_resume.IN_A_CHECKPOINT]
    assert len(inside) == 3


def test_a_planted_loss_is_reported_and_can_be_seen_again(tmp_path: Path) -> None:
    code = """if True:
        from handgrad.training.metrics import MetricsFile
        reopen = MetricsFile.reopen.__func__
        def losing(cls, path, n_rows):
            found = reopen(cls, path, n_rows)
            del found.rows[1:2]
            return found
        MetricsFile.reopen = classmethod(losing)
        del kill_and_resume.BACKENDS["PyTorch"]  # of which the first is killed before any row
    """
    results = tmp_path / "kills.jsonl"
    process = start("--count", "4", results=results, code=code)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "metrics.csv differs" in output
    again = output.partition("--only '")[2].partition("'")[0]
    assert again.startswith("NumPy")
    assert list((tmp_path / "kills.lost").iterdir())
    process = start("--only", again, results=results, code=code)
    output, _ = process.communicate()
    assert process.returncode == 1 and "metrics.csv differs" in output


@pytest.mark.parametrize("point", POINTS)
def test_every_failpoint_is_reached(point: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = command("NumPy modules", "short", folder)
    assert Process("NumPy modules", point, 3, arguments, new=True).wait() == -9
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "summary.json").exists()
    half = (folder / ".checkpoint.safetensors.tmp").exists()
    assert half == (point in ("open", "half", "written", "flushed"))
    if point == "row":
        assert (folder / "metrics.csv").read_text().endswith("0.")


def test_a_loss_would_be_noticed(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    arguments = command("NumPy modules", "short", whole)
    assert Process("NumPy modules", "step", 0, arguments, new=True).wait() == 0
    wanted = content(whole)
    compare(whole, wanted)
    for name, damage in (
        ("metrics.csv", lambda old: old + old.splitlines(keepends=True)[-1]),  # a row twice
        ("metrics.csv", lambda old: b"".join(old.splitlines(keepends=True)[:-1])),  # one missing
        ("model.safetensors", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(LostError):
            compare(folder, wanted)
        shutil.rmtree(folder)
