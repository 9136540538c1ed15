"""The engine: the course's interface, the order of the walk, accumulation, aliasing, memory."""

from __future__ import annotations

import copy
import gc
import gzip
import itertools
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import write_mnist

import numpy_mlp.autograd as vg
from numpy_mlp.autograd import core

# --- what the assignment says and its tests do


def test_the_structure_of_a_sum() -> None:
    a, b = (vg.TensorNode(np.random.default_rng(i).standard_normal((2, 2))) for i in (0, 1))
    c = a + b
    np.testing.assert_array_equal(c.value, a.value + b.value)
    assert c.source is not None and c.source.op is vg.Add
    assert c.source.inputs[0] is a and c.source.inputs[1] is b
    assert c.source.outputs[0] is c
    assert a.source is None
    np.testing.assert_array_equal(a.grad, np.zeros((2, 2)))
    assert c.size() == (2, 2) and c.size(1) == 2
    assert "Add" in repr(c) and "x" in repr(vg.TensorNode(1.0, name="x"))


def test_gradients_as_the_courses_tests_check_them(rng: np.random.Generator) -> None:
    functions: list[Callable[[vg.TensorNode], vg.TensorNode]] = [
        lambda x: vg.Sum.do_forward(x),
        lambda x: vg.Sum.do_forward(vg.Sigmoid.do_forward(x)),
        lambda x: vg.Sum.do_forward(vg.Sigmoid.do_forward(vg.MatrixMultiply.do_forward(x, x))),
        lambda x: vg.Sum.do_forward(
            vg.Log.do_forward(vg.Normalize.do_forward(vg.Exp.do_forward(x)))
        ),
    ]
    for function in functions:
        inp = vg.TensorNode(rng.standard_normal((5, 5)))
        loss = function(inp)
        loss.backward()
        for i in range(5):
            for j in range(5):
                shifted = vg.TensorNode(inp.value.copy())
                shifted.value[i, j] += 1e-6
                change = (function(shifted).value - loss.value) / 1e-6
                assert inp.grad[i, j] == pytest.approx(change, rel=1e-4, abs=1e-4)
        loss.zero_grad()
        loss.clear()
        assert not inp.grad.any()


class TwoLayers(vg.Module):
    """A network as students write it for the course."""

    def __init__(self, input_size: int, output_size: int, hidden_mult: int = 4) -> None:
        super().__init__()
        hidden_size = hidden_mult * input_size
        self.layer1 = vg.Linear(input_size, hidden_size)
        self.layer2 = vg.Linear(hidden_size, output_size)

    def forward(self, input: vg.TensorNode) -> vg.TensorNode:
        assert len(input.size()) == 2
        hidden = vg.sigmoid(self.layer1(input))
        return vg.logsoftmax(self.layer2(hidden))

    def parameters(self) -> list[vg.TensorNode]:
        return self.layer1.parameters() + self.layer2.parameters()


def test_the_courses_training_loop() -> None:
    (xtrain, ytrain), (xval, yval), num_classes = vg.load_synth(2000, 500, seed=0)
    mlp = TwoLayers(input_size=xtrain.shape[1], output_size=num_classes)
    for _ in range(20):
        for fr in range(0, len(xtrain), 100):
            batch, targets = xtrain[fr : fr + 100, :], ytrain[fr : fr + 100]
            loss = vg.logceloss(mlp(vg.TensorNode(value=batch)), targets)
            loss.backward()
            for parm in mlp.parameters():
                parm.value -= 0.02 * parm.grad
            loss.zero_grad()
            loss.clear()
    output = mlp(vg.TensorNode(xval))
    accuracy = (np.argmax(output.value, axis=1) == yval).mean()
    output.clear()
    assert accuracy > 0.9  # the initial weights are not seeded, as in the course


class Square(vg.Op):
    """An op of a user's own, in the course's style."""

    @staticmethod
    def forward(context: Any, x: np.ndarray) -> np.ndarray:
        context["x"] = x
        return x * x

    @staticmethod
    def backward(context: Any, go: np.ndarray) -> np.ndarray:
        result: np.ndarray = go * 2 * context["x"]
        return result


