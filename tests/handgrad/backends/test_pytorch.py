"""The PyTorch commands: the same folder, the same promises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handgrad import load_run
from handgrad.backends.command import train_convnet, train_mlp_numpy, train_mlp_pytorch
from handgrad.data import load_dataset
from handgrad.errors import DataError
from handgrad.training.checkpoint import Checkpoint, load_arrays
from handgrad.training.loop import Loop
from handgrad.training.metrics import read_metrics

MLP = "--batch-norm --dropout 0.2 --momentum 0.9 --lr 0.02 --precision float32 --hidden-dims 16"
CONVNET = "--model vu-convnet --optimizer adam --precision float32 --batch-size 64"
COMMANDS: dict[str, tuple[Callable[[Any], int], str]] = {
    "mlp": (train_mlp_pytorch, MLP),
    "convnet": (train_convnet, CONVNET),
}
ALL = pytest.mark.parametrize("name", COMMANDS)


def _run(name: str, folder: Path, options: str = "", *, steps: int = 12) -> int:
    main, defaults = COMMANDS[name]
    argv = f"{defaults} {options} --max-steps {steps} --eval-every 5 --quiet --seed 3 --out"
    return main([*argv.split(), str(folder)])


@ALL
def test_a_run_writes_every_file_and_repeats(tmp_path: Path, name: str) -> None:
    assert _run(name, tmp_path / "a") == _run(name, tmp_path / "b") == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "config.json", "metrics.csv", "summary.json", "model.safetensors",
        "checkpoint.safetensors", "loss.png", "accuracy.png", "confusion_matrix.png",
        "predictions.png", "first_layer.png",
    }  # fmt: skip
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in "ab"]
    assert models[0] == models[1]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["settings"]["device"] in ("cpu", "cuda", "mps")
    assert config["settings"]["precision"] == "float32"


@pytest.mark.parametrize(
    ("name", "options", "stop_at"),
    [
        ("mlp", "--augment crop", 3),
        ("mlp", "--augment flip,randaugment --mixup 0.4 --input-dropout 0.1", 7),
        ("convnet", "--augment crop", 7),
        ("convnet", "--weight-decay 0.1 --weight-decay-of matrices --ema 0.9", 7),
        ("mlp", "--ema 0.9 --clip-grad-norm 1 --label-smoothing 0.1", 7),
        ("convnet", "--cutmix 1 --mixup 0.2", 3),
        pytest.param(
            "mlp",
            "--compile",
            25,  # after a last batch of an epoch, whose shape is another
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++"),
        ),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_stopped_and_resumed_is_as_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: str, stop_at: int
) -> None:
    steps = stop_at + 8
    assert _run(name, tmp_path / "whole", options, steps=steps) == 0
    step = Loop._step

    def stopping(self: Loop, *args: Any) -> None:
        step(self, *args)
        if self.progress.step == stop_at:
            self.stop_signal = 2

    with monkeypatch.context() as context:
        context.setattr(Loop, "_step", stopping)
        assert _run(name, tmp_path / "parts", options, steps=steps) == 130
    assert COMMANDS[name][0](["--resume", str(tmp_path / "parts")]) == 0
    ends = [
        Checkpoint.load(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts")
    ]
    for group in ("weights", "learner", "best"):
        one, other = (getattr(end, group) for end in ends)
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=f"{group} {key}")
    tables = [
        [line.rpartition(",")[0] for line in (tmp_path / run / "metrics.csv").read_text().split()]
        for run in ("whole", "parts")
    ]
    assert tables[0] == tables[1]


@pytest.mark.usefixtures("no_pictures")
def test_the_networks_learn(tmp_path: Path) -> None:
    main, _ = COMMANDS["mlp"]
    options = ["--quiet", "--precision", "float32", "--target-accuracy", "0.95"]
    assert main([*options, "--out", str(tmp_path / "mlp")]) == 0
    # Far above the target, whatever the number of threads makes of the sums.
    argv = "--optimizer adam --lr 3e-4 --max-steps 45 --eval-every 45 --target-accuracy 0.3"
    for norm in ("builtin", "manual"):
        out = ["--norm", norm, "--out", str(tmp_path / norm)]
        assert train_convnet([*options, *argv.split(), *out]) == 0, norm


SGD = "--momentum 0.9 --weight-decay 0.001"
ADAM = "--optimizer adam --lr 0.01 --weight-decay 0.01 --weight-decay-of matrices "
ADAM += "--label-smoothing 0.1 --clip-grad-norm 0.5 --ema 0.9"


@pytest.mark.parametrize(
    ("options", "precision", "rel"),
    [(SGD, "float64", 1e-9), (SGD, "float32", 1e-3), (ADAM, "float64", 1e-8)],
)
@pytest.mark.usefixtures("no_pictures")
def test_the_same_seed_is_the_same_run_as_in_numpy(
    tmp_path: Path, options: str, precision: str, rel: float
) -> None:
    options += " --max-steps 40 --eval-every 1 --hidden-dims 20,15 --batch-norm --activation elu "
    options += "--seed 3 --quiet --out"
    numpy, pytorch = tmp_path / "numpy", tmp_path / "pytorch"
    assert train_mlp_numpy([*options.split(), str(numpy), "--dtype", precision]) == 0
    assert train_mlp_pytorch([*options.split(), str(pytorch), "--precision", precision]) == 0
    ours, theirs = (read_metrics(folder / "metrics.csv") for folder in (numpy, pytorch))
    assert [row.loss for row in ours] == pytest.approx([row.loss for row in theirs], rel=rel)
    assert ours[-1].loss < 0.5 * ours[0].loss


@pytest.mark.usefixtures("no_pictures")
def test_weights_of_the_mlp_load_in_numpy(tmp_path: Path) -> None:
    assert _run("mlp", tmp_path / "torch") == 0
    from numpy_mlp import MLP as NumpyMLP

    model = NumpyMLP(64, [16], 10, dropout=0.2, batch_norm=True, dtype="float32")
    model.load_state_dict(load_arrays(tmp_path / "torch" / "model.safetensors")[0])


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("options", ["", "--precision float64", "--norm manual"])
@pytest.mark.usefixtures("no_pictures")
def test_a_run_can_be_used_from_python(tmp_path: Path, name: str, options: str) -> None:
    folder = tmp_path / "run"
    assert _run(name, folder, options, steps=5) == 0
    run = load_run(folder)
    model, preprocessing, class_names = run.model, run.preprocessing, run.class_names
    assert class_names == tuple("0123456789")
    test = load_dataset("digits").test
    with torch.no_grad():
        predicted = model(torch.from_numpy(preprocessing(test.images))).argmax(dim=1).numpy()
    summary = json.loads((folder / "summary.json").read_text())
    assert (predicted == test.labels).mean() == pytest.approx(summary["test_accuracy"])
    np.testing.assert_array_equal(run.predict(test.images), predicted)
    with pytest.raises(DataError, match=r"holds no finished run: there is no model\.safetensors"):
        load_run(tmp_path)
    other = {"mlp": "convnet", "convnet": "mlp-pytorch"}[name]
    with pytest.raises(DataError, match=f", not of {other}"):
        load_run(folder, other)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--device", "cuda"], "--device cuda is not there"),
        (["--norm", "manul"], "did you mean manual"),
        (["--precision", "fp16"], "--precision"),
        (["--batch-size", "5", "--batch-norm"], "leaves a batch of one"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    named: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for main, _ in COMMANDS.values():
        if main is train_convnet:  # its networks have batch normalisation anyway
            argv = [option for option in argv if option != "--batch-norm"]
        assert main([*argv, "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and named in err
        assert not (tmp_path / "run").exists()


def test_normalisation_of_what_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_convnet(["--model", "vu-mlp", "--norm", "manual"]) == 2
    assert "vu-mlp has no normalisation" in capsys.readouterr().err
    assert train_mlp_pytorch(["--norm", "manual"]) == 2
    assert "--batch-norm" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_what_auto_decided_is_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train_mlp_pytorch(["--max-steps", "3", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    settings = config["settings"]
    assert f"device {settings['device']}, precision {settings['precision']} (" in out
    assert settings["precision"] in ("float32", "bf16")
    assert config["versions"]["torch"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("options", ["--precision bf16", "--precision float64", "--norm autograd"])
@pytest.mark.usefixtures("no_pictures")
def test_precisions_and_normalisations(tmp_path: Path, name: str, options: str) -> None:
    options = f"{options} --precision float32" if "norm" in options else options
    assert _run(name, tmp_path / "run", options, steps=3) == 0
    weights, _ = load_arrays(tmp_path / "run" / "model.safetensors")
    expected = np.float64 if "float64" in options else np.float32
    assert all(a.dtype == expected for key, a in weights.items() if not key.endswith("tracked"))


@pytest.mark.usefixtures("no_pictures")
def test_a_checkpoint_of_another_architecture_names_the_first_mismatch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("mlp", tmp_path / "run") == 0
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace("16\n    ]", "17\n    ]"))
    assert train_mlp_pytorch(["--resume", str(tmp_path / "run")]) == 2
    assert "layers.0.weight has shape (16, 64)" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train_mlp_pytorch", "train_convnet"])
def test_without_pytorch_the_extra_is_named(script: str) -> None:
    code = "import sys; sys.modules['torch'] = None; from handgrad.backends import command"
    code += f"; sys.exit(command.{script}([]))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "handgrad[torch]" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["--mixup=0.2", "--augment=randaugment"])
def test_a_torchvision_that_does_not_match(tmp_path: Path, option: str) -> None:
    # As torchvision does when its compiled operators do not fit: a RuntimeError at import.
    package = tmp_path / "torchvision"
    package.mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (package / "__init__.py").write_text(text)
    code = "import sys; from handgrad.backends.command import train_mlp_pytorch as main"
    code += f"; sys.path.insert(0, {str(tmp_path)!r}); "
    code += f"sys.exit(main([{option!r}, '--quiet', '--out', {str(tmp_path / 'run')!r}]))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "torchvision::nms" in result.stderr and "do not go together" in result.stderr
    assert not (tmp_path / "run").exists()
