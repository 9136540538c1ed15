"""The graph engine as a backend: the same losses as the hand-written backward passes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from numpy_mlp import MLP
from numpy_mlp.autograd.core import TensorNode
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.convnet import CONVNETS, ConvNet, fast
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import (
    AvgPool2dModule,
    BatchNorm2dModule,
    Conv2dModule,
    GELUModule,
    LinearModule,
    Module,
    ResidualModule,
    SequentialModule,
    SiLUModule,
)
from numpy_mlp.optim import SGD

OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "sigmoid"},
    {"activation": "elu"},
    {"activation": "tanh", "dropout": 0.2, "input_dropout": 0.1},
    {"neg_slope": 0.1},
    {"batch_norm": True, "dropout": 0.2},
]


def _learner(kind: type[NumpyLearner], dtype: str, options: dict[str, Any]) -> NumpyLearner:
    model = MLP(20, [16, 12], 5, dtype=dtype, rng=np.random.default_rng(1), **options)
    return kind(model, SGD(list(model.params.values()), 0.1, momentum=0.9))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_engines_train_alike(dtype: str, tolerance: float, options: dict[str, Any]) -> None:
    modules, graph = (_learner(kind, dtype, options) for kind in (NumpyLearner, GraphLearner))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 4, 5)).astype(dtype), rng.integers(0, 5, 64)
    losses = []
    for step in range(100):
        batch = slice(step % 2 * 32, step % 2 * 32 + 32)
        loss, correct = graph.train_step(x[batch], y[batch], 0.02)
        expected, expected_correct = modules.train_step(x[batch], y[batch], 0.02)
        assert loss == pytest.approx(expected, rel=tolerance)
        assert abs(correct - expected_correct) <= (dtype == "float32")
        losses.append(loss)
    assert losses[-1] < 0.95 * losses[0]
    loss, predicted = graph.eval_step(x, y)
    expected, expected_predicted = modules.eval_step(x, y)
    assert loss == pytest.approx(expected, rel=tolerance)
    np.testing.assert_array_equal(predicted, expected_predicted)
    probabilities, expected_probabilities = graph.probabilities(x), modules.probabilities(x)
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=100 * tolerance)
    for name, array in modules.weights().items():
        np.testing.assert_allclose(graph.weights()[name], array, rtol=1e-3, atol=100 * tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["vu-convnet", "small-vgg", "fast"])
def test_both_engines_train_networks_of_images_alike(name: str, dtype: str) -> None:
    learners = []
    for kind in (NumpyLearner, GraphLearner):
        make = functools.partial(fast, widths=(8, 16, 16)) if name == "fast" else CONVNETS[name]
        model = make((3, 26, 26), 5, dtype=dtype, rng=np.random.default_rng(1))
        optimizer = SGD(list(model.trained_parameters().values()), 0.1, momentum=0.9)
        learners.append(kind(model, optimizer, label_smoothing=0.1))
    modules, graph = learners
    before = {n: array.copy() for n, array in graph.weights().items()}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3, 26, 26)).astype(dtype), rng.integers(0, 5, 6)
    tolerance = 1e-10 if dtype == "float64" else 1e-3
    for _ in range(4):
        loss = graph.train_step(x, y, 0.02)[0]
        assert loss == pytest.approx(modules.train_step(x, y, 0.02)[0], rel=tolerance)
    for n, array in modules.weights().items():
        assert graph.weights()[n].dtype == array.dtype
        np.testing.assert_allclose(graph.weights()[n], array, rtol=tolerance, atol=tolerance)
        frozen = n in graph.model.params and n not in graph.model.trained_parameters()
        assert frozen == np.array_equal(array, before[n]), n
    expected = modules.eval_step(x, y)[0]
    # Running statistics carry what has been rounded in every step so far.
    assert graph.eval_step(x, y)[0] == pytest.approx(expected, rel=10 * tolerance)


class _Shift(Module):
    """A layer that nobody has written in ops."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x + 1


def test_every_layer_of_images_on_the_graph(rng: np.random.Generator) -> None:
    """What no network of ours has is written in ops, too: average pooling, SiLU, residuals."""
    conv = Conv2dModule(3, 3, 3, padding=1, groups=3, rng=rng)
    inner = SequentialModule(BatchNorm2dModule(3), SiLUModule(), conv)
    head = LinearModule(12, 4, bias=False, rng=rng)
    features = [ResidualModule(inner), AvgPool2dModule(3, 2, 1), GELUModule()]
    model = ConvNet(features, head)
    x, y = rng.standard_normal((5, 3, 4, 4)), np.arange(5) % 4
    graph = GraphLearner(model, SGD(list(model.params.values()), 0.0), detect_anomaly=True)
    modules = NumpyLearner(model, SGD(list(model.params.values()), 0.0))
    loss = graph.train_step(x, y, 0.0)[0]
    assert loss == pytest.approx(modules.train_step(x, y, 0.0)[0], rel=1e-12)
    for name, grad in model.grads.items():
        np.testing.assert_allclose(graph.nodes[name].grad, grad, rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match=r"does not know _Shift\(\)"):
        graph.apply(_Shift(), "shift", TensorNode(x))


def test_state_moves_between_the_engines() -> None:
    options = {"dropout": 0.3}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 20)), rng.integers(0, 5, 32)
    graph, modules = (
        _learner(GraphLearner, "float64", options),
        _learner(NumpyLearner, "float64", options),
    )
    for _ in range(5):
        graph.train_step(x, y, 0.1)
    modules.load_weights({name: array.copy() for name, array in graph.weights().items()})
    modules.load_state(*graph.state())
    for _ in range(5):
        loss = graph.train_step(x, y, 0.1)[0]
        assert modules.train_step(x, y, 0.1)[0] == pytest.approx(loss, rel=1e-10)