class SumAndDifference(vg.Op):
    """Two outputs, a constant, and a gradient handed on as it came."""

    @staticmethod
    def forward(context: Any, a: np.ndarray, b: np.ndarray, *, factor: float = 1.0) -> Any:
        context["factor"] = factor
        return a + b, factor * (a - b)

    @staticmethod
    def backward(context: Any, gsum: np.ndarray, gdifference: np.ndarray) -> Any:
        f = context["factor"]
        return gsum + f * gdifference, gsum - f * gdifference


def test_ops_of_ones_own() -> None:
    x = vg.TensorNode(np.array([1.0, -2.0, 3.0]))
    Square.do_forward(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, -4.0, 6.0])
    a, b = vg.TensorNode(5.0), vg.TensorNode(2.0)
    total, difference = SumAndDifference.do_forward(a, b, factor=10.0)
    (total * difference).backward()  # 10 (a² - b²)
    assert (float(a.grad), float(b.grad)) == (100.0, -40.0)
    # One of two outputs alone; the other counts as zero.
    a.grad, b.grad = None, None
    _, difference = SumAndDifference.do_forward(a, b)
    difference.backward()
    assert (float(a.grad), float(b.grad)) == (1.0, -1.0)


def test_numbers_and_arrays_mix_in() -> None:
    x = vg.TensorNode(np.float32([1.0, 4.0]))
    for result, expected in [
        (x + 1, [2, 5]), (1 + x, [2, 5]), (x - 0.5, [0.5, 3.5]), (1 - x, [0, -3]),
        (x * 2.0, [2, 8]), (2 * x, [2, 8]), (x / 2, [0.5, 2]), (8 / x, [8, 2]),
        (-x, [-1, -4]), (x**2, [1, 16]), (np.float32([1, 2]) * x, [1, 8]), (x[1:], [4]),
        (np.float64(2) * x, [2, 8]), (x ** np.float64(2), [1, 16]), (x * [1, 2], [1, 8]),
        (x.reshape((2, 1)).transpose((1, 0)), [[1, 4]]),
        (np.eye(2, dtype="f4") @ x[:, None], [[1], [4]]),
    ]:  # fmt: skip
        assert isinstance(result, vg.TensorNode)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result.value, np.float32(expected))
    assert vg.TensorNode([1, 2]).dtype == np.float64
    assert vg.TensorNode(np.arange(3, dtype=np.uint8)).dtype == np.float64


# --- values and orders of the walk


def test_diamonds(rng: np.random.Generator) -> None:
    value = rng.standard_normal((3, 4))

    def compute(x: Any, tanh: Callable[[Any], Any], exp: Callable[[Any], Any]) -> Any:
        a = tanh(x)
        b, c = a * a, exp(a)
        d = b * c  # a diamond
        e, f = d + a, d * d
        return (e * f - d * x).sum()  # and another on top, with ways around both

    x = vg.TensorNode(value)
    compute(x, vg.tanh, vg.Exp.do_forward).backward()
    twin = torch.tensor(value, requires_grad=True)
    compute(twin, torch.tanh, torch.exp).backward()
    assert twin.grad is not None
    np.testing.assert_allclose(x.grad, twin.grad, rtol=1e-12)


def test_each_op_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = []
    backward = Square.backward

    def counted(context: Any, go: np.ndarray) -> np.ndarray:
        visits.append(1)
        return backward(context, go)

    monkeypatch.setattr(Square, "backward", staticmethod(counted))
    x = node = vg.TensorNode(0.5)
    for _ in range(40):  # 2^40 paths
        node = (Square.do_forward(node) + node) * 0.5
    node.backward()
    assert len(visits) == 40
    assert np.isfinite(x.grad)


def test_a_node_used_a_thousand_times() -> None:
    x = vg.TensorNode(np.array([1.0, 2.0]))
    total = vg.TensorNode(0.0)
    for i in range(1000):
        total = total + (x * float(i)).sum()
    total.backward()
    np.testing.assert_allclose(x.grad, np.full(2, 999 * 1000 / 2))
    y = vg.TensorNode(np.ones((2, 1000)))
    vg.Concatenate.do_forward(*[y] * 50, dim=0).sum().backward()  # fifty times in one op
    np.testing.assert_array_equal(y.grad, np.full((2, 1000), 50.0))


