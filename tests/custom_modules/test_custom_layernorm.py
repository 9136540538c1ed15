"""Layer normalisation: finite differences to second order, PyTorch, and further promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from custom_modules import (
    CustomLayerNormAutograd,
    CustomLayerNormManualFunction,
    CustomLayerNormManualModule,
)

SHAPES = [(6, 3), (4, 3, 2, 5)]
C = 3
GAMMA, BETA = (0.5, -2.0, 3.0), (1.0, -1.0, 0.3)
both_shapes = pytest.mark.parametrize("shape", SHAPES, ids=["NC", "NCHW"])
both_modules = pytest.mark.parametrize(
    "module", [CustomLayerNormAutograd, CustomLayerNormManualModule]
)
Module = type[CustomLayerNormAutograd] | type[CustomLayerNormManualModule]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(12)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    return tuple(t.to(dtype).requires_grad_() for t in (x, torch.tensor(GAMMA), torch.tensor(BETA)))


def _builtin(ndim: int, eps: float = 1e-5) -> nn.Module:
    return _fill(nn.LayerNorm(C, eps) if ndim == 2 else nn.GroupNorm(1, C, eps))


def _fill(layer: nn.Module) -> nn.Module:
    # gamma 1 and beta 0, the initial values, would hide a backward pass that forgets them.
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(GAMMA))
        layer.bias.copy_(torch.tensor(BETA))
    return layer


def _gradients(layer: nn.Module, x: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dout)


def _saved_bytes(layer: nn.Module, x: Tensor) -> int:
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return sum(sizes)


@both_shapes
def test_first_and_second_derivatives_agree_with_finite_differences(
    shape: tuple[int, ...],
) -> None:
    assert torch.autograd.gradcheck(CustomLayerNormManualFunction.apply, _inputs(shape))
    assert torch.autograd.gradgradcheck(CustomLayerNormManualFunction.apply, _inputs(shape))


@both_shapes
def test_backward_is_the_same_while_a_graph_of_it_is_made(shape: tuple[int, ...]) -> None:
    inputs, dout = _inputs(shape), torch.randn(shape, dtype=torch.float64)
    y = CustomLayerNormManualFunction.apply(*inputs)
    plain = torch.autograd.grad(y, inputs, dout, retain_graph=True)
    graphed = torch.autograd.grad(y, inputs, dout, create_graph=True)
    torch.testing.assert_close(plain, tuple(g.detach() for g in graphed), rtol=1e-12, atol=1e-12)


@both_modules
@both_shapes
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_forward_and_backward_agree_with_pytorch(
    module: Module, shape: tuple[int, ...], eps: float
) -> None:
    layer, twin = _fill(module(C, eps)).double(), _builtin(len(shape), eps).double()
    x, dout = _inputs(shape)[0], torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        _gradients(layer, x, dout), _gradients(twin, x, dout), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(layer.eval()(x), twin(x), rtol=0, atol=1e-10)


@both_modules
def test_weights_travel_to_and_from_pytorch(module: Module) -> None:
    state = _builtin(4).state_dict()
    state["gamma"], state["beta"] = state.pop("weight"), state.pop("bias")
    layer = module(C)
    layer.load_state_dict(state)
    x = torch.randn(4, C, 2, 5)
    torch.testing.assert_close(layer(x), _builtin(4)(x))
    assert layer.weight is layer.gamma
    assert layer.bias is layer.beta


@both_shapes
def test_only_the_needed_gradients_are_returned_and_kept(shape: tuple[int, ...]) -> None:
    values, dout = _inputs(shape), torch.randn(shape, dtype=torch.float64)
    expected = torch.autograd.grad(CustomLayerNormManualFunction.apply(*values), values, dout)
    kept = {}
    for needs in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        inputs = (
            t.detach().requires_grad_(bool(need)) for t, need in zip(values, needs, strict=True)
        )
        y = CustomLayerNormManualFunction.apply(*inputs)
        with torch.no_grad():
            grads = CustomLayerNormManualFunction.backward(y.grad_fn, dout)
        for need, got, want in zip(needs, grads, expected, strict=True):
            assert (got is not None) == bool(need)
            if got is not None:
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        kept[needs] = [t is not None for t in y.grad_fn.saved_tensors]
    assert kept[1, 1, 1] == kept[1, 0, 0] == [True, True, True, True]
    assert kept[0, 1, 0] == [True, False, True, True]
    assert not any(kept[0, 0, 1])


@pytest.mark.parametrize("shape", [(256, 512), (8, 64, 16, 16)])
def test_bytes_kept_for_backward(shape: tuple[int, ...]) -> None:
    x, c = torch.randn(shape, requires_grad=True), shape[1]
    theirs = nn.LayerNorm(c) if len(shape) == 2 else nn.GroupNorm(1, c)
    ours = CustomLayerNormManualModule(c)
    assert 0 < _saved_bytes(ours, x) <= 1.01 * _saved_bytes(theirs, x)


@both_modules
@both_shapes
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_agrees_with_pytorch(
    module: Module, shape: tuple[int, ...], autocast: bool
) -> None:
    layer, twin = _fill(module(C)), _builtin(len(shape))
    # A mean of 30: statistics in bfloat16 would be off by far more than the tolerance.
    x = (torch.randn((64, *shape[1:])) * 2 + 30).bfloat16().requires_grad_()
    dout = torch.randn(x.shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, y_twin = layer(x), twin(x)
    assert y.dtype == y_twin.dtype == torch.bfloat16
    torch.testing.assert_close(y, y_twin, rtol=2**-7, atol=2**-7)
    grads = torch.autograd.grad(y, (x, layer.gamma, layer.beta), dout)
    expected = torch.autograd.grad(y_twin, (x, twin.weight, twin.bias), dout)
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(grads, expected, rtol=2**-6, atol=2**-6)


@both_modules
def test_channels_last_stays_channels_last(module: Module) -> None:
    layer, twin = _fill(module(C)), _builtin(4)
    x = torch.randn(4, C, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    dout = torch.randn(4, C, 6, 5).contiguous(memory_format=torch.channels_last)
    y = layer(x)
    grads = _gradients(layer, x, dout)
    for t in (y, grads[0]):
        assert t.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, twin(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads, _gradients(twin, x, dout), rtol=1e-4, atol=1e-5)


@both_shapes
def test_strided_and_expanded_inputs(shape: tuple[int, ...]) -> None:
    layer, twin = _fill(CustomLayerNormManualModule(C)), _builtin(len(shape))
    x = torch.randn(shape).transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    assert not x.is_contiguous()
    dout = torch.tensor(2.0).expand(shape)
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        _gradients(layer, x, dout), _gradients(twin, x, dout), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("shape", [(256, C), (16, C, 16, 16)])
def test_a_large_mean_costs_no_more_digits_than_in_pytorch(
    shape: tuple[int, ...], mean: float
) -> None:
    x = (torch.randn(shape) + mean).requires_grad_()
    dout = torch.randn(shape) + 1  # a sum far from zero, which a careless Σ δ·x cannot bear

    def errors(layer: nn.Module) -> list[float]:
        exact = _builtin(len(shape)).double()
        x64 = x.detach().double().requires_grad_()
        want = (exact(x64).detach(), *_gradients(exact, x64, dout.double()))
        got = (layer(x).detach(), *_gradients(layer, x, dout))
        return [float((g - w).abs().max()) for g, w in zip(got, want, strict=True)]

    ours = errors(_fill(CustomLayerNormManualModule(C)))
    theirs = errors(_builtin(len(shape)))
    floors = [1e-6, 1e-5, 1e-4, 1e-4]  # a builtin that happens to be exact sets no bar
    for name, our, their, floor in zip(
        ("y", "dx", "dgamma", "dbeta"), ours, theirs, floors, strict=True
    ):
        assert our <= 10 * their + floor, f"{name}: error {our:.2e}, PyTorch's {their:.2e}"


@both_shapes
def test_inputs_are_not_modified(shape: tuple[int, ...]) -> None:
    inputs = _inputs(shape)
    dout = torch.randn(shape, dtype=torch.float64)
    before = [t.detach().clone() for t in (*inputs, dout)]
    y = CustomLayerNormManualFunction.apply(*inputs)
    first = torch.autograd.grad(y, inputs, dout, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dout)
    for t, b in zip((*inputs, dout), before, strict=True):
        torch.testing.assert_close(t.detach(), b, rtol=0, atol=0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@both_modules
def test_single_samples_and_constant_samples(module: Module) -> None:
    layer = _fill(module(C))
    x = torch.full((1, C), 1e4, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, torch.tensor([BETA]))
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert layer(torch.ones(0, C)).shape == (0, C)


@both_modules
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3), ValueError, r"\(N, 3\) or \(N, 3, H, W\), got \(3,\)"),
        (torch.ones(2, 3, 4), ValueError, r"got \(2, 3, 4\)"),
        (torch.ones(2, 4), ValueError, r"\(N, 3\).*got \(2, 4\)"),
        (torch.ones(2, 4, 3, 3), ValueError, r"\(N, 3, H, W\), got \(2, 4, 3, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "floating-point input, got torch.int64"),
    ],
)
def test_wrong_inputs_are_named(
    module: Module, x: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{module.__name__}.*{message}"):
        module(C)(x)
    with pytest.raises(error, match=message):
        CustomLayerNormManualFunction.apply(x, torch.ones(3), torch.zeros(3))


@pytest.mark.parametrize("test_number", range(3))
def test_the_way_the_courses_templates_use_it(test_number: int) -> None:
    for module in (CustomLayerNormAutograd, CustomLayerNormManualModule):
        y = module(16)(2 * torch.randn(64, 16, requires_grad=True) + 10)
        torch.testing.assert_close(y.mean(1), torch.zeros(64), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.var(1, correction=0), torch.ones(64), rtol=0, atol=1e-3)
    x = 2 * torch.randn(8, 5, dtype=torch.double, requires_grad=True) + 10
    gamma = (torch.randn(5).double() * 10).requires_grad_()
    beta = (torch.randn(5).double() * 10).requires_grad_()
    assert torch.autograd.gradcheck(CustomLayerNormManualFunction.apply, (x, gamma, beta))
