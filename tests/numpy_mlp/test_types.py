"""Every module, loss, op and optimizer with every type and layout of array: right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numpy_mlp.autograd as vg
from numpy_mlp import MLP
from numpy_mlp.autograd import ops
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import (
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
from numpy_mlp.muon import Muon
from numpy_mlp.optim import SGD, AdamW, Optimizer

Array = np.ndarray

MODULES: dict[str, Callable[[], Module]] = {
    "linear": lambda: LinearModule(3, 3, rng=np.random.default_rng(1)),
    "linear float32": lambda: LinearModule(3, 3, dtype=np.float32, rng=np.random.default_rng(1)),
    "relu": ReLUModule,
    "leaky relu": lambda: LeakyReLUModule(0.2),
    "elu": lambda: ELUModule(0.7),
    "sigmoid": SigmoidModule,
    "tanh": TanhModule,
    "softmax": SoftMaxModule,
    "flatten": FlattenModule,
    "dropout": lambda: DropoutModule(0.4, rng=np.random.default_rng(2)),
    "batchnorm": lambda: BatchNormModule(3),
    "batchnorm float32": lambda: BatchNormModule(3, dtype=np.float32),
}
REAL = (
    *("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"),
    *("f2", "f4", "f8", ">f4", ">f8", ">f2", ">i4", "g"),
)
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "every other": lambda x: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": lambda x: _read_only(x.copy()),
}
EVERY = pytest.mark.parametrize("dtype", REAL)
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def _read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


def _values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Numbers that the type holds: from 0 to 5 where it is unsigned, from -3 to 3 where not."""
    low = 0 if np.dtype(dtype).kind in "?ub" else -3
    return np.random.default_rng(seed).integers(low, low + 6, shape).astype(dtype)


def _tolerance(*dtypes: Any) -> float:
    half = any(np.dtype(dtype) in (np.float16, np.float32) for dtype in dtypes)
    return 3e-6 if half else 1e-12


@pytest.mark.parametrize("name", MODULES)
@EVERY
@LAYOUT
def test_modules(name: str, dtype: str, layout: str) -> None:
    module, exact = MODULES[name](), MODULES[name]()
    x, dout = (LAYOUTS[layout](_values(dtype, (8, 3), seed)) for seed in (0, 1))
    before = x.copy(), dout.copy()
    y, wanted = module.forward(x), exact.forward(x.astype(np.float64))
    dx, wanted_dx = module.backward(dout), exact.backward(dout.astype(np.float64))
    tolerance = _tolerance(x.dtype.newbyteorder("="), "f4" if "float32" in name else "f8")
    np.testing.assert_allclose(y, wanted, tolerance, tolerance)
    np.testing.assert_allclose(dx, wanted_dx, 10 * tolerance, 10 * tolerance)
    for key, grad in getattr(module, "grads", {}).items():
        np.testing.assert_allclose(grad, exact.grads[key], 10 * tolerance, 10 * tolerance)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(dout, before[1])


@pytest.mark.parametrize("kind", [LinearModule, ReLUModule, LeakyReLUModule, ELUModule,
                                  SigmoidModule, TanhModule, SoftMaxModule, DropoutModule,
                                  BatchNormModule])  # fmt: skip
@pytest.mark.parametrize("dtype", ["c8", "c16", "O", "U1", "M8[s]"])
def test_modules_refuse_what_is_no_real_number_by_name(kind: Any, dtype: str) -> None:
    args = {LinearModule: (3, 3), BatchNormModule: (3,)}.get(kind, ())
    x = np.ones((4, 3), np.int64).astype(dtype)
    told = f"{kind.__name__}: x holds .*float64"
    with pytest.raises(TypeError, match=told) as error:
        kind(*args).forward(x)
    assert str(x.dtype) in str(error.value)
    module = kind(*args)
    module.forward(np.ones((4, 3)))
    with pytest.raises(TypeError, match=f"{kind.__name__}: dout holds"):
        module.backward(x)


@pytest.mark.parametrize("rows", [2_000, 100_000])
def test_batchnorm_of_many_rows_in_half_precision(rows: int) -> None:
    x = (np.random.default_rng(0).standard_normal((rows, 2)) * 30 + 20).astype(np.float16)
    layer, exact = BatchNormModule(2, dtype=np.float32), BatchNormModule(2)
    np.testing.assert_allclose(layer.forward(x), exact.forward(x.astype(float)), 1e-4, 1e-4)
    np.testing.assert_allclose(layer.running_var, exact.running_var, 1e-4)


