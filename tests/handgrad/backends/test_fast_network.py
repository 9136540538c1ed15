"""``train-convnet --model fast``: the recipe, and the beginning that it shares with NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_cifar

from handgrad.backends.command import train_convnet
from handgrad.backends.common import FAST, fast_network, muon_rates
from handgrad.backends.convnet_torch import PRESETS, ConvNetSettings
from handgrad.backends.registry import NETWORKS
from handgrad.data import Dataset, load_dataset
from handgrad.data.preprocess import fit_preprocessing
from handgrad.runs.command_line import parse_command_line
from handgrad.training.checkpoint import load_arrays
from handgrad.training.loop import Loop
from numpy_mlp.convnet import whitening_filters
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.muon import Muon
from torch_models.learner import TorchLearner


def _settings(*argv: str) -> ConvNetSettings:
    return parse_command_line(ConvNetSettings, PRESETS, "", "train-convnet", argv).settings


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    return load_dataset("cifar10", tmp_path / "data", validation_size=20)


def _torch_learner(settings: ConvNetSettings, dataset: Dataset) -> TorchLearner:
    learner = NETWORKS["convnet"].backend().build(settings, dataset)
    assert isinstance(learner, TorchLearner)
    return learner


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_it_begins_and_goes_on_as_in_numpy(dataset: Dataset, precision: str) -> None:
    options = f"{FAST} --batch-size 20 --precision {precision} --device cpu --seed 4"
    settings = _settings(*options.split())
    theirs, model = _torch_learner(settings, dataset), fast_network(settings, dataset, precision)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(theirs.weights()[name], array, err_msg=name)
    preprocessing = fit_preprocessing(settings.preprocess, dataset.train.images, precision)
    x, y = preprocessing(dataset.train.images), dataset.train.labels
    np.testing.assert_allclose(
        model.params["features.0.weight"], whitening_filters(x), rtol=1e-5, atol=1e-5
    )
    if precision == "float32":
        return
    params = model.trained_parameters()
    rates = muon_rates(settings, [p.shape for p in params.values()])
    optimizer = Muon(params, settings.lr, rest_lr=rates, weight_decay=settings.weight_decay)
    ours = NumpyLearner(model, optimizer, label_smoothing=settings.label_smoothing)
    losses = [
        [learner.train_step(x[i::9], y[i::9], 0.12 * (1 - i / 9))[0] for i in range(9)]
        for learner in (ours, theirs)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert len(set(losses[0])) == 9


def test_the_rates_are_those_that_were_found() -> None:
    settings = _settings("--model", "fast", "--optimizer", "muon", "--batch-size", "500")
    assert (settings.lr, settings.momentum) == (0.12, 0.6)
    shapes = [(24,), (64, 24, 3, 3), (10, 256)]
    bias, _, head = muon_rates(settings, shapes)
    assert (bias, head) == pytest.approx((0.053 * 500, 0.67 * 500 / 256**2))
    half = _settings(
        "--model", "fast", "--optimizer", "muon", "--batch-size", "250", "--lr", "0.06"
    )
    assert muon_rates(half, shapes)[::2] == pytest.approx([bias / 4, head / 4])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model fast", "--model fast is for images of at least 26×26 pixels; those of digits"),
        ("--model fast --optimizer muon --nesterov", "--nesterov is for --optimizer sgd"),
        ("--optimizer muon", "--optimizer muon is for --model fast, not vgg"),
    ],
)
def test_what_cannot_be_is_said(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_convnet([*options.split(), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_the_preset_resumes_bit_for_bit(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
    options = f"{FAST} --batch-size 25 --max-steps 8 --warmup-steps 2 --quiet "
    options += f"--precision float32 --data-dir {tmp_path / 'data'} --out"
    step = Loop._step

    def stopping(self: Loop, *args: Any) -> None:
        step(self, *args)
        if self.progress.step == 5:
            self.stop_signal = 2

    assert train_convnet([*options.split(), str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as context:
        context.setattr(Loop, "_step", stopping)
        assert train_convnet([*options.split(), str(tmp_path / "parts")]) == 130
    assert train_convnet(["--resume", str(tmp_path / "parts"), "--quiet"]) == 0
    whole, parts = (
        load_arrays(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
