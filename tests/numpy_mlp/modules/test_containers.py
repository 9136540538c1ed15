"""Chains and residuals: names, modes, nesting, and what a step may write over."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from module_proofs import apart, assert_equal, run

from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import (
    BatchNorm2dModule,
    BatchNormModule,
    Conv2dModule,
    DropoutModule,
    FlattenModule,
    GELUModule,
    LinearModule,
    Module,
    ReLUModule,
    ResidualModule,
    SequentialModule,
    SoftMaxModule,
    TanhModule,
)
from numpy_mlp.network import Network
from numpy_mlp.optim import SGD
from numpy_mlp.workspace import Workspace


def _nested() -> SequentialModule:
    inner = SequentialModule(LinearModule(3, 3), BatchNormModule(3), ReLUModule())
    return SequentialModule(LinearModule(4, 3), ResidualModule(inner), TanhModule())


def test_parameters_are_named_by_their_way_down() -> None:
    module = _nested()
    names = ["0.weight", "0.bias"]
    names += [f"1.residual.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")]
    assert list(module.params) == list(module.grads) == names
    tracked = ("running_mean", "running_var", "num_batches_tracked")
    assert list(module.buffers) == [f"1.residual.1.{name}" for name in tracked]
    assert len(list(module.modules())) == 8 and next(module.modules()) is module
    inner = module.children["1"].children["residual"].children["0"]  # type: ignore[attr-defined]
    assert module.params["1.residual.0.weight"] is inner.params["weight"]
    assert repr(module).startswith("SequentialModule(LinearModule(in_features=4")


def test_what_is_changed_by_name_is_changed_in_the_module(rng: np.random.Generator) -> None:
    module, x = _nested(), rng.standard_normal((5, 4))
    before = module.forward(x)
    module.backward(np.ones_like(before))
    SGD(list(module.params.values()), 0.1).step(list(module.grads.values()))
    assert np.abs(module.forward(x) - before).max() > 1e-3
    again = _nested()
    for kind in ("params", "buffers"):
        for name, array in getattr(again, kind).items():
            array[...] = getattr(module, kind)[name]
    module.eval(), again.eval()
    np.testing.assert_array_equal(again.forward(x), module.forward(x))


def test_modes_reach_every_module(rng: np.random.Generator) -> None:
    module = _nested()
    module.forward(rng.standard_normal((5, 4)))
    module.clear_cache()
    assert all(part._cache is None for part in module.modules())
    module.eval()
    assert not any(part.training for part in module.modules())
    module.train()
    assert all(part.training for part in module.modules())


def test_chains_in_chains_are_one_chain(rng: np.random.Generator) -> None:
    flat = SequentialModule(LinearModule(4, 3, rng=rng), TanhModule(), LinearModule(3, 2, rng=rng))
    first, *others = copy.deepcopy(flat).children.values()
    nested = SequentialModule(SequentialModule(first), SequentialModule(*others))
    x, dout = rng.standard_normal((5, 4)), rng.standard_normal((5, 2))
    got, want = run(nested, x, dout), run(flat, x, dout)
    np.testing.assert_array_equal(got["y"], want["y"])
    np.testing.assert_array_equal(got["dx"], want["dx"])


def test_a_chain_of_nothing_and_a_residual_of_it(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3))
    empty = SequentialModule()
    np.testing.assert_array_equal(empty.forward(x), x)
    np.testing.assert_array_equal(empty.backward(x), x)
    assert empty.params == {}
    got = run(ResidualModule(empty), x, x)
    np.testing.assert_array_equal(got["y"], 2 * x)
    np.testing.assert_array_equal(got["dx"], 2 * x)


def test_a_residual_keeps_the_shape() -> None:
    with pytest.raises(AssertionError, match=r"turns \(2, 3\) into \(2, 4\)"):
        ResidualModule(LinearModule(3, 4)).forward(np.ones((2, 3)))


@pytest.mark.parametrize(
    "residual",
    [
        ReLUModule,  # of these the output lies over the input, and the gradient over the upstream
        GELUModule,
        SequentialModule,
        lambda: ResidualModule(ReLUModule()),
        lambda: ResidualModule(ResidualModule(TanhModule())),
        lambda: SequentialModule(ReLUModule(), ResidualModule(GELUModule()), ReLUModule()),
        lambda: SequentialModule(TanhModule(), ReLUModule(), BatchNorm2dModule(4)),
        lambda: SequentialModule(BatchNorm2dModule(4), ReLUModule()),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_goes_around_is_not_written_over(
    residual: type[Module], dtype: type, rng: np.random.Generator
) -> None:
    def convolution() -> Conv2dModule:
        return Conv2dModule(4, 4, 3, padding=1, dtype=dtype, rng=np.random.default_rng(3))

    around = SequentialModule(
        convolution(), ResidualModule(residual()), convolution(), ResidualModule(residual())
    )
    for part in around.modules():
        for name, array in getattr(part, "params", {}).items():
            if isinstance(part, BatchNorm2dModule):
                part.params[name] = array.astype(dtype)
    outside, workspace = copy.deepcopy(around), Workspace()
    for n in (3, 5, 2):
        x, dout = (rng.standard_normal((n, 4, 5, 6)).astype(dtype) for _ in range(2))
        with workspace.lent_to(around.modules()):
            got = run(around, x, dout)
        assert_equal(got, run(outside, x, dout))


def test_a_network_with_dropout_and_rows_at_its_end(rng: np.random.Generator) -> None:
    def make() -> SequentialModule:
        generator = np.random.default_rng(8)
        return SequentialModule(
            Conv2dModule(2, 3, 3, rng=generator),
            ReLUModule(),
            FlattenModule(),
            DropoutModule(0.5, rng=generator),
            LinearModule(3 * 3 * 4, 2, rng=generator),
        )

    inside, outside, workspace = make(), make(), Workspace()
    for _ in range(3):
        x, dout = apart(rng, 4, 2, 5, 6), rng.standard_normal((4, 2))
        with workspace.lent_to(inside.modules()):
            got = run(inside, x, dout)
        assert_equal(got, run(outside, x, dout))


def test_what_a_child_keeps_from_training_is_kept() -> None:
    inner = LinearModule(3, 3, rng=0)
    inner.frozen = frozenset({"weight"})
    chain = SequentialModule(ResidualModule(SequentialModule(inner, ReLUModule())))
    model = Network([chain, LinearModule(3, 2, rng=1), SoftMaxModule()])
    assert chain.frozen == {"0.residual.0.weight"}
    assert "layers.0.0.residual.0.weight" not in model.trained_parameters()
    before = inner.params["weight"].copy()
    learner = NumpyLearner(model, SGD(model.trained_parameters(), 0.1, weight_decay=0.1))
    learner.train_step(np.eye(3), np.array([0, 1, 1]), 0.1)
    np.testing.assert_array_equal(inner.params["weight"], before)
    assert inner.params["bias"].any()


def test_lists_go_around_too() -> None:
    residual = ResidualModule(LinearModule(2, 2, rng=0))
    x = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(residual.forward(x), residual.forward(np.array(x)))  # type: ignore[arg-type]
    assert residual.backward(x).shape == (2, 2)  # type: ignore[arg-type]
