"""The command as its users meet it: what it writes, what it prints, how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from conftest import ROOT
from data_files import write_cifar, write_mnist
from matplotlib.image import imread

from handgrad import load_run
from handgrad.backends.command import train_mlp_numpy as main
from handgrad.backends.common import build_schedule
from handgrad.backends.mlp_numpy import NumpyMLPSettings, build_learner
from handgrad.data import load_dataset
from handgrad.errors import UserError
from handgrad.training.checkpoint import Checkpoint, load_arrays
from handgrad.training.loop import Loop
from handgrad.training.metrics import COLUMNS, read_metrics

COMMAND = [sys.executable, str(ROOT / "scripts" / "train_mlp_numpy.py")]
PICTURES = {
    "loss.png", "accuracy.png", "confusion_matrix.png", "predictions.png", "first_layer.png",
}  # fmt: skip
FILES = PICTURES | {
    "config.json", "metrics.csv", "summary.json", "model.safetensors", "checkpoint.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a run with nothing but defaults."""
    folder = tmp_path_factory.mktemp("default") / "new" / "folder"
    result = subprocess.run(
        [*COMMAND, "--out", str(folder)], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return folder, result.stdout


def test_default_run_writes_every_file(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    assert {path.name for path in folder.iterdir()} == FILES
    for name in PICTURES:
        image = imread(folder / name)
        assert min(image.shape[:2]) > 200 and image[..., :3].std() > 0.01


def test_default_run_learns(default_run: tuple[Path, str]) -> None:
    folder, out = default_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.95
    assert f"test accuracy {summary['test_accuracy']:.4f}" in out
    assert f"run folder: {folder}" in out
    assert "digits: 1,296 train, 144 validation, 357 test images of 1×8×8" in out
    losses = [row.loss for row in read_metrics(folder / "metrics.csv") if row.split == "train"]
    assert losses[-1] < 0.1 * losses[0]


def test_summary(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() == {
        "dataset", "test_accuracy", "test_loss", "best_validation_accuracy", "weights_of_step",
        "steps", "seconds", "images_per_second", "peak_memory_bytes", "parameters", "per_class",
    }  # fmt: skip
    assert summary["dataset"] == "digits"
    assert summary["steps"] == 30 * 41
    assert 0 <= summary["weights_of_step"] <= summary["steps"]
    assert summary["parameters"] == 64 * 128 + 128 + 128 * 10 + 10
    assert summary["seconds"] > 0 and summary["images_per_second"] > 0
    per_class = summary["per_class"]
    assert list(per_class) == list("0123456789")
    assert sum(scores["images"] for scores in per_class.values()) == 357
    hits = sum(scores["recall"] * scores["images"] for scores in per_class.values())
    assert hits / 357 == pytest.approx(summary["test_accuracy"])
    for scores in per_class.values():
        p, r = scores["precision"], scores["recall"]
        assert scores["f1"] == pytest.approx(2 * p * r / (p + r))


def test_config(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    config = json.loads((folder / "config.json").read_text())
    assert config["commands"] == [f"train-mlp-numpy --out {folder}"]
    assert config["settings"]["lr"] == 0.1 and config["settings"]["dataset"] == "digits"
    assert config["settings"].keys() == {field.name for field in fields(NumpyMLPSettings)}
    assert config["versions"]["numpy"] == np.__version__


def test_metrics(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    assert (folder / "metrics.csv").read_text().startswith(",".join(COLUMNS) + "\n")
    rows = read_metrics(folder / "metrics.csv")
    assert {row.split for row in rows} == {"train", "validation"}, "the test set waits for the end"
    assert [row.epoch for row in rows if row.split == "validation"] == list(range(31))


def test_no_pickle_anywhere(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x93NUMPY"))
        if path.suffix == ".safetensors":
            header = int.from_bytes(content[:8], "little")
            assert isinstance(json.loads(content[8 : 8 + header]), dict)
            load_arrays(path)
        else:
            assert not content.startswith(b"\x80")


def test_quiet_prints_the_result_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["--max-steps", "2", "--quiet", "--out", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("test accuracy ") and out.endswith(f"run folder: {folder}\n")
    assert len(out.splitlines()) == 2 and err == ""


@pytest.mark.parametrize(("target", "status"), [("0.01", 0), ("1.0", 1)])
def test_target_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, status: int
) -> None:
    argv = ["--max-steps", "2", "--target-accuracy", target, "--out", str(tmp_path / "run")]
    assert main(argv) == status
    assert ("below --target-accuracy 1" in capsys.readouterr().err) == bool(status)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert main(["--max-steps", "1", "--hidden-dims", "--quiet", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    shapes = [array.shape for array in load_arrays(tmp_path / "model.safetensors")[0].values()]
    assert sorted(shapes) == [(10,), (10, 64)], "logistic regression"


@pytest.mark.parametrize(
    "options",
    [
        "--dataset cifar10 --data_dir {data} --dnn_hidden_units 8,8 --learning_rate 2e-3"
        " --max_steps 3 --batch_size 20 --eval_freq 2 --neg_slope 0.02",
        "--data_dir {data} --hidden_dims 8 4 --lr 0.1 --batch_size 16 --epochs 1 --seed 42"
        " --use_batch_norm --augment flip,crop --optimizer adamw --schedule step --activation elu",
        "--preset uva-2018 --data-dir {data} --max-steps 2 --batch-size 50",
    ],
)
def test_colour_images_in_the_courses_spellings(tmp_path: Path, options: str) -> None:
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    argv = options.format(data=tmp_path / "data").split()
    assert main([*argv, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dataset"] == "cifar10" and summary["steps"] >= 2


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "--epochs", "100000", "--hidden-dims", "8", "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("step") and "train loss" in line:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        err = process.stderr.read()
    assert process.returncode == 130
    assert err.startswith("stopped after step ") and err.count("\n") == 1
    assert f"train_mlp_numpy.py --resume {folder}" in err
    step = Checkpoint.load(folder / "checkpoint.safetensors").progress["step"]
    assert f"stopped after step {step} of 4100000" in err
    assert main(["--resume", str(folder), "--max-steps", str(step + 5)]) == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "summary.json").read_text())["steps"] == step + 5


def test_help() -> None:
    result = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: train-mlp-numpy")
    assert "--hidden-dims" in result.stdout and "uva-2018" in result.stdout


BAD_OPTIONS = {
    "--lr 0": "--lr 0",
    "--lr nan": "--lr nan",
    "--batch-size -3": "--batch-size -3",
    "--batch-size many": "--batch-size",
    "--batch-size 1297": "--batch-size 1297 is larger than the 1296 training images",
    "--hidden-dims 0": "--hidden-dims 0",
    "--hidden-dims ten": "--hidden-dims",
    "--dataset cifr10": "did you mean cifar10?",
    "--dataset xyz": "expected one of: digits, mnist, cifar10",
    "--preset uva-2008": "did you mean uva-2018?",
    "--learnin-rate 1": "did you mean --learning-rate?",
    "--epochs 3 --max-steps 3": "--epochs and --max-steps",
    "--validation-size 1440": "--validation-size 1440",
    "--warmup-steps 10 --max-steps 9": "--warmup-steps 10",
    "--nesterov": "--momentum",
    "--resume missing": "missing",
    "--resume missing --lr 1": "--lr",
}


def _assert_refused(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], status: int = 2
) -> None:
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert said in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(("line", "said"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_bad_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _assert_refused(line.split(), said, capsys)
    assert list(tmp_path.iterdir()) == []


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_out_that_is_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("precious")
    before = _content(tmp_path)
    _assert_refused(["--out", str(tmp_path)], "exists and is not empty", capsys)
    assert _content(tmp_path) == before


@pytest.mark.parametrize("below", ["", "run", "some/run"])
def test_out_that_is_a_file_or_below_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "file").write_text("precious")
    _assert_refused(["--out", str(tmp_path / "file" / below)], str(tmp_path / "file"), capsys)
    assert _content(tmp_path) == {tmp_path / "file": b"precious"}


@pytest.mark.parametrize(
    ("dataset", "file"),
    [("cifar10", "cifar-10-python.tar.gz"), ("mnist", "train-images-idx3-ubyte.gz")],
)
def test_no_data_and_no_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    dataset: str,
    file: str,
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise requests.ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requests, "get", unreachable)
    (tmp_path / "data").mkdir()
    argv = ["--dataset", dataset, "--data-dir", str(tmp_path / "data")]
    _assert_refused(argv, str(tmp_path / "data"), capfd)
    main(argv)
    err = capfd.readouterr().err
    assert file in err and "--dataset digits" in err and "no connection" in err
    assert list(tmp_path.rglob("*")) == [tmp_path / "data"]


def test_damaged_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "data")
    path = tmp_path / "data" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:1000])
    _assert_refused(["--data-dir", str(tmp_path / "data")], str(path), capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", ["--lr 1e30", "--lr 1e200 --dtype float64"])
def test_divergence(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str) -> None:
    folder = tmp_path / "run"
    argv = [*options.split(), "--eval-every", "1000000", "--quiet", "--out", str(folder)]
    _assert_refused(argv, str(folder / "checkpoint.safetensors"), capsys)
    saved = Checkpoint.load(folder / "checkpoint.safetensors")
    assert saved.progress["step"] == 0
    assert all(np.isfinite(array).all() for array in saved.weights.values())
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics.csv", "checkpoint.safetensors",
    }  # fmt: skip


def _disk_full_after(monkeypatch: pytest.MonkeyPatch, n_files: int) -> None:
    """Let ``n_files`` files be replaced as a whole, and no other."""
    written, replace = 0, Path.replace

    def full(self: Path, target: Path) -> Path:
        nonlocal written
        written += 1
        if written > n_files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)


@pytest.mark.parametrize("n_files", [0, 1, 2, 3, 4, 7])
def test_full_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    n_files: int,
) -> None:
    folder = tmp_path / "run"
    argv = ["--max-steps", "4", "--eval-every", "1", "--quiet", "--out", str(folder)]
    with monkeypatch.context() as context:
        _disk_full_after(context, n_files)
        _assert_refused(argv, "No space left on device", capsys, status=3)
    if n_files < 3:  # the settings, the metrics, and then the first checkpoint
        assert not folder.exists(), "a run without a checkpoint is of no use"
        return
    written = {path.name for path in folder.iterdir()}
    assert written == {"config.json", "metrics.csv", "checkpoint.safetensors"}
    assert Checkpoint.load(folder / "checkpoint.safetensors").progress["step"] == n_files - 3
    assert main(["--resume", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == FILES


def test_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    _assert_refused(["--out", str(tmp_path / "run")], "choose another with --out", capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1] * 9),
        ({"warmup_steps": 2}, [0.05, 0.1] + [0.1] * 7),
        ({"schedule": "step"}, [0.1] * 3 + [0.01] * 3 + [0.001] * 3),
        ({"schedule": "step", "step_size": 5, "gamma": 0.5}, [0.1] * 5 + [0.05] * 4),
        ({"schedule": "cosine"}, [0.05 * (1 + np.cos(np.pi * t / 9)) for t in range(9)]),
        ({"schedule": "linear"}, [0.1 * (1 - t / 9) for t in range(9)]),
        (
            {"schedule": "linear", "warmup_steps": 4},
            [0.025, 0.05, 0.075, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02],
        ),
    ],
)
def test_schedules(options: dict[str, Any], expected: list[float]) -> None:
    schedule = build_schedule(NumpyMLPSettings(**options), 9)
    np.testing.assert_allclose([schedule(step) for step in range(9)], expected)


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "linear"])
def test_warm_up_longer_than_the_run(name: str) -> None:
    with pytest.raises(UserError, match="--warmup-steps 10 exceeds the 9 steps"):
        build_schedule(NumpyMLPSettings(schedule=name, warmup_steps=10), 9)


SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "activation": ({"activation": "tanh"}, lambda made: "Tanh" in repr(made.model)),
    "neg_slope": ({"neg_slope": 0.3}, lambda made: "0.3" in repr(made.model)),
    "dropout": ({"dropout": 0.25}, lambda made: "0.25" in repr(made.model)),
    "input_dropout": ({"input_dropout": 0.2}, lambda made: "0.2" in repr(made.model.layers[0])),
    "batch_norm": ({"batch_norm": True}, lambda made: "BatchNorm" in repr(made.model)),
    "dtype": (
        {"dtype": "float64"},
        lambda made: {array.dtype for array in made.weights().values()} == {np.dtype("f8")},
    ),
    "weight_std": ({"weight_std": 1e-4}, lambda made: made.first_layer().std() < 2e-4),
    "momentum": ({"momentum": 0.75}, lambda made: made.optimizer.momentum == 0.75),
    "weight_decay": ({"weight_decay": 0.5}, lambda made: set(made.optimizer.weight_decay) == {0.5}),
    "adamw decay": (
        {"optimizer": "adamw", "weight_decay": 0.5},
        lambda made: (
            type(made.optimizer).__name__ == "AdamW" and set(made.optimizer.weight_decay) == {0.5}
        ),
    ),
    "adam": (
        {"optimizer": "adam"},
        lambda made: type(made.optimizer).__name__ == "AdamW" and not made.optimizer.decoupled,
    ),
    "weight_decay_of": (
        {"weight_decay": 0.5, "weight_decay_of": "matrices"},
        lambda made: made.optimizer.weight_decay == [0.5, 0.0, 0.5, 0.0],
    ),
    "label_smoothing": ({"label_smoothing": 0.1}, lambda made: made.loss.label_smoothing == 0.1),
    "clip_grad_norm": ({"clip_grad_norm": 2.0}, lambda made: made.clip_grad_norm == 2),
    "ema": ({"ema": 0.9}, lambda made: made.ema is not None and made.ema.decay == 0.9),
    "nesterov": ({"momentum": 0.5, "nesterov": True}, lambda made: made.optimizer.nesterov),
    "hidden_dims": ({"hidden_dims": (7, 5)}, lambda made: made.first_layer().shape == (7, 64)),
}