LOSSES = [CrossEntropyModule(), SoftMaxCrossEntropyModule()]


@pytest.mark.parametrize("loss", LOSSES)
@EVERY
@LAYOUT
def test_losses(loss: Any, dtype: str, layout: str) -> None:
    x = _values(dtype, (8, 3))
    if isinstance(loss, CrossEntropyModule):
        x = (x.astype(float) * 0.1 + 0.4).astype(dtype)
    x = LAYOUTS[layout](x)
    y, before = np.arange(8) % 3, x.copy()
    tolerance = _tolerance(x.dtype.newbyteorder("="))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(loss.forward(x, y), loss.forward(exact, y), tolerance)
    np.testing.assert_allclose(
        loss.backward(x, y), loss.backward(exact, y), 10 * tolerance, tolerance
    )
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_refuse_what_is_no_real_number(loss: Any) -> None:
    for method in (loss.forward, loss.backward):
        with pytest.raises(TypeError, match=f"{type(loss).__name__}: x holds complex128"):
            method(np.ones((2, 3), complex), np.array([0, 1]))


OPS: dict[str, Callable[[Any], Any]] = {
    "operators": lambda x: ((x * 2 + 1) / (x * x + 1) - x) ** 2,
    "activations": lambda x: vg.sigmoid(x) + vg.tanh(x) + vg.relu(x) + vg.elu(x) + vg.leaky_relu(x),
    "exp, log": lambda x: vg.Log.do_forward(vg.Exp.do_forward(x) + 1),
    "rows": lambda x: vg.RowSum.do_forward(x) * vg.RowMax.do_forward(x),
    "softmax": vg.softmax,
    "loss": lambda x: vg.logceloss(vg.logsoftmax(x), np.arange(8) % 3),
    "fused loss": lambda x: ops.SoftmaxCrossEntropy.do_forward(x, targets=np.arange(8) % 3),
    "products": lambda x: (x @ x.transpose()) + vg.BatchMM.do_forward(x, x),
}


@pytest.mark.parametrize("name", OPS)
@EVERY
@LAYOUT
def test_ops(name: str, dtype: str, layout: str) -> None:
    x = LAYOUTS[layout](_values(dtype, (8, 3)))
    before = x.copy()
    node, exact = vg.TensorNode(x), vg.TensorNode(x.astype(np.float64))
    out, wanted = OPS[name](node), OPS[name](exact)
    out.sum().backward()
    wanted.sum().backward()
    tolerance = _tolerance(x.dtype.newbyteorder("="))
    np.testing.assert_allclose(out.value, wanted.value, 10 * tolerance, 10 * tolerance)
    np.testing.assert_allclose(node.grad, exact.grad, 10 * tolerance, 100 * tolerance)
    np.testing.assert_array_equal(x, before)


