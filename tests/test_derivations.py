"""docs/derivations.md is right: its functions, its quotations, its links and its formulas.

``PYTHONPATH=. python tests/test_derivations.py`` puts the line numbers of quoted code right after
it has moved.
"""

from __future__ import annotations

import ast
import doctest
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import numpy_mlp.autograd as vg
from custom_modules.custom_batchnorm import CustomBatchNormManualFunction
from custom_modules.custom_layernorm import CustomLayerNormManualFunction
from numpy_mlp import MLP
from numpy_mlp.gradient_check import compare_gradients, eval_numerical_gradient_array
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
from numpy_mlp.optim import SGD, AdamW

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/derivations.md"
TEXT = PAGE.read_text(encoding="utf-8")
RENUMBER = "run `PYTHONPATH=. python tests/test_derivations.py` if it has only moved"

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Any]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.S | re.M)


def _functions(source: str) -> dict[str, Callable[..., Any]]:
    namespace: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), namespace)
    return {name: f for name, f in namespace.items() if inspect.isfunction(f)}


def _python() -> str:
    """The page's functions, everything else made blank: lines keep their numbers."""
    parts = re.split(r"(?<=^```python\n)(.*?)(?=^```$)", TEXT, flags=re.S | re.M)
    return "".join(part if i % 2 else "\n" * part.count("\n") for i, part in enumerate(parts))


SOURCE = _python()
FUNCTIONS = _functions(SOURCE)


# What each function is the gradient of, and what of ours computes the same.


@dataclass(frozen=True)
class Map:
    """A function of arrays, by the formula of the page, and our code for its backward pass.

    ``gradients`` names, for each function of the page, the array by which it differentiates;
    ``known`` is what these functions read besides the arrays, the output ``y`` and ``dout``.
    ``ours`` gives the gradient of each array.
    """

    forward: Callable[..., Any]
    arrays: dict[str, Array]
    gradients: dict[str, str]
    ours: Callable[[Any, Arrays], Arrays]
    constants: dict[str, Any] = field(default_factory=dict)
    known: Callable[..., Arrays] = lambda **_: {}


def _module(module: Module, **params: str) -> Callable[[Any, Arrays], Arrays]:
    """Our module's gradients; ``params`` maps its parameters to the arrays they are."""

    def ours(dout: Any, arrays: Arrays) -> Arrays:
        for name, array in params.items():
            module.params[name][...] = arrays[array]
        module.forward(np.atleast_2d(arrays["x"]))
        dx = module.backward(np.atleast_2d(dout))
        grads = {array: module.grads[name] for name, array in params.items()}
        return {"x": dx.reshape(np.shape(arrays["x"])), **grads}

    return ours


def _op(op: Any, **constants: Any) -> Callable[[Any, Arrays], Arrays]:
    def ours(dout: Any, arrays: Arrays) -> Arrays:
        nodes = {name: vg.TensorNode(array) for name, array in arrays.items()}
        apply = op.do_forward if inspect.isclass(op) else op
        (apply(*nodes.values(), **constants) * dout).sum().backward()
        return {name: node.grad for name, node in nodes.items()}

    return ours


def _torch(function: Any, *constants: Any) -> Callable[[Any, Arrays], Arrays]:
    def ours(dout: Any, arrays: Arrays) -> Arrays:
        tensors = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
        function.apply(*tensors.values(), *constants).backward(torch.from_numpy(dout))
        return {
            name: tensor.grad.numpy() for name, tensor in tensors.items() if tensor.grad is not None
        }

    return ours


def _loss(loss: Any, target: Array) -> Callable[[Any, Arrays], Arrays]:
    def ours(dout: Any, arrays: Arrays) -> Arrays:
        ((name, x),) = arrays.items()
        dx = loss.backward(np.atleast_2d(x), np.atleast_2d(target))
        return {name: dx.reshape(x.shape)}

    return ours


_rng = np.random.default_rng(23)


