"""Winograd's minimal filtering is the convolution of im2col, with fewer multiplications."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from module_proofs import apart, assert_close, run, with_random_parameters

from numpy_mlp.modules import (
    BatchNorm2dModule,
    Conv2dModule,
    FlattenModule,
    GELUModule,
    GlobalAvgPoolModule,
    LinearModule,
    MaxPool2dModule,
    SequentialModule,
    SoftMaxCrossEntropyModule,
    winograd,
)
from numpy_mlp.modules.winograd import Winograd
from numpy_mlp.optim import SGD
from numpy_mlp.workspace import Workspace


def _pair(*args: Any, **options: Any) -> list[Conv2dModule]:
    both = []
    for algorithm in ("im2col", "winograd"):
        made = Conv2dModule(*args, **options, algorithm=algorithm, rng=np.random.default_rng(7))
        both.append(made)
        with_random_parameters(made)
    return both


@pytest.mark.parametrize("padding", [0, 1, (2, 0), 3])
@pytest.mark.parametrize("size", [(3, 3), (4, 9), (5, 6), (7, 8), (10, 3), (6, 18)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5)])
def test_float64_is_im2col(
    padding: Any, size: tuple[int, int], channels: tuple[int, int], rng: np.random.Generator
) -> None:
    """Of sizes with every remainder by 4, the side of a tile."""
    plain, fast = _pair(*channels, 3, padding=padding)
    x = apart(rng, 3, channels[0], *size)
    dout = rng.standard_normal(plain.forward(x).shape)
    assert_close(run(fast, x, dout), run(plain, x, dout), 1e-10)


def test_float32_is_im2col_to_a_hundred_thousandth(rng: np.random.Generator) -> None:
    plain, fast = _pair(64, 64, 3, padding=1, dtype=np.float32)
    x = rng.standard_normal((4, 64, 15, 15)).astype(np.float32)
    dout = rng.standard_normal(x.shape).astype(np.float32)
    assert_close(run(fast, x, dout), run(plain, x, dout), 2e-5)


def test_images_are_taken_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    _, module = _pair(2, 3, 3, padding=1)
    x = apart(rng, 7, 2, 5, 9)  # 2·3 tiles an image
    dout = rng.standard_normal((7, 3, 5, 9))
    want = run(module, x, dout)
    for images in (1, 2, 3, 6):
        monkeypatch.setattr(winograd, "_TILES_AT_ONCE", 6 * images)
        assert Winograd(module.window).images_at_once(5, 9, 16) == images
        assert_close(run(module, x, dout), want, 1e-12)


def test_one_dimension_is_a_correlation(rng: np.random.Generator) -> None:
    bt, g, at = (np.array(m) for m in (winograd._BT, winograd._G, winograd._AT))
    d, filter_ = rng.standard_normal(6), rng.standard_normal(3)
    want = np.correlate(d, filter_, "valid")
    np.testing.assert_allclose(at @ ((g @ filter_) * (bt @ d)), want, rtol=1e-12)


def _network(algorithm: str, dtype: Any) -> SequentialModule:
    rng = np.random.default_rng(2)
    options: dict[str, Any] = {"rng": rng, "dtype": dtype}

    def convolution(n_in: int, n_out: int) -> Conv2dModule:
        return Conv2dModule(n_in, n_out, 3, padding=1, bias=False, algorithm=algorithm, **options)

    return SequentialModule(
        convolution(3, 16),
        MaxPool2dModule(2),
        BatchNorm2dModule(16, dtype=dtype),
        GELUModule(),
        convolution(16, 24),
        BatchNorm2dModule(24, dtype=dtype),
        GELUModule(),
        convolution(24, 24),
        GlobalAvgPoolModule(),
        FlattenModule(),
        LinearModule(24, 4, **options),
    )


def _train(network: SequentialModule, dtype: Any, steps: int) -> tuple[list[float], dict[str, Any]]:
    rng, loss, workspace = np.random.default_rng(4), SoftMaxCrossEntropyModule(), Workspace()
    images = rng.standard_normal((4, 3, 10, 10))
    optimizer = SGD(list(network.params.values()), 0.02, momentum=0.9)
    losses = []
    for _ in range(steps):
        y = rng.integers(0, 4, 16)
        x = (images[y] + rng.standard_normal((16, 3, 10, 10))).astype(dtype)
        with workspace.lent_to(network.modules()):
            value, dlogits = loss.loss_and_gradient(network.forward(x), y)
            network.backward(dlogits.astype(dtype))
            optimizer.step(list(network.grads.values()))
        losses.append(value)
    return losses, copy.deepcopy(network.params)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_a_hundred_steps_of_training(dtype: Any, rtol: float) -> None:
    (want, plain), (got, fast) = (
        _train(_network(algorithm, dtype), dtype, 100) for algorithm in ("im2col", "winograd")
    )
    assert np.mean(want[-10:]) < 0.5 * want[0]  # it does learn
    assert_close(fast, plain, rtol)
    np.testing.assert_allclose(got, want, atol=rtol * want[0], rtol=0)
