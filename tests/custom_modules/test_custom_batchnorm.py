"""Batch normalisation: finite differences to second order, PyTorch, and further promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from custom_modules import (
    CustomBatchNormAutograd,
    CustomBatchNormManualFunction,
    CustomBatchNormManualModule,
)

SHAPES = [(6, 3), (4, 3, 2, 5)]
C = 3
GAMMA, BETA = (0.5, -2.0, 3.0), (1.0, -1.0, 0.3)
both_shapes = pytest.mark.parametrize("shape", SHAPES, ids=["NC", "NCHW"])
both_modules = pytest.mark.parametrize(
    "module", [CustomBatchNormAutograd, CustomBatchNormManualModule]
)
Module = type[CustomBatchNormAutograd] | type[CustomBatchNormManualModule]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    return tuple(t.to(dtype).requires_grad_() for t in (x, torch.tensor(GAMMA), torch.tensor(BETA)))


def _builtin(ndim: int, track: bool = False, **options: float | None) -> nn.Module:
    bn: nn.Module = (nn.BatchNorm1d if ndim == 2 else nn.BatchNorm2d)(
        C, track_running_stats=track, **options
    )
    return _fill(bn)


def _fill(layer: nn.Module) -> nn.Module:
    # gamma 1 and beta 0, the initial values, would hide a backward pass that forgets them.
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(GAMMA))
        layer.bias.copy_(torch.tensor(BETA))
    return layer


def _gradients(layer: nn.Module, x: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dout)


def _saved_bytes(call: Callable[[], Tensor]) -> int:
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(sizes)


@both_shapes
def test_first_and_second_derivatives_agree_with_finite_differences(
    shape: tuple[int, ...],
) -> None:
    assert torch.autograd.gradcheck(CustomBatchNormManualFunction.apply, _inputs(shape))
    assert torch.autograd.gradgradcheck(CustomBatchNormManualFunction.apply, _inputs(shape))


@both_shapes
def test_derivatives_with_running_statistics(shape: tuple[int, ...]) -> None:
    running = (torch.randn(C).double(), torch.rand(C).double() + 0.5)

    def evaluate(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y: Tensor = CustomBatchNormManualFunction.apply(x, gamma, beta, 1e-5, *running, False)
        return y

    assert torch.autograd.gradcheck(evaluate, _inputs(shape))
    assert torch.autograd.gradgradcheck(evaluate, _inputs(shape))


@both_shapes
def test_backward_is_the_same_while_a_graph_of_it_is_made(shape: tuple[int, ...]) -> None:
    inputs, dout = _inputs(shape), torch.randn(shape, dtype=torch.float64)
    y = CustomBatchNormManualFunction.apply(*inputs)
    plain = torch.autograd.grad(y, inputs, dout, retain_graph=True)
    graphed = torch.autograd.grad(y, inputs, dout, create_graph=True)
    torch.testing.assert_close(plain, tuple(g.detach() for g in graphed), rtol=1e-12, atol=1e-12)


@both_modules
@both_shapes
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_forward_and_backward_agree_with_pytorch(
    module: Module, shape: tuple[int, ...], eps: float
) -> None:
    layer = _fill(module(C, eps)).double()
    twin = _builtin(len(shape), eps=eps).double()
    x, dout = _inputs(shape)[0], torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        _gradients(layer, x, dout), _gradients(twin, x, dout), rtol=0, atol=1e-10
    )


@both_modules
@both_shapes
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics_and_evaluation_agree_with_pytorch(
    module: Module, shape: tuple[int, ...], momentum: float | None
) -> None:
    layer = _fill(module(C, momentum=momentum, track_running_stats=True)).double()
    twin = _builtin(len(shape), track=True, momentum=momentum).double()
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64) * 3 + 5
        torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-10)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(dict(layer.named_buffers())[name], buffer, rtol=1e-12, atol=0)
    layer.eval()
    twin.eval()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x, dout = _inputs(shape)[0], torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        _gradients(layer, x, dout), _gradients(twin, x, dout), rtol=0, atol=1e-10
    )
    assert before["num_batches_tracked"] == 3
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


@both_modules
def test_evaluation_without_running_statistics_uses_the_batch(module: Module) -> None:
    layer, x = module(C), torch.randn(6, C)
    expected = layer(x)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=0, atol=0)
    assert not list(layer.buffers())


@both_modules
def test_weights_travel_to_and_from_pytorch(module: Module) -> None:
    twin = _builtin(4, track=True)
    twin(torch.randn(4, C, 2, 5))
    state = twin.state_dict()
    state["gamma"], state["beta"] = state.pop("weight"), state.pop("bias")
    layer = module(C, track_running_stats=True)
    layer.load_state_dict(state)
    x = torch.randn(4, C, 2, 5)
    torch.testing.assert_close(layer.eval()(x), twin.eval()(x))
    assert layer.weight is layer.gamma
    assert layer.bias is layer.beta
    assert [name for name, _ in layer.named_parameters()] == ["gamma", "beta"]


def test_only_the_needed_gradients_are_returned_and_kept() -> None:
    kept = {}
    for needs in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        x, gamma, beta = (
            t.detach().requires_grad_(bool(need))
            for t, need in zip(_inputs(SHAPES[1]), needs, strict=True)
        )
        reference = _inputs(SHAPES[1])
        for r, t in zip(reference, (x, gamma, beta), strict=True):
            r.data.copy_(t.detach())
        y = CustomBatchNormManualFunction.apply(x, gamma, beta)
        dout = torch.randn_like(y)
        with torch.no_grad():
            raw = CustomBatchNormManualFunction.backward(y.grad_fn, dout)
        expected = torch.autograd.grad(
            CustomBatchNormManualFunction.apply(*reference), reference, dout
        )
        for need, got, want in zip(needs, raw, expected, strict=True):
            assert (got is not None) == bool(need)
            if got is not None:
                torch.testing.assert_close(got.detach(), want, rtol=1e-10, atol=1e-10)
        kept[needs] = [t is not None for t in y.grad_fn.saved_tensors]
    assert kept[1, 1, 1] == kept[1, 0, 0] == [True, True, True, True]
    assert kept[0, 1, 0] == [True, False, True, True]
    assert not any(kept[0, 0, 1])


def test_evaluation_keeps_no_input_for_the_gradient_of_the_input() -> None:
    layer = CustomBatchNormManualModule(C, track_running_stats=True).eval().requires_grad_(False)
    x = torch.randn(50, C, requires_grad=True)
    assert _saved_bytes(lambda: layer(x)) <= 3 * C * 4


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("shape", [(256, 512), (8, 64, 16, 16)])
def test_bytes_kept_for_backward(shape: tuple[int, ...], track: bool) -> None:
    x = torch.randn(shape, requires_grad=True)
    builtin = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    ours = CustomBatchNormManualModule(shape[1], track_running_stats=track)
    theirs = builtin(shape[1], track_running_stats=track)
    assert 0 < _saved_bytes(lambda: ours(x)) <= 1.01 * _saved_bytes(lambda: theirs(x))


@both_modules
@both_shapes
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_agrees_with_pytorch(
    module: Module, shape: tuple[int, ...], autocast: bool
) -> None:
    layer, twin = _fill(module(C, track_running_stats=True)), _builtin(len(shape), track=True)
    # A mean of 30: statistics in bfloat16 would be off by far more than the tolerance.
    x = (torch.randn((64, *shape[1:])) + 30).bfloat16().requires_grad_()
    dout = torch.randn(x.shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, y_twin = layer(x), twin(x)
    assert y.dtype == y_twin.dtype == torch.bfloat16
    torch.testing.assert_close(y, y_twin, rtol=2**-7, atol=2**-7)
    grads = torch.autograd.grad(y, (x, layer.gamma, layer.beta), dout)
    expected = torch.autograd.grad(y_twin, (x, twin.weight, twin.bias), dout)
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(grads, expected, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(layer.running_var, twin.running_var, rtol=1e-4, atol=0)


@both_modules
def test_float32_input_stays_float32_under_autocast(module: Module) -> None:
    x = torch.randn(6, C)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(C)(x).dtype == _builtin(2)(x).dtype == torch.float32
        linear = nn.Linear(C, C)(x)  # bfloat16 arrives from the layer before
        assert module(C)(linear).dtype == _builtin(2)(linear).dtype == torch.bfloat16


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
    layer = module(C, track_running_stats=True).eval()
    for t in (layer(x), _gradients(layer, x, dout)[0]):
        assert t.is_contiguous(memory_format=torch.channels_last)


@both_shapes
def test_strided_and_expanded_inputs(shape: tuple[int, ...]) -> None:
    layer, twin = _fill(CustomBatchNormManualModule(C)), _builtin(len(shape))
    x = torch.randn((2 * shape[0], *shape[1:]))[::2].transpose(0, -1).contiguous().transpose(0, -1)
    x.requires_grad_()
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

    ours = errors(_fill(CustomBatchNormManualModule(C)))
    theirs = errors(_builtin(len(shape)))
    floors = [1e-6, 1e-6, 1e-4, 1e-4]  # a builtin that happens to be exact sets no bar
    for name, our, their, floor in zip(
        ("y", "dx", "dgamma", "dbeta"), ours, theirs, floors, strict=True
    ):
        assert our <= 10 * their + floor, f"{name}: error {our:.2e}, PyTorch's {their:.2e}"


def test_the_gradient_of_gamma_does_not_cancel_when_the_mean_is_large() -> None:
    # Multiples of 1/64 around 1024, in pairs: their mean, and x - mean, are exact in float32.
    half = torch.randint(1, 200, (512, C)) / 64
    x = torch.cat([1024 + half, 1024 - half])
    dout = torch.randn(x.shape) + 1
    layer = CustomBatchNormManualModule(C)
    (dgamma,) = torch.autograd.grad(layer(x), layer.gamma, dout)
    (expected,) = torch.autograd.grad(layer.double()(x.double()), layer.gamma, dout.double())
    torch.testing.assert_close(dgamma.double(), expected, rtol=1e-5, atol=1e-4)


@both_modules
def test_a_module_all_in_bfloat16(module: Module) -> None:
    layer = _fill(module(C, track_running_stats=True)).bfloat16()
    twin = _builtin(2, track=True).bfloat16()
    x = torch.randn(64, C).bfloat16().requires_grad_()
    dout = torch.randn(64, C).bfloat16()
    for _ in ("training", "evaluation"):
        torch.testing.assert_close(layer(x), twin(x), rtol=2**-6, atol=2**-5)
        grads = _gradients(layer, x, dout)
        assert {g.dtype for g in grads} == {torch.bfloat16}
        torch.testing.assert_close(grads, _gradients(twin, x, dout), rtol=2**-5, atol=2**-4)
        layer.eval()
        twin.eval()


@both_shapes
def test_inputs_are_not_modified(shape: tuple[int, ...]) -> None:
    inputs = _inputs(shape)
    dout = torch.randn(shape, dtype=torch.float64)
    before = [t.detach().clone() for t in (*inputs, dout)]
    y = CustomBatchNormManualFunction.apply(*inputs)
    first = torch.autograd.grad(y, inputs, dout, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dout)
    for t, b in zip((*inputs, dout), before, strict=True):
        torch.testing.assert_close(t.detach(), b, rtol=0, atol=0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@both_modules
def test_a_constant_channel_stays_finite(module: Module) -> None:
    x = torch.tensor([[1e4, 1.0], [1e4, 2.0]], requires_grad=True)
    layer = module(2)
    y = layer(x)
    y.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert x.grad is not None
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@both_modules
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3), ValueError, r"\(N, 3\) or \(N, 3, H, W\), got \(3,\)"),
        (torch.ones(2, 3, 4), ValueError, r"got \(2, 3, 4\)"),
        (torch.ones(2, 4), ValueError, r"\(N, 3\).*got \(2, 4\)"),
        (torch.ones(2, 4, 3, 3), ValueError, r"\(N, 3, H, W\), got \(2, 4, 3, 3\)"),
        (torch.ones(1, 3), ValueError, r"more than one value per channel.*got.*\(1, 3\)"),
        (torch.ones(0, 3), ValueError, r"more than one value per channel.*got.*\(0, 3\)"),
        (torch.ones(1, 3, 1, 1), ValueError, r"more than one value.*\(1, 3, 1, 1\)"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "floating-point input, got torch.int64"),
    ],
)
def test_wrong_inputs_are_named(
    module: Module, x: Tensor, error: type[Exception], message: str
) -> None:
    layer = module(C, track_running_stats=True)
    with pytest.raises(error, match=f"{module.__name__}.*{message}"):
        layer(x)
    assert layer.num_batches_tracked == 0  # a refused batch is not counted
    with pytest.raises(error, match=message):
        CustomBatchNormManualFunction.apply(x, torch.ones(3), torch.zeros(3))


@both_modules
def test_one_value_per_channel_is_enough_in_evaluation(module: Module) -> None:
    layer = module(C, track_running_stats=True).eval()
    torch.testing.assert_close(layer(torch.ones(1, C)), torch.ones(1, C), rtol=1e-4, atol=0)


@pytest.mark.parametrize("n_neurons", [0, -2, 2.5])
@both_modules
def test_a_bad_size_is_named(module: Module, n_neurons: int) -> None:
    with pytest.raises(ValueError, match=f"n_neurons.*{n_neurons}"):
        module(n_neurons)


@pytest.mark.parametrize("test_number", range(3))
def test_the_way_the_courses_templates_use_it(test_number: int) -> None:
    for module in (CustomBatchNormAutograd, CustomBatchNormManualModule):
        layer = module(16)
        y = layer(2 * torch.randn(64, 16, requires_grad=True) + 10)
        torch.testing.assert_close(y.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.var(0, correction=0), torch.ones(16), rtol=0, atol=1e-3)
        layer.gamma.data.fill_(2.0)
        torch.testing.assert_close(
            layer(y).std(0, correction=0), torch.full((16,), 2.0), rtol=1e-3, atol=0
        )
    x = 2 * torch.randn(8, 5, dtype=torch.double, requires_grad=True) + 10
    gamma = (torch.randn(5).double() * 10).requires_grad_()
    beta = (torch.randn(5).double() * 10).requires_grad_()
    assert torch.autograd.gradcheck(CustomBatchNormManualFunction.apply, (x, gamma, beta))


@pytest.mark.parametrize("name", ["CustomBatchNormManualFunction", "CustomLayerNormManualFunction"])
@pytest.mark.parametrize(("gamma", "beta"), [((1, 3), (1, 3)), ((3,), (1, 3)), ((1, 3), (3,))])
def test_parameters_that_are_no_vectors(
    name: str, gamma: tuple[int, ...], beta: tuple[int, ...]
) -> None:
    import custom_modules

    function = getattr(custom_modules, name)
    with pytest.raises(ValueError, match=rf"{name}: expected gamma and beta of one shape \(C,\)"):
        function.apply(torch.ones(2, 1), torch.ones(gamma), torch.ones(beta), 1e-5)
