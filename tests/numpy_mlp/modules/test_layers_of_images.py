"""Every module of images: what all of them promise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from module_proofs import (
    LAYOUTS,
    Array,
    apart,
    assert_close,
    assert_equal,
    assert_gradients_are_differences,
    run,
    run_in_torch,
    with_random_parameters,
)

from numpy_mlp import parallel
from numpy_mlp.modules import (
    AvgPool2dModule,
    BackwardBeforeForwardError,
    BatchNorm2dModule,
    Conv2dModule,
    FlattenModule,
    GELUModule,
    GlobalAvgPoolModule,
    GroupNormModule,
    LayerNormModule,
    MaxPool2dModule,
    Module,
    ReLUModule,
    ResidualModule,
    SequentialModule,
    SiLUModule,
    batchnorm,
    convolution,
    pooling,
    winograd,
)
from numpy_mlp.workspace import Workspace

nn = torch.nn


class _Residual(nn.Module):
    def __init__(self, residual: nn.Module) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.residual(x)


@dataclass
class Case:
    """A module, its twin in PyTorch, and images (C, H, W) that fit."""

    make: Callable[[Any], Module]
    twin: Callable[[], nn.Module]
    shape: tuple[int, int, int] = (4, 6, 5)


def _conv(*args: Any, dtype: Any, **options: Any) -> Conv2dModule:
    return Conv2dModule(*args, dtype=dtype, rng=np.random.default_rng(3), **options)


def _block(dtype: Any) -> Module:
    """A residual whose first module may write over what it is given, and one of each kind."""
    return SequentialModule(
        _conv(3, 4, 3, padding=1, dtype=dtype, algorithm="winograd"),
        ResidualModule(
            SequentialModule(
                ReLUModule(),
                _conv(4, 4, 3, padding=1, groups=4, bias=False, dtype=dtype),
                GELUModule(),
                BatchNorm2dModule(4, dtype=dtype),
            )
        ),
        SiLUModule(),
        MaxPool2dModule(2),
        ResidualModule(GELUModule("tanh")),
        GroupNormModule(2, 4, dtype=dtype),
        _conv(4, 6, 3, padding=1, bias=False, dtype=dtype, algorithm="winograd"),
        BatchNorm2dModule(6, dtype=dtype),
        ReLUModule(),
        GlobalAvgPoolModule(),
        FlattenModule(),
    )


def _torch_block() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        _Residual(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
                nn.GELU(),
                nn.BatchNorm2d(4),
            )
        ),
        nn.SiLU(),
        nn.MaxPool2d(2),
        _Residual(nn.GELU("tanh")),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


CASES = {
    "im2col": Case(
        lambda t: _conv(4, 3, 3, padding=1, dtype=t, algorithm="im2col"),
        lambda: nn.Conv2d(4, 3, 3, padding=1),
    ),
    "winograd": Case(
        lambda t: _conv(4, 3, 3, padding=1, dtype=t, algorithm="winograd"),
        lambda: nn.Conv2d(4, 3, 3, padding=1),
    ),
    "depthwise": Case(
        lambda t: _conv(4, 4, (2, 3), (2, 1), (0, 2), (1, 2), 4, False, dtype=t),
        lambda: nn.Conv2d(4, 4, (2, 3), (2, 1), (0, 2), (1, 2), 4, False),
    ),
    "1x1": Case(lambda t: _conv(4, 7, 1, dtype=t), lambda: nn.Conv2d(4, 7, 1)),
    "one channel": Case(
        lambda t: _conv(1, 2, 2, 2, dtype=t), lambda: nn.Conv2d(1, 2, 2, 2), (1, 6, 5)
    ),
    "max": Case(lambda t: MaxPool2dModule(3, 2, 1), lambda: nn.MaxPool2d(3, 2, 1)),
    "max apart": Case(lambda t: MaxPool2dModule(2, (3, 2)), lambda: nn.MaxPool2d(2, (3, 2))),
    "avg": Case(lambda t: AvgPool2dModule(3, 2, 1), lambda: nn.AvgPool2d(3, 2, 1)),
    "global avg": Case(lambda t: GlobalAvgPoolModule(), lambda: nn.AdaptiveAvgPool2d(1)),
    "batchnorm": Case(lambda t: BatchNorm2dModule(4, dtype=t), lambda: nn.BatchNorm2d(4)),
    "batchnorm of one channel": Case(
        lambda t: BatchNorm2dModule(1, dtype=t), lambda: nn.BatchNorm2d(1), (1, 6, 5)
    ),
    "layernorm": Case(
        lambda t: LayerNormModule((4, 6, 5), dtype=t), lambda: nn.LayerNorm((4, 6, 5))
    ),
    "layernorm of rows": Case(
        lambda t: LayerNormModule(5, elementwise_affine=False, dtype=t),
        lambda: nn.LayerNorm(5, elementwise_affine=False),
    ),
    "groupnorm": Case(lambda t: GroupNormModule(2, 4, dtype=t), lambda: nn.GroupNorm(2, 4)),
    "instance norm": Case(
        lambda t: GroupNormModule(4, 4, affine=False, dtype=t),
        lambda: nn.GroupNorm(4, 4, affine=False),
    ),
    "gelu": Case(lambda t: GELUModule(), lambda: nn.GELU()),
    "gelu tanh": Case(lambda t: GELUModule("tanh"), lambda: nn.GELU("tanh")),
    "silu": Case(lambda t: SiLUModule(), lambda: nn.SiLU()),
    "residual": Case(
        lambda t: ResidualModule(_conv(4, 4, 3, padding=1, dtype=t)),
        lambda: _Residual(nn.Conv2d(4, 4, 3, padding=1)),
    ),
    "block": Case(_block, _torch_block, (3, 6, 5)),
}
ALL = pytest.mark.parametrize("name", CASES)


def _make(name: str, dtype: Any = np.float64) -> Module:
    return with_random_parameters(CASES[name].make(dtype))


def _case(name: str, rng: np.random.Generator, n: int) -> tuple[Module, Array, Array]:
    """Return a module, images and a gradient of its output."""
    module, x = _make(name), apart(rng, n, *CASES[name].shape)
    return module, x, rng.standard_normal(copy.deepcopy(module).forward(x).shape)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    parallel.set_num_threads(1)


# Within the block are kinks and ties, wherever they come to lie: PyTorch is what it is held to.
@pytest.mark.parametrize("name", [name for name in CASES if name != "block"])
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_are_differences(name: str, n: int, rng: np.random.Generator) -> None:
    module, x, _ = _case(name, rng, n)
    assert_gradients_are_differences(module, x, rng)


@ALL
@pytest.mark.parametrize("n", [1, 5])
def test_forward_and_backward_are_pytorchs(name: str, n: int, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, n)
    twin = CASES[name].twin().double()
    assert_close(run(module, x, dout), run_in_torch(twin, module, x, dout), 1e-10)


@ALL
def test_the_layout_of_an_array_does_not_matter(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 3)
    want = run(module, x, dout)
    for layout in LAYOUTS.values():
        other = layout(x), layout(dout) if dout.ndim == 4 else dout
        before = [array.copy() for array in other]
        assert_close(run(_make(name), *other), want, 1e-12)
        for array, was in zip(other, before, strict=True):
            np.testing.assert_array_equal(array, was)


@ALL
def test_nothing_that_is_returned_is_the_callers(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 3)
    for layout in LAYOUTS.values():
        x, dout = layout(x), layout(dout) if dout.ndim == 4 else dout
        module.train()
        assert not np.shares_memory(module.forward(x), x)
        assert not np.shares_memory(module.backward(dout), dout)
        module.eval()
        assert not np.shares_memory(module.forward(x), x)


@ALL
def test_float32_stays_float32_and_is_near(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 5)
    got = run(_make(name, np.float32), x.astype(np.float32), dout.astype(np.float32))
    assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}
    assert_close(got, run(module, x, dout), 2e-5)


@ALL
def test_whole_numbers_are_taken(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 3)
    x, dout = (np.round(3 * array).astype(np.int64) for array in (x, dout))
    want = run(_make(name), x.astype(np.float64), dout.astype(np.float64))
    assert_close(run(module, x, dout), want, 1e-12)


@ALL
def test_no_images_at_all(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 3)
    if "batchnorm" in name or name == "block":
        module.eval()
        assert module.forward(x[:0]).shape == dout[:0].shape
        return
    got = run(module, x[:0], dout[:0])
    assert got["y"].shape == dout[:0].shape and got["dx"].shape == x[:0].shape
    for key, param in getattr(module, "params", {}).items():
        np.testing.assert_array_equal(got[key], np.zeros_like(param))


@ALL
def test_evaluation_keeps_nothing(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 3)
    y = module.forward(x)
    module.train(False)  # which forgets nothing yet
    z = module.forward(x)
    if "batchnorm" not in name and name != "block":
        np.testing.assert_allclose(z, y, rtol=1e-12)
    with pytest.raises(BackwardBeforeForwardError):
        module.backward(dout)
    module.train()
    module.forward(x)
    module.eval()
    with pytest.raises(BackwardBeforeForwardError):
        module.backward(dout)


@ALL
def test_a_gradient_of_another_shape_is_refused(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 3)
    for wrong in (dout[:2], dout.ravel(), dout[None]):
        module.forward(x)
        with pytest.raises(AssertionError, match="shape"):
            module.backward(wrong)


@ALL
def test_backward_parameters_gives_the_same_gradients(name: str, rng: np.random.Generator) -> None:
    module, x, dout = _case(name, rng, 5)
    want = run(module, x, dout)
    for grad in getattr(module, "grads", {}).values():
        grad[...] = np.nan
    module.forward(x)
    module.backward_parameters(dout)
    for key, grad in getattr(module, "grads", {}).items():
        np.testing.assert_array_equal(grad, want[key])


@ALL
@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
def test_steps_in_a_workspace_are_those_outside(
    name: str, layout: str, rng: np.random.Generator
) -> None:
    workspace, inside, outside = Workspace(), _make(name), _make(name)
    for n in (5, 3, 7, 1, 5):
        x = LAYOUTS[layout](apart(rng, n, *CASES[name].shape))
        dout = rng.standard_normal(copy.deepcopy(outside).forward(x).shape)
        before = x.copy(), dout.copy()
        want = run(outside, x, dout)
        with workspace.lent_to(inside.modules()):
            y = inside.forward(x)
            np.testing.assert_array_equal(y, want.pop("y"))
            dx = inside.backward(dout)
            got = {"dx": dx, **getattr(inside, "grads", {})}
            assert_equal(got, want)
        for array, was in zip((x, dout), before, strict=True):
            np.testing.assert_array_equal(array, was)
        for key, param in getattr(inside, "params", {}).items():
            param -= 0.1 * inside.grads[key]
            outside.params[key][...] = param


@ALL
def test_in_a_chain_in_a_workspace(name: str, rng: np.random.Generator) -> None:
    """Between two modules that let it write over its arguments, and twice over."""
    channels = CASES[name].shape[0]
    ends = [_conv(channels, channels, 1, dtype=np.float64, groups=channels) for _ in range(2)]
    for end in ends:
        with_random_parameters(end)
    tail = [] if name == "block" else [ReLUModule()]
    inside = SequentialModule(ends[0], ResidualModule(ends[1]), ReLUModule(), _make(name), *tail)
    outside, workspace = copy.deepcopy(inside), Workspace()
    for n in (4, 2):
        x = apart(rng, n, *CASES[name].shape)
        dout = rng.standard_normal(copy.deepcopy(outside).forward(x).shape)
        with workspace.lent_to(inside.modules()):
            got = run(inside, x, dout)
        assert_equal(got, run(outside, x, dout))


@ALL
def test_threads_share_a_batch(name: str, rng: np.random.Generator) -> None:
    """More of them than images, too, and batches that they cannot divide."""
    for n in (2, 7):
        module, x, dout = _case(name, rng, n)
        want = run(module, x, dout)
        for threads in (2, 3):
            parallel.set_num_threads(threads)
            first = run(_make(name), x, dout)
            assert_close(first, want, 1e-12)
            assert_equal(run(_make(name), x, dout), first)
            workspace, inside = Workspace(), _make(name)
            with workspace.lent_to(inside.modules()):
                assert_equal(run(inside, x, dout), first)
        parallel.set_num_threads(1)


@ALL
def test_an_image_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    module, x, dout = _case(name, rng, 5)
    want, workspace = run(module, x, dout), Workspace()
    for file in (batchnorm, convolution, pooling):
        monkeypatch.setattr(file, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(winograd, "_TILES_AT_ONCE", 1)
    monkeypatch.setattr(parallel, "PIECE", 7)
    for threads in (1, 2):
        parallel.set_num_threads(threads)
        got = run(_make(name), x, dout)
        assert_close(got, want, 1e-12)
        inside = _make(name)
        for _ in range(2):
            with workspace.lent_to(inside.modules()):
                assert_equal(run(inside, x, dout), got)


@ALL
def test_memory_that_is_undefined_is_never_read(
    name: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    module, x, dout = _case(name, rng, 3)
    want = run(module, x, dout)
    empty = np.empty

    def spoiled(shape: Any, dtype: Any = float) -> Array:
        array = empty(shape, dtype)
        array.view(np.uint8)[...] = 255  # NaN, of floating-point numbers
        return array

    assert np.isnan(spoiled((2,), np.float32)).all() and np.isnan(spoiled((2,))).all()
    monkeypatch.setattr(np, "empty", spoiled)
    with np.errstate(all="raise"):
        assert_equal(run(_make(name), x, dout), want)
        inside = _make(name)
        with Workspace().lent_to(inside.modules()):
            assert_equal(run(inside, x, dout), want)


@ALL
def test_its_text_names_it(name: str) -> None:
    module = _make(name)
    assert repr(module).startswith(type(module).__name__)
