"""Reproducing the reports: what was run stays, what was interrupted goes on, the page tells it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import ROOT
from data_files import write_cifar
from matplotlib.image import imread

from handgrad.errors import UserError
from handgrad.files import locked
from handgrad.reproduction import command, reproduce, runs
from handgrad.reproduction.page import duration, mean_and_spread
from handgrad.reproduction.rows import SECTIONS, Experiment, Section
from handgrad.reproduction.runs import Commands, Run
from handgrad.training.checkpoint import Checkpoint

REAL = [experiment for section in SECTIONS for experiment in section.experiments]
SHORT = Experiment("short", "train-mlp-numpy --epochs 2", "0.9 or so", 1, "--epochs 1", (0, 1))
LONG = Experiment(
    "long", "train-mlp-numpy --max-steps 1000000000 --eval-every 50 --hidden-dims 16",
    "0.5 (validation)", 2, "--max-steps 5", figure=False,
)  # fmt: skip
TORCH = Experiment("torch", "train-mlp-pytorch --max-steps 5", "a figure", 3, "", figure=False)


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
    assert not quick or settings.warmup_steps <= (settings.max_steps or 0)


def test_rows_have_names_of_their_own() -> None:
    assert len({experiment.name for experiment in REAL}) == len(REAL) == 23


def test_page_pictures_and_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, LONG, SHORT)
    argv = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]
    assert command.main([*argv, "--only", "short"]) == 0
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
    assert command.main([*argv, "--only", "short"]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    assert (tmp_path / "page/results.md").read_text() == page


def _change(path: Path, **changes: Any) -> None:
    """Change values in a JSON file, and in the dictionaries in it."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def _has_begun(checkpoint: Path) -> bool:
    return checkpoint.exists() and Checkpoint.load(checkpoint).progress["step"] > 0


