"""Reproducing the reports: what was run stays, what was interrupted goes on, the page tells it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from data_files import write_cifar
from matplotlib.image import imread

from scripts import reproduce
from scripts.reproducing import runs
from scripts.reproducing.experiments import SECTIONS, Experiment, Section
from scripts.reproducing.page import duration, mean_and_spread
from scripts.reproducing.runs import Commands, Run
from training.checkpoint import Checkpoint

REAL = [experiment for section in SECTIONS for experiment in section.experiments]
SHORT = Experiment(
    "short", "train-mlp-numpy --epochs 2", "0.9 or so", 0.9, 1, "--epochs 1", (0, 1), figure=True
)
LONG = Experiment(
    "long", "train-mlp-numpy --max-steps 4000 --eval-every 50 --hidden-dims 16",
    "0.5", 0.5, 2, "--max-steps 5", measure="validation",
)  # fmt: skip
TORCH = Experiment("torch", "train-mlp-pytorch --max-steps 5", "a figure", None, 3, "")


def _use(monkeypatch: pytest.MonkeyPatch, *experiments: Experiment) -> None:
    section = Section("A report", "What it says.", experiments, "What is to be noted.")
    monkeypatch.setattr(reproduce, "SECTIONS", (section,))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("experiment", REAL, ids=lambda experiment: experiment.name)
def test_the_commands_of_all_rows_are_accepted(experiment: Experiment, quick: bool) -> None:
    settings = experiment.settings(7, quick)
    assert settings.seed == 7
    assert settings.dataset in ("cifar10", "mnist")
    assert settings.epochs is None or not quick


def test_rows_have_names_of_their_own() -> None:
    assert len({experiment.name for experiment in REAL}) == len(REAL) == 16


def test_page_pictures_and_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, LONG, SHORT)
    argv = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]
    assert reproduce.main([*argv, "--only", "short"]) == 0
    page = (tmp_path / "page/results.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `short`")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "`train-mlp-numpy --epochs 2 --data-dir DATA --seed S`"
    found = [Run(SHORT, seed, tmp_path / "runs", False).result() for seed in (0, 1)]
    first, second = (result.test for result in found if result is not None)
    assert cells[4] == mean_and_spread([first, second])
    assert first != second and cells[5] == "0, 1"
    assert "| not run |" in page and "| `long` |" in page
    assert "## A report" in page and "What is to be noted." in page and "cores" in page
    for name in ("short", "overview"):
        assert f"](results/{name}.png)" in page
        assert imread(tmp_path / f"page/results/{name}.png")[..., :3].std() > 0.01
    capsys.readouterr()

    monkeypatch.setattr(Commands, "run", lambda *_: pytest.fail("run again"))
    assert reproduce.main([*argv, "--only", "short"]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    assert (tmp_path / "page/results.md").read_text() == page


def _has_begun(checkpoint: Path) -> bool:
    return checkpoint.exists() and Checkpoint.load(checkpoint).progress["step"] > 0


def test_an_interrupted_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, LONG)
    argv = ["--runs", str(tmp_path)]
    run = Run(LONG, 0, tmp_path, False)
    # Stopped once there is a checkpoint, as Ctrl-C does.
    original = subprocess.Popen.wait

    def wait(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        while self.poll() is None and not _has_begun(run.folder / "checkpoint.safetensors"):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", wait)
        assert reproduce.main(argv) == 130
    assert "goes on from here" in capsys.readouterr().err
    before = run.cost()
    assert (before.begun, before.ended, before.finished) == (1, 1, False)
    assert run.result() is None and "| not run |" in (tmp_path / "results.md").read_text()

    assert reproduce.main(argv) == 0
    assert "going on from step" in run.log.read_text()
    result = run.result()
    assert result is not None and result.summary["steps"] == 4000
    assert result.cost.begun == 2 and result.cost.wall_seconds > before.wall_seconds
    assert "≥" not in (tmp_path / "results.md").read_text()


def test_what_was_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(SHORT, seeds=(0,))
    _use(monkeypatch, short)
    argv = ["--runs", str(tmp_path)]
    assert reproduce.main(argv) == 0
    run = Run(short, 0, tmp_path, False)
    for path in run.folder.iterdir():
        if path.name not in ("config.json", "metrics.csv"):
            path.unlink()
    cost = runs.Cost(begun=1, date="2000-01-01")  # killed with us: nobody knows how long it took
    run._write(cost)
    assert reproduce.main(argv) == 0
    assert run.cost().begun == 2 and "≥" in (tmp_path / "results.md").read_text()


def test_a_run_of_other_settings_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, replace(SHORT, seeds=(0,)))
    argv = ["--runs", str(tmp_path)]
    assert reproduce.main(argv) == 0
    capsys.readouterr()
    _use(monkeypatch, replace(SHORT, seeds=(0,), command="train-mlp-numpy --epochs 2 --lr 0.05"))
    assert reproduce.main(argv) == 2
    message = capsys.readouterr().err
    assert "short/seed-0" in message.replace(os.sep, "/") and "lr 0.1" in message
    assert message.count("\n") == 1
    (tmp_path / "short/seed-0/config.json").unlink()
    assert reproduce.main(argv) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_failure_does_not_keep_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Experiment("broken", "train-mlp-numpy --lr 1e30", "-", None, 0.5, "")
    monkeypatch.setattr(reproduce.importlib.util, "find_spec", lambda name: None)
    _use(monkeypatch, broken, replace(SHORT, seeds=(0,)), TORCH)
    assert reproduce.main(["--runs", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "short, seed 0: test accuracy" in out
    assert "broken, seed 0: exit status 2: error:" in err
    assert "torch, seed 0: needs PyTorch" in err and "handgrad[torch]" in err
    assert "not finished: broken, seed 0; torch, seed 0" in err


def test_a_shortened_run_has_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, SHORT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert reproduce.main(["--quick"]) == 0
    page = (tmp_path / "runs/reproduce-quick/results-quick.md").read_text()
    assert "`short`, shortened" in page and "Shortened trainings" in page
    assert "--epochs 1" in page
    assert not list(tmp_path.rglob("results.md"))
    assert not (tmp_path / "runs/reproduce-quick/short/seed-1").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--only", "convnt"], "did you mean convnet?"),
        (["--only", "zzz"], "expected one of: numpy-mlp"),
        (["--seeds", "1.5"], "--seeds 1.5"),
        (["--data-dir", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(argv) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    from training.lock import locked

    with locked(tmp_path):
        assert reproduce.main(["--runs", str(tmp_path)]) == 2
    assert "another reproduce is at work" in capsys.readouterr().err


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {e.name} " in out and e.command in out for e in REAL)


def test_spread_and_durations() -> None:
    assert mean_and_spread([0.5]) == "0.5000"
    assert mean_and_spread([0.46, 0.48, 0.47]) == "0.4700 (0.4600–0.4800)"
    assert duration(119.4) == "119 s"
    assert duration(150) == "2.5 min"


def test_official_files_are_known_by_their_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    lists = [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]
    assert dict(lists) == runs._OFFICIAL and datasets.CIFAR10.tgz_md5 == runs._OFFICIAL_ARCHIVE
    assert runs.official_cifar10(tmp_path) is None
    write_cifar(tmp_path / "cifar-10-batches-py")
    assert runs.official_cifar10(tmp_path) is False
    sums = {n: runs._md5(tmp_path / "cifar-10-batches-py" / n) for n in runs._OFFICIAL}
    monkeypatch.setattr(runs, "_OFFICIAL", sums)
    assert runs.official_cifar10(tmp_path) is True


def test_commands_do_not_meet_a_package_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/__init__.py").write_text("raise ImportError('not ours')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    log = tmp_path / "log"
    command = [sys.executable, "-P", "-m", "scripts.train_mlp_numpy", "--help"]
    assert Commands().run(command, log) == 0
    assert "train-mlp-numpy" in log.read_text()
