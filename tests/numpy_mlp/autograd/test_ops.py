"""Every op: forward against NumPy, backward against finite differences and PyTorch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import numpy_mlp.autograd as vg
from numpy_mlp.autograd import ops
from numpy_mlp.autograd.core import Context
from numpy_mlp.gradient_check import eval_numerical_gradient_array

INDICES = np.array([2, 0, 3, 3, 1])
PATCHES = (np.array([[0, 1], [1, 2]]), slice(None))
Case = tuple[list[tuple[int, ...]], dict[str, Any], Callable[..., torch.Tensor]]

# Shapes of the inputs, constants, and the same function in PyTorch. Several cases for an op are
# told apart by what comes after the underscore.
CASES: dict[str, Case] = {
    "Add": ([(5, 4), (5, 4)], {}, torch.add),
    "Add_broadcast": ([(5, 4), (1, 4)], {}, torch.add),
    "Sub": ([(5, 4), (5, 4)], {}, torch.sub),
    "Sub_broadcast": ([(4,), (5, 1)], {}, torch.sub),
    "Multiply": ([(5, 4), (5, 4)], {}, torch.mul),
    "Multiply_broadcast": ([(), (3, 5, 4)], {}, torch.mul),
    "Divide": ([(5, 4), (5, 4)], {}, torch.div),
    "Divide_broadcast": ([(5, 1), (2, 1, 4)], {}, torch.div),
    "Power": ([(5, 4)], {"exponent": -1.5}, lambda x: x**-1.5),
    "MatrixMultiply": ([(5, 4), (4, 3)], {}, torch.matmul),
    "MatrixMultiply_batched": ([(2, 5, 4), (4, 3)], {}, torch.matmul),
    "BatchMM": ([(3, 4), (5, 4)], {}, lambda w, x: x @ w.T),
    "Log": ([(5, 4)], {}, torch.log),
    "Exp": ([(5, 4)], {}, torch.exp),
    "Id": ([(5, 4)], {}, lambda x: x * 1),
    "Sum": ([(5, 4)], {}, torch.sum),
    "Sum_axis": ([(2, 5, 4)], {"axis": (0, 2)}, lambda x: x.sum((0, 2))),
    "Sum_keepdims": ([(5, 4)], {"axis": 1, "keepdims": True}, lambda x: x.sum(1, keepdim=True)),
    "RowMax": ([(5, 4)], {}, lambda x: x.max(dim=1).values),
    "RowSum": ([(5, 4)], {}, lambda x: x.sum(dim=1)),
    "Normalize": ([(5, 4)], {}, lambda x: x / x.sum(dim=1, keepdim=True)),
    "Sigmoid": ([(5, 4)], {}, torch.sigmoid),
    "Tanh": ([(5, 4)], {}, torch.tanh),
    "ReLU": ([(5, 4)], {}, torch.relu),
    "LeakyReLU": ([(5, 4)], {"slope": 0.2}, lambda x: functional.leaky_relu(x, 0.2)),
    "ELU": ([(5, 4)], {}, functional.elu),
    "Expand": ([(5, 1, 4)], {"dim": 1, "repeats": 3}, lambda x: x.expand(5, 3, 4)),
    "Select": ([(5, 4)], {"indices": INDICES}, lambda x: x[torch.arange(5), INDICES]),
    "SoftmaxCrossEntropy": (
        [(5, 4)],
        {"targets": INDICES},
        lambda x: functional.cross_entropy(x, torch.from_numpy(INDICES)),
    ),
    "SoftmaxCrossEntropy_smoothed": (
        [(5, 4)],
        {"targets": INDICES, "label_smoothing": 0.3},
        lambda x: torch.nn.functional.cross_entropy(
            x, torch.from_numpy(INDICES), label_smoothing=0.3
        ),
    ),
    "Squeeze": ([(5, 1, 4)], {"dim": 1}, lambda x: x.squeeze(1)),
    "Unsqueeze": ([(5, 4)], {"dim": -1}, lambda x: x.unsqueeze(-1)),
    "Reshape": ([(6, 4)], {"shape": (3, -1)}, lambda x: x.reshape(3, -1)),
    "Transpose": ([(5, 4)], {}, lambda x: x.T),
    "Transpose_axes": ([(2, 5, 4)], {"axes": (1, -1, 0)}, lambda x: x.permute(1, 2, 0)),
    "Slice": ([(5, 4)], {"index": (slice(1, None, 2), 2)}, lambda x: x[1::2, 2]),
    "Slice_patches": ([(5, 4)], {"index": PATCHES}, lambda x: x[PATCHES[0]]),
    "Pad": ([(2, 3, 4)], {"widths": ((1, 0), (2, 1))}, lambda x: functional.pad(x, (2, 1, 1, 0))),
    "Pad_value": (
        [(5, 4)],
        {"widths": ((0, 2),), "value": 0.5},
        lambda x: functional.pad(x, (0, 2), value=0.5),
    ),
    "Conv2d": (
        [(3, 2, 5, 6), (4, 2, 3, 3)],
        {"padding": 1},
        lambda x, w: functional.conv2d(x, w, padding=1),
    ),
    "Conv2d_winograd": (
        [(2, 2, 5, 6), (3, 2, 3, 3)],
        {"padding": 1, "algorithm": "winograd"},
        lambda x, w: functional.conv2d(x, w, padding=1),
    ),
    "Conv2d_bias": (
        [(2, 4, 7, 6), (6, 2, 2, 3), (6,)],
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        lambda x, w, b: functional.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2),
    ),
    "MaxPool2d": ([(2, 3, 4, 6)], {"kernel_size": 2}, lambda x: functional.max_pool2d(x, 2)),
    "MaxPool2d_overlap": (
        [(2, 3, 7, 5)],
        {"kernel_size": 3, "stride": (2, 1), "padding": 1},
        lambda x: functional.max_pool2d(x, 3, (2, 1), 1),
    ),
    "AvgPool2d": (
        [(2, 3, 7, 5)],
        {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)},
        lambda x: functional.avg_pool2d(x, (3, 2), 2, (1, 0)),
    ),
    "GELU": ([(5, 4)], {}, functional.gelu),
    "GELU_tanh": (
        [(5, 4)],
        {"approximate": "tanh"},
        lambda x: functional.gelu(x, approximate="tanh"),
    ),
    "SoftmaxCrossEntropy_smooth": (
        [(5, 4)],
        {"targets": INDICES, "label_smoothing": 0.2},
        lambda x: functional.cross_entropy(x, torch.from_numpy(INDICES), label_smoothing=0.2),
    ),
    "Concatenate": ([(2, 4), (3, 4)], {"dim": 0}, lambda a, b: torch.cat([a, b])),
}
ONLY_POSITIVE = {"Log", "Power", "Normalize", "Divide"}


def _op(name: str) -> type[vg.Op]:
    op: type[vg.Op] = getattr(ops, name.partition("_")[0])
    return op


def _inputs(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    if _op(name).__name__ in ONLY_POSITIVE:
        return [np.asarray(rng.uniform(0.5, 2, shape)) for shape in CASES[name][0]]
    # Away from the kinks at 0, and the rows' largest values apart.
    arrays = [
        np.asarray(rng.uniform(0.1, 2, shape) * rng.choice([-1, 1], shape))
        for shape in CASES[name][0]
    ]
    if name == "RowMax":
        arrays[0] = rng.permuted(np.arange(20.0)).reshape(5, 4)
    return arrays


def test_every_op_has_a_case() -> None:
    defined = {
        name
        for name, kind in vars(ops).items()
        if inspect.isclass(kind) and issubclass(kind, vg.Op) and kind is not vg.Op
    }
    assert defined == {name.partition("_")[0] for name in CASES}
    assert defined <= set(vg.__all__)


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_gradient(name: str, rng: np.random.Generator) -> None:
    op, (_, constants, theirs) = _op(name), CASES[name]
    arrays = _inputs(name, rng)
    nodes = [vg.TensorNode(array.copy()) for array in arrays]
    out = op.do_forward(*nodes, **constants)
    assert out.source.op is op
    twins = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = theirs(*twins)
    np.testing.assert_allclose(out.value, expected.detach(), rtol=1e-13, atol=1e-14)

    dout = rng.standard_normal(out.size())
    (out * dout).sum().backward()
    expected.backward(torch.from_numpy(dout))
    for i, (node, twin, array) in enumerate(zip(nodes, twins, arrays, strict=True)):
        assert twin.grad is not None
        np.testing.assert_allclose(node.grad, twin.grad, rtol=1e-12, atol=1e-13)

        def value(x: np.ndarray, i: int = i) -> np.ndarray:
            inputs = [*arrays[:i], x, *arrays[i + 1 :]]
            result: np.ndarray = op.forward(Context(), *inputs, **constants)
            return result

        numerical = eval_numerical_gradient_array(value, array.copy(), dout)
        np.testing.assert_allclose(node.grad, numerical, rtol=1e-6, atol=1e-8)
        np.testing.assert_array_equal(node.value, array, err_msg="an input was modified")


@pytest.mark.parametrize("name", CASES)
def test_neither_pass_touches_what_it_was_given(name: str, rng: np.random.Generator) -> None:
    op, constants = _op(name), CASES[name][1]
    arrays = _inputs(name, rng)
    for array in arrays:
        array.flags.writeable = False
    context: dict[str, Any] = {}  # as the course calls them: a plain dictionary will do
    out = np.array(op.forward(context, *arrays, **constants))
    dout = np.asarray(rng.standard_normal(out.shape))
    dout.flags.writeable = False
    first = op.backward(context, dout)
    again = op.backward(context, dout)
    first, again = (g if isinstance(g, tuple) else (g,) for g in (first, again))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32(name: str, rng: np.random.Generator) -> None:
    nodes = [vg.TensorNode(array.astype(np.float32)) for array in _inputs(name, rng)]
    out = _op(name).do_forward(*nodes, **CASES[name][1])
    assert out.dtype == np.float32
    out.sum().backward()
    for node in nodes:
        assert node.grad.dtype == np.float32 and node.grad.shape == node.value.shape


def test_gradients_that_nobody_wants_are_not_computed(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((4, 4)), rng.standard_normal((4, 4))
    for op in (ops.Multiply, ops.MatrixMultiply, ops.BatchMM):
        for needs in ((True, False), (False, True)):
            context = Context(needs)
            op.forward(context, a, b)
            wanted = [g is not None for g in op.backward(context, a)]
            assert wanted == list(needs)


def test_a_convolution_leaves_out_what_nobody_wants(rng: np.random.Generator) -> None:
    x, weight, bias = (rng.standard_normal(shape) for shape in ((2, 3, 4, 5), (2, 3, 1, 2), (2,)))
    for needs in itertools.product((True, False), repeat=3):
        context = Context(needs)
        out = ops.Conv2d.forward(context, x, weight, bias)
        grads = ops.Conv2d.backward(context, out)
        assert tuple(g is not None for g in grads) == needs


@settings(deadline=None, max_examples=150)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), st.data())
def test_broadcasting_in_every_pair_of_shapes(
    shapes: hnp.BroadcastableShapes, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["Add", "Sub", "Multiply", "Divide"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    a, b = (rng.uniform(0.5, 2, shape) for shape in shapes.input_shapes)
    dout = rng.standard_normal(shapes.result_shape)
    nodes = vg.TensorNode(a), vg.TensorNode(b)
    out = _op(name).do_forward(*nodes)
    assert out.size() == shapes.result_shape
    (out * dout).sum().backward()
    twins = [torch.tensor(array, requires_grad=True) for array in (a, b)]
    CASES[name][2](*twins).backward(torch.from_numpy(dout))
    for node, twin in zip(nodes, twins, strict=True):
        assert node.grad.shape == node.value.shape and twin.grad is not None
        np.testing.assert_allclose(node.grad, twin.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("op", "shapes", "constants", "message"),
    [
        (ops.MatrixMultiply, [(2, 3), (2, 3)], {}, r"\(2, 3\) and \(2, 3\)"),
        (ops.MatrixMultiply, [(3,), (3, 2)], {}, r"\(3,\)"),
        (ops.BatchMM, [(2, 3), (5, 4)], {}, r"\(2, 3\).*\(5, 4\)"),
        (ops.Expand, [(2, 3)], {"dim": 1, "repeats": 2}, "length 3"),
        (ops.Select, [(2, 3)], {"indices": np.array([0])}, r"\(1,\)"),
        (ops.SoftmaxCrossEntropy, [(2, 3)], {"targets": np.array([0])}, r"\(1,\)"),
        (ops.SoftmaxCrossEntropy, [(1, 3)], {"targets": [0], "label_smoothing": 1.0}, "got 1.0"),
        (ops.Conv2d, [(1, 3, 5, 5), (2, 4, 3, 3)], {}, r"\(1, 3, 5, 5\) .* \(2, 4, 3, 3\)"),
        (
            ops.Conv2d,
            [(1, 4, 5, 5), (3, 2, 3, 3)],
            {"groups": 2},
            "groups must divide out_channels=3",
        ),
        (
            ops.Conv2d,
            [(1, 2, 5, 5), (3, 2, 3, 3), (1, 3)],
            {},
            r"a bias \(3,\), got shape \(1, 3\)",
        ),
        (ops.Conv2d, [(1, 2, 5, 5), (3, 2, 3, 3)], {"stride": 0}, "stride"),
        (ops.MaxPool2d, [(5, 5)], {"kernel_size": 2}, r"got shape \(5, 5\)"),
        (ops.AvgPool2d, [(1, 1, 2, 2)], {"kernel_size": 3}, "does not fit"),
        (ops.Pad, [(2,)], {"widths": ((1, 1), (1, 1))}, r"2 pairs for the 1 dimensions"),
    ],
)
def test_shapes_that_do_not_fit(
    op: type[vg.Op], shapes: list[tuple[int, ...]], constants: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        op.do_forward(*(vg.TensorNode(np.ones(shape)) for shape in shapes), **constants)


def test_the_tail_of_the_sigmoid() -> None:
    for dtype, at in ((np.float64, 40.0), (np.float32, 20.0)):
        x = vg.TensorNode(np.array([-at, 0.0, at], dtype=dtype))
        y = vg.sigmoid(x)
        assert y.dtype == dtype
        expected = [np.exp(-at), 0.5, 1.0]
        np.testing.assert_allclose(y.value, expected, rtol=1e-6)
        vg.Log.do_forward(y).sum().backward()  # ∂ log σ(x) / ∂x = 1 - σ(x)
        np.testing.assert_allclose(x.grad, [1, 0.5, np.exp(-at)], rtol=1e-6, atol=1e-7)
    vg.sigmoid(vg.TensorNode(np.array([-1e4, 1e4])))  # and no warning


@pytest.mark.parametrize("index", [((0, 0, 1), (1, 1, 2)), [0, 0], np.array([1, 1]), (0, [1, 1])])
def test_what_is_taken_twice_counts_twice(index: Any) -> None:
    x = vg.TensorNode(np.zeros((2, 3)))
    x[index].sum().backward()
    counts = np.zeros((2, 3))
    np.add.at(counts, index, 1)
    np.testing.assert_array_equal(x.grad, counts)
    assert counts.max() == 2


def test_power_of_zero_and_matrices_only() -> None:
    x = vg.TensorNode(np.array([0.0, 1.0]))
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0])
    with pytest.raises(ValueError, match=r"\(2,\)"):
        ops.RowMax.do_forward(x)


def test_indices_may_be_overwritten_after_the_forward_pass() -> None:
    x, indices = vg.TensorNode(np.zeros((2, 3))), np.array([1, 2])
    selected = ops.Select.do_forward(x, indices=indices).sum()
    loss = ops.SoftmaxCrossEntropy.do_forward(x, targets=indices)
    indices[...] = 0
    selected.backward()
    np.testing.assert_array_equal(x.grad, [[0, 1, 0], [0, 0, 1]])
    loss.backward()
    np.testing.assert_allclose(2 * x.grad, [[1 / 3, 4 / 3, 1 / 3], [1 / 3, 1 / 3, 4 / 3]])


NEGATIVE_AXES: list[tuple[type[vg.Op], dict[str, Any]]] = [
    (ops.Sum, {"axis": -1}), (ops.Sum, {"axis": (-1, 0), "keepdims": True}),
    (ops.Squeeze, {"dim": -2}), (ops.Unsqueeze, {"dim": -2}),
    (ops.Expand, {"dim": -2, "repeats": 4}), (ops.Concatenate, {"dim": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "constants"), NEGATIVE_AXES, ids=str)
@pytest.mark.parametrize("rows", [3, 0])
def test_axes_from_the_end_and_empty_arrays(
    op: type[vg.Op], constants: dict[str, Any], rows: int, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, 1, rows, 1, 5)).transpose(2, 1, 0, 3, 4)  # not contiguous
    node = vg.TensorNode(x)
    out = op.do_forward(node, **constants)
    dout = rng.standard_normal(out.size())
    (out * dout).sum().backward()
    assert node.grad.shape == x.shape
    # All of these are linear: the gradient is what the forward pass of basis vectors says.
    assert float((node.grad * x).sum()) == pytest.approx(float((out.value * dout).sum()), abs=1e-9)


def test_a_convolution_from_slices(rng: np.random.Generator) -> None:
    """A 3×3 convolution written with slice, reshape, transpose and matrix product."""
    x, w = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((4, 3, 3, 3))
    image, weight = vg.TensorNode(x), vg.TensorNode(w)
    rows = np.arange(4)[:, None, None, None] + np.arange(3)[:, None]  # (4, 1, 3, 1)
    columns = np.arange(3)[None, :, None, None] + np.arange(3)  # (1, 3, 1, 3)
    patches = image[:, :, rows, columns]  # (2, 3, 4, 3, 3, 3)
    patches = patches.transpose(0, 2, 3, 1, 4, 5).reshape(2 * 4 * 3, 27)
    out = (patches @ weight.reshape(4, 27).transpose()).reshape(2, 4, 3, 4).transpose(0, 3, 1, 2)
    twins = [torch.tensor(array, requires_grad=True) for array in (x, w)]
    expected = functional.conv2d(*twins)
    np.testing.assert_allclose(out.value, expected.detach(), rtol=1e-12, atol=1e-12)
    dout = rng.standard_normal(out.size())
    (out * dout).sum().backward()
    expected.backward(torch.from_numpy(dout))
    for node, twin in zip((image, weight), twins, strict=True):
        assert twin.grad is not None
        np.testing.assert_allclose(node.grad, twin.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ([0, -1], "label -1 is out of range: expected 0 to 2"),
        ([[0], [3]], "label 3 is out of range: expected 0 to 2"),
        ([True, False], r"integer labels .*, got bool of shape \(2,\); give y.astype\(int\)"),
        ([0.0, 1.0], r"integer labels .*, got float64 of shape \(2,\); give y.astype\(int\)"),
        ([[0, 1], [1, 0]], r"integer labels .*, got int64 of shape \(2, 2\)$"),
        ([[1, 0, 1], [0, 1, 0]], "not one-hot"),
    ],
)
def test_every_loss_refuses_what_is_no_class(targets: list[Any], told: str) -> None:
    x = vg.TensorNode(np.array([[1.0, 2.0, 5.0], [0.0, 1.0, 0.5]]))
    for loss in (
        lambda y: vg.celoss(vg.softmax(x), y),
        lambda y: vg.logceloss(vg.logsoftmax(x), y),
        lambda y: ops.SoftmaxCrossEntropy.do_forward(x, targets=y),
    ):
        with pytest.raises(ValueError, match=told):
            loss(np.array(targets))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_every_loss_takes_labels_columns_and_one_hot_rows(kind: Any) -> None:
    x = vg.TensorNode(np.array([[1.0, 2.0, 5.0], [0.0, 1.0, 0.5]]))
    labels = np.array([2, 0], kind)
    for loss in (
        lambda y: vg.celoss(vg.softmax(x), y),
        lambda y: vg.logceloss(vg.logsoftmax(x), y),
        lambda y: ops.SoftmaxCrossEntropy.do_forward(x, targets=y),
    ):
        for y in (labels[:, None], np.eye(3, dtype=kind)[labels], labels.tolist()):
            assert loss(y).value == loss(labels).value
