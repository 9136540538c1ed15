"""The way the University of Amsterdam's templates (2018 to 2024) use these modules."""

from __future__ import annotations

import numpy as np
import pytest

from numpy_mlp import MLP
from numpy_mlp.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array
from numpy_mlp.modules import (
    CrossEntropyModule,
    ELUModule,
    LeakyReLUModule,
    LinearModule,
    ReLUModule,
    SoftMaxModule,
)


def rel_error(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y))))


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("test_number", range(10))
def test_cross_entropy_on_fresh_instances(test_number: int, one_hot: bool) -> None:
    random = np.random.RandomState(test_number)
    n, c = random.randint(1, 100), random.randint(1, 10)
    y = random.randint(c, size=(n,))
    if one_hot:
        y = np.eye(c)[y]
    x = random.uniform(low=1e-2, high=1.0, size=(n, c))
    x /= x.sum(axis=1, keepdims=True)
    grads = CrossEntropyModule().backward(x, y)  # an instance that has seen no forward
    numerical = eval_numerical_gradient(
        lambda _: CrossEntropyModule().forward(x, y), x, verbose=False, h=1e-5
    )
    assert rel_error(numerical, grads) < 1e-5


@pytest.mark.parametrize("test_number", range(10))
def test_linear_weights_are_live_and_perturbed_in_place(test_number: int) -> None:
    random = np.random.RandomState(test_number)
    n, d, c = random.randint(1, 20), random.randint(1, 100), random.randint(1, 10)
    x, dout = random.randn(n, d), random.randn(n, c)
    layer = LinearModule(d, c)
    layer.forward(x)
    dx = layer.backward(dout)
    dw = layer.grads["weight"]
    dx_num = eval_numerical_gradient_array(lambda xx: layer.forward(xx), x, dout)
    dw_num = eval_numerical_gradient_array(lambda w: layer.forward(x), layer.params["weight"], dout)
    assert rel_error(dx, dx_num) < 1e-5
    assert rel_error(dw, dw_num) < 1e-5


@pytest.mark.parametrize("make", [ELUModule, lambda: ELUModule(alpha=0.5), SoftMaxModule])
@pytest.mark.parametrize("test_number", range(5))
def test_elementwise_and_softmax(make: type, test_number: int) -> None:
    random = np.random.RandomState(test_number)
    x = random.randn(random.randint(1, 20), random.randint(2, 100))
    dout = random.randn(*x.shape)
    layer = make()
    layer.forward(x)
    dx = layer.backward(dout)
    dx_num = eval_numerical_gradient_array(lambda xx: layer.forward(xx), x, dout)
    assert rel_error(dx, dx_num) < 1e-5


@pytest.mark.parametrize(
    "arguments", [([20, 10],), ([],), ([20], 3, 0.02)], ids=["2018", "no hidden layer", "2019"]
)
def test_a_students_training_loop(arguments: tuple) -> None:  # type: ignore[type-arg]
    """forward, loss, backward, and an update of every layer that has ``params``."""
    random = np.random.RandomState(0)
    x, y = random.randn(60, 5), random.randint(3, size=60)
    x[np.arange(60), y] += 3
    n_hidden, *rest = arguments
    model = MLP(5, n_hidden, *(rest or [3]))
    loss_module = CrossEntropyModule()
    losses = []
    for _ in range(60):
        out = model.forward(x)
        losses.append(loss_module.forward(out, y))
        model.backward(loss_module.backward(out, y))
        for layer in model.layers:
            if hasattr(layer, "params"):
                layer.params["weight"] -= 0.5 * layer.grads["weight"]
                layer.params["bias"] -= 0.5 * layer.grads["bias"]
        model.clear_cache()
    assert losses[-1] < 0.3 * losses[0]
    assert (model.forward(x).argmax(axis=1) == y).mean() > 0.9


def test_names_of_2018_to_2024() -> None:
    layer = LinearModule(4, 3, input_layer=True)
    assert layer.params.keys() == layer.grads.keys() == {"weight", "bias"}
    assert layer.params["weight"].dtype == np.float64
    assert not hasattr(ReLUModule(), "params")
    assert isinstance(MLP(4, [3], 2, 0.02).layers[1], LeakyReLUModule)
