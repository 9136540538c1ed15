"""Memory used again by every step: the same numbers, nothing overwritten that is still read."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from numpy_mlp import MLP
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import (
    BatchNormModule,
    DropoutModule,
    ELUModule,
    LeakyReLUModule,
    LinearModule,
    Module,
    ReLUModule,
    SigmoidModule,
    SoftMaxCrossEntropyModule,
    TanhModule,
)
from numpy_mlp.optim import SGD, AdamW
from numpy_mlp.workspace import Workspace

OPTIONS: list[dict[str, Any]] = [
    {"activation": name, "batch_norm": batch_norm, "dropout": dropout, "input_dropout": dropout}
    for name in ("relu", "leaky_relu", "elu", "sigmoid", "tanh")
    for batch_norm in (False, True)
    for dropout in (0.0, 0.4)
]


def _network(dtype: Any = np.float64, **options: Any) -> MLP:
    return MLP(6, (9, 5), 4, dtype=dtype, rng=np.random.default_rng(1), **options)


def test_arrays_are_the_same_memory_again() -> None:
    workspace = Workspace()
    first = workspace.array("a", (4, 3), np.float32)
    second = workspace.array("a", (2, 5), np.float32)
    assert second.shape == (2, 5) and second.dtype == np.float32
    assert np.shares_memory(first, second) and workspace.nbytes == 4 * 3 * 4
    assert not np.shares_memory(first, workspace.array("b", (4, 3), np.float32))
    larger = workspace.array("a", (5, 3), np.float32)
    assert not np.shares_memory(first, larger) and larger.flags.c_contiguous
    assert workspace.array("a", (1,), np.float64).dtype == np.float64


def test_only_what_is_its_own_and_not_pinned_may_be_overwritten() -> None:
    workspace = Workspace()
    mine, kept = workspace.array("a", (2, 3), np.float64), workspace.array("b", (2,), np.float64)
    assert workspace.may_overwrite(mine) and workspace.may_overwrite(mine.reshape(3, 2))
    assert not workspace.may_overwrite(np.ones((2, 3)))
    assert not workspace.may_overwrite(np.ones((2, 3)).reshape(-1))
    workspace.pin((kept, 3, None))
    assert not workspace.may_overwrite(kept) and workspace.may_overwrite(mine)
    replaced = mine
    workspace.array("a", (7, 3), np.float64)
    assert not workspace.may_overwrite(replaced)
    with workspace.lent_to([]):
        assert workspace.may_overwrite(kept)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_those_made_by_hand(options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(5)
    fast, by_hand = _network(dtype, **options), _network(dtype, **options)
    optimizers = [SGD(list(m.params.values()), 0.1, momentum=0.9) for m in (fast, by_hand)]
    learner, loss = NumpyLearner(fast, optimizers[0]), SoftMaxCrossEntropyModule()
    for n in (7, 7, 3, 8, 2):  # batches of an epoch, and the uneven last one
        x, y = rng.standard_normal((n, 6)).astype(dtype), rng.integers(0, 4, n)
        before = x.copy()
        got = learner.train_step(x, y, 0.1)
        np.testing.assert_array_equal(x, before)
        by_hand.train()
        logits = by_hand.logits(x)
        want, dlogits = loss.loss_and_gradient(logits, y)
        by_hand.backward_logits(dlogits)
        optimizers[1].step(list(by_hand.grads.values()))
        assert got == (want, int((logits.argmax(axis=1) == y).sum()))
        for name, param in by_hand.state_dict().items():
            np.testing.assert_array_equal(fast.state_dict()[name], param, err_msg=name)
        eval_x, eval_y = rng.standard_normal((9, 6)).astype(dtype), rng.integers(0, 4, 9)
        by_hand.eval()
        eval_loss, predicted = learner.eval_step(eval_x, eval_y)
        assert eval_loss == loss.forward(by_hand.logits(eval_x), eval_y)
        np.testing.assert_array_equal(predicted, by_hand.logits(eval_x).argmax(axis=1))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_gradients_of_the_fast_path(options: dict[str, Any], rng: np.random.Generator) -> None:
    model, loss, workspace = _network(**options), SoftMaxCrossEntropyModule(), Workspace()
    x, y = rng.standard_normal((5, 6)), rng.integers(0, 4, 5)
    drops = [layer for layer in model.layers if hasattr(layer, "rng")]
    masks = [layer.rng.bit_generator.state for layer in drops]

    def forward() -> tuple[float, np.ndarray]:
        for layer, state in zip(drops, masks, strict=True):
            layer.rng.bit_generator.state = state
        with workspace.lent_to(model.layers):
            return loss.loss_and_gradient(model.logits(x), y)

    _, dlogits = forward()
    with workspace.lent_to(model.layers):
        model.backward_parameters(dlogits)
    grads = {name: grad.copy() for name, grad in model.grads.items()}
    for name, param in model.params.items():
        numeric = np.empty_like(param)
        for index in np.ndindex(param.shape):
            kept, losses = param[index], []
            for step in (1e-6, -1e-6):
                param[index] = kept + step
                losses.append(forward()[0])
            param[index] = kept
            numeric[index] = (losses[0] - losses[1]) / 2e-6
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-5, atol=1e-8, err_msg=name)


def test_what_is_made_by_hand_is_the_callers_to_keep(rng: np.random.Generator) -> None:
    model = _network()
    learner = NumpyLearner(model, SGD(list(model.params.values()), 0.1))
    x, y = rng.standard_normal((5, 6)), rng.integers(0, 4, 5)
    learner.train_step(x, y, 0.1)
    model.train()
    logits = model.logits(x)
    dx = model.backward_logits(logits)
    kept = [a.copy() for a in (logits, dx)]
    held = [logits, dx]
    learner.train_step(2 * x, y, 0.1)
    model.logits(3 * x)
    for array, copy in zip(held, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


class Shift(Module):
    """A layer from elsewhere, that keeps its input in a way of its own and passes it on."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x

    def backward(self, dout: np.ndarray) -> np.ndarray:
        return dout * self.x


