"""The graph engine as a backend: the same losses as the hand-written backward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numpy_mlp import MLP
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
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