def test_an_interrupted_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, LONG)
    argv = ["--runs", str(tmp_path)]
    run = Run(LONG, 0, tmp_path, False)
    # Stopped once there is a checkpoint.
    original = subprocess.Popen.wait

    def wait(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        while self.poll() is None and not _has_begun(run.folder / "checkpoint.safetensors"):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)  # SIGINT may be ignored
        return original(self, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", wait)
        assert command.main(argv) == 143
    assert "goes on from here" in capsys.readouterr().err
    before = run.cost()
    assert before is not None
    assert (before.begun, before.ended, before.finished) == (1, 1, False)
    assert run.result() is None and "| not run |" in (tmp_path / "results.md").read_text()

    # It never ends by itself: from here on, its end is near.
    steps = Checkpoint.load(run.folder / "checkpoint.safetensors").progress["step"] + 20
    shorter = replace(LONG, command=LONG.command.replace("1000000000", str(steps)))
    _change(run.folder / "config.json", settings={"max_steps": steps})
    _use(monkeypatch, shorter)
    run = Run(shorter, 0, tmp_path, False)
    assert command.main(argv) == 0
    assert "going on from step" in run.log.read_text()
    result = run.result()
    assert result is not None and result.cost is not None and result.summary["steps"] == steps
    assert result.cost.begun == 2 and result.cost.wall_seconds > before.wall_seconds
    assert "≥" not in (tmp_path / "results.md").read_text()


def test_a_closed_terminal_stops_the_command_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        sent: ClassVar[list[int]] = []

        def poll(self) -> None:
            return None

        def send_signal(self, number: int) -> None:
            self.sent.append(number)

    commands = runs.Commands()
    monkeypatch.setattr(commands, "_process", Process())
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with commands.signals_caught():
            signal.raise_signal(signal.SIGHUP)  # the kernel's
            signal.raise_signal(signal.SIGHUP)  # the shell's
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert commands.stop_signal == signal.SIGHUP and Process.sent == [signal.SIGTERM]


def test_what_was_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, _finished_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(_finished_once, tmp_path, dirs_exist_ok=True)
    short = replace(SHORT, seeds=(0,))
    _use(monkeypatch, short)
    argv = ["--runs", str(tmp_path)]
    run = Run(short, 0, tmp_path, False)
    for path in run.folder.iterdir():
        if path.name not in ("config.json", "metrics.csv"):
            path.unlink()
    cost = runs.Cost(begun=1, date="2000-01-01")  # killed with us: nobody knows how long it took
    run._write(cost)
    assert command.main(argv) == 0
    after = run.cost()
    assert after is not None and after.begun == 2 and "≥" in (tmp_path / "results.md").read_text()


def test_a_run_of_other_settings_is_left_alone(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, replace(SHORT, seeds=(0,)))
    argv = ["--runs", str(finished)]
    assert command.main(argv) == 0
    capsys.readouterr()
    _use(monkeypatch, replace(SHORT, seeds=(0,), command="train-mlp-numpy --epochs 2 --lr 0.05"))
    assert command.main(argv) == 2
    message = capsys.readouterr().err
    assert "short/seed-0" in message.replace(os.sep, "/") and "lr 0.1" in message
    assert message.count("\n") == 1
    (finished / "short/seed-0/config.json").unlink()
    assert command.main(argv) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_failure_does_not_keep_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Experiment("broken", "train-mlp-numpy --lr 1e30", "-", 0.5, "", figure=False)
    monkeypatch.setattr(reproduce.importlib.util, "find_spec", lambda name: None)
    _use(monkeypatch, broken, replace(SHORT, seeds=(0,)), TORCH)
    assert command.main(["--runs", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "short, seed 0: test accuracy" in out
    assert "broken, seed 0: exit status 2: error:" in err
    assert "torch, seed 0: needs PyTorch" in err and "handgrad[torch]" in err
    assert "not finished: broken, seed 0; torch, seed 0" in err


def test_a_shortened_run_has_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, SHORT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert command.main(["--quick"]) == 0
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
        (["--seeds", str(2**64)], "from 0 to 18446744073709551615"),
        (["--seeds", "9" * 5000], "from 0 to 18446744073709551615"),
        (["--bogus"], "unknown option --bogus; --help"),
        (["--onyl", "convnet"], "did you mean --only?"),
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
    assert command.main(argv) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    with locked(tmp_path):
        assert command.main(["--runs", str(tmp_path)]) == 2
    assert "another reproduce is at work" in capsys.readouterr().err


@pytest.fixture(scope="module")
def _finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of ``SHORT``, both seeds."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        _use(patch, SHORT)
        assert command.main(["--runs", str(folder)]) == 0
    return folder


@pytest.fixture
def finished(tmp_path: Path, _finished_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of finished runs of ``SHORT``, which nothing may train again."""
    monkeypatch.setattr(Commands, "run", lambda *_: pytest.fail("run again"))
    _use(monkeypatch, SHORT)
    shutil.copytree(_finished_once, tmp_path / "runs")
    return tmp_path / "runs"


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_without_its_record_is_finished(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "short/seed-1.json").unlink()
    (finished / "short/seed-1/checkpoint.safetensors").unlink()
    before = _files(finished / "short")
    assert command.main(["--runs", str(finished)]) == 0
    assert _files(finished / "short") == before
    assert capsys.readouterr().out.count("finished before") == 2
    page = (finished / "results.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `short`")]
    assert "| 0, 1 |" in row and row.endswith("| – | – |")


def test_what_cannot_go_on_is_not_removed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("summary.json", "checkpoint.safetensors"):
        (finished / "short/seed-1" / name).unlink()
    before = _files(finished / "short")
    assert command.main(["--runs", str(finished)]) == 1
    assert _files(finished / "short") == before
    assert "without a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", [False, True])
def test_nothing_is_touched_under_a_training_that_goes_on(
    finished: Path, capsys: pytest.CaptureFixture[str], checkpoint: bool
) -> None:
    pytest.importorskip("fcntl")
    folder = finished / "short/seed-0"
    kept = ["config.json", "metrics.csv"] + ["checkpoint.safetensors"] * checkpoint
    for path in [folder.with_suffix(".json"), *folder.iterdir()]:
        if path.name not in kept:
            path.unlink()
    before = _files(finished / "short")
    with locked(folder):
        assert command.main(["--runs", str(finished)]) == 1
    out, err = capsys.readouterr()
    assert "another process is still training in" in err and "seed 1: finished before" in out
    assert "not finished: short, seed 0" in err
    assert _files(finished / "short") == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_training_does_not_outlive_a_killed_reproduce(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "long/seed-0"
    arguments = [*LONG.command.split()[1:], "--out", str(folder), "--quiet"]
    code = (
        "from pathlib import Path\nfrom handgrad.reproduction.runs import Commands\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        f"Commands().run('train-mlp-numpy', {arguments!r}, log)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        while not _has_begun(folder / "checkpoint.safetensors"):
            assert parent.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.005)
        parent.kill()
    with locked(folder, wait=True):  # for good, if it went on
        assert "stopped after step" in (tmp_path / "log").read_text()


def test_settings_that_came_later_have_their_defaults(finished: Path) -> None:
    path = finished / "short/seed-0/config.json"
    config = json.loads(path.read_text())
    for name in ("live", "report", "warmup_steps"):
        del config["settings"][name]
    path.write_text(json.dumps(config))
    assert command.main(["--runs", str(finished)]) == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("seed-0/summary.json", '{"a": 1}'),
        ("seed-0/config.json", '{"settings": null}'),
        ("seed-0/config.json", '{"settings": {"lr": "x"}}'),
        ("seed-0/config.json", '{"settings": {"epochs": 2, "batch_size": 32}, "versions": 1}'),
        ("seed-0/metrics.csv", "nothing"),
        ("seed-0.json", '{"begun": 1, "ended": 1, "finished": true, "date": 5}'),
        ("seed-0.json", "{"),
    ],
)
def test_a_damaged_run_does_not_keep_the_others(
    name: str, content: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "short" / name).write_text(content)
    assert command.main(["--runs", str(finished)]) == 1
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert str(Path("short") / name) in first and last == "not finished: short, seed 0"
    assert "seed 1: finished before" in out
    assert "| 1 of 2 |" in (finished / "results.md").read_text()


def test_curves_of_different_lengths_are_drawn(finished: Path) -> None:
    metrics = finished / "short/seed-1/metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-2]))
    assert command.main(["--runs", str(finished)]) == 0


def test_the_page_keeps_seeds_that_are_not_asked_for(finished: Path) -> None:
    assert command.main(["--runs", str(finished), "--seeds", "1"]) == 0
    page = (finished / "results.md").read_text()
    assert "| 0, 1 |" in page and "--seed S`" in page


def test_what_is_not_asked_for_is_not_in_the_way(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, LONG, SHORT)
    (finished / "long").mkdir()
    (finished / "long/seed-0").write_text("a stray file")
    assert command.main(["--runs", str(finished), "--only", "short"]) == 0
    assert "| not run |" in (finished / "results.md").read_text()
    assert command.main(["--runs", str(finished)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_standard_error_may_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, replace(SHORT, seeds=(0,)))
    monkeypatch.setattr(sys, "stderr", None)
    assert command.main(["--runs", str(tmp_path), "--quick"]) == 0


def test_whatever_goes_wrong_while_waiting_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commands = Run(LONG, 0, tmp_path, False), Commands()
    children = []

    def wait(process: subprocess.Popen[bytes], log: Path) -> int:
        children.append(process)
        raise UserError("a terminal that is gone")

    monkeypatch.setattr(commands, "_wait", wait)
    with pytest.raises(UserError, match="gone"):
        run.execute(None, commands)
    assert children[0].poll() is not None


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
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
    assert Commands().run("train-mlp-numpy", ["--help"], log) == 0
    assert "train-mlp-numpy" in log.read_text()
