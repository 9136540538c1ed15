"""GELU and SiLU: their accuracy, and their ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from module_proofs import assert_close, run, run_in_torch

from numpy_mlp.modules import GELUModule, Module, SiLUModule

KINDS: dict[str, tuple[Any, Any]] = {
    "gelu": (GELUModule, torch.nn.GELU),
    "gelu tanh": (lambda: GELUModule("tanh"), lambda: torch.nn.GELU("tanh")),
    "silu": (SiLUModule, torch.nn.SiLU),
}
EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 3), (2, 1, 3, 4), (2, 2, 2, 2, 2)])
def test_any_shape(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    module, twin = (make() for make in KINDS[kind])
    x, dout = np.asarray(rng.standard_normal(shape)), np.asarray(rng.standard_normal(shape))
    assert_close(run(module, x, dout), run_in_torch(twin, module, x, dout), 1e-12)


@EACH
def test_everywhere(kind: str) -> None:
    module, twin = (make() for make in KINDS[kind])
    x = np.linspace(-40, 40, 80_001)  # more than one piece
    want = run_in_torch(twin, module, x, np.ones_like(x))
    got = run(module, x, np.ones_like(x))
    near = run(module, x.astype(np.float32), np.ones_like(x, np.float32))
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(near[name], array, rtol=3e-6, atol=2e-6)


def test_small_values_of_gelu_keep_their_digits() -> None:
    """1 + erf, as most write it, leaves nothing of Φ(-9) = 1e-19."""
    x = np.linspace(-9, -2, 1001)
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x])
    np.testing.assert_allclose(GELUModule().forward(x), exact, rtol=1e-12)
    x32 = x.astype(np.float32)
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x32.tolist()])
    np.testing.assert_allclose(GELUModule().forward(x32), exact, rtol=1e-5)


def test_the_fast_gelu_is_as_near_as_is_said() -> None:
    x = np.linspace(-6, 6, 10_001)
    error = np.abs(GELUModule("tanh").forward(x) - GELUModule().forward(x)).max()
    assert 4e-4 < error < 5e-4


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_zero_nothing_is_raised(kind: str, dtype: Any) -> None:
    far = float(np.sqrt(np.finfo(dtype).max))
    far *= 0.01 if kind == "gelu tanh" else 100  # of which u' is a square
    x = np.array([-far, -1e5, -100, -15, -1e-30, 0, 1e-30, 15, 100, 1e5, far], dtype)
    module: Module = KINDS[kind][0]()
    with np.errstate(all="raise"):
        got = run(module, x, np.ones_like(x))
    np.testing.assert_allclose(
        got["y"][[0, 1, 2, -3, -2, -1]], [0, 0, 0, 100, 1e5, far], atol=1e-30
    )
    slope = got["dx"][[0, 1, 2, 4, 5, 6, -3, -2, -1]]
    np.testing.assert_allclose(slope, [0] * 3 + [0.5] * 3 + [1] * 3, atol=1e-30)
    assert not np.isnan(got["y"]).any()
    assert np.isnan(module.forward(np.array([np.nan, 1.0], dtype))[0])


def test_another_approximation_is_refused() -> None:
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', got 'erf'"):
        GELUModule("erf")
