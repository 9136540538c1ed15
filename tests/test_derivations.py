"""docs/derivations.md is right: its functions, its quotations, its links and its formulas.

``PYTHONPATH=. python tests/test_derivations.py`` puts the line numbers of quoted code right after
it has moved.
"""

from __future__ import annotations

import ast
import doctest
import functools
import inspect
import math
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
    AvgPool2dModule,
    BatchNorm2dModule,
    BatchNormModule,
    Conv2dModule,
    CrossEntropyModule,
    DropoutModule,
    ELUModule,
    FlattenModule,
    GELUModule,
    GroupNormModule,
    LayerNormModule,
    LeakyReLUModule,
    LinearModule,
    MaxPool2dModule,
    Module,
    ReLUModule,
    ResidualModule,
    SigmoidModule,
    SiLUModule,
    SoftMaxCrossEntropyModule,
    SoftMaxModule,
    TanhModule,
    activations,
    window,
    winograd,
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


def _alike(*codes: Callable[[Any, Arrays], Arrays]) -> Callable[[Any, Arrays], Arrays]:
    """The gradients of the first, which are those of the others, too."""

    def ours(dout: Any, arrays: Arrays) -> Arrays:
        first, *others = (code(dout, arrays) for code in codes)
        for other in others:
            for name, gradient in first.items():
                np.testing.assert_allclose(other[name], gradient, rtol=1e-10, atol=1e-12)
        return first

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


_WINDOW = {"stride": 2, "padding": 1, "dilation": 2}
_POOL = {"kernel": 3, "stride": 2, "padding": 1}  # whose windows overlap


def _windows(x: Array, window: window.Window, outside: float = 0) -> Iterator[tuple[Any, Array]]:
    """Yield each place (r, s), and what is seen from there: (N, C, kH, kW)."""
    (down, across), (high, wide) = window.stride, window.dilation
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in window.padding)], constant_values=outside)
    kernel_rows, kernel_columns = (np.arange(k) for k in window.kernel_size)
    for r, s in np.ndindex(window.output_size(*x.shape[2:])):
        rows, columns = r * down + kernel_rows * high, s * across + kernel_columns * wide
        yield (r, s), padded[:, :, rows[:, None], columns]


def _at_places(places: Iterator[tuple[Any, Array]], value: Callable[[Array], Array]) -> Array:
    values = {place: value(seen) for place, seen in places}
    rows, columns = (max(way) + 1 for way in zip(*values, strict=True))
    return np.stack([np.stack([values[r, s] for s in range(columns)], -1) for r in range(rows)], -2)


def _convolve(x: Array, weight: Array, bias: Array, kernel: int, **options: int) -> Array:
    places = _windows(x, window.Window((kernel,) * 2, *((options[k],) * 2 for k in _WINDOW)))
    y = _at_places(places, lambda seen: np.einsum("ncij,ocij->no", seen, weight))
    return y + bias[:, None, None]


def _pool(x: Array, kernel: int, stride: int, padding: int, largest: bool) -> Array:
    outside = -np.inf if largest else 0.0
    places = _windows(x, window.Window((kernel,) * 2, (stride,) * 2, (padding,) * 2), outside)
    return _at_places(places, lambda seen: (np.max if largest else np.mean)(seen, axis=(2, 3)))


_TILE = Conv2dModule(1, 1, 3, bias=False, algorithm="winograd")


def _tile_ours(dout: Any, arrays: Arrays) -> Arrays:
    _TILE.params["weight"][...] = arrays["g"]
    _TILE.forward(arrays["d"][None, None])
    dx = _TILE.backward(dout[None, None])
    return {"d": dx[0, 0], "g": _TILE.grads["weight"][0, 0]}


def _correlate(d: Array, g: Array) -> Array:
    return sum(g[i, j] * d[i : i + 4, j : j + 4] for i, j in np.ndindex(3, 3))


