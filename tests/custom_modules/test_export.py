"""The layers through torch.export, tracing, scripting, torch.compile and torch.func."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

from custom_modules import (
    CustomBatchNormAutograd,
    CustomBatchNormManualModule,
    CustomLayerNormAutograd,
    CustomLayerNormManualModule,
)
from torch_models import ConvNet

C = 3


def _tracked(n: int) -> nn.Module:
    return CustomBatchNormManualModule(n, track_running_stats=True)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "batchnorm autograd": CustomBatchNormAutograd,
    "batchnorm manual": CustomBatchNormManualModule,
    "batchnorm manual, tracked": _tracked,
    "layernorm autograd": CustomLayerNormAutograd,
    "layernorm manual": CustomLayerNormManualModule,
}
every = pytest.mark.parametrize("name", LAYERS)
modes = pytest.mark.parametrize("training", [True, False])
deprecated = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


def _layer(name: str, training: bool = True) -> Any:
    torch.manual_seed(11)
    layer = LAYERS[name](C).double()
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([0.5, -2.0, 3.0]))
        layer.beta.copy_(torch.tensor([1.0, -1.0, 0.3]))
    layer(torch.randn(6, C, 2, 4).double() * 2 + 1)
    return layer.train(training)


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape or (6, C, 2, 4)).double() * 2 + 1


@every
@modes
@pytest.mark.parametrize("strict", [True, False])
def test_export(name: str, training: bool, strict: bool) -> None:
    layer, x = _layer(name, training), _x()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    for n in (6, 9):
        x = _x(n, C, 2, 4)
        torch.testing.assert_close(exported.module()(x), layer(x))


@every
@modes
@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_and_what_it_saves(name: str, training: bool) -> None:
    layer, x, file = _layer(name, training), _x(), io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, x, check_trace=False), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for n in (6, 9):
        x = _x(n, C, 2, 4)
        torch.testing.assert_close(loaded(x), layer(x))


@every
@deprecated
def test_scripting_says_what_to_do_instead(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, C, 3), LAYERS[name](C))
    told = "cannot be scripted, .*; use torch.export.export or torch.jit.trace instead of"
    for module in (network, network[1]):
        with pytest.raises(NotImplementedError, match=told):
            torch.jit.script(module)


@every
@modes
def test_compiling_breaks_no_graph(name: str, training: bool) -> None:
    layer, x = _layer(name, training), _x().requires_grad_()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    (dx,) = torch.autograd.grad(compiled(x).pow(3).sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(layer(x).pow(3).sum(), x)[0])


@pytest.mark.parametrize("name", [name for name in LAYERS if "tracked" not in name])
@pytest.mark.parametrize("one", ["x", "parameters", "both"])
def test_gradients_under_vmap_are_those_one_by_one(name: str, one: str) -> None:
    layer = _layer(name)
    many = {k: torch.stack([p + i for i in range(5)]) for k, p in layer.named_parameters()}
    params = many if one != "x" else dict(layer.named_parameters())
    x = _x(5, 6, C, 2, 4) if one != "parameters" else _x()

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, params, (x,)).pow(3).sum()

    dims = (0 if one != "x" else None, 0 if one != "parameters" else None)
    got, dx = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(params, x)
    for i in range(5):
        single = {k: p.detach()[i] if one != "x" else p.detach() for k, p in params.items()}
        leaves = {k: p.clone().requires_grad_() for k, p in single.items()}
        xi = (x[i] if one != "parameters" else x).clone().requires_grad_()
        loss(leaves, xi).backward()
        torch.testing.assert_close(dx[i], xi.grad)
        for key, leaf in leaves.items():
            torch.testing.assert_close(got[key][i], leaf.grad)


@every
@deprecated  # PyTorch's own use of it
def test_jacobians_forwards_and_backwards_agree(name: str) -> None:
    layer, x, direction = _layer(name, training=False), _x(4, C), _x(4, C)
    along = jvp(layer, (x,), (direction,))[1]
    jacobian = jacrev(layer)(x).reshape(12, 12)
    torch.testing.assert_close(along, (jacobian @ direction.reshape(12)).reshape(4, C))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_an_ensemble_keeps_a_running_mean_for_each() -> None:
    layers = [_layer("batchnorm manual, tracked") for _ in "ab"]
    stacked = stack_module_state(layers)
    x = _x(2, 6, C, 2, 4)
    y = vmap(lambda *state: functional_call(layers[0], state[:2], (state[2],)))(*stacked, x)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(y[i], layer(x[i]))
        torch.testing.assert_close(stacked[1]["running_mean"][i], layer.running_mean)


def test_running_statistics_that_a_transform_cannot_change() -> None:
    layer = _layer("batchnorm manual, tracked")
    told = "CustomBatchNormManualModule: .* cannot change running statistics .*; use .eval()"
    for call in (lambda: vmap(layer)(_x(2, 6, C)), lambda: grad(lambda x: layer(x).sum())(_x())):
        with pytest.raises(RuntimeError, match=told):
            call()


def test_a_whole_network() -> None:
    network = ConvNet(3, 10, norm=_tracked).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))
    params = {name: p.detach() for name, p in network.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(network, params, (x[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(params, x)
    network(x).square().sum().backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-3, atol=1e-4)