def test_a_chain_of_a_hundred_thousand_ops() -> None:
    x = node = vg.TensorNode(1.0)
    for _ in range(100_000):
        node = node + 1e-3
    node.backward()
    assert float(x.grad) == 1.0
    node.zero_grad()
    assert float(x.grad) == 0.0
    middle = node.source
    node.clear()
    assert middle is not None and middle.inputs == ()
    x = node = vg.TensorNode(1.0)
    for _ in range(100_000):
        node = node + 1e-3
    del node  # and it is freed without recursion too


def _operations(function: Callable[[], Any]) -> int:
    """Return how many lines of the engine run: a measure of time that no other process disturbs."""
    import sys

    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        if Path(frame.f_code.co_filename).parent != Path(core.__file__).parent:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", ["chain", "diamonds", "fan"])
def test_time_is_linear_in_the_number_of_nodes(shape: str) -> None:
    def build(n: int) -> vg.TensorNode:
        x = node = vg.TensorNode(0.9)
        for _ in range(n):
            node = {
                "chain": lambda a: a * 1.01,
                "diamonds": lambda a: a * a,
                "fan": lambda a: a + x,
            }[shape](node)
        return node

    for method in ("backward", "zero_grad", "clear"):
        one, two = (_operations(getattr(build(n), method)) for n in (400, 800))
        assert 1.9 < two / one < 2.1, (method, one, two)


# --- gradients add up, and belong to one node each


def test_backward_twice_adds_up() -> None:
    x = vg.TensorNode(3.0)
    y = x * x
    loss = y * y  # x⁴
    loss.backward()
    assert (float(x.grad), float(y.grad), float(loss.grad)) == (108.0, 18.0, 1.0)
    loss.backward()
    assert (float(x.grad), float(y.grad), float(loss.grad)) == (216.0, 36.0, 2.0)
    (x * 1.0).backward()
    assert float(x.grad) == 217.0
    loss.zero_grad()
    assert float(x.grad) == float(y.grad) == float(loss.grad) == 0.0


def test_gradients_are_not_shared(rng: np.random.Generator) -> None:
    a, b, c, d = (vg.TensorNode(rng.standard_normal((3, 3))) for _ in range(4))
    inner = a + b
    outer = vg.Id.do_forward(inner - c) + d.transpose().reshape(9).reshape(3, 3)
    outer.sum().backward()
    nodes = [a, b, c, d, inner, outer]
    for i, node in enumerate(nodes):
        for other in nodes[i + 1 :]:
            assert not np.shares_memory(node.grad, other.grad)
        assert not np.shares_memory(node.grad, node.value)
    before = [node.grad.copy() for node in nodes]
    a.grad[...] = 99.0
    for node, expected in list(zip(nodes, before, strict=True))[1:]:
        np.testing.assert_array_equal(node.grad, expected)


def test_passes_change_no_values_and_add_to_the_same_gradient(rng: np.random.Generator) -> None:
    x = vg.TensorNode(rng.standard_normal((4, 3)))
    value = x.value.copy()
    shifted = x + 0.0
    loss = (vg.relu(shifted) * vg.sigmoid(shifted)).sum() + vg.elu(shifted).sum()
    loss.backward()
    first = x.grad.copy()
    kept = x.grad
    np.testing.assert_array_equal(x.value, value)
    np.testing.assert_array_equal(shifted.value, value)
    loss.backward()
    assert x.grad is kept
    np.testing.assert_allclose(kept, 2 * first)


@pytest.mark.parametrize("zero", ["node", "loss"])
def test_gradients_taken_once_before_a_loop_stay_those_of_the_nodes(zero: str) -> None:
    w, b = vg.TensorNode(np.array([3.0, -2.0])), vg.TensorNode(5.0)
    grads = [w.grad, b.grad]
    for _ in range(50):
        loss = (w * w).sum() + b * b
        if zero == "loss":
            loss.zero_grad()
        else:
            w.zero_grad()
            b.zero_grad()
        loss.backward()
        assert w.grad is grads[0] and b.grad is grads[1]
        for node, grad in zip((w, b), grads, strict=True):
            node.value -= 0.2 * grad
    assert abs(w.value).max() < 1e-6 and abs(b.value) < 1e-6


