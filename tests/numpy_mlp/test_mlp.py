"""The network as a whole."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import numpy_mlp.autograd as vg
import torch_models
from numpy_mlp import MLP
from numpy_mlp.gradient_check import check_gradients
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import (
    BackwardBeforeForwardError,
    BatchNormModule,
    SoftMaxCrossEntropyModule,
)
from numpy_mlp.optim import SGD

OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "elu"},
    {"activation": "tanh", "dropout": 0.3},
    {"activation": "sigmoid", "batch_norm": True},
    {"neg_slope": 0.1, "dropout": 0.2, "batch_norm": True},
    {"input_dropout": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("n_hidden", [[], [6], [6, 5]], ids=str)
def test_gradients_of_the_whole_network(
    n_hidden: list[int], options: dict[str, Any], rng: np.random.Generator
) -> None:
    model = MLP(3, n_hidden, 4, rng=rng, **options)
    report = check_gradients(model, rng.standard_normal((9, 3)), rng=rng)
    assert report.passed, f"\n{report}"


def test_training_with_the_fused_loss_gives_pytorchs_gradients(rng: np.random.Generator) -> None:
    model = MLP(3, [6, 5], 4, rng=rng)
    twin = torch.nn.Sequential(
        torch.nn.Linear(3, 6),
        torch.nn.ReLU(),
        torch.nn.Linear(6, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 4),
    ).double()
    weights = {name.removeprefix("layers."): p for name, p in model.params.items()}
    twin.load_state_dict({name: torch.from_numpy(p) for name, p in weights.items()})
    x, y = rng.standard_normal((8, 3)), rng.integers(0, 4, 8)
    loss, dlogits = SoftMaxCrossEntropyModule().loss_and_gradient(model.logits(x), y)
    model.backward_parameters(dlogits)
    expected = torch.nn.functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(y))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, param in twin.named_parameters():
        np.testing.assert_allclose(model.grads[f"layers.{name}"], param.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("input_dropout", [0.0, 0.3])
def test_three_ways_back_agree(rng: np.random.Generator, input_dropout: float) -> None:
    model = MLP(3, [6], 4, input_dropout=input_dropout, rng=rng)
    x, dout = rng.standard_normal((8, 3)), rng.standard_normal((8, 4))
    masks = copy.deepcopy(getattr(model.layers[0], "rng", None))

    def forward() -> np.ndarray:
        """Return ∂L/∂logits after a forward pass with the same masks."""
        if masks is not None:
            model.layers[0].rng = copy.deepcopy(masks)  # type: ignore[attr-defined]
        model.forward(x)
        return model.layers[-1].backward(dout)

    model.forward(x)
    dx = model.backward(dout)
    grads = {name: grad.copy() for name, grad in model.grads.items()}
    dlogits = forward()
    np.testing.assert_array_equal(model.backward_logits(dlogits), dx)
    forward()
    model.backward_parameters(dlogits)
    for name, grad in grads.items():
        np.testing.assert_array_equal(model.grads[name], grad)


def test_images_are_flattened(rng: np.random.Generator) -> None:
    model = MLP(12, [6], 4, input_dropout=0.3, rng=rng)
    images, dout = rng.standard_normal((8, 3, 2, 2)), rng.standard_normal((8, 4))
    masks = model.layers[0].rng.bit_generator.state
    p, dx = model.forward(images), model.backward(dout)
    grads = {name: grad.copy() for name, grad in model.grads.items()}
    model.layers[0].rng.bit_generator.state = masks
    np.testing.assert_array_equal(model.forward(images.reshape(8, 12)), p)
    np.testing.assert_array_equal(model.backward(dout), dx.reshape(8, 12))
    assert dx.shape == images.shape and list(grads) == list(model.params)
    for name, grad in grads.items():
        np.testing.assert_array_equal(model.grads[name], grad)
    model.eval()
    assert not any(layer.training for layer in model.modules())
    assert "Flatten" not in repr(model)


def test_the_first_layer_with_parameters_computes_no_dx(rng: np.random.Generator) -> None:
    """It may be another than a linear layer, and what comes before it is not asked for anything."""
    model = MLP(3, [6], 4, input_dropout=0.3, rng=rng)
    model.layers.insert(1, BatchNormModule(3))
    x = rng.standard_normal((8, 3))
    masks = copy.deepcopy(model.layers[0].rng)  # type: ignore[attr-defined]
    dlogits = model.logits(x)
    model.backward_logits(dlogits)
    grads = {name: grad.copy() for name, grad in model.grads.items()}
    model.layers[0].rng = masks  # type: ignore[attr-defined]
    model.logits(x)
    model.layers[0].backward = None  # type: ignore[assignment, method-assign]
    done: list[Any] = []
    model.backward_parameters(dlogits, done.append)
    assert done == model.layers[-2:0:-1] and isinstance(done[-1], BatchNormModule)
    for name, grad in grads.items():
        np.testing.assert_array_equal(model.grads[name], grad)


def test_probabilities_and_logits(rng: np.random.Generator) -> None:
    model, x = MLP(3, [6], 4, rng=rng), rng.standard_normal((8, 3))
    p, logits = model(x), model.logits(x)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(p.argmax(axis=1), logits.argmax(axis=1))


def test_backward_needs_forward_with_the_softmax(rng: np.random.Generator) -> None:
    model, x = MLP(3, [6], 4, rng=rng), rng.standard_normal((8, 3))
    model.logits(x)
    with pytest.raises(BackwardBeforeForwardError, match="SoftMaxModule"):
        model.backward(np.ones((8, 4)))
    model.forward(x)
    model.clear_cache()
    with pytest.raises(BackwardBeforeForwardError):
        model.backward(np.ones((8, 4)))
    assert all(layer._cache is None for layer in model.layers)


def test_evaluation_mode_is_deterministic_and_keeps_nothing(rng: np.random.Generator) -> None:
    model, x = MLP(3, [6], 4, dropout=0.5, rng=rng), rng.standard_normal((8, 3))
    assert (model(x) != model(x)).any()
    model.eval()
    np.testing.assert_array_equal(model(x), model(x))
    assert all(layer._cache is None for layer in model.layers)
    model.train()
    assert (model(x) != model(x)).any()


def test_initial_weights_do_not_depend_on_dropout() -> None:
    plain, dropped = (MLP(3, [6], 4, dropout=p, rng=np.random.default_rng(0)) for p in (0, 0.5))
    for a, b in zip(plain.params.values(), dropped.params.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_moves_between_networks(rng: np.random.Generator) -> None:
    one, two = (MLP(3, [6], 4, batch_norm=True) for _ in "ab")
    x = rng.standard_normal((8, 3))
    one(x)
    two.load_state_dict({name: array.copy() for name, array in one.state_dict().items()})
    one.eval()
    two.eval()
    np.testing.assert_array_equal(one(x), two(x))
    assert {"layers.1.running_mean", "layers.3.weight"} <= one.state_dict().keys()


def test_state_of_another_architecture_is_refused_whole() -> None:
    model = MLP(3, [6], 4)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layers\.2\.weight has shape \(4, 7\)"):
        model.load_state_dict(
            {**before, "layers.0.bias": np.ones(6), "layers.2.weight": np.ones((4, 7))}
        )
    with pytest.raises(ValueError, match=r"layers\.4\.bias is not part"):
        model.load_state_dict({**before, "layers.4.bias": np.ones(4)})
    with pytest.raises(ValueError, match=r"layers\.0\.bias is missing"):
        model.load_state_dict({k: v for k, v in before.items() if k != "layers.0.bias"})
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((3, [0], 4), {}, "out_features"),
        ((0, [5], 4), {}, "in_features"),
        ((3, [5], 4), {"activation": "swish"}, "swish"),
        ((3, [5], 4), {"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_arguments_are_named(args: Any, kwargs: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MLP(*args, **kwargs)


def test_gradients_taken_once_before_a_loop_train(rng: np.random.Generator) -> None:
    model, twin = (MLP(3, [6], 4, batch_norm=True, rng=0) for _ in "ab")
    x, y, loss = rng.standard_normal((8, 3)), rng.integers(0, 4, 8), SoftMaxCrossEntropyModule()
    params, grads = list(model.params.values()), list(model.grads.values())
    learner = NumpyLearner(twin, SGD(twin.params, 0.1))
    held = dict(twin.grads)
    losses = []
    for _ in range(20):
        value, dlogits = loss.loss_and_gradient(model.logits(x), y)
        model.backward_logits(dlogits)
        for param, grad in zip(params, grads, strict=True):
            param -= 0.1 * grad
        losses.append(value)
        assert value == pytest.approx(learner.train_step(x, y, 0.1)[0], rel=1e-12)
    assert losses[-1] < 0.8 * losses[0]
    for name, grad in held.items():
        assert twin.grads[name] is grad
        np.testing.assert_allclose(grad, model.grads[name], rtol=1e-9, atol=1e-12)


def test_one_hidden_layer_may_be_given_as_its_width() -> None:
    one, two = (MLP(4, n_hidden, 2, rng=0) for n_hidden in (3, [3]))
    assert repr(one) == repr(two) and len(one.layers) == 4
    for name, param in one.params.items():
        np.testing.assert_array_equal(param, two.params[name])
    twin = torch_models.MLP(4, 3, 2)
    assert [tuple(p.shape) for p in twin.parameters()] == [(3, 4), (3,), (2, 3), (2,)]
    assert [layer.w.size() for layer in vg.MLP(4, 2, hidden_sizes=3).layers] == [(3, 4), (2, 3)]


def test_widths_may_come_from_a_generator() -> None:
    assert len(MLP(4, (width for width in (3, 5)), 2).layers) == 6
    for wrong in (None, 3.0):
        with pytest.raises(TypeError, match=f"n_hidden must be a width, .* got {wrong}"):
            MLP(4, wrong, 2)  # type: ignore[arg-type]


def test_data_may_be_lists_and_frames() -> None:
    """Whatever NumPy makes an array of: a DataFrame does, by ``__array__``."""

    class Frame:
        def __init__(self, values: Any) -> None:
            self.values = np.array(values)

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.values

    rows, dout = [[1, 2, 3], [4, 5, 6]], np.ones((2, 4))
    model, loss = MLP(3, [6], 4, rng=0), SoftMaxCrossEntropyModule()
    expected, dx = model(np.array(rows, float)), model.backward(dout)
    for x in (rows, Frame(rows), np.array(rows, np.uint8)):
        np.testing.assert_array_equal(model(x), expected)
        np.testing.assert_array_equal(model.backward(dout.tolist()), dx)
        assert loss.forward(x, [0, 2]) == loss.forward(np.array(rows, float), np.array([0, 2]))
        assert loss.forward(x, Frame([[0], [2]])) == loss.forward(x, [0, 2])


def test_float32_throughout(rng: np.random.Generator) -> None:
    model = MLP(3, [6], 4, dtype=np.float32, batch_norm=True, dropout=0.2, rng=rng)
    p = model(rng.standard_normal((8, 3)).astype(np.float32))
    dx = model.backward(p)
    assert {a.dtype for a in (p, dx, *model.grads.values())} == {np.dtype(np.float32)}


def test_repr_lists_the_layers() -> None:
    assert "LinearModule(in_features=3, out_features=6)" in repr(MLP(3, [6], 4))
