"""``rng`` everywhere: a generator, a RandomState, a seed, or NumPy's global state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numpy_mlp.autograd as vg
from numpy_mlp import MLP
from numpy_mlp.gradient_check import check_gradients
from numpy_mlp.modules import DropoutModule, LinearModule, TanhModule
from numpy_mlp.randomness import as_generator

Array = np.ndarray


def _mlp(rng: Any) -> Array:
    return MLP(5, [4], 3, dropout=0.5, rng=rng).forward(np.ones((2, 5)))


MAKERS: dict[str, Callable[[Any], Array]] = {
    "MLP": _mlp,
    "LinearModule": lambda rng: LinearModule(5, 4, rng=rng).params["weight"],
    "DropoutModule": lambda rng: DropoutModule(0.5, rng=rng).forward(np.ones(40)),
    "vg.Linear": lambda rng: vg.Linear(5, 4, rng=rng).w.value,
    "vg.MLP": lambda rng: vg.MLP(5, 4, rng=rng)(vg.TensorNode(np.ones((2, 5)))).value,
    "check_gradients": lambda rng: np.array(
        check_gradients(TanhModule(), np.linspace(0.1, 2, 12), rng=rng).errors[0].analytic
    ),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@EVERY
def test_the_same_source_gives_the_same_numbers(make: Callable[[Any], Array]) -> None:
    for source in (
        lambda: 7,
        lambda: np.int64(7),
        lambda: np.random.default_rng(7),
        lambda: np.random.RandomState(7),
        lambda: np.random.seed(7),  # noqa: NPY002
    ):
        first, second = make(source()), make(source())
        np.testing.assert_array_equal(first, second)
        assert (make(8) != first).any()
    np.testing.assert_array_equal(make(7), make(np.random.default_rng(7)))
    np.random.seed(7)  # noqa: NPY002
    np.testing.assert_array_equal(make(None), make(np.random.RandomState(7)))
    np.random.seed(7)  # noqa: NPY002
    np.testing.assert_array_equal(make(np.random), make(np.random.RandomState(7)))


@EVERY
def test_a_second_one_of_the_global_state_is_another(make: Callable[[Any], Array]) -> None:
    np.random.seed(7)  # noqa: NPY002
    assert (make(None) != make(None)).any()


@EVERY
@pytest.mark.parametrize("wrong", ["0", 1.5, True, [1]])
def test_what_is_no_source_is_named(make: Callable[[Any], Array], wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"rng is {type(wrong).__name__}; expected a Generator"):
        make(wrong)
    with pytest.raises(ValueError, match="rng is -1; a seed must be 0 or more"):
        make(-1)


def test_a_generator_is_passed_on_itself() -> None:
    generator = np.random.default_rng(0)
    assert as_generator(generator) is generator
    assert DropoutModule(rng=generator).rng is generator


def test_layers_of_the_graphs_network_share_one_stream() -> None:
    first, second = (layer.w.value for layer in vg.MLP(4, 4, hidden_sizes=4, rng=3).layers)
    assert (first != second).any()