def test_a_gradient_that_a_user_set_is_not_written_to() -> None:
    x, mine = vg.TensorNode(np.ones(3)), np.full(3, 7.0)
    x.grad = mine
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, 8.0)
    np.testing.assert_array_equal(mine, 7.0)


def test_an_upstream_gradient_that_was_looked_at_stays_apart() -> None:
    a, b = vg.TensorNode(np.ones(3)), vg.TensorNode(np.ones(3))
    total = a + b
    held = total.grad
    held[...] = 2.0
    total.source.backward()
    held[...] = 9.0
    np.testing.assert_array_equal(a.grad, 2.0)
    assert total.grad is held


def test_a_gradient_that_an_op_hands_out_is_not_written_to() -> None:
    class Careless(vg.Op):
        """Returns what it remembers, and the same array for both inputs."""

        @staticmethod
        def forward(context: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            context["ones"] = np.ones_like(a)
            return a + b

        @staticmethod
        def backward(context: Any, go: np.ndarray) -> Any:
            return context["ones"], context["ones"]

    a, b = vg.TensorNode(np.zeros(3)), vg.TensorNode(np.zeros(3))
    out = Careless.do_forward(a, b)
    loss = (out + a + a).sum()
    for times in (1, 2):
        loss.backward()
        np.testing.assert_array_equal(a.grad, np.full(3, 3.0 * times))
        np.testing.assert_array_equal(b.grad, np.full(3, 1.0 * times))
        np.testing.assert_array_equal(out.source.context["ones"], np.ones(3))
    a.grad += 5
    np.testing.assert_array_equal(out.source.context["ones"], np.ones(3))


def test_an_op_that_writes_into_its_upstream_gradient_harms_nobody() -> None:
    class InPlaceReLU(vg.Op):
        """As students have written it."""

        @staticmethod
        def forward(context: Any, x: np.ndarray) -> np.ndarray:
            context["negative"] = x < 0
            return np.maximum(x, 0)

        @staticmethod
        def backward(context: Any, go: np.ndarray) -> np.ndarray:
            go[context["negative"]] = 0
            return go

    x, w = vg.TensorNode(np.array([1.0, -1.0])), vg.TensorNode(np.array([5.0, 5.0]))
    y = InPlaceReLU.do_forward(x)
    (y + w).sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 0.0])
    np.testing.assert_array_equal(w.grad, [1.0, 1.0])
    np.testing.assert_array_equal(y.grad, [1.0, 1.0])


class InPlaceExp(vg.Exp):
    """An op of ours with a backward pass from elsewhere."""

    @staticmethod
    def backward(context: Any, go: np.ndarray) -> np.ndarray:
        go *= context["exp"]
        return go


def test_what_an_op_promises_holds_for_no_subclass_of_it() -> None:
    class Declares(InPlaceExp, pure=True):
        pass

    assert [op.pure for op in (vg.Op, vg.Exp, InPlaceExp, Declares)] == [False, True, False, True]
    x, w = vg.TensorNode(np.array([1.0, -1.0])), vg.TensorNode(np.array([5.0, 5.0]))
    y = InPlaceExp.do_forward(x)
    (y + w).sum().backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.value))
    np.testing.assert_array_equal(w.grad, [1.0, 1.0])
    np.testing.assert_array_equal(y.grad, [1.0, 1.0])


def test_every_op_of_ours_is_pure() -> None:
    ours = [value for value in vars(vg).values() if isinstance(value, type)]
    ops = [cls for cls in ours if issubclass(cls, vg.Op) and cls is not vg.Op]
    assert len(ops) == 33 and all(op.pure for op in ops)


KEPT = np.ones(2)