def test_a_node_refuses_what_is_no_real_number() -> None:
    for value in (1j, np.array([object()]), "a"):
        with pytest.raises(TypeError, match=r"a TensorNode holds .*expected real numbers"):
            vg.TensorNode(value)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.1, weight_decay=0.01),
    "momentum": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: AdamW(p, 0.01),
    "muon": lambda p: Muon(p, 0.1, weight_decay=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", ">f2", "g"])
@pytest.mark.parametrize("layout", ["C", "Fortran", "negative strides", "every other"])
def test_optimizers(name: str, dtype: str, layout: str) -> None:
    start = np.random.default_rng(0).standard_normal((5, 4))
    param, exact = LAYOUTS[layout](start.astype(dtype)), start.astype(dtype).astype(np.float64)
    ours, theirs = OPTIMIZERS[name]([param]), OPTIMIZERS[name]([exact])
    for seed in range(5):
        grad = LAYOUTS[layout](np.random.default_rng(seed).standard_normal((5, 4)).astype(dtype))
        ours.step([grad * np.array(1e-3, dtype)])
        theirs.step([(grad * np.array(1e-3, dtype)).astype(np.float64)])
    tolerance = 3e-3 if param.dtype.itemsize == 2 else _tolerance(param.dtype.newbyteorder("="))
    np.testing.assert_allclose(param.astype(float), exact, tolerance, tolerance)
    assert not np.array_equal(param.astype(float), start.astype(dtype).astype(float))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_refuse_what_they_cannot_train(name: str) -> None:
    make = OPTIMIZERS[name]
    for bad, told in (
        (np.ones(3, int), "parameter 1 is int64, expected an array of floats"),
        (np.ones(3, complex), "parameter 1 is complex128"),
        (vg.TensorNode(1.0), "parameter 1 is TensorNode, .*; give the node's value"),
        ([1.0], "parameter 1 is list"),
    ):
        with pytest.raises(TypeError, match=told):
            make([np.ones(2), bad])
    with pytest.raises(ValueError, match="parameter 0 is read-only"):
        make([_read_only(np.ones(3))])
    with pytest.raises(TypeError, match=r"params is MLP; of a model give model.params"):
        make(MLP(3, 4, 2))
    with pytest.raises(ValueError, match=r"no gradient of a, got \['b'\]"):
        make({"a": np.ones(3)}).step({"b": np.ones(3)})
    make([]).step([])
    with pytest.raises(TypeError, match=r"params is one array.*give \[array\]"):
        make(np.ones((2, 3)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_take_dictionaries_and_generators(name: str) -> None:
    model, twin = (MLP(3, [4], 2, rng=np.random.default_rng(0)) for _ in "ab")
    one = OPTIMIZERS[name](model.params)
    two = OPTIMIZERS[name](param for param in twin.params.values())
    for network, optimizer in ((model, one), (twin, two)):
        loss = SoftMaxCrossEntropyModule()
        grads = network.grads if network is model else network.grads.values()
        for _ in range(3):
            _, dlogits = loss.loss_and_gradient(network.logits(np.eye(3)), np.array([0, 1, 1]))
            network.backward_parameters(dlogits)
            optimizer.step(grads)
    for key, param in model.params.items():
        np.testing.assert_array_equal(param, twin.params[key])
    with pytest.raises(TypeError, match=r"make the optimizer with model.params, or give list"):
        two.step(twin.grads)
    backwards = dict(reversed(model.grads.items()))
    before = {key: param.copy() for key, param in model.params.items()}
    one.step(backwards)
    assert any((param != before[key]).any() for key, param in model.params.items())


# --- np.seterr(all="raise") ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_underflow_is_no_error_in_a_module(name: str, dtype: Any) -> None:
    tiny = np.finfo(dtype).tiny
    x = np.full((4, 3), tiny, dtype) * np.array([1, -1, 3], dtype)
    with np.errstate(all="raise"):
        for values in (x, np.array([[-720, 720, 0]] * 2, dtype)):
            module = MODULES[name]()
            y = module.forward(values)
            dx = module.backward(np.full(y.shape, tiny / 1024, y.dtype))
            assert np.isfinite(y).all() and np.isfinite(dx).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_underflow_is_no_error_in_an_optimizer(name: str) -> None:
    tiny = np.finfo(np.float32).tiny
    param = np.full(3, tiny, np.float32)
    with np.errstate(all="raise"):
        for _ in range(3):
            OPTIMIZERS[name]([param]).step([np.full(3, tiny, np.float32)])


def test_underflow_is_no_error_in_the_graph() -> None:
    with np.errstate(all="raise"):
        x = vg.TensorNode(np.array([[-2000.0, 0.0], [1e-200, 900.0]]))
        for loss in (
            vg.logceloss(vg.logsoftmax(x), np.array([0, 1])),
            (vg.softmax(x) * 1e-300 * vg.sigmoid(x)).sum(),
            (x * x * 1e-300).sum(),
        ):
            loss.backward()
        assert np.isfinite(x.grad).all()


@pytest.mark.parametrize("activation", ["relu", "elu", "sigmoid", "tanh"])
def test_underflow_is_no_error_in_a_step(activation: str) -> None:
    def losses(mode: str) -> list[float]:
        model = MLP(3, [8], 4, activation=activation, dtype=np.float32, batch_norm=True, rng=0)
        learner = NumpyLearner(model, AdamW(model.params, 0.1))
        x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32) * 50
        y = np.arange(6) % 4
        with np.errstate(all=mode):  # type: ignore[call-overload]
            steps = [learner.train_step(x, y, 0.3)[0] for _ in range(60)]
            return [*steps, learner.eval_step(x, y)[0], float(learner.probabilities(x).sum())]

    assert losses("raise") == losses("ignore")
