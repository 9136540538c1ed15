"""NaN and infinity: the run stops, and says in which layer, and at which step, they appeared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from handgrad.backends.command import train_convnet, train_mlp_numpy, train_mlp_pytorch
from handgrad.training.checkpoint import Checkpoint
from handgrad.training.loop import Loop
from numpy_mlp import MLP
from numpy_mlp.anomaly import check_finite, detect_anomaly
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import (
    BatchNormModule,
    CrossEntropyModule,
    LinearModule,
    SoftMaxCrossEntropyModule,
    SoftMaxModule,
)
from numpy_mlp.network import Network
from numpy_mlp.optim import SGD
from torch_models.learner import TorchLearner

LEARNERS: dict[str, type[NumpyLearner]] = {"modules": NumpyLearner, "graph": GraphLearner}


def _numpy(kind: type[NumpyLearner], batch_norm: bool = True, **options: Any) -> NumpyLearner:
    model = MLP(3, (4, 5), 2, rng=np.random.default_rng(0), batch_norm=batch_norm)
    return kind(model, SGD(list(model.params.values()), 0.1), **options)


def _batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((6, 3)), rng.integers(0, 2, 6)


@pytest.mark.parametrize("kind", LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("detect", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite(
    kind: type[NumpyLearner], detect: bool, value: float, rng: np.random.Generator
) -> None:
    learner = _numpy(kind, detect_anomaly=detect)
    x, y = _batch(rng)
    x[2, 1] = value
    before = {name: array.copy() for name, array in learner.model.params.items()}
    named = "layers.0 .LinearModule." if detect else f"a value of the images became {value}"
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match=named):
        learner.train_step(x, y, 0.1)
    for name, array in learner.model.params.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("kind", LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("detect", [False, True])
def test_a_layer_whose_output_is_not_finite(
    kind: type[NumpyLearner], detect: bool, rng: np.random.Generator
) -> None:
    learner = _numpy(kind, batch_norm=False, detect_anomaly=detect)
    for name in ("layers.0.weight", "layers.2.weight"):  # finite, but their product is not
        learner.model.params[name][...] *= 1e200
    named = r"the output of layers.2 \(LinearModule\) became -?inf"
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=named):
        learner.train_step(*_batch(rng), 0.1)


@pytest.mark.parametrize("detect", [False, True])
def test_a_gradient_that_is_not_finite(
    detect: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = _numpy(NumpyLearner, detect_anomaly=detect)
    layer = learner.model.layers[3]
    backward = type(layer).backward_parameters

    def broken(self: LinearModule, dout: np.ndarray) -> None:
        backward(self, dout)
        if self is layer:
            self.grads["weight"][1, 2] = np.nan

    monkeypatch.setattr(LinearModule, "backward_parameters", broken)
    before = layer.params["weight"].copy()
    wanted = r"the gradient of weight in layers.3 \(LinearModule\) became nan"
    if not detect:
        learner.train_step(*_batch(rng), 0.1)
        wanted = (
            r"weight of layers.3 \(LinearModule\), in the update of the step before, became nan"
        )
    with pytest.raises(FloatingPointError, match=wanted):
        learner.train_step(*_batch(rng), 0.1)
    if detect:
        np.testing.assert_array_equal(layer.params["weight"], before)
    # What watched is gone: the layers are as they were.
    assert not any("forward" in vars(layer) for layer in learner.model.layers)


def test_a_gradient_of_the_graph(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from numpy_mlp.autograd import ops

    learner = _numpy(GraphLearner, detect_anomaly=True)
    backward = ops.SoftmaxCrossEntropy.backward

    def broken(context: Any, goutput: np.ndarray) -> Any:
        return backward(context, goutput) * np.nan

    with monkeypatch.context() as patch:
        patch.setattr(ops.SoftmaxCrossEntropy, "backward", staticmethod(broken))
        with pytest.raises(FloatingPointError, match=r"the gradient of layers.6.bias became nan"):
            learner.train_step(*_batch(rng), 0.1)
    loss, _ = learner.train_step(*_batch(rng), 0.1)  # nothing of it is left
    assert np.isfinite(loss)
    assert all(np.isfinite(array).all() for array in learner.model.params.values())


def test_large_numbers_are_not_an_anomaly() -> None:
    check_finite(np.full(3, 1e200), "its square overflows")
    check_finite(np.full(3, 3e38, np.float32), "so does that of this")
    check_finite(np.empty(0), "nothing")
    with pytest.raises(FloatingPointError, match="it became -inf"):
        check_finite(np.array([[1.0, 2.0], [-np.inf, 3.0]]), "it")


def test_watching_changes_no_number(rng: np.random.Generator) -> None:
    plain, watched = _numpy(NumpyLearner), _numpy(NumpyLearner, detect_anomaly=True)
    for _ in range(3):
        x, y = _batch(rng)
        assert plain.train_step(x, y, 0.1) == watched.train_step(x, y, 0.1)
    for name, array in plain.model.params.items():
        np.testing.assert_array_equal(array, watched.model.params[name])


def test_layers_are_given_back_after_an_error(rng: np.random.Generator) -> None:
    network = Network([LinearModule(2, 3, rng=rng)])
    with pytest.raises(AssertionError), detect_anomaly(network):
        network.layers[0].forward(np.ones((1, 9)))
    assert "forward" not in vars(network.layers[0])


class Reciprocal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / (x * 0)


class Root(nn.Module):
    """Finite, but its derivative at 0 is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x * 0)