class KeepsWhatItReturns(vg.Op):
    """Returns an array that lies in a tuple, in the context from backward on, or outside."""

    @staticmethod
    def forward(context: Any, x: np.ndarray, *, where: str) -> np.ndarray:
        context["where"], context["inside"] = where, (np.ones_like(x),)
        return x * 1

    @staticmethod
    def backward(context: Any, go: np.ndarray) -> np.ndarray:
        if context["where"] == "tuple":
            kept: np.ndarray = context["inside"][0]
        elif context["where"] == "later":
            kept = context.setdefault("made", np.ones_like(go))
        else:
            kept = KEPT
        return kept


@pytest.mark.parametrize("where", ["tuple", "later", "outside"])
def test_gradients_are_not_what_an_op_keeps(where: str) -> None:
    x = vg.TensorNode(np.zeros(2))
    loss = KeepsWhatItReturns.do_forward(x, where=where).sum()
    loss.backward()
    x.grad += 5
    x.grad = None
    loss.backward()
    np.testing.assert_array_equal(x.grad, [1, 1])
    np.testing.assert_array_equal(KEPT, [1, 1])


def test_gradients_of_numbers_are_arrays() -> None:
    x = vg.TensorNode(2.0)
    y = x * x + x + x
    for _ in range(2):
        y.backward()
        assert isinstance(x.grad, np.ndarray) and x.grad.flags.writeable
    assert float(x.grad) == 12.0
    x.grad[...] = 0


def test_going_on_from_an_op() -> None:
    x = vg.TensorNode(3.0)
    y = x * x
    z = y * 2.0
    y.grad = np.array(10.0)
    assert y.source is not None
    y.source.backward()
    assert float(x.grad) == 60.0 and float(y.grad) == 10.0 and float(z.grad) == 0.0
    op = (x * x).source
    assert op is not None
    with pytest.raises(ValueError, match="nobody holds an output"):
        op.backward()


def test_what_students_do_with_nodes() -> None:
    weights = []
    for _ in range(2):
        np.random.seed(3)  # noqa: NPY002
        weights.append(vg.Linear(3, 2).w)
    np.testing.assert_array_equal(weights[0].value, weights[1].value)
    weights[0].velocity = 0.0


# --- no_grad, requires_grad, clear


def test_no_grad() -> None:
    x = vg.TensorNode(2.0)
    with vg.no_grad():
        y = x * x
        with vg.no_grad():
            pass
        z = y + x
    assert y.source is None and z.source is None and float(z.value) == 6.0
    assert (x * x).source is not None
    with pytest.raises(RuntimeError, match="inside"), vg.no_grad():
        raise RuntimeError("inside")
    assert (x * x).source is not None


def test_no_grad_is_a_threads_own() -> None:
    x = vg.TensorNode(2.0)
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with vg.no_grad():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    try:
        assert (x * x).source is not None
    finally:
        done.set()
        thread.join()
    assert (x * x).source is not None


def test_what_cannot_be_differentiated_says_so() -> None:
    x = vg.TensorNode(3.0)
    with vg.no_grad():
        y = x * x
    with pytest.raises(ValueError, match="wants a gradient"):
        y.backward()
    with pytest.raises(ValueError, match="is a copy"):
        copy.deepcopy(x * x).backward()
    for value in (None, 1j, "text"):
        with pytest.raises(TypeError, match="real numbers"):
            vg.TensorNode(value)
    product = x * x
    op = product.source
    product.clear()
    assert op is not None
    with pytest.raises(vg.ClearedGraphError):
        op.backward()


def test_nodes_without_gradient(rng: np.random.Generator) -> None:
    x = vg.TensorNode(rng.standard_normal((2, 3)), requires_grad=False)
    w = vg.TensorNode(rng.standard_normal((4, 3)))
    (vg.BatchMM.do_forward(w, x * 2.0) ** 2.0).sum().backward()
    assert w.grad.any() and not x.grad.any()
    assert (x * 2.0).source is None


def test_a_cleared_graph_says_so() -> None:
    x = vg.TensorNode(2.0, name="x")
    y = x * x
    loss, other = y * 1.0, y * 3.0
    loss.backward()
    loss.clear()
    assert loss.source is None and y.source is None
    assert (float(x.grad), float(loss.value)) == (4.0, 4.0)
    for node in (loss, y, other, y + 1.0):
        with pytest.raises(vg.ClearedGraphError, match="clear"):
            node.backward()
    with pytest.raises(vg.ClearedGraphError):
        loss.zero_grad()
    loss.clear()  # twice is once
    (x * x).backward()  # what was not made by an op goes on
    assert float(x.grad) == 8.0
    vg.TensorNode(y.value).backward()