def _away(*shape: int) -> Array:
    """Numbers at least 0.1 from 0, where activations have kinks and divisions end."""
    return np.asarray(_rng.uniform(0.1, 2, shape) * _rng.choice([-1, 1], shape))


def _positive(*shape: int) -> Array:
    return np.asarray(_rng.uniform(0.3, 2, shape))


def _probabilities(*shape: int) -> Array:
    p = _rng.uniform(0.2, 1, shape)
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def _softmax(x: Array) -> Array:
    return np.asarray(np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True))


def _statistics(x: Array, axes: int | tuple[int, ...], eps: float) -> tuple[Array, Array]:
    inv_std = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    return (x - x.mean(axis=axes, keepdims=True)) * inv_std, inv_std


def _normalise(axes: int | tuple[int, ...], per: tuple[int, ...]) -> Callable[..., Array]:
    """Return y = weight · x_hat + bias, the statistics over ``axes``."""

    def forward(x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return weight.reshape(per) * _statistics(x, axes, eps)[0] + bias.reshape(per)

    return forward


def _normalise_known(axes: int | tuple[int, ...], per: tuple[int, ...]) -> Callable[..., Arrays]:
    def known(x: Array, weight: Array, eps: float, **_: Any) -> Arrays:
        x_hat, inv_std = _statistics(x, axes, eps)
        return {"x_hat": x_hat, "inv_std": inv_std.reshape(per), "gamma": weight}

    return known


_ONE_HOT = np.eye(4)[[2, 0, 3, 2, 1]]
_INDICES = np.array([2, 0, 3, 2, 1])
_EPS = 0.1  # large, so that a gradient that forgets it is wrong
_DROPOUT = DropoutModule(0.4)
_SCALE = _rng.permuted(np.repeat([0.0, 1 / 0.6], [5, 10])).reshape(5, 3)


def _dropout_ours(dout: Any, arrays: Arrays) -> Arrays:
    _DROPOUT._remember(_SCALE)
    return {"x": _DROPOUT.backward(dout)}


def _batchnorm_eval_ours(dout: Any, arrays: Arrays) -> Arrays:
    x = torch.tensor(arrays["x"], requires_grad=True)
    weight, mean = torch.tensor([0.5, -2.0, 3.0]).double(), torch.zeros(3).double()
    y = CustomBatchNormManualFunction.apply(x, weight, mean, _EPS, mean, mean + 0.7, False)
    y.backward(torch.from_numpy(dout))
    assert x.grad is not None
    return {"x": x.grad.numpy()}


MAPS = {
    "cross-entropy of one sample": Map(
        lambda p, t: -(t * np.log(p)).sum(),
        {"p": _probabilities(4)},
        {"sample_cross_entropy_dp": "p"},
        _loss(CrossEntropyModule(), _ONE_HOT[0]),
        {"t": _ONE_HOT[0]},
    ),
    "softmax of one sample": Map(
        _softmax,
        {"x": _away(4)},
        {"sample_softmax_dx": "x"},
        _module(SoftMaxModule()),
        known=lambda x: {"p": _softmax(x)},
    ),
    "ReLU": Map(
        lambda x: np.where(x > 0, x, 0), {"x": _away(5, 3)}, {"relu_dx": "x"}, _module(ReLUModule())
    ),
    "leaky ReLU": Map(
        lambda x, slope: np.where(x > 0, x, slope * x),
        {"x": _away(5, 3)},
        {"leaky_relu_dx": "x"},
        _module(LeakyReLUModule(0.2)),
        {"slope": 0.2},
    ),
    "ELU": Map(
        lambda x, alpha: np.where(x > 0, x, alpha * (np.exp(x) - 1)),
        {"x": _away(5, 3)},
        {"elu_dx": "x"},
        _module(ELUModule(0.7)),
        {"alpha": 0.7},
    ),
    "linear layer of one sample": Map(
        lambda x, weight, bias: np.einsum("oi,i->o", weight, x) + bias,
        {"x": _away(3), "weight": _away(5, 3), "bias": _away(5)},
        {
            "sample_linear_dx": "x",
            "sample_linear_dweight": "weight",
            "sample_linear_dbias": "bias",
        },
        _module(LinearModule(3, 5), weight="weight", bias="bias"),
    ),
    "linear layer": Map(
        lambda x, weight, bias: np.einsum("oi,ni->no", weight, x) + bias,
        {"x": _away(4, 3), "weight": _away(5, 3), "bias": _away(5)},
        {"linear_dx": "x", "linear_dweight": "weight", "linear_dbias": "bias"},
        _module(LinearModule(3, 5), weight="weight", bias="bias"),
    ),
    "cross-entropy": Map(
        lambda p, t: -(t * np.log(p)).sum(axis=1).mean(),
        {"p": _probabilities(5, 4)},
        {"cross_entropy_dp": "p"},
        _loss(CrossEntropyModule(), _ONE_HOT),
        {"t": _ONE_HOT},
    ),
    "any elementwise function": Map(
        lambda x, derivative: np.tanh(x),
        {"x": _away(5, 3)},
        {"elementwise_dx": "x"},
        _module(TanhModule()),
        {"derivative": lambda x: 1 / np.cosh(x) ** 2},
    ),
    "sigmoid": Map(
        lambda x: 1 / (1 + np.exp(-x)),
        {"x": _away(5, 3)},
        {"sigmoid_dx": "x"},
        _module(SigmoidModule()),
    ),
    "tanh": Map(lambda x: np.tanh(x), {"x": _away(5, 3)}, {"tanh_dx": "x"}, _op(vg.Tanh)),
    "softmax with cross-entropy": Map(
        lambda x, t: -(t * np.log(_softmax(x))).sum(axis=1).mean(),
        {"x": _away(5, 4)},
        {"softmax_cross_entropy_dx": "x"},
        _loss(SoftMaxCrossEntropyModule(), _ONE_HOT),
        {"t": _ONE_HOT},
        known=lambda x, t: {"p": _softmax(x)},
    ),
    "batch normalisation": Map(
        _normalise(0, (3,)),
        {"x": _away(5, 3), "weight": _away(3), "bias": _away(3)},
        {
            "batchnorm_dx": "x",
            "batchnorm_dx_by_paths": "x",
            "batchnorm_dweight": "weight",
            "batchnorm_dbias": "bias",
        },
        _module(BatchNormModule(3, eps=_EPS), weight="weight", bias="bias"),
        {"eps": _EPS},
        known=_normalise_known(0, (3,)),
    ),
    "batch normalisation in evaluation": Map(
        lambda x, inv_std, weight: weight * x * inv_std,
        {"x": _away(5, 3)},
        {"batchnorm_eval_dx": "x"},
        _batchnorm_eval_ours,
        {"inv_std": np.full(3, (0.7 + _EPS) ** -0.5), "weight": np.array([0.5, -2.0, 3.0])},
    ),
    "batch normalisation of images": Map(
        _normalise((0, 2, 3), (3, 1, 1)),
        {"x": _away(2, 3, 4, 5), "weight": _away(3), "bias": _away(3)},
        {"batchnorm2d_dx": "x"},
        _torch(CustomBatchNormManualFunction, _EPS),
        {"eps": _EPS},
        known=_normalise_known((0, 2, 3), (3,)),
    ),
    "layer normalisation": Map(
        _normalise(1, (4,)),
        {"x": _away(5, 4), "weight": _away(4), "bias": _away(4)},
        {"layernorm_dx": "x", "layernorm_dgamma": "weight", "layernorm_dbeta": "bias"},
        _torch(CustomLayerNormManualFunction, _EPS),
        {"eps": _EPS},
        known=_normalise_known(1, (5, 1)),
    ),
    "dropout": Map(
        lambda x, scale: x * scale,
        {"x": _away(5, 3)},
        {"dropout_dx": "x"},
        _dropout_ours,
        {"scale": _SCALE},
    ),
    "division": Map(
        lambda x, y: x / y,
        {"x": _away(5, 3), "y": _away(5, 3)},
        {"divide_dx": "x", "divide_dy": "y"},
        _op(vg.Divide),
    ),
    "matrix product": Map(
        lambda x, w: np.einsum("nf,fm->nm", x, w),
        {"x": _away(5, 3), "w": _away(3, 4)},
        {"matmul_dx": "x", "matmul_dw": "w"},
        _op(vg.MatrixMultiply),
    ),
    "sixteen equal columns": Map(
        lambda x: x * np.ones(16),
        {"x": _away(5, 1)},
        {"expand_dx": "x"},
        _op(vg.Expand, dim=1, repeats=16),
    ),
    "broadcasting": Map(
        lambda x: x + np.zeros((2, 5, 4, 3)),
        {"x": _away(4, 1)},
        {"sum_to": "x"},
        _op(lambda x: x + np.zeros((2, 5, 4, 3))),
        known=lambda x: {"shape": x.shape},
    ),
    "rows divided by their sums": Map(
        lambda x: x / x.sum(axis=1, keepdims=True),
        {"x": _positive(5, 3)},
        {"normalize_dx": "x"},
        _op(vg.Normalize),
    ),
    "sum": Map(lambda x: x.sum(), {"x": _away(5, 3)}, {"sum_dx": "x"}, _op(vg.Sum)),
    "row sum": Map(
        lambda x: x.sum(axis=1), {"x": _away(5, 3)}, {"row_sum_dx": "x"}, _op(vg.RowSum)
    ),
    "row maximum": Map(
        lambda x: x.max(axis=1),
        {"x": _rng.permuted(np.arange(20.0)).reshape(5, 4)},
        {"row_max_dx": "x"},
        _op(vg.RowMax),
    ),
    "select": Map(
        lambda x, indices: x[np.arange(len(x)), indices],
        {"x": _away(5, 4)},
        {"select_dx": "x"},
        _op(vg.Select, indices=_INDICES),
        {"indices": _INDICES},
    ),
    "squeeze": Map(
        lambda x, dim: x[:, 0],
        {"x": _away(5, 1, 3)},
        {"squeeze_dx": "x"},
        _op(vg.Squeeze, dim=1),
        {"dim": 1},
    ),
    "unsqueeze": Map(
        lambda x, dim: x[:, None],
        {"x": _away(5, 3)},
        {"unsqueeze_dx": "x"},
        _op(vg.Unsqueeze, dim=1),
        {"dim": 1},
    ),
    "flatten": Map(
        lambda x: np.stack([sample.ravel() for sample in x]),
        {"x": _away(5, 2, 3)},
        {"flatten_dx": "x"},
        _module(FlattenModule()),
    ),
    "logarithm": Map(lambda x: np.log(x), {"x": _positive(5, 3)}, {"log_dx": "x"}, _op(vg.Log)),
    "exponential": Map(lambda x: np.exp(x), {"x": _away(5, 3)}, {"exp_dx": "x"}, _op(vg.Exp)),
    "softmax": Map(_softmax, {"x": _away(5, 4)}, {"softmax_dx": "x"}, _op(vg.softmax)),
    "log-softmax": Map(
        lambda x: np.log(_softmax(x)),
        {"x": _away(5, 4)},
        {"logsoftmax_dx": "x"},
        _op(vg.logsoftmax),
    ),
}
GRADIENTS = {name: kind for kind, entry in MAPS.items() for name in entry.gradients}


def _prove(function: Callable[..., Any], entry: Map, wrt: str) -> None:
    """AssertionError unless ``function`` gives the derivative by ``wrt``, as our code does."""
    arrays, constants = entry.arrays, entry.constants
    y = np.asarray(entry.forward(**arrays, **constants))
    wanted = inspect.signature(function).parameters
    # A loss is differentiated itself; all else goes through a random upstream gradient.
    dout = (
        np.random.default_rng(5).standard_normal(y.shape) if {"dout", "grad"} & {*wanted} else 1.0
    )
    assert y.shape == np.shape(dout)
    pool = {"y": y, "dout": dout, "grad": dout}
    pool |= {**arrays, **constants, **entry.known(**arrays, **constants)}
    gradient = function(**{name: pool[name] for name in wanted})

    def forward(x: Array) -> Array:
        return np.asarray(entry.forward(**{**arrays, wrt: x}, **constants))

    numerical = eval_numerical_gradient_array(forward, arrays[wrt].copy(), dout)
    error = compare_gradients(function.__name__, gradient, numerical)
    assert error.passed, str(error)
    np.testing.assert_allclose(gradient, entry.ours(dout, arrays)[wrt], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_is_the_derivative_and_our_codes(name: str) -> None:
    entry = MAPS[GRADIENTS[name]]
    _prove(FUNCTIONS[name], entry, entry.gradients[name])


# The functions that are not the gradient of one map.


def _mlp() -> tuple[MLP, Array, Array]:
    model = MLP(4, [5, 3], 2, rng=np.random.default_rng(3))
    for i, param in enumerate(model.params.values()):
        param += 0.1 * np.cos(np.arange(param.size) + i).reshape(param.shape)  # no bias is 0
    return model, np.array([0.5, -1.0, 0.3, 2.0]), np.array([0.0, 1.0])


def check_mlp_gradients(function: Callable[..., Any]) -> None:
    model, x, t = _mlp()
    params = list(model.params.values())
    loss = CrossEntropyModule()
    p = model.forward(x[None])
    model.backward(loss.backward(p, t[None]))
    gradients = [array for pair in function(x, t, params[::2], params[1::2]) for array in pair]
    for gradient, ours, param in zip(gradients, model.grads.values(), params, strict=True):
        np.testing.assert_allclose(gradient, ours, rtol=1e-10, atol=1e-12)
        numerical = eval_numerical_gradient_array(
            lambda _: np.asarray(loss.forward(model.forward(x[None]), t[None])), param, 1.0
        )
        assert compare_gradients("parameter", gradient, numerical).passed


def check_softmax_jacobian(function: Callable[..., Any]) -> None:
    x = _rng.standard_normal(4)
    jacobian = function(_softmax(x))
    module = SoftMaxModule()
    for row, one in zip(jacobian, np.eye(4), strict=True):
        module.forward(x[None])
        assert compare_gradients(
            "row", row, eval_numerical_gradient_array(_softmax, x.copy(), one)
        ).passed
        np.testing.assert_allclose(row, module.backward(one[None])[0], atol=1e-12)


def check_log_sum_exp(function: Callable[..., Any]) -> None:
    x = _rng.standard_normal((5, 4))
    np.testing.assert_allclose(function(x), np.log(np.exp(x).sum(axis=1)), rtol=1e-12)
    loss = SoftMaxCrossEntropyModule().forward(x * 1e4, _INDICES)
    mean = (function(x * 1e4) - 1e4 * x[np.arange(5), _INDICES]).mean()
    np.testing.assert_allclose(mean, loss, rtol=1e-12)


def check_kaiming_std(function: Callable[..., Any]) -> None:
    drawn = np.random.default_rng(4).standard_normal((3, 7))
    for layer, slope in (
        (LinearModule(7, 3, rng=np.random.default_rng(4)), 0),
        (LinearModule(7, 3, input_layer=True, rng=np.random.default_rng(4)), 1),
    ):
        np.testing.assert_allclose(layer.params["weight"], drawn * function(7, slope), rtol=1e-12)
    weights = [MLP(2, [300], 400, slope, rng=np.random.default_rng(0)).params for slope in (0, 0.5)]
    ratio = weights[1]["layers.2.weight"] / weights[0]["layers.2.weight"]
    np.testing.assert_allclose(ratio, function(300, 0.5) / function(300, 0), rtol=1e-12)
    # And the variance does stay what it was, whatever the slope.
    rng = np.random.default_rng(1)
    z = rng.standard_normal((200, 300))
    for slope in (0, 0.3, 1):
        y = np.where(z > 0, z, slope * z) @ rng.standard_normal((300, 400)) * function(300, slope)
        assert abs(y.var() - 1) < 0.05


def check_xavier_std(function: Callable[..., Any]) -> None:
    drawn = np.random.default_rng(4).standard_normal((3, 7))
    layer = vg.Linear(7, 3, rng=np.random.default_rng(4))
    np.testing.assert_allclose(layer.w.value, drawn * function(7, 3), rtol=1e-12)


def check_sgd_step(function: Callable[..., Any]) -> None:
    param = _rng.standard_normal(6)
    buffer, ours = np.zeros(6), param.copy()
    optimizer = SGD([ours], 0.1, momentum=0.8, weight_decay=0.3)
    for grad in _rng.standard_normal((5, 6)):
        param, buffer = function(param, grad, buffer, 0.1, 0.8, 0.3)
        optimizer.step([grad])
        np.testing.assert_allclose(param, ours, rtol=1e-12, atol=1e-14)


def check_adamw_step(function: Callable[..., Any]) -> None:
    param = _rng.standard_normal(6)
    m, v, ours = np.zeros(6), np.zeros(6), param.copy()
    optimizer = AdamW([ours], 0.1, betas=(0.8, 0.9), eps=0.01, weight_decay=0.3)
    for t, grad in enumerate(_rng.standard_normal((5, 6)), start=1):
        param, m, v = function(param, grad, m, v, t, 0.1, (0.8, 0.9), 0.01, 0.3)
        optimizer.step([grad])
        np.testing.assert_allclose(param, ours, rtol=1e-12, atol=1e-14)


OTHERS: dict[str, Callable[[Callable[..., Any]], None]] = {
    "sample_softmax_jacobian": check_softmax_jacobian,
    "mlp_gradients": check_mlp_gradients,
    "log_sum_exp": check_log_sum_exp,
    "kaiming_std": check_kaiming_std,
    "xavier_std": check_xavier_std,
    "sgd_step": check_sgd_step,
    "adamw_step": check_adamw_step,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_a_gradient(name: str) -> None:
    OTHERS[name](FUNCTIONS[name])


def test_no_function_of_the_page_is_unproven() -> None:
    assert {*FUNCTIONS} == {*GRADIENTS, *OTHERS}
    assert not {*GRADIENTS} & {*OTHERS}
    names = re.findall(r"^def (\w+)", SOURCE, flags=re.M)
    assert len(names) == len({*names}), "a name is given twice, and the first of them is not tested"


# The tests of the tests.


def _check(name: str, function: Callable[..., Any]) -> None:
    if name in OTHERS:
        OTHERS[name](function)
    else:
        _prove(function, MAPS[GRADIENTS[name]], MAPS[GRADIENTS[name]].gradients[name])


def _scaled(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return type(result)(_scaled(part) for part in result)
    return result * 1.001


@pytest.mark.parametrize("name", [*GRADIENTS, *OTHERS])
def test_an_error_of_a_thousandth_is_found(name: str) -> None:
    @functools.wraps(FUNCTIONS[name])
    def wrong(*args: Any, **kwargs: Any) -> Any:
        return _scaled(FUNCTIONS[name](*args, **kwargs))

    with pytest.raises(AssertionError):
        _check(name, wrong)


@pytest.mark.parametrize("name", GRADIENTS)
def test_an_error_in_one_entry_or_in_the_order_is_found(name: str) -> None:
    function = FUNCTIONS[name]

    def one_entry(gradient: Array) -> Array:
        gradient = gradient.astype(float)
        gradient[np.unravel_index(np.abs(gradient).argmax(), gradient.shape)] *= 1.001
        return gradient

    for spoil in (one_entry, np.negative, lambda g: g.T if g.ndim > 1 else g[::-1]):

        @functools.wraps(function)
        def wrong(spoil: Any = spoil, **kwargs: Any) -> Any:
            return spoil(function(**kwargs))

        with pytest.raises(AssertionError):
            _check(name, wrong)


_SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip


def _mutants() -> Iterator[tuple[str, str, str]]:
    """Yield a function's name, what was changed in it, and the whole source with that changed."""
    tree = ast.parse(SOURCE)
    for definition in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(definition):
            if isinstance(node, ast.BinOp) and type(node.op) in _SWAPPED:
                was, operator = ast.unparse(node), node.op
                node.op = _SWAPPED[type(operator)]()
                yield definition.name, f"{was} -> {ast.unparse(node)}", ast.unparse(tree)
                node.op = operator
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                number = node.value
                node.value += 1
                yield definition.name, f"{number} -> {node.value}", ast.unparse(tree)
                node.value = number


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_a_wrong_operator_or_number_anywhere_is_found() -> None:
    survivors, count = [], 0
    for name, change, source in _mutants():
        count += 1
        try:
            _check(name, _functions(source)[name])
        except (AssertionError, ArithmeticError, IndexError, TypeError, ValueError):
            continue
        survivors.append(f"{name}: {change}")
    assert count > 60
    assert survivors == []


def test_the_common_mistakes_are_found() -> None:
    n = 5
    mistakes: dict[str, Callable[..., Any]] = {
        "sample_softmax_dx": lambda dout, p: dout * p * (1 - p),
        "softmax_dx": lambda dout, x: dout * _softmax(x) * (1 - _softmax(x)),
        "relu_dx": lambda dout, x: dout,
        "sample_linear_dweight": lambda dout, x: np.tile(dout[:, None], 3),
        "linear_dweight": lambda dout, x: dout.T @ x / len(x),
        "linear_dbias": lambda dout: dout,
        "softmax_cross_entropy_dx": lambda p, t: (p - t) / n**2,
        "cross_entropy_dp": lambda p, t: -t / p,
        "batchnorm_dx": lambda dout, inv_std, weight: dout * inv_std * weight,
        "layernorm_dx": lambda dout, x_hat, inv_std, gamma: (
            gamma * inv_std * (dout - dout.mean(axis=1, keepdims=True))
        ),
        "expand_dx": lambda dout: dout[:, :1],
    }
    for name, mistake in mistakes.items():
        with pytest.raises(AssertionError):
            _check(name, mistake)


# The quotations.

_LINK = r"\[`(?P<name>[\w.]+)`\]\(\.\./(?P<path>[\w/]+\.py)#L(?P<line>\d+)\)"
_QUOTE = re.compile(
    _LINK + r":(?:\s*\n *```py\n(?P<block>.*?)^ *```$| `(?P<code>[^`\n]+)`)", re.S | re.M
)


def _line_of(quote: re.Match[str]) -> int:
    """Return the number of the line at which the quoted code stands in what the link names."""
    source = (ROOT / quote["path"]).read_text(encoding="utf-8")
    scope: Any = ast.parse(source)
    for part in quote["name"].split("."):
        scope = next((node for node in scope.body if getattr(node, "name", "") == part), None)
        assert scope is not None, f"{quote['path']} has no {quote['name']}"
    lines = source.splitlines()
    wanted = textwrap.dedent(quote["block"] or quote["code"]).strip("\n").splitlines()
    found = []
    for start in range(scope.lineno - 1, scope.end_lineno - len(wanted) + 1):
        part = textwrap.dedent("\n".join(lines[start : start + len(wanted)])).splitlines()
        # Of a single line, the comment at its end may be left out.
        if part == wanted or (part and [part[0].partition("  # ")[0]] == wanted):
            found.append(start + 1)
    assert len(found) == 1, (
        f"{quote['path']}: {quote['name']} has these lines {len(found)} times, expected once:\n"
        + "\n".join(wanted)
    )
    return found[0]


QUOTES = list(_QUOTE.finditer(TEXT))


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote["name"])
def test_what_is_quoted_stands_where_the_link_points(quote: re.Match[str]) -> None:
    assert int(quote["line"]) == _line_of(quote), RENUMBER


def test_no_quotation_is_overlooked() -> None:
    assert len(QUOTES) == len(re.findall(r"\.py#L", TEXT)) > 40
    assert sum(quote["block"] is not None for quote in QUOTES) == TEXT.count("```py\n")


def test_a_wrong_quotation_is_found() -> None:
    link = "[`LinearModule.backward`](../numpy_mlp/modules/linear.py#L1): "
    for code in ("`return dout @ self.weight`", '\n\n```py\ny += self.params["bias"]\n```'):
        quote = _QUOTE.search(link + code)  # neither stands in that method
        assert quote is not None
        with pytest.raises(AssertionError, match="0 times"):
            _line_of(quote)


def test_every_derivation_ends_in_the_code() -> None:
    """A section that gives a function also quotes the code that does it."""
    for section in re.split(r"^##+ ", TEXT, flags=re.M):
        if "```python" in section:
            assert _QUOTE.search(section), section.partition("\n")[0]


def test_the_sessions_with_the_engine_print_what_is_shown() -> None:
    sessions = "\n".join(_blocks("pycon"))
    test = doctest.DocTestParser().get_doctest(sessions, {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) >= 10
    report: list[str] = []
    assert doctest.DocTestRunner().run(test, out=report.append).failed == 0, "".join(report)


# The Markdown.


def _prose() -> str:
    """The page without its blocks of code and mathematics."""
    return re.sub(r"^ *```.*?^ *```$", "", TEXT, flags=re.S | re.M)


def test_links_within_the_page_and_to_files_lead_somewhere() -> None:
    headings = re.findall(r"^##+ (.*)$", TEXT, flags=re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(targets) > 60
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (PAGE.parent / path).exists() if path else anchor in anchors, target
    assert not any("$" in heading for heading in headings)


def test_mathematics_is_written_so_that_code_hosts_render_it() -> None:
    # $`...`$ keeps Markdown's hands off underscores and backslashes. GitHub wants white space or
    # punctuation around it (not even an opening bracket), and a bare dollar opens a formula.
    prose = _prose()
    inline = re.compile(r"\$`([^`$]+)`\$")
    for match in inline.finditer(prose):
        before, after = prose[match.start() - 1], prose[match.end()]
        assert before in " \n" and after in " \n.,:;)", prose[match.start() - 20 : match.end() + 9]
        assert "\n" not in match[1], match[1]
    assert "$" not in re.sub(r"`[^`\n]*`", "", inline.sub("", prose))
    assert not re.search(r"[_*]\$`|`\$[_*]|\[[^\]\n]*\$`[^\]\n]*\]\(", prose)  # emphasis, links

    formulas = inline.findall(prose) + _blocks("math")
    assert len(formulas) > 150
    for formula in formulas:
        assert "<" not in formula, formula  # taken for HTML by some; \lt is not
        assert not re.search(r"\\(operatorname|newcommand|def|tag|label|require)\b", formula), (
            formula
        )
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count(r"\begin{") == formula.count(r"\end{"), formula
        assert formula.isascii(), formula


def _renumber() -> None:
    def with_line(quote: re.Match[str]) -> str:
        return quote[0].replace(f"#L{quote['line']})", f"#L{_line_of(quote)})", 1)

    PAGE.write_text(_QUOTE.sub(with_line, TEXT), encoding="utf-8")


if __name__ == "__main__":
    _renumber()
