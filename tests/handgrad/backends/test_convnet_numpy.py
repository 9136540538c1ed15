"""Convolutional networks in NumPy, as their users meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from data_files import write_cifar
from safetensors.numpy import load_file

import handgrad
from handgrad.backends.command import train_convnet_numpy as main
from handgrad.backends.convnet_numpy import PRESETS, NumpyConvNetSettings
from handgrad.data import load_dataset
from numpy_mlp.convnet import CONVNETS, fast
from numpy_mlp.cost import training_operations
from numpy_mlp.parallel import get_num_threads
from torch_models.registry import MODELS

DIGITS = ["--model", "small-vgg", "--max-steps", "12", "--threads", "1", "--quiet"]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_a_run_writes_everything_and_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "small-vgg", "--max-steps", "3", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    model = CONVNETS["small-vgg"]((1, 8, 8), 10)
    operations = training_operations(model, (1, 8, 8))
    assert summary["petaflop"] == pytest.approx(operations * 3 * 32 / 1e15)
    assert f"{summary['petaflop']:.2g} PFLOP" in out
    assert f"test accuracy {summary['test_accuracy']:.4f}" in out
    assert {"first_layer.png", "accuracy.png", "checkpoint.safetensors"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_it_learns(tmp_path: Path, no_pictures: None) -> None:
    options = ["--model", "small-vgg", "--optimizer", "adam", "--epochs", "3", "--quiet"]
    assert main([*options, "--target-accuracy", "0.95", "--out", str(tmp_path / "run")]) == 0


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, no_pictures: None) -> None:
    options = [*DIGITS, "--optimizer", "adamw", "--augment", "crop", "--checkpoint-every", "1"]
    assert main([*options, "--out", str(tmp_path / "whole")]) == 0
    options[options.index("12")] = "5"
    assert main([*options, "--out", str(tmp_path / "parts")]) == 0
    assert main(["--resume", str(tmp_path / "parts"), "--max-steps", "12"]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)


def test_threads_change_no_more_than_rounding(tmp_path: Path, no_pictures: None) -> None:
    assert get_num_threads() == 1
    for threads in ("1", "3"):
        options = [*DIGITS, "--dtype", "float64", "--threads", threads]
        assert main([*options, "--out", str(tmp_path / threads)]) == 0
    assert get_num_threads() == 1, "what a run held it gives back"
    one, three = weights(tmp_path / "1"), weights(tmp_path / "3")
    for name, array in one.items():
        np.testing.assert_allclose(three[name], array, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", [name for name in CONVNETS if name != "fast"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_weights_go_to_pytorch_and_back(name: str, shape: tuple[int, int, int]) -> None:
    ours = CONVNETS[name](shape, 10, dtype=np.float32, rng=np.random.default_rng(0))
    theirs = MODELS[name](shape, 10, torch.nn.BatchNorm2d)
    theirs.load_state_dict(
        {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in ours.state_dict().items()}
    )
    x = np.random.default_rng(1).standard_normal((6, *shape)).astype(np.float32)
    ours.train()
    ours.logits(x)  # running statistics that are not those of the beginning
    theirs.train()(torch.from_numpy(x))
    theirs.load_state_dict(
        {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in ours.state_dict().items()}
    )
    ours.eval()
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(x)).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours.forward(x), expected, atol=1e-5)
    back = CONVNETS[name](shape, 10, dtype=np.float32, rng=np.random.default_rng(2))
    back.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    back.eval()
    np.testing.assert_array_equal(back.forward(x), ours.forward(x))


def test_a_run_is_loaded_and_predicts(tmp_path: Path, no_pictures: None) -> None:
    assert main([*DIGITS, "--out", str(tmp_path / "run")]) == 0
    trained = handgrad.load_run(tmp_path / "run")
    digits = load_dataset("digits")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    right = (trained.predict(digits.test.images) == digits.test.labels).mean()
    assert right == pytest.approx(summary["test_accuracy"])


def test_the_fast_network_trains_on_colour_images(tmp_path: Path, no_pictures: None) -> None:
    write_cifar(tmp_path / "data")
    options = "--preset fast --widths 8 8 8 --batch-size 20 --max-steps 3 --warmup-steps 1 --quiet"
    folder = tmp_path / "run"
    assert main([*options.split(), "--data-dir", str(tmp_path / "data"), "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert {"test_accuracy", "test_accuracy_tta", "petaflop"} <= summary.keys()
    found = weights(folder)
    assert found["features.2.0.weight"].shape == (8, 24, 3, 3)
    assert (found["features.2.2.weight"] == 1).all(), "the scale is not trained"


def test_whitening_and_scales_stay_and_the_rest_is_trained() -> None:
    model = fast((3, 32, 32), 10, rng=np.random.default_rng(0))
    trained = model.trained_parameters()
    assert "features.0.weight" not in trained and "features.0.bias" in trained
    assert model.params.keys() - trained.keys() == {
        "features.0.weight", *(f"features.{i}.{j}.weight" for i in (2, 3, 4) for j in (2, 5))
    }  # fmt: skip


def test_the_cost_is_that_of_direct_convolution() -> None:
    """Of the fast network: 236 MFLOP forward, and twice as much back, but for the first layer's."""
    model = fast((3, 32, 32), 10)
    macs = 31**2 * 12 * 24 + 31**2 * 216 * 64 + 15**2 * 576 * (64 + 256)
    macs += 7**2 * 2304 * 256 * 2 + 3**2 * 2304 * 256 + 2560
    first = 31**2 * 12 * 24
    assert training_operations(model, (3, 32, 32)) == 2 * (3 * (macs - first) + first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer muon", "--optimizer muon is for --model fast, not vgg"),
        ("--model small-vgg --widths 8 8 8", "--widths is for --model fast, not small-vgg"),
        ("--model fast --widths 8 8", "--widths takes three numbers, got 2"),
        ("--model fast --optimizer muon", "images of at least 26×26 pixels"),
    ],
)
def test_what_does_not_go_together(
    options: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*options.split(), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_it_needs_no_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from handgrad.backends.command import train_convnet_numpy as main; "
        f"sys.exit(main({[*DIGITS, '--out', str(tmp_path / 'run')]!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings_that_hold(preset: str) -> None:
    from handgrad.runs.command_line import parse_command_line

    command = parse_command_line(
        NumpyConvNetSettings, PRESETS, "", "train-convnet-numpy", ["--preset", preset]
    )
    assert command.settings.dataset in ("cifar10", "mnist")