def test_backward_starts_from_a_scalar() -> None:
    x = vg.TensorNode(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        (x * x).backward()
    one = (x * x).sum(axis=(0, 1), keepdims=True)
    one.backward()  # (1, 1) is a scalar too
    np.testing.assert_array_equal(x.grad, np.full((2, 2), 2.0))


def test_what_an_op_may_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vg.TensorNode(np.ones((2, 3)))
    for wrong, message in [
        (np.ones((3, 2)), r"shape \(3, 2\) for an input of shape \(2, 3\)"),
        (np.ones(3), r"shape \(3,\)"),
        ((np.ones((2, 3)), np.ones(1)), "2 gradients for 1 inputs"),
        (None, "no gradient for input 0"),
    ]:
        monkeypatch.setattr(Square, "backward", staticmethod(lambda c, go, wrong=wrong: wrong))
        with pytest.raises(ValueError, match=message):
            Square.do_forward(x).sum().backward()
    with pytest.raises(TypeError, match="ndarray"):
        Square.do_forward(np.ones(3))


# --- memory


def test_a_step_is_freed_with_its_loss(rng: np.random.Generator) -> None:
    mlp = vg.MLP(50, 5, hidden_sizes=(64, 32), activation="relu", rng=rng)
    x, y = rng.standard_normal((40, 50)), rng.integers(0, 5, 40)

    def step() -> None:
        loss = vg.logceloss(vg.logsoftmax(mlp.logits(vg.TensorNode(x))), y)
        loss.backward()
        for node in mlp.parameters():
            node.value -= 1e-3 * node.grad
        loss.zero_grad()

    gc.disable()  # no circle may be left for it to find
    tracemalloc.start()
    try:
        for _ in range(3):
            step()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            step()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < 20_000, f"{after - before} bytes more after 200 steps"


def test_clear_frees_what_was_remembered() -> None:
    gc.disable()
    tracemalloc.start()
    try:
        loss = vg.Exp.do_forward(vg.TensorNode(np.ones(1_000_000))).sum()
        held, _ = tracemalloc.get_traced_memory()
        loss.clear()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held > 8_000_000 > 100_000 > left


# --- functions, modules, data


def test_functions_equal_pytorch(rng: np.random.Generator) -> None:
    x, t = 30 * rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    for ours, theirs in [
        (vg.softmax, lambda z: torch.softmax(z, 1)),
        (vg.logsoftmax, lambda z: torch.log_softmax(z, 1)),
        (
            lambda z: vg.logceloss(vg.logsoftmax(z), t),
            lambda z: torch.nn.functional.cross_entropy(z, torch.from_numpy(t), reduction="sum"),
        ),
        (lambda z: vg.leaky_relu(z, 0.3), lambda z: torch.nn.functional.leaky_relu(z, 0.3)),
    ]:
        node, twin = vg.TensorNode(x), torch.tensor(x, requires_grad=True)
        out, expected = ours(node), theirs(twin)
        np.testing.assert_allclose(out.value, expected.detach(), rtol=1e-12, atol=1e-300)
        dout = rng.standard_normal(out.size())
        (out * dout).sum().backward()
        expected.backward(torch.from_numpy(np.asarray(dout)))
        assert twin.grad is not None
        np.testing.assert_allclose(node.grad, twin.grad, rtol=1e-9, atol=1e-12)
    small = 0.1 * x
    node, other = vg.TensorNode(small), vg.TensorNode(small)
    vg.celoss(vg.softmax(node), t).backward()
    vg.logceloss(vg.logsoftmax(other), t).backward()
    np.testing.assert_allclose(node.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_softmax_at_extreme_inputs() -> None:
    x = vg.TensorNode(np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]]))
    loss = vg.logceloss(vg.logsoftmax(x), np.array([2, 0]))
    assert float(loss.value) == pytest.approx(2e4 + np.log(3))
    loss.backward()
    np.testing.assert_allclose(x.grad, [[1, 0, -1], [-2 / 3, 1 / 3, 1 / 3]], atol=1e-12)
    np.testing.assert_allclose(vg.softmax(x).value.sum(axis=1), 1)