@pytest.mark.parametrize(("options", "holds"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_reach_the_learner(options: dict[str, Any], holds: Callable[[Any], bool]) -> None:
    dataset = load_dataset("digits")
    assert holds(build_learner(NumpyMLPSettings(**options), dataset))
    if "weight_std" not in options and "hidden_dims" not in options:
        assert not holds(build_learner(NumpyMLPSettings(), dataset))


def test_the_seed_decides_the_initial_weights() -> None:
    dataset = load_dataset("digits")
    first, again, other = (
        build_learner(NumpyMLPSettings(seed=seed), dataset).first_layer() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_cifar10_in_a_hundred_steps(real_data: Path, tmp_path: Path) -> None:
    options = ["--preset", "uva-2018", "--max-steps", "100", "--data-dir", str(real_data)]
    # A process begins with the peak memory of the one that started it: put a small one in between.
    in_between = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    command = [sys.executable, "-c", in_between, *COMMAND, *options, "--quiet"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.30
    assert summary["peak_memory_bytes"] < 2**30
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row.step, row.split) for row in rows] == [(0, "test"), (100, "train"), (100, "test")]
    assert rows[0].loss == pytest.approx(np.log(10), abs=0.01), "knows nothing yet"


@pytest.mark.parametrize(
    ("dtype", "options", "tolerance"),
    [
        ("float32", "--momentum 0.9 --lr 0.02", 1e-5),
        ("float64", "--dropout 0.2 --batch-norm --activation sigmoid", 1e-10),
        (
            "float64",
            "--batch-norm --optimizer adam --weight-decay 1e-3 --weight-decay-of matrices "
            "--label-smoothing 0.1 --clip-grad-norm 0.5 --ema 0.9",
            1e-9,
        ),
    ],
)
def test_both_engines_give_the_same_run(
    tmp_path: Path, dtype: str, options: str, tolerance: float
) -> None:
    options = f"--dtype {dtype} {options} --max-steps 100 --eval-every 1 --quiet --seed 2"
    for engine in ("modules", "graph"):
        out = ["--engine", engine, "--out", str(tmp_path / engine)]
        assert main([*options.split(), *out]) == 0
    names = [{path.name for path in (tmp_path / e).iterdir()} for e in ("modules", "graph")]
    assert names[0] == names[1]
    modules, graph = (read_metrics(tmp_path / e / "metrics.csv") for e in ("modules", "graph"))
    assert len(modules) == len(graph) == 201
    for one, other in zip(modules, graph, strict=True):
        assert (one.step, one.split) == (other.step, other.split)
        assert other.loss == pytest.approx(one.loss, rel=tolerance)


@pytest.mark.usefixtures("no_pictures")
def test_the_graph_engine_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--engine graph --dropout 0.2 --momentum 0.9 --max-steps 40 --eval-every 15 --quiet"
    assert main([*options.split(), "--out", str(tmp_path / "whole")]) == 0
    step = Loop._step

    def stopping(self: Loop, *args: Any) -> None:
        step(self, *args)
        if self.progress.step == 22:
            self.stop_signal = 15

    with monkeypatch.context() as context:
        context.setattr(Loop, "_step", stopping)
        assert main([*options.split(), "--out", str(tmp_path / "parts")]) == 143
    assert main(["--resume", str(tmp_path / "parts")]) == 0
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    "options", ["", "--batch-norm --dropout 0.2 --input-dropout 0.1 --activation elu"]
)
@pytest.mark.usefixtures("no_pictures")
def test_a_run_can_be_used_from_python(tmp_path: Path, options: str) -> None:
    folder = tmp_path / "run"
    argv = [*options.split(), "--max-steps", "60", "--preprocess", "mean-image", "--lr", "0.001"]
    assert main([*argv, "--quiet", "--out", str(folder)]) == 0
    run = load_run(folder)
    model, preprocessing, class_names = run.model, run.preprocessing, run.class_names
    test = load_dataset("digits").test
    predicted = model.forward(preprocessing(test.images).reshape(len(test), -1)).argmax(axis=1)
    summary = json.loads((folder / "summary.json").read_text())
    assert (predicted == test.labels).mean() == summary["test_accuracy"]
    np.testing.assert_array_equal(run.predict(test.images), predicted)
    assert class_names == tuple("0123456789")


@pytest.mark.usefixtures("no_pictures")
def test_the_commands_of_a_run_are_all_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["--max-steps", "3", "--quiet", "--out", str(folder)]) == 0
    assert main(["--resume", str(folder), "--max-steps", "4"]) == 0
    commands = json.loads((folder / "config.json").read_text())["commands"]
    assert commands[0].startswith("train-mlp-numpy --max-steps 3")
    assert commands[1].endswith("--max-steps 4") and len(commands) == 2


