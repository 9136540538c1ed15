"""Every layer and loss: finite differences, PyTorch, and the promises all of them share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from numpy_mlp import MLP
from numpy_mlp.gradient_check import check_gradients, check_loss_gradient
from numpy_mlp.modules import (
    BackwardBeforeForwardError,
    BatchNormModule,
    CrossEntropyModule,
    DropoutModule,
    ELUModule,
    FlattenModule,
    LeakyReLUModule,
    LinearModule,
    Module,
    ReLUModule,
    SigmoidModule,
    SoftMaxCrossEntropyModule,
    SoftMaxModule,
    TanhModule,
)
from numpy_mlp.workspace import Workspace


def _torch_linear(layer: Module) -> torch.nn.Module:
    twin = torch.nn.Linear(3, 5, dtype=torch.float64)
    return _copy_params(twin, layer)


def _torch_batchnorm(layer: Module) -> torch.nn.Module:
    return _copy_params(torch.nn.BatchNorm1d(3, dtype=torch.float64), layer)


def _copy_params(twin: torch.nn.Module, layer: Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, param in layer.params.items():
            getattr(twin, name).copy_(torch.from_numpy(param))
    return twin


def _random_batchnorm() -> BatchNormModule:
    # Weight 1 and bias 0, the initial values, would hide a backward pass that forgets them.
    layer = BatchNormModule(3)
    layer.params["weight"][:] = [0.5, -2.0, 3.0]
    layer.params["bias"][:] = [1.0, -1.0, 0.3]
    return layer


@dataclass
class Case:
    """One layer: how to make it, and its twin in PyTorch if there is one."""

    make: Callable[[], Module]
    twin: Callable[[Module], Any] | None


CASES = {
    "linear": Case(lambda: LinearModule(3, 5, rng=np.random.default_rng(1)), _torch_linear),
    "relu": Case(ReLUModule, lambda _: torch.nn.ReLU()),
    "leaky_relu": Case(lambda: LeakyReLUModule(0.2), lambda _: torch.nn.LeakyReLU(0.2)),
    "elu": Case(lambda: ELUModule(0.7), lambda _: torch.nn.ELU(0.7)),
    "sigmoid": Case(SigmoidModule, lambda _: torch.nn.Sigmoid()),
    "tanh": Case(TanhModule, lambda _: torch.nn.Tanh()),
    "softmax": Case(SoftMaxModule, lambda _: torch.nn.Softmax(dim=1)),
    "flatten": Case(FlattenModule, lambda _: torch.nn.Flatten()),
    "dropout": Case(lambda: DropoutModule(0.4, rng=np.random.default_rng(2)), None),
    "batchnorm": Case(_random_batchnorm, _torch_batchnorm),
}
ALL = pytest.mark.parametrize("name", CASES)


def _input(rng: np.random.Generator, n: int = 7) -> np.ndarray:
    """Values at least 0.05 away from the kink at 0."""
    x = rng.standard_normal((n, 3)) * 2
    return x + 0.05 * np.sign(x)


@ALL
def test_gradient_agrees_with_finite_differences(name: str, rng: np.random.Generator) -> None:
    report = check_gradients(CASES[name].make(), _input(rng), rng=rng)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.twin])
def test_forward_and_backward_agree_with_pytorch(name: str, rng: np.random.Generator) -> None:
    layer = CASES[name].make()
    twin = CASES[name].twin(layer)  # type: ignore[misc]
    x = _input(rng)
    x_torch = torch.tensor(x, requires_grad=True)
    y, y_torch = layer.forward(x), twin(x_torch)
    np.testing.assert_allclose(y, y_torch.detach().numpy(), rtol=1e-12, atol=1e-14)
    dout = rng.standard_normal(y.shape)
    y_torch.backward(torch.from_numpy(dout))
    np.testing.assert_allclose(layer.backward(dout), x_torch.grad.numpy(), rtol=1e-10, atol=1e-13)
    for key, grad in getattr(layer, "grads", {}).items():
        np.testing.assert_allclose(grad, getattr(twin, key).grad.numpy(), rtol=1e-10, atol=1e-13)


@ALL
def test_arguments_are_never_modified_or_returned(name: str, rng: np.random.Generator) -> None:
    layer, x = CASES[name].make(), _input(rng)
    x_before = x.copy()
    y = layer.forward(x)
    dout = rng.standard_normal(y.shape)
    dout_before = dout.copy()
    dx = layer.backward(dout)
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(dout, dout_before)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(dx, dout)
    layer.eval()
    assert not np.shares_memory(layer.forward(x), x)


@ALL
def test_backward_needs_a_training_forward(name: str, rng: np.random.Generator) -> None:
    layer, x = CASES[name].make(), _input(rng)
    dout = np.ones((7, 5 if name == "linear" else 3))
    with pytest.raises(BackwardBeforeForwardError, match=type(layer).__name__):
        layer.backward(dout)
    layer.forward(x)
    layer.clear_cache()
    with pytest.raises(BackwardBeforeForwardError, match="forward"):
        layer.backward(dout)
    layer.forward(x)
    layer.eval()
    layer.forward(x)
    with pytest.raises(BackwardBeforeForwardError, match="evaluation mode"):
        layer.backward(dout)
    layer.train()
    layer.forward(x)
    assert layer.backward(dout).shape == x.shape


@ALL
def test_wrong_upstream_shape_is_named(name: str, rng: np.random.Generator) -> None:
    layer = CASES[name].make()
    layer.forward(_input(rng))
    with pytest.raises(AssertionError, match=r"dout has shape \(7, 4\)"):
        layer.backward(np.ones((7, 4)))


@ALL
def test_float32_stays_float32(name: str, rng: np.random.Generator) -> None:
    layer = CASES[name].make()
    for group in ("params", "grads", "buffers"):
        for key, array in getattr(layer, group, {}).items():
            if array.dtype == np.float64:
                getattr(layer, group)[key] = array.astype(np.float32)
    x = _input(rng).astype(np.float32)
    y = layer.forward(x)
    dx = layer.backward(y)
    grads = getattr(layer, "grads", {}).values()
    assert {y.dtype, dx.dtype, *(g.dtype for g in grads)} == {np.dtype(np.float32)}


@ALL
def test_parameters_are_not_changed_and_gradients_not_accumulated(
    name: str, rng: np.random.Generator
) -> None:
    layer = CASES[name].make()
    params = copy.deepcopy(getattr(layer, "params", {}))
    x = _input(rng)
    y = layer.forward(x)
    layer.backward(y)
    first = copy.deepcopy(getattr(layer, "grads", {}))
    layer.forward(x)
    layer.backward(y)
    for key, param in params.items():
        np.testing.assert_array_equal(layer.params[key], param)
        np.testing.assert_array_equal(layer.grads[key], first[key])


@pytest.mark.parametrize("name", [name for name in CASES if name != "batchnorm"])
def test_a_batch_of_one(name: str, rng: np.random.Generator) -> None:
    report = check_gradients(CASES[name].make(), _input(rng, n=1), rng=rng)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["elu", "sigmoid", "tanh", "softmax", "relu"])
def test_extreme_inputs_stay_finite(name: str, dtype: type, scale: float) -> None:
    layer = CASES[name].make()
    x = np.array([[scale, 0.5 * scale, 0.0], [-scale, 1.0, scale]], dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        y = layer.forward(x)
        dx = layer.backward(np.ones_like(x))
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    if name == "softmax":
        np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


# --- linear --------------------------------------------------------------------------------------


def test_linear_initialisation() -> None:
    rng = np.random.default_rng(0)
    hidden = LinearModule(400, 300, rng=rng).params
    first = LinearModule(400, 300, input_layer=True, rng=rng).params
    old = LinearModule(400, 300, weight_std=1e-4, rng=rng).params
    # 120,000 draws: the standard error of a standard deviation is 0.2 %.
    assert hidden["weight"].std() == pytest.approx(np.sqrt(2 / 400), rel=0.01)
    assert first["weight"].std() == pytest.approx(np.sqrt(1 / 400), rel=0.01)
    assert old["weight"].std() == pytest.approx(1e-4, rel=0.01)
    for params in (hidden, first, old):
        assert params["weight"].shape == (300, 400)
        assert params["bias"].shape == (300,)
        assert not params["bias"].any()


def test_linear_initialisation_follows_the_generator() -> None:
    weights = [LinearModule(3, 4, rng=np.random.default_rng(5)).params["weight"] for _ in "ab"]
    np.testing.assert_array_equal(*weights)
    assert (LinearModule(3, 4).params["weight"] != LinearModule(3, 4).params["weight"]).any()


@pytest.mark.parametrize(
    ("args", "named"), [((0, 3), "in_features"), ((3, -1), "out_features"), ((2.5, 3), "2.5")]
)
def test_linear_refuses_bad_sizes(args: tuple[Any, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LinearModule(*args)


def test_linear_names_a_wrong_input_shape() -> None:
    with pytest.raises(AssertionError, match=r"\(4, 2\), expected \(N, 3\)"):
        LinearModule(3, 5).forward(np.ones((4, 2)))


def test_backward_parameters_is_the_first_half_of_backward(rng: np.random.Generator) -> None:
    layer, x, dout = LinearModule(3, 5), _input(rng), rng.standard_normal((7, 5))
    layer.forward(x)
    layer.backward(dout)
    expected = copy.deepcopy(layer.grads)
    layer.grads["weight"][:] = layer.grads["bias"][:] = 0
    layer.forward(x)
    layer.backward_parameters(dout)
    for key, grad in expected.items():
        np.testing.assert_array_equal(layer.grads[key], grad)


def test_gradients_that_were_reset_to_none_come_back(rng: np.random.Generator) -> None:
    layer, dout = LinearModule(3, 5), rng.standard_normal((7, 5))
    layer.grads = {"weight": None, "bias": None}  # type: ignore[dict-item]
    layer.forward(_input(rng))
    layer.backward(dout)
    np.testing.assert_allclose(layer.grads["bias"], dout.sum(axis=0))


@pytest.mark.parametrize("name", ["linear", "batchnorm"])
def test_gradients_are_written_into_the_same_arrays(name: str, rng: np.random.Generator) -> None:
    layer = CASES[name].make()
    held = dict(layer.grads)
    assert not any(grad.any() for grad in held.values())
    for scale in (1, 2):
        y = layer.forward(_input(rng))
        layer.backward(scale * np.ones_like(y))
        for key, grad in held.items():
            assert layer.grads[key] is grad
        np.testing.assert_allclose(held["bias"], 7 * scale)


@ALL
def test_one_forward_serves_one_backward(name: str, rng: np.random.Generator) -> None:
    """So that a layer used at two places, which remembers the last of them only, is noticed."""
    layer, x = CASES[name].make(), _input(rng)
    dout = np.ones_like(layer.forward(x))
    layer.forward(x)
    layer.backward(dout)
    assert layer._cache is None
    with pytest.raises(BackwardBeforeForwardError, match="used at two places of a network"):
        layer.backward(dout)


def test_one_activation_at_two_places_is_refused(rng: np.random.Generator) -> None:
    model = MLP(3, [3, 3], 3, rng=rng)
    model.layers[3] = model.layers[1]
    with pytest.raises(
        BackwardBeforeForwardError, match="two places of a network must be two objects"
    ):
        check_gradients(model, _input(rng), rng=rng)


def test_backward_parameters_of_a_layer_without_one_of_its_own(rng: np.random.Generator) -> None:
    layer, x, dout = _random_batchnorm(), _input(rng), rng.standard_normal((7, 3))
    layer.forward(x)
    layer.backward(dout)
    expected = copy.deepcopy(layer.grads)
    layer.grads = {}
    layer.forward(x)
    assert layer.backward_parameters(dout) is None  # type: ignore[func-returns-value]
    for key, grad in expected.items():
        np.testing.assert_array_equal(layer.grads[key], grad)


# --- flatten -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 3), (5, 2, 3, 4), (0, 2, 3), (1, 1, 1, 1)])
def test_flatten_of_any_shape(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    layer, x = FlattenModule(), rng.standard_normal(shape)
    y, expected = layer.forward(x), torch.from_numpy(x).flatten(1).numpy()
    np.testing.assert_array_equal(y, expected)
    dout = rng.standard_normal(y.shape)
    dx = layer.backward(dout)
    assert dx.shape == shape
    np.testing.assert_array_equal(dx.reshape(dout.shape), dout)
    if x.size:
        assert check_gradients(FlattenModule(), x, rng=rng).passed


def test_flatten_within_a_step_copies_nothing(rng: np.random.Generator) -> None:
    layer, x, dout = FlattenModule(), rng.standard_normal((5, 2, 3)), rng.standard_normal((5, 6))
    with Workspace().lent_to([layer]):
        assert np.shares_memory(layer.forward(x), x)
        assert np.shares_memory(layer.backward(dout), dout)


def test_flatten_refuses_what_is_no_batch() -> None:
    with pytest.raises(AssertionError, match=r"\(3,\), expected \(N, \.\.\.\)"):
        FlattenModule().forward(np.ones(3))


# --- activations ---------------------------------------------------------------------------------


def test_relu_survives_changes_to_its_input_and_output(rng: np.random.Generator) -> None:
    layer, x = ReLUModule(), _input(rng)
    layer.forward(x)
    expected = layer.backward(np.ones_like(x))
    y = layer.forward(x)
    x[:] = -1.0
    y[:] = 0.0
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), expected)


def test_elu_refuses_a_negative_alpha() -> None:
    with pytest.raises(ValueError, match="alpha"):
        ELUModule(-0.1)


def test_sigmoid_keeps_the_digits_of_small_values() -> None:
    x = np.array([[-700.0, -40.0]])
    np.testing.assert_allclose(SigmoidModule().forward(x), np.exp(x), rtol=1e-12)


# --- dropout -------------------------------------------------------------------------------------


def test_dropout_keeps_the_expectation_and_is_off_in_evaluation() -> None:
    layer, x = DropoutModule(0.3, rng=np.random.default_rng(0)), np.ones((400, 250))
    y = layer.forward(x)
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert set(np.unique(y)) == {0.0, 1 / (1 - 0.3)}
    assert y.mean() == pytest.approx(1.0, abs=0.01)
    assert (layer.forward(x) != y).any()
    layer.eval()
    np.testing.assert_array_equal(layer.forward(x), x)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_refuses_a_bad_probability(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        DropoutModule(p)


# --- batch normalisation -------------------------------------------------------------------------


def test_batchnorm_running_statistics_and_evaluation_match_pytorch(
    rng: np.random.Generator,
) -> None:
    layer = _random_batchnorm()
    twin = _torch_batchnorm(layer)
    for n in (7, 4, 2):
        x = rng.standard_normal((n, 3)) * [1, 5, 0.1] + [0, 100, -3]
        layer.forward(x)
        twin(torch.from_numpy(x))
    np.testing.assert_allclose(layer.running_mean, twin.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, twin.running_var.numpy(), rtol=1e-12)
    assert layer.buffers["num_batches_tracked"] == 3
    layer.eval()
    twin.eval()
    before = copy.deepcopy(layer.buffers)
    y, y_torch = layer.forward(x), twin(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, y_torch, rtol=1e-11)
    for key, value in before.items():
        np.testing.assert_array_equal(layer.buffers[key], value)


def test_batchnorm_refuses_to_train_on_one_row() -> None:
    layer = BatchNormModule(3)
    with pytest.raises(ValueError, match="more than one row"):
        layer.forward(np.ones((1, 3)))
    layer.eval()
    assert layer.forward(np.ones((1, 3))).shape == (1, 3)


def test_batchnorm_with_a_constant_column_stays_finite() -> None:
    layer = BatchNormModule(2)
    y = layer.forward(np.array([[1e4, 1.0], [1e4, 2.0]]))
    assert np.isfinite(y).all()
    assert np.isfinite(layer.backward(np.array([[1.0, 2.0], [3.0, 4.0]]))).all()


# --- losses --------------------------------------------------------------------------------------


def _probabilities(rng: np.random.Generator) -> np.ndarray:
    x = rng.uniform(0.1, 1, (6, 4))
    return x / x.sum(axis=1, keepdims=True)


LABELS = np.array([0, 3, 1, 1, 2, 0])  # class counts differ; all classes occur


@pytest.mark.parametrize(
    "y", [LABELS, LABELS[:, None], np.eye(4)[LABELS], np.eye(4, dtype=int)[LABELS]]
)
@pytest.mark.parametrize("loss", [CrossEntropyModule(), SoftMaxCrossEntropyModule()])
def test_loss_gradient_agrees_with_finite_differences(
    loss: Any, y: np.ndarray, rng: np.random.Generator
) -> None:
    x = _probabilities(rng) if isinstance(loss, CrossEntropyModule) else rng.normal(size=(6, 4))
    report = check_loss_gradient(loss, x, y)
    assert report.passed, f"\n{report}"


def test_losses_agree_with_pytorch(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(6, 4)) * 3
    x = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(x, torch.from_numpy(LABELS))
    expected.backward()
    fused, softmax, plain = SoftMaxCrossEntropyModule(), SoftMaxModule(), CrossEntropyModule()
    loss, dx = fused.loss_and_gradient(logits, LABELS)
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-12, atol=1e-16)
    probabilities = softmax.forward(logits)
    assert plain.forward(probabilities, LABELS) == pytest.approx(loss, rel=1e-12)
    chained = softmax.backward(plain.backward(probabilities, LABELS))
    np.testing.assert_allclose(chained, dx, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fused_loss_is_exact_for_extreme_logits(dtype: type) -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        loss, dx = SoftMaxCrossEntropyModule().loss_and_gradient(logits, np.array([1, 1]))
    assert loss == pytest.approx(1e4)  # (2·10⁴ + 0) / 2
    np.testing.assert_allclose(dx, [[0.5, -0.5, 0], [0, 0, 0]], atol=1e-7)
    assert dx.dtype == dtype


def test_cross_entropy_of_an_impossible_target_is_finite() -> None:
    x, y = np.array([[1.0, 0.0]]), np.array([1])
    with np.errstate(all="raise"):
        loss, dx = CrossEntropyModule().forward(x, y), CrossEntropyModule().backward(x, y)
    assert loss == pytest.approx(-np.log(np.finfo(np.float64).tiny))
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("loss", [CrossEntropyModule(), SoftMaxCrossEntropyModule()])
@pytest.mark.parametrize(
    ("y", "named"),
    [
        (np.array([0, 4]), "label 4 is out of range: expected 0 to 3, one for each of 4 outputs"),
        (np.array([[0], [4]]), "label 4 is out of range"),
        (np.array([0.0, 1.5]), r"got float64 of shape \(2,\); give y.astype\(int\)"),
        (np.array([True, False]), r"got bool of shape \(2,\); give y.astype\(int\)"),
        (np.array([0, -1]), "label -1"),
        (np.array([0.0, 1.0]), "integer labels"),
        (np.array([0, 1, 2]), "shape"),
        (np.array([[1, 1, 0, 0], [0, 1, 0, 0]]), "one-hot"),
        (np.array([[0.5, 0.5, 0, 0], [0, 1, 0, 0]]), "one-hot"),
    ],
)
def test_losses_name_bad_targets(loss: Any, y: np.ndarray, named: str) -> None:
    x = np.full((2, 4), 0.25)
    for method in (loss.forward, loss.backward):
        with pytest.raises(ValueError, match=named):
            method(x, y)