@pytest.mark.parametrize("hidden", [None, (), (6,), (6, 5, 4)])
def test_mlps(hidden: tuple[int, ...] | None, rng: np.random.Generator) -> None:
    mlp = vg.MLP(3, 4, hidden_sizes=hidden, rng=rng)
    sizes = [3, *((12,) if hidden is None else hidden), 4]
    assert [node.size() for node in mlp.parameters()] == [
        shape for i, o in itertools.pairwise(sizes) for shape in ((o, i), (1, o))
    ]
    out = mlp(vg.TensorNode(rng.standard_normal((7, 3))))
    np.testing.assert_allclose(out.value.sum(axis=1), 1)
    vg.celoss(out, np.zeros(7, dtype=int)).backward()
    assert all(node.grad.any() for node in mlp.parameters())
    with pytest.raises(ValueError, match="swish"):
        vg.MLP(3, 4, activation="swish")


def test_load_synth() -> None:
    (x, y), (xval, yval), n_classes = vg.load_synth(300, 100, seed=1)
    assert x.shape == (300, 2) and xval.shape == (100, 2) and len(y) == 300 and len(yval) == 100
    assert n_classes == 2 and 0.2 < y.mean() < 0.8
    quad = np.array([[1, 0.5], [1, 0.2]])
    np.testing.assert_array_equal(y, np.einsum("bf,fk,bk->b", x, quad, x) > 0.6)


@pytest.mark.parametrize(
    "layout",
    ["{0}", "MNIST/raw/{0}.gz", "{0}/{0}", lambda name: name.replace("-idx", ".idx")],
    ids=["plain", "torchvision", "Kaggle", "dots"],
)
def test_load_mnist_finds_its_files(tmp_path: Path, layout: Any) -> None:
    expected = write_mnist(tmp_path / "plain")
    for path in (tmp_path / "plain").iterdir():
        name = layout(path.name) if callable(layout) else layout.format(path.name)
        content = path.read_bytes()
        target = tmp_path / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for other in ("FashionMNIST/raw", "fashion"):
        write_mnist(tmp_path / "data" / other, n=9)
    (x, y), (xtest, _), _ = vg.load_mnist(final=True, flatten=False, data_dir=tmp_path / "data")
    np.testing.assert_array_equal(x, expected[0][:, 0])
    np.testing.assert_array_equal(y, expected[1])
    np.testing.assert_array_equal(xtest, expected[2][:, 0])


def test_load_mnist(real_data: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (x, y), (xval, yval), n_classes = vg.load_mnist(data_dir=real_data)
    assert x.shape == (55_000, 784) and xval.shape == (5_000, 784) and n_classes == 10
    assert x.dtype == np.uint8 and y.shape == (55_000,) and yval.shape == (5_000,)
    monkeypatch.setenv("HANDGRAD_DATA_DIR", str(real_data))
    (whole, _), (test, _), _ = vg.load_mnist(final=True, flatten=False)
    assert whole.shape == (60_000, 28, 28) and test.shape == (10_000, 28, 28)
    np.testing.assert_array_equal(whole[-5000:].reshape(5000, -1), xval)
    monkeypatch.setenv("HOME", str(real_data.parent))
    assert vg.load_mnist(data_dir=f"~/{real_data.name}")[0][0].shape == (55_000, 784)
    with pytest.raises(FileNotFoundError, match="HANDGRAD_DATA_DIR"):
        vg.load_mnist(data_dir=tmp_path)
    packed = gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x01a")
    for content in (
        b"not an IDX file",
        b"\x00\x00\x08\x01\x00\x00\x00\x05abc",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x02\x00\x00\x00\x05",
        gzip.compress(b"\x00\x00\x08\x01")[:-3],  # EOFError
        packed[:10] + b"\xff" + packed[11:],  # zlib.error
        packed[:-8] + bytes(4) + packed[-4:],  # BadGzipFile
    ):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
            vg.load_mnist(data_dir=tmp_path)