def _groupnorm(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
    rows = _statistics(x.reshape(len(x), groups, -1), 2, eps)[0].reshape(x.shape)
    return weight[:, None, None] * rows + bias[:, None, None]


def _groupnorm_known(x: Array, weight: Array, groups: int, eps: float, **_: Any) -> Arrays:
    x_hat, inv_std = _statistics(x.reshape(len(x), groups, -1), 2, eps)
    return {"x_hat": x_hat.reshape(x.shape), "inv_std": inv_std, "gamma": weight}


_erf = np.vectorize(math.erf)

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
    "SiLU": Map(
        lambda x: x / (1 + np.exp(-x)), {"x": _away(5, 3)}, {"silu_dx": "x"}, _module(SiLUModule())
    ),
    "GELU": Map(
        lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
        {"x": _away(5, 3)},
        {"gelu_dx": "x"},
        _module(GELUModule()),
    ),
    "GELU by tanh": Map(
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        {"x": _away(5, 3)},
        {"gelu_tanh_dx": "x"},
        _module(GELUModule("tanh")),
    ),
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
        _alike(
            _torch(CustomBatchNormManualFunction, _EPS),
            _module(BatchNorm2dModule(3, eps=_EPS), weight="weight", bias="bias"),
        ),
        {"eps": _EPS},
        known=_normalise_known((0, 2, 3), (3,)),
    ),
    "group normalisation": Map(
        _groupnorm,
        {"x": _away(3, 4, 2, 3), "weight": _away(4), "bias": _away(4)},
        {"groupnorm_dx": "x"},
        _module(GroupNormModule(2, 4, eps=_EPS), weight="weight", bias="bias"),
        {"groups": 2, "eps": _EPS},
        known=_groupnorm_known,
    ),
    "convolution": Map(
        _convolve,
        {"x": _away(2, 2, 6, 7), "weight": _away(3, 2, 3, 3), "bias": _away(3)},
        {"conv_dx": "x", "conv_dweight": "weight", "conv_dbias": "bias"},
        _module(Conv2dModule(2, 3, 3, **_WINDOW), weight="weight", bias="bias"),
        {"kernel": 3, **_WINDOW},
    ),
    "a tile": Map(
        _correlate,
        {"d": _away(6, 6), "g": _away(3, 3)},
        {"winograd_dd": "d", "winograd_dg": "g"},
        _tile_ours,
    ),
    "max-pooling": Map(
        functools.partial(_pool, largest=True),
        {"x": _rng.permuted(np.arange(120.0)).reshape(2, 2, 5, 6)},
        {"maxpool_dx": "x"},
        _module(MaxPool2dModule(3, 2, 1)),
        _POOL,
    ),
    "average pooling": Map(
        functools.partial(_pool, largest=False),
        {"x": _away(2, 2, 5, 6)},
        {"avgpool_dx": "x"},
        _module(AvgPool2dModule(3, 2, 1)),
        _POOL,
    ),
    "residual": Map(
        lambda x: x + np.tanh(x),
        {"x": _away(5, 3)},
        {"residual_dx": "x"},
        _module(ResidualModule(TanhModule())),
        known=lambda x: {"through": lambda dout: dout / np.cosh(x) ** 2},
    ),
    "layer normalisation": Map(
        _normalise(1, (4,)),
        {"x": _away(5, 4), "weight": _away(4), "bias": _away(4)},
        {"layernorm_dx": "x", "layernorm_dgamma": "weight", "layernorm_dbeta": "bias"},
        _alike(
            _torch(CustomLayerNormManualFunction, _EPS),
            _module(LayerNormModule(4, eps=_EPS), weight="weight", bias="bias"),
        ),
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


def check_normal_tail(function: Callable[..., Any]) -> None:
    z = np.linspace(0, 9, 1001)
    exact = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in z])
    np.testing.assert_allclose(function(z, 24), exact, rtol=1e-12)
    # Of a low degree: its error is ours, so that the polynomial is the same one.
    s = (2 / (2 + z) - (1 + 2 / 11) / 2) * 2 / (1 - 2 / 11)
    ours = np.polynomial.polynomial.polyval(s, activations._tail_polynomial(9))
    np.testing.assert_allclose(function(z, 9), np.exp(-(z**2) / 2) * ours, rtol=1e-11)
    assert np.abs(function(z, 9) / exact - 1).max() < 3e-6


