"""The checker itself: exact on known gradients, and it finds every planted error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from numpy_mlp.gradient_check import (
    check_gradients,
    check_loss_gradient,
    compare_gradients,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
)
from numpy_mlp.modules import (
    BatchNormModule,
    ELUModule,
    LinearModule,
    SoftMaxCrossEntropyModule,
    SoftMaxModule,
    TanhModule,
)
from numpy_mlp.modules.module import Array


def test_numerical_gradient_of_a_known_function(
    rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    x = rng.standard_normal((2, 3))
    before = x.copy()
    grad = eval_numerical_gradient(lambda a: float((a**3).sum()), x, verbose=True)
    np.testing.assert_allclose(grad, 3 * before**2, rtol=1e-8)
    np.testing.assert_array_equal(x, before)
    assert capsys.readouterr().out.count("\n") == 6


def test_numerical_gradient_through_an_array(rng: np.random.Generator) -> None:
    x, df = rng.standard_normal((2, 3)), rng.standard_normal((3, 2))
    grad = eval_numerical_gradient_array(lambda a: np.sin(a).T, x, df)
    np.testing.assert_allclose(grad, np.cos(x) * df.T, rtol=1e-8)


def test_a_function_that_returns_its_argument(rng: np.random.Generator) -> None:
    x, df = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    np.testing.assert_allclose(eval_numerical_gradient_array(lambda a: a, x, df), df, rtol=1e-8)


def test_x_is_restored_when_the_function_fails() -> None:
    x = np.ones(2)
    with pytest.raises(ZeroDivisionError):
        eval_numerical_gradient(lambda a: 1 / 0, x)
    np.testing.assert_array_equal(x, 1)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        eval_numerical_gradient(lambda a: float(a.sum()), np.arange(3))


def test_float32_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="x is float32"):
        check_gradients(SoftMaxModule(), np.ones((2, 3), dtype=np.float32), rng=rng)
    with pytest.raises(ValueError, match="weight is float32"):
        check_gradients(LinearModule(3, 2, dtype=np.float32), np.ones((2, 3)), rng=rng)


class _SlightlyWrongLinear(LinearModule):
    """A derivative off by 0.1 %, in one entry of one gradient."""

    wrong = "x"

    def backward(self, dout: Array) -> Array:
        dx = super().backward(dout)
        target = dx if self.wrong == "x" else self.grads[self.wrong]
        target[(1,) * target.ndim] *= 1.001
        return dx


@pytest.mark.parametrize("wrong", ["x", "weight", "bias"])
def test_an_error_of_a_tenth_of_a_percent_is_found_and_located(
    wrong: str, rng: np.random.Generator
) -> None:
    layer = _SlightlyWrongLinear(3, 4, rng=rng)
    layer.wrong = wrong
    report = check_gradients(layer, rng.standard_normal((5, 3)), rng=rng)
    failed = [error for error in report.errors if not error.passed]
    assert [error.name for error in failed] == [wrong]
    assert failed[0].index == ((1,) if wrong == "bias" else (1, 1))
    assert failed[0].max_relative_error == pytest.approx(1e-3, rel=0.01)
    assert failed[0].analytic == pytest.approx(1.001 * failed[0].numerical, rel=1e-6)
    assert not report.passed
    assert f"WRONG {wrong}" in str(report)


def _elementwise_softmax(self: SoftMaxModule, dout: Array) -> Array:
    (y,) = self._recall()
    return dout * y * (1 - y)


def _ignores_upstream(self: ELUModule, dout: Array) -> Array:
    return ELUModule.backward(self, np.ones_like(dout))


def _forgets_the_mean(self: BatchNormModule, dout: Array) -> Array:
    assert self._cache is not None
    _, inv_std = self._cache
    BatchNormModule.backward(self, dout)
    return inv_std * dout


@pytest.mark.parametrize(
    ("base", "backward"),
    [
        (SoftMaxModule, _elementwise_softmax),
        (ELUModule, _ignores_upstream),
        (lambda: BatchNormModule(3), _forgets_the_mean),
    ],
)
def test_mistakes_of_students_are_found(
    base: Callable[[], object], backward: Callable[..., Array], rng: np.random.Generator
) -> None:
    layer = base()
    type_of_wrong = type("Wrong", (type(layer),), {"backward": backward})
    layer.__class__ = type_of_wrong
    assert not check_gradients(layer, rng.standard_normal((5, 3)), rng=rng).passed


def test_a_loss_that_forgets_the_mean_is_found(rng: np.random.Generator) -> None:
    class Wrong(SoftMaxCrossEntropyModule):
        def backward(self, x: Array, y: Array) -> Array:
            return super().backward(x, y) * len(x)

    x, y = rng.standard_normal((5, 3)), np.array([0, 1, 2, 1, 1])
    assert check_loss_gradient(SoftMaxCrossEntropyModule(), x, y).passed
    assert not check_loss_gradient(Wrong(), x, y).passed


def test_a_nan_fails_and_is_located() -> None:
    analytic, numerical = np.ones((2, 3)), np.ones((2, 3))
    analytic[1, 2] = np.nan
    error = compare_gradients("x", analytic, numerical)
    assert not error.passed
    assert error.index == (1, 2)


def test_a_gradient_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(AssertionError, match=r"weight has shape \(3, 2\), expected \(2, 3\)"):
        compare_gradients("weight", np.ones((3, 2)), np.ones((2, 3)))


def test_the_module_under_test_is_left_alone(rng: np.random.Generator) -> None:
    layer = BatchNormModule(3)
    check_gradients(layer, rng.standard_normal((5, 3)), rng=rng)
    assert not layer.running_mean.any()
    assert not layer.grads["weight"].any()


class _Square(ELUModule):
    """x², with one of the mistakes of a first layer."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.params, self.grads = {"weight": np.ones(1)}, {"weight": np.ones(1)}
        if mistake == "no gradient":
            self.grads = {}

    def forward(self, x: Array) -> Array:
        self._remember(x)
        if self.mistake == "changes x":
            x *= x
            return x
        y: Array = self.params["weight"] * x**2
        return None if self.mistake == "no output" else y  # type: ignore[return-value]

    def backward(self, dout: Array) -> Array:
        (x,) = self._recall()
        if self.mistake != "no gradient":
            self.grads["weight"] = np.array([(dout * x**2).sum()])
        if self.mistake == "changes dout":
            dout *= 0
            return dout
        if self.mistake == "no input gradient":
            return None  # type: ignore[return-value]
        return 2 * x * dout


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("changes x", r"forward modified its argument"),
        ("changes dout", r"backward modified its argument"),
        ("no output", r"forward returned NoneType"),
        ("no input gradient", r"backward returned NoneType"),
        ("no gradient", r"no array in grads\['weight'\]"),
    ],
)
def test_mistakes_of_a_first_layer_are_named(
    mistake: str, named: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((4, 3))
    before = x.copy()
    assert check_gradients(_Square("none"), x, rng=rng).passed
    with pytest.raises(ValueError, match=named):
        check_gradients(_Square(mistake), x, rng=rng)
    np.testing.assert_array_equal(x, before)


def test_a_list_is_refused_with_advice(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"x is list; convert it"):
        check_gradients(SoftMaxModule(), [[1.0, 2.0]], rng=rng)  # type: ignore[arg-type]


def test_read_only_and_repeated_inputs(rng: np.random.Generator) -> None:
    x = np.broadcast_to(rng.standard_normal(3), (4, 3))  # read-only, each row the same memory
    assert check_gradients(TanhModule(), x, rng=rng).passed
    loss = SoftMaxCrossEntropyModule()
    assert check_loss_gradient(loss, x, np.array([0, 1, 2, 2])).passed


def test_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="floating-point x, got float16"):
        eval_numerical_gradient(lambda x: float(x.sum()), np.ones(3, np.float16))