@pytest.mark.usefixtures("no_pictures")
def test_the_data_folder_says_what_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "numbers", n=30)
    write_cifar(tmp_path / "both" / "cifar-10-batches-py")
    write_mnist(tmp_path / "both" / "MNIST" / "raw", n=30)
    for name, expected in (("numbers", "mnist"), ("both", "cifar10")):
        folder = tmp_path / f"run-{name}"
        argv = ["--data-dir", str(tmp_path / name), "--batch-size", "9", "--max-steps", "2"]
        assert main([*argv, "--quiet", "--out", str(folder)]) == 0
        assert json.loads((folder / "summary.json").read_text())["dataset"] == expected
    _assert_refused(["--data-dir", str(tmp_path / "typo")], "does not exist", capsys)


@pytest.mark.usefixtures("no_pictures")
def test_what_a_run_found_and_is_gone_is_not_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "get", None)
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    argv = ["--data-dir", str(tmp_path / "data"), "--batch-size", "9", "--max-steps", "2"]
    assert main([*argv, "--quiet", "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "data" / "cifar-10-batches-py").rename(tmp_path / "moved")
    resume = ["--resume", str(tmp_path / "run"), "--max-steps", "3", "--quiet"]
    _assert_refused(resume, "was not found below", capsys)
    assert main([*resume, "--data-dir", str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--activation", "relu", "--neg-slope", "0.1"], "--neg-slope"),
        (["--step-size", "5"], "--step-size is for --schedule step"),
        (["--gamma", "0.5", "--schedule", "cosine"], "--gamma is for --schedule step"),
    ],
)
def test_options_that_would_contradict_or_be_ignored(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _assert_refused(argv, named, capsys)


@pytest.mark.usefixtures("no_pictures")
def test_neg_slope_alone_is_recorded_as_what_it_is(tmp_path: Path) -> None:
    argv = ["--neg-slope", "0.1", "--max-steps", "2", "--quiet", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["activation"], settings["neg_slope"]) == ("leaky_relu", 0.1)