def check_seen(function: Callable[..., Any]) -> None:
    for size, kernel, stride, dilation in ((9, 3, 2, 2), (8, 2, 3, 1), (5, 5, 1, 1), (6, 1, 2, 1)):
        places = window.Window((kernel,) * 2, (stride,) * 2, (0, 0), (dilation,) * 2)
        rows = range(places.output_size(size, size)[0])
        want = [[r * stride + i * dilation for i in range(kernel)] for r in rows]
        np.testing.assert_array_equal(function(size, kernel, stride, dilation), want)


def _patches_by_hand(x: Array, outside: float) -> Array:
    options = window.Window((3, 3), *((number,) * 2 for number in _WINDOW.values()))
    found = dict(_windows(x, options, outside))
    rows, columns = options.output_size(*x.shape[2:])
    return np.stack([np.stack([found[r, s] for s in range(columns)], 2) for r in range(rows)], 2)


def check_im2col(function: Callable[..., Any]) -> None:
    x = _away(2, 3, 6, 7)
    np.testing.assert_array_equal(function(x, 3, **_WINDOW), _patches_by_hand(x, 0))
    np.testing.assert_array_equal(function(x, 3, **_WINDOW, outside=7), _patches_by_hand(x, 7))


def check_col2im(function: Callable[..., Any]) -> None:
    x = _away(2, 3, 6, 8)
    patches = _away(*_patches_by_hand(x, 0).shape)
    image = function(patches, x.shape, **_WINDOW)
    assert image.shape == x.shape
    product = (patches * _patches_by_hand(x, 0)).sum()
    np.testing.assert_allclose((image * x).sum(), product, rtol=1e-12)
    ours, options = np.empty((2, 8, 10, 3)), window.Window((3, 3), (2, 2), (1, 1), (2, 2))
    window.col2im(options, patches.transpose(4, 5, 0, 2, 3, 1), ours)
    np.testing.assert_allclose(image, ours[:, 1:-1, 1:-1].transpose(0, 3, 1, 2), rtol=1e-12)


_POINTS, _SCALE_OF_POINTS = [0, 1, -1, 2, -2], np.array([6, -4, -4, 1, 1, 24]) / 24


def check_at_points(function: Callable[..., Any]) -> None:
    coefficients = _away(4)
    values = [np.polyval(coefficients[::-1], p) for p in _POINTS]
    np.testing.assert_allclose(
        function(_POINTS, 4) @ coefficients, [*values, coefficients[-1]], rtol=1e-12
    )


def check_winograd_matrices(function: Callable[..., Any]) -> None:
    ours = (winograd._BT, winograd._G, winograd._AT)
    for matrix, mine in zip(function(_POINTS, _SCALE_OF_POINTS), ours, strict=True):
        np.testing.assert_allclose(matrix, mine, rtol=1e-12, atol=1e-12)


def check_winograd_tile(function: Callable[..., Any]) -> None:
    d, g = _away(6, 6), _away(3, 3)
    np.testing.assert_allclose(function(d, g), _correlate(d, g), rtol=1e-11, atol=1e-12)
    _tile_ours(np.zeros((4, 4)), {"d": d, "g": g})
    np.testing.assert_allclose(function(d, g), _TILE.forward(d[None, None])[0, 0], rtol=1e-11)


OTHERS: dict[str, Callable[[Callable[..., Any]], None]] = {
    "sample_softmax_jacobian": check_softmax_jacobian,
    "mlp_gradients": check_mlp_gradients,
    "log_sum_exp": check_log_sum_exp,
    "normal_tail": check_normal_tail,
    "seen": check_seen,
    "im2col": check_im2col,
    "col2im": check_col2im,
    "at_points": check_at_points,
    "winograd_matrices": check_winograd_matrices,
    "winograd_tile": check_winograd_tile,
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
        "conv_dbias": lambda dout: dout.sum(axis=(0, 1, 2)),
        "conv_dx": lambda dout, x, weight, stride, padding, dilation: FUNCTIONS["conv_dx"](
            dout,
            x,
            weight[:, :, ::-1, ::-1],
            stride,
            padding,
            dilation,  # the kernel turned round
        ),
        "residual_dx": lambda dout, through: through(dout),
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
