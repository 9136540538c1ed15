"""The learner: one step is forward, loss, backward, update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from numpy_mlp import MLP
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.optim import SGD, AdamW


def _learner(seed: int = 0, dropout: float = 0.0) -> NumpyLearner:
    model = MLP(
        12, [7], 4, dropout=dropout, batch_norm=dropout > 0, rng=np.random.default_rng(seed)
    )
    return NumpyLearner(model, SGD(list(model.params.values()), 0.1, momentum=0.9))


def _batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((6, 3, 2, 2)), rng.integers(0, 4, 6)


def test_steps_equal_pytorchs(rng: np.random.Generator) -> None:
    learner = _learner()
    twin = torch.nn.Sequential(torch.nn.Linear(12, 7), torch.nn.ReLU(), torch.nn.Linear(7, 4))
    twin.double().load_state_dict(
        {k.removeprefix("layers."): torch.tensor(v) for k, v in learner.weights().items()}
    )
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        x, y = _batch(rng)
        loss, correct = learner.train_step(x, y, 0.1)
        logits = twin(torch.from_numpy(x).flatten(1))
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-10)
        assert correct == int((logits.argmax(1).numpy() == y).sum())
    for key, param in twin.named_parameters():
        weight = learner.weights()[f"layers.{key}"]
        np.testing.assert_allclose(weight, param.detach().numpy(), rtol=1e-10)


def test_evaluation_changes_nothing(rng: np.random.Generator) -> None:
    learner = _learner(dropout=0.5)
    x, y = _batch(rng)
    learner.train_step(x, y, 0.1)
    before = {name: array.copy() for name, array in learner.weights().items()}
    first, second = learner.eval_step(x, y), learner.eval_step(x, y)
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    for name, array in learner.weights().items():
        np.testing.assert_array_equal(array, before[name])


def test_clipping_far_above_the_gradients_changes_nothing(rng: np.random.Generator) -> None:
    x, y = _batch(rng)
    learners = [_learner(), _learner()]
    learners[1].clip_grad_norm = 1e6  # all gradients first, then the updates
    for _ in range(3):
        assert learners[0].train_step(x, y, 0.1) == learners[1].train_step(x, y, 0.1)
    for name, array in learners[0].weights().items():
        np.testing.assert_array_equal(learners[1].weights()[name], array)


def test_label_smoothing_is_for_training_only(rng: np.random.Generator) -> None:
    x, y = _batch(rng)
    model = MLP(12, [7], 4)
    learner = NumpyLearner(model, SGD(model.params, 0.1), label_smoothing=0.3)
    smoothed, _ = learner.train_step(x, y, 0.0)
    loss, _ = learner.eval_step(x, y)
    p = learner.probabilities(x)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(6), y]).mean())
    np.testing.assert_allclose(smoothed, 0.7 * loss - 0.3 * np.log(p).mean())


def test_an_average_is_not_that_of_another_network() -> None:
    model = MLP(12, [7], 4)
    learner = NumpyLearner(model, SGD(model.params, 0.1), ema=0.9)
    arrays, text = learner.state()
    arrays["trained.layers.0.weight"] = np.zeros((7, 13))
    with pytest.raises(ValueError, match="another network's"):
        learner.load_state(arrays, text)
    with pytest.raises(ValueError, match=r"decay of an average must be in \(0, 1\), got 1"):
        NumpyLearner(model, SGD(model.params, 0.1), ema=1.0)


def test_probabilities_are_those_behind_the_loss(rng: np.random.Generator) -> None:
    learner = _learner(dropout=0.5)
    x, y = _batch(rng)
    learner.train_step(x, y, 0.1)
    loss, predicted = learner.eval_step(x, y)
    p = learner.probabilities(x)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(-np.log(p[np.arange(6), y]).mean(), loss)
    np.testing.assert_array_equal(p.argmax(axis=1), predicted)
    np.testing.assert_array_equal(p, learner.model.forward(x.reshape(6, -1)))


def test_state_goes_on_bit_for_bit(rng: np.random.Generator) -> None:
    one, two = _learner(0, dropout=0.5), _learner(1, dropout=0.5)
    batches = [_batch(rng) for _ in range(6)]
    for x, y in batches[:3]:
        one.train_step(x, y, 0.1)
    arrays, text = one.state()
    two.load_weights(one.weights())
    two.load_state(arrays, text)
    for x, y in batches[3:]:
        assert one.train_step(x, y, 0.1) == two.train_step(x, y, 0.1)
    for name, array in one.weights().items():
        np.testing.assert_array_equal(array, two.weights()[name])


def test_the_learning_rate_is_the_steps_own(rng: np.random.Generator) -> None:
    model = MLP(12, [7], 4, rng=rng)
    learner = NumpyLearner(model, AdamW(list(model.params.values()), 0.5))
    before = {name: array.copy() for name, array in learner.weights().items()}
    learner.train_step(*_batch(rng), 0.0)
    for name, array in learner.weights().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_parameter_that_was_replaced_is_noticed(rng: np.random.Generator) -> None:
    learner = _learner()
    layer = learner.model.layers[2]
    layer.params["bias"] = layer.params["bias"].copy()
    with pytest.raises(AssertionError, match=r"bias of LinearModule.* is another array"):
        learner.train_step(*_batch(rng), 0.1)


@pytest.mark.parametrize("kind", [NumpyLearner, GraphLearner])
def test_labels_may_be_a_column_or_one_hot(kind: Any, rng: np.random.Generator) -> None:
    x, y = _batch(rng)
    results = []
    for labels in (y, y[:, None], np.eye(4)[y], y.tolist(), y.astype(np.uint8)):
        model = MLP(12, [7], 4, rng=0)
        learner = kind(model, SGD(model.params, 0.1))
        results.append((learner.train_step(x, labels, 0.1), learner.eval_step(x, labels)[0]))
    assert results.count(results[0]) == 5


def test_first_layer_is_the_first_weight() -> None:
    assert _learner().first_layer().shape == (7, 12)
