"""Runs that are taken up again, finished or not: what is said, and what they then do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handgrad
from handgrad.backends.command import train
from handgrad.backends.common import build_schedule
from handgrad.backends.mlp_numpy import NumpyMLPSettings
from handgrad.backends.registry import NETWORKS
from handgrad.errors import UserError
from handgrad.runs.resumption import changed_circumstances, changed_course
from handgrad.runs.settings import TrainSettings
from handgrad.training.checkpoint import load_arrays
from handgrad.training.metrics import read_metrics

SMALL = "--hidden-dims 8 --batch-size 100 --threads 1"  # 13 steps an epoch
COMMANDS = {
    "modules": ("mlp-numpy", SMALL),
    "graph": ("mlp-numpy", f"{SMALL} --engine graph"),
    "pytorch": ("mlp-pytorch", f"{SMALL} --precision float32"),
    "convnet": ("convnet", "--model vu-convnet --threads 1 --precision float32 --max-steps 2"),
}


def _train(folder: Path, options: str, network: str = "mlp-numpy") -> int:
    return train(network, [*options.split(), "--out", str(folder), "--quiet"])


def _resume(folder: Path, options: str = "", network: str = "mlp-numpy") -> int:
    return train(network, ["--resume", str(folder), *options.split(), "--quiet"])


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _rates(folder: Path) -> list[tuple[int, float]]:
    rows = read_metrics(folder / "metrics.csv")
    return [(row.step, row.learning_rate) for row in rows if row.split == "validation"]


def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_run_says_so_and_stays_as_it_is(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, options = COMMANDS[command]
    end = "--max-steps 2" if command == "convnet" else "--epochs 1"
    folder = tmp_path / "run"
    assert _train(folder, f"{options} {end}", network) == 0
    before, summary = _contents(folder), json.loads((folder / "summary.json").read_text())
    capsys.readouterr()
    assert _resume(folder, network=network) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        f"the run in {folder} is finished, with {end} and a test accuracy of "
        f"{summary['test_accuracy']:.4f}; a larger {end.partition(' ')[0]} extends it\n"
    )
    assert captured.err == ""
    assert _contents(folder) == before
    assert _resume(folder, f"{end} --target-accuracy 1", network) == 1
    assert _contents(folder) == before


@pytest.mark.parametrize("missing", ["loss.png", "model.safetensors", "summary.json"])
def test_a_result_that_is_not_whole_is_completed(missing: str, tmp_path: Path) -> None:
    assert _train(tmp_path / "run", f"{SMALL} --max-steps 3") == 0
    before = (tmp_path / "run" / missing).read_bytes()
    (tmp_path / "run" / missing).unlink()
    assert _resume(tmp_path / "run") == 0
    after = (tmp_path / "run" / missing).read_bytes()
    assert after == before or missing == "summary.json"  # which has the seconds


def test_an_extended_run_that_ends_while_it_draws_keeps_no_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert _train(folder, f"{SMALL} --max-steps 3") == 0
    old = (folder / "loss.png").read_bytes()
    with monkeypatch.context() as context:
        _no_pictures(context)
        assert _resume(folder, "--max-steps 6") == 0
    assert not (folder / "loss.png").exists()
    assert _resume(folder) == 0
    assert (folder / "loss.png").read_bytes() != old


def test_a_page_is_made_of_a_finished_run(tmp_path: Path) -> None:
    assert _train(tmp_path / "run", f"{SMALL} --max-steps 3") == 0
    assert _resume(tmp_path / "run", "--report") == 0
    assert (tmp_path / "run" / "report.html").exists()
    (tmp_path / "run" / "report.html").unlink()
    assert _resume(tmp_path / "run") == 0, "the page is the run's from then on"
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("schedule", "then", "now"),
    [("step", "0.0001", "0.01"), ("cosine", "0", "0.05")],
)
def test_an_extension_says_how_it_changes_the_learning_rate(
    schedule: str,
    then: str,
    now: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _no_pictures(monkeypatch)
    folder = tmp_path / "run"
    assert _train(folder, f"{SMALL} --schedule {schedule} --epochs 3") == 0
    capsys.readouterr()
    assert _resume(folder, "--epochs 6") == 0
    err = capsys.readouterr().err
    assert err.startswith(
        f"warning: the learning rate changes from {then} to {now} at step 39, as "
    )
    assert f"{schedule} schedule now spans --epochs 6 instead of --epochs 3; " in err
    assert "--schedule-steps 39\n" in err and err.count("\n") == 1
    assert dict(_rates(folder))[65] != float(then)
    assert _resume(folder) == 0, "done"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["modules", "graph", "pytorch"])
@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_a_run_may_go_on_at_the_rate_of_its_end(
    command: str,
    schedule: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _no_pictures(monkeypatch)
    network, options = COMMANDS[command]
    options = f"{options} --schedule {schedule} --warmup-steps 3"
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert _train(folder, f"{options} --epochs 3", network) == 0
    before = _rates(folder)
    capsys.readouterr()
    assert _resume(folder, "--epochs 5 --schedule-steps 39", network) == 0
    assert capsys.readouterr().err == ""
    assert _rates(folder) == [*before, (52, before[-1][1]), (65, before[-1][1])]
    # Recorded: whoever extends it again need not know of it, and it is as if begun so.
    assert _resume(folder, "--epochs 6", network) == 0
    assert capsys.readouterr().err == ""
    assert _train(whole, f"{options} --epochs 6 --schedule-steps 39", network) == 0
    arrays, expected = (load_arrays(path / "checkpoint.safetensors")[0] for path in (folder, whole))
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)
    assert _rates(folder) == _rates(whole)


def test_what_an_extension_changes_later_is_said_too() -> None:
    backend = NETWORKS["mlp-numpy"].backend()
    before, now = (NumpyMLPSettings(schedule="step", epochs=n) for n in (3, 6))
    for step in (0, 12):
        (line,) = changed_course(backend, before, now, step, 13)
        assert line.startswith("the learning rate changes from 0.0001 to 0.01 at step 39, ")
    (line,) = changed_course(backend, now, before, 14, 13)  # it is shortened, as well
    assert line.startswith("the learning rate changes from 0.1 to 0.01 at step 14, ")
    own = replace(before, schedule="cosine", epochs=6, schedule_steps=60)
    (line,) = changed_course(backend, replace(before, schedule="cosine"), own, 39, 13)
    assert line.endswith("at step 39, as the cosine schedule now spans --schedule-steps 60")


def test_damage_is_no_result(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert _train(folder, f"{SMALL} --max-steps 3") == 0
    config, summary = (
        json.loads((folder / name).read_text()) for name in ("config.json", "summary.json")
    )
    (folder / "summary.json").write_text(json.dumps(summary | {"test_accuracy": None}))
    (folder / "config.json").write_text(json.dumps(config | {"began_with": 3}))
    assert _resume(folder) == 0
    again = json.loads((folder / "summary.json").read_text())
    assert again["test_accuracy"] == summary["test_accuracy"]


def test_no_word_where_the_course_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_pictures(monkeypatch)
    for name, options in {"a": "--warmup-steps 2", "b": "--schedule step --step-size 5"}.items():
        assert _train(tmp_path / name, f"{SMALL} {options} --epochs 1") == 0
        assert _resume(tmp_path / name, "--epochs 2") == 0
    assert capsys.readouterr().err == ""


def test_the_schedule_ends_and_its_last_rate_stays() -> None:
    settings = TrainSettings(schedule="cosine", lr=0.1, schedule_steps=4)
    schedule = build_schedule(settings, 100)
    plain = build_schedule(TrainSettings(schedule="cosine", lr=0.1), 4)
    assert [schedule(i) for i in range(5)] == [plain(i) for i in range(5)]
    assert {schedule(i) for i in range(4, 100)} == {plain(4)}
    with pytest.raises(UserError, match="4 is for --schedule step, cosine or linear"):
        build_schedule(TrainSettings(schedule_steps=4), 100)
    with pytest.raises(UserError, match="exceeds the 4 steps of --schedule-steps 4"):
        build_schedule(TrainSettings(schedule="step", warmup_steps=5, schedule_steps=4), 100)
    with pytest.raises(UserError, match="exceeds the 4 steps of --epochs 2"):
        build_schedule(TrainSettings(epochs=2, warmup_steps=5), 4)


def test_the_page_says_of_which_runs_the_course_was_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_pictures(monkeypatch)
    for options, said in ((" --schedule-steps 13", False), ("", True)):
        folder = tmp_path / f"run{said}"
        assert _train(folder, f"{SMALL} --schedule cosine --epochs 1") == 0
        assert _resume(folder, f"--epochs 2 --report{options}") == 0
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert ("its learning rates were others until then" in page) == said


def test_from_python_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_pictures(monkeypatch)
    options: dict[str, Any] = {"hidden_dims": 8, "batch_size": 100, "schedule": "cosine"}
    folder = tmp_path / "run"
    handgrad.train("mlp-numpy", epochs=1, out=folder, quiet=True, **options)
    capsys.readouterr()
    run = handgrad.train("mlp-numpy", resume=folder, epochs=2, quiet=True)
    err = capsys.readouterr().err
    assert "spans epochs 2 instead of epochs 1" in err and "add schedule_steps 13\n" in err
    assert run.summary["steps"] == 26
    with pytest.raises(UserError, match=r"at epoch 2\.00 already, beyond epochs 1; "):
        handgrad.train("mlp-numpy", resume=folder, epochs=1)


@pytest.mark.parametrize("command", ["modules", "pytorch"])
def test_another_number_of_threads_is_said(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _no_pictures(monkeypatch)
    network, options = COMMANDS[command]
    folder = tmp_path / "run"
    assert _train(folder, f"{options} --epochs 1", network) == 0
    for epochs in (2, 3):  # each time, as it is what the run began with that counts
        capsys.readouterr()
        assert _resume(folder, f"--epochs {epochs} --threads 2", network) == 0
        err = capsys.readouterr().err
        assert err.startswith("warning: the run began with 1 thread and goes on with 2: ")
        assert err.endswith("; --threads 1 keeps them\n") and err.count("\n") == 1
    assert _resume(folder, "--epochs 4 --threads 1", network) == 0
    assert capsys.readouterr().err == ""


def test_another_number_of_processes_is_said() -> None:
    lines = list(changed_circumstances({"threads": None, "processes": 4}, {"processes": 1}))
    assert len(lines) == 1 and lines[0].startswith("the run began with 4 processes and goes on")
    assert list(changed_circumstances({}, {"threads": 2, "processes": 1})) == []


def test_how_a_run_is_watched_is_asked_for_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_pictures(monkeypatch)
    folder = tmp_path / "run"
    assert _train(folder, f"{SMALL} --epochs 1") == 0
    assert "epoch  1.00" not in capsys.readouterr().out
    assert train("mlp-numpy", ["--resume", str(folder), "--epochs", "2", "--live"]) == 0
    out = capsys.readouterr().out
    assert (
        "2 epochs, 26 steps of 100 images\ngoing on from step 13 of 26 (epoch 1.00 of 2) in " in out
    )
    assert "epoch  2.00" in out
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings["live"] and not settings["quiet"]
    assert _resume(folder, "--epochs 3") == 0
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings["quiet"] and not settings["live"]


def test_errors_speak_in_the_unit_that_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_pictures(monkeypatch)
    folder = tmp_path / "run"
    assert _train(folder, f"{SMALL} --epochs 2") == 0
    assert _resume(folder, "--epochs 1") == 2
    assert "is at epoch 2.00 already, beyond --epochs 1; " in capsys.readouterr().err
    assert _resume(folder, "--max-steps 13") == 2
    assert "is at step 26 already, beyond --max-steps 13; " in capsys.readouterr().err


@pytest.mark.parametrize("other", ["mlp-pytorch", "convnet-numpy"])
def test_a_run_of_another_command_is_named(
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _no_pictures(monkeypatch)
    assert _train(tmp_path / "run", f"{SMALL} --max-steps 1") == 0
    assert _resume(tmp_path / "run", "--max-steps 2", other) == 2
    assert f"is one of train-mlp-numpy, not of train-{other}" in capsys.readouterr().err