def _torch(inner: nn.Module, detect: bool) -> TorchLearner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), inner, nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return TorchLearner(model, optimizer, torch.device("cpu"), detect_anomaly=detect)


def test_pytorch_names_what_a_gradient_spoilt(rng: np.random.Generator) -> None:
    learner = _torch(Root(), False)
    x = torch.from_numpy(rng.standard_normal((6, 3))).float()
    learner.train_step(x, torch.zeros(6, dtype=torch.int64), 0.1)
    named = "the loss became nan, as 0.bias, in the update of the step before"
    with pytest.raises(FloatingPointError, match=named):
        learner.train_step(x, torch.zeros(6, dtype=torch.int64), 0.1)


def test_pytorch_modules_that_return_more_than_a_tensor(rng: np.random.Generator) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.lstm(x)[0]
            return y

    x = torch.from_numpy(rng.standard_normal((6, 3))).float()
    y = torch.zeros(6, dtype=torch.int64)
    loss, _ = _torch(Recurrent(), True).train_step(x, y, 0.1)
    assert np.isfinite(loss)
    x[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"the output of 0 \(Linear\)"):
        _torch(Recurrent(), False).train_step(x, y, 0.1)


@pytest.mark.parametrize("main", [train_mlp_numpy, train_mlp_pytorch])
def test_an_evaluation_that_is_not_finite_is_one_line(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--max-steps", "3", "--quiet", "--detect-anomaly", "--weight-std", "1e30", "--out"]
    options = [] if main is train_mlp_numpy else ["--precision", "float32"]
    assert main([*argv, str(tmp_path / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "at step 0 (learning rate" in err


@pytest.mark.parametrize(
    ("inner", "detect", "named"),
    [
        (Reciprocal(), False, r"the loss became nan, as the output of 2 \(Reciprocal\) became inf"),
        (Reciprocal(), True, r"the output of 2 \(Reciprocal\) became inf"),
        (Root(), True, r"the gradient that reaches the input of 2 \(Root\) became nan"),
    ],
)
def test_pytorch_names_the_module(
    inner: nn.Module, detect: bool, named: str, rng: np.random.Generator
) -> None:
    learner = _torch(inner, detect)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    x = torch.from_numpy(rng.standard_normal((6, 3))).float()
    with pytest.raises(FloatingPointError, match=named):
        learner.train_step(x, torch.zeros(6, dtype=torch.int64), 0.1)
    for name, p in learner.model.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0)


def test_pytorch_watching_changes_no_number(rng: np.random.Generator) -> None:
    plain, watched = _torch(nn.BatchNorm1d(4), False), _torch(nn.BatchNorm1d(4), True)
    x = torch.from_numpy(rng.standard_normal((6, 3))).float()
    y = torch.from_numpy(rng.integers(0, 2, 6))
    for _ in range(3):
        assert plain.train_step(x, y, 0.1) == watched.train_step(x, y, 0.1)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "modules": (train_mlp_numpy, []),
    "graph": (train_mlp_numpy, ["--engine", "graph"]),
    "pytorch": (train_mlp_pytorch, ["--precision", "float32"]),
    "convnet": (train_convnet, ["--precision", "float32", "--batch-size", "4"]),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("detect", [False, True])
def test_the_command_names_layer_and_step(
    name: str,
    detect: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, options = COMMANDS[name]
    step = Loop._step

    def poisoned(self: Loop, images: Any, labels: Any) -> None:
        if self.progress.step == 4:
            images = images.copy()
            images.reshape(-1)[3] = np.nan
        step(self, images, labels)

    monkeypatch.setattr(Loop, "_step", poisoned)
    folder = tmp_path / "run"
    argv = ["--max-steps", "9", "--eval-every", "3", "--quiet", "--out", str(folder), *options]
    assert main([*argv, *["--detect-anomaly"] * detect]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "at step 5 (learning rate" in err
    assert "nan" in err and f"The checkpoint of step 3 stays: {folder}" in err
    first = {"modules": "layers.0 (LinearModule)", "graph": "layers.0 (LinearModule)"}
    if detect:
        assert f"the output of {first.get(name, '')}" in err
    else:
        assert "the loss became nan, as " in err
    assert Checkpoint.load(folder / "checkpoint.safetensors").progress["step"] == 3


def test_anomalies_and_compilation_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--compile", "--detect-anomaly", "--out", str(tmp_path / "run")]
    assert train_mlp_pytorch(argv) == 2
    assert "leave out --compile" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_and_cross_entropy_at_extremes(dtype: Any) -> None:
    top = float(np.finfo(dtype).max)
    for row in ([1e4, 0, -1e4], [-1e4, -1e4, -1e4], [top / 4, -top / 4, 0], [0, 0, 0]):
        x = np.array([row], dtype=dtype)
        p = SoftMaxModule().forward(x)
        assert np.isfinite(p).all() and p.sum() == pytest.approx(1)
        for target in range(3):
            y = np.array([target])
            loss, dx = SoftMaxCrossEntropyModule().loss_and_gradient(x, y)
            assert np.isfinite(loss) and loss >= 0 and np.isfinite(dx).all()
            assert loss == pytest.approx(float(x.max() - x[0, target]), abs=1.2)
            assert dx.sum() == pytest.approx(0, abs=1e-6)
            probabilities = CrossEntropyModule()
            assert np.isfinite(probabilities.forward(p, y))
            assert np.isfinite(probabilities.backward(p, y)).all()


def test_batch_of_one_and_a_class_that_is_absent(rng: np.random.Generator) -> None:
    model = MLP(3, (4,), 5, rng=rng)
    learner = NumpyLearner(model, SGD(list(model.params.values()), 0.1))
    loss, correct = learner.train_step(rng.standard_normal((1, 3)), np.array([4]), 0.1)
    assert np.isfinite(loss) and correct in (0, 1)
    loss, _ = learner.train_step(rng.standard_normal((6, 3)), np.array([0, 0, 1, 1, 3, 3]), 0.1)
    assert np.isfinite(loss)


def test_batch_norm_at_extremes(rng: np.random.Generator) -> None:
    for x in (
        np.full((4, 2), 1e8),  # no variance at all
        1e8 + rng.standard_normal((50, 2)),  # little, beside a large mean
        1e150 * rng.standard_normal((4, 2)),
        1e-200 * rng.standard_normal((4, 2)),
    ):
        layer = BatchNormModule(2)
        y = layer.forward(x)
        dx = layer.backward(rng.standard_normal(x.shape))
        assert np.isfinite(y).all() and np.isfinite(dx).all()
        assert np.abs(y.mean(axis=0)).max() < 1e-6
    x = 1e8 + rng.standard_normal((50, 2))
    layer = BatchNormModule(2)
    np.testing.assert_allclose(layer.forward(x).std(axis=0), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="more than one row"):
        layer.forward(np.ones((1, 2)))