def test_a_layer_from_elsewhere_may_keep_what_it_likes(rng: np.random.Generator) -> None:
    fast, by_hand = _network(activation="tanh"), _network(activation="tanh")
    for model in (fast, by_hand):
        model.layers.insert(1, Shift())
    optimizers = [SGD(list(m.params.values()), 0.1) for m in (fast, by_hand)]
    loss = SoftMaxCrossEntropyModule()
    x, y = rng.standard_normal((7, 6)), rng.integers(0, 4, 7)
    NumpyLearner(fast, optimizers[0]).train_step(x, y, 0.1)
    by_hand.backward_logits(loss.backward(by_hand.logits(x), y))
    optimizers[1].step(list(by_hand.grads.values()))
    for name, param in by_hand.params.items():
        np.testing.assert_array_equal(fast.params[name], param, err_msg=name)


class KeepsMore(TanhModule):
    """A layer of ours with a backward pass from elsewhere, which reads the input as it was."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return super().forward(x)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        return dout * (1 - np.tanh(self.x) ** 2)


def test_what_a_layer_promises_holds_for_no_subclass_of_it() -> None:
    class Declares(KeepsMore, takes_workspace=True):
        pass

    for cls, takes in ((Module, False), (TanhModule, True), (KeepsMore, False), (Declares, True)):
        assert cls.takes_workspace is takes
        layer, workspace = cls(), Workspace()
        with workspace.lent_to([LinearModule(2, 2), layer]):
            assert layer.workspace is (workspace if takes else None)
    fast, by_hand = _network(activation="tanh"), _network(activation="tanh")
    for model in (fast, by_hand):
        model.layers[1] = KeepsMore()
    optimizers = [SGD(list(m.params.values()), 0.1) for m in (fast, by_hand)]
    x, y = np.random.default_rng(0).standard_normal((7, 6)), np.arange(7) % 4
    NumpyLearner(fast, optimizers[0]).train_step(x, y, 0.1)
    by_hand.backward_logits(SoftMaxCrossEntropyModule().backward(by_hand.logits(x), y))
    optimizers[1].step(list(by_hand.grads.values()))
    for name, param in by_hand.params.items():
        np.testing.assert_array_equal(fast.params[name], param, err_msg=name)


def test_an_optimizer_of_another_network_is_refused() -> None:
    model, other = _network(), _network()
    params = list(model.params.values())
    for wrong in (params[:-1], [*params, params[0].copy()], list(other.params.values())):
        with pytest.raises(AssertionError):
            NumpyLearner(model, SGD(wrong, 0.1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("upstream", [np.int64, np.float32, np.float64])
def test_types_of_what_goes_in_and_out(dtype: Any, upstream: Any) -> None:
    x = np.array([[-2, 3, 1], [1, -1, 2]])
    dout = np.array([[1, 2, -1], [3, 1, 1]]).astype(upstream)
    for make in (
        ReLUModule,
        lambda: LeakyReLUModule(0.1),
        ELUModule,
        SigmoidModule,
        TanhModule,
        lambda: DropoutModule(0.5, rng=np.random.default_rng(0)),
        lambda: BatchNormModule(3),
    ):
        layer, exact = make(), make()
        y, wanted = layer.forward(x.astype(dtype)), exact.forward(x)  # whole numbers are welcome
        assert wanted.dtype == np.float64
        np.testing.assert_allclose(y, wanted, rtol=1e-6)
        dx, wanted = layer.backward(dout), exact.backward(dout.astype(np.float64))
        np.testing.assert_allclose(dx, wanted, rtol=1e-5, atol=1e-6)
    assert LeakyReLUModule(0.1).forward(x)[0, 0] == pytest.approx(-0.2)


def test_a_step_that_fails_gives_the_layers_back(rng: np.random.Generator) -> None:
    model = _network()
    learner = NumpyLearner(model, SGD(list(model.params.values()), 0.1))
    with pytest.raises(ValueError, match="out of range"):
        learner.train_step(rng.standard_normal((5, 6)), np.full(5, 4), 0.1)
    assert all(layer.workspace is None for layer in model.layers)


def test_a_remembered_output_survives_the_next_layer(rng: np.random.Generator) -> None:
    # Two activations in a row: the second may not write over what the first remembers.
    layers = [LinearModule(3, 4, rng=rng), TanhModule(), TanhModule()]
    x, dout = rng.standard_normal((5, 3)), rng.standard_normal((5, 4))

    def both_ways() -> np.ndarray:
        y = x
        for layer in layers:
            y = layer.forward(y)
        dx = dout
        for layer in reversed(layers):
            dx = layer.backward(dx)
        return dx.copy()

    by_hand, upstream = both_ways(), dout.copy()
    with Workspace().lent_to(layers):
        np.testing.assert_array_equal(both_ways(), by_hand)
    np.testing.assert_array_equal(dout, upstream)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_memory_of_a_step(optimizer: str) -> None:
    sizes, n = (784, 600, 400, 10), 256
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, sizes[0]), dtype=np.float32), rng.integers(0, 10, n)
    tracemalloc.start()
    try:
        model = MLP(sizes[0], sizes[1:-1], sizes[-1], dtype=np.float32, rng=rng)
        params = list(model.params.values())
        made: Any = SGD(params, 0.1, momentum=0.9) if optimizer == "sgd" else AdamW(params)
        learner = NumpyLearner(model, made)
        learner.train_step(x, y, 0.1)  # fills the zeros that gradients are before it
        learner.train_step(x, y, 0.1)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        learner.train_step(x, y, 0.1)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    values = sum(param.nbytes for param in params)
    activations = 4 * n * sum(sizes[1:])
    bound = values * (2 + len(made.slots)) + 2 * activations
    assert peak <= 1.1 * bound
    assert after - before < 2_000, "a step keeps nothing more than the one before it"
    assert peak - before < 0.1 * bound, "and makes hardly anything anew"
