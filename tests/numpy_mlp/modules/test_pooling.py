"""Pooling: windows that overlap, do not touch, or meet equal values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from module_proofs import (
    apart,
    assert_close,
    assert_gradients_are_differences,
    run,
    run_in_torch,
)

from numpy_mlp.modules import AvgPool2dModule, GlobalAvgPoolModule, MaxPool2dModule, pooling

KINDS = {
    "max": (MaxPool2dModule, torch.nn.MaxPool2d),
    "avg": (AvgPool2dModule, torch.nn.AvgPool2d),
}
EACH = pytest.mark.parametrize("kind", KINDS)
WINDOWS = pytest.mark.parametrize(
    ("args", "size"),
    [
        ((2,), (4, 6)),
        ((2,), (5, 7)),  # a row and a column that no window sees
        ((3, 1), (5, 4)),  # each value in nine windows
        ((3, 2, 1), (6, 5)),
        (((3, 2), (2, 3), (1, 0)), (4, 8)),
        (((1, 4), (3, 1), (0, 2)), (7, 3)),
        ((2, 5), (8, 3)),
        ((1,), (1, 1)),
    ],
)


@EACH
@WINDOWS
def test_every_window(
    kind: str, args: tuple[Any, ...], size: tuple[int, int], rng: np.random.Generator
) -> None:
    ours, theirs = KINDS[kind]
    for shape in ((3, 2, *size), (1, 1, *size)):
        x, twin = apart(rng, *shape), theirs(*args)
        dout = rng.standard_normal(twin(torch.from_numpy(x)).shape)
        assert_close(run(ours(*args), x, dout), run_in_torch(twin, ours(*args), x, dout), 1e-12)
    assert_gradients_are_differences(ours(*args), x, rng)


@WINDOWS
@pytest.mark.parametrize("values", [1, 2, 4])
def test_of_equals_the_first_has_the_gradient(
    args: tuple[Any, ...], size: tuple[int, int], values: int, rng: np.random.Generator
) -> None:
    x = rng.integers(0, values, (4, 3, *size)) - 1.0
    x[x == 0] *= rng.choice([-1, 1], x[x == 0].shape)  # the two zeros are equal, too
    module, twin = MaxPool2dModule(*args), torch.nn.MaxPool2d(*args)
    dout = rng.standard_normal(twin(torch.from_numpy(x)).shape)
    got = run(module, x, dout)
    assert_close(got, run_in_torch(twin, module, x, dout), 1e-12)
    np.testing.assert_allclose(got["dx"].sum(axis=(2, 3)), dout.sum(axis=(2, 3)), rtol=1e-12)
    one_window = np.zeros_like(dout)
    one_window[1, 2, -1, -1] = 3.0
    module.forward(x)
    dx = module.backward(one_window)
    assert dx.sum() == 3 and np.count_nonzero(dx) == 1


@EACH
def test_images_are_taken_a_few_at_a_time(
    kind: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    module, x = KINDS[kind][0](3, 2, 1), apart(rng, 7, 2, 5, 6)
    dout = rng.standard_normal(module.forward(x).shape)
    want = run(module, x, dout)
    for images in (1, 2, 3):
        monkeypatch.setattr(pooling, "_CHUNK_BYTES", images * x[0].nbytes)
        got = run(module, x, dout)
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array)


def test_a_window_of_more_places_than_a_byte_counts(rng: np.random.Generator) -> None:
    x = apart(rng, 2, 1, 18, 19)
    module, twin = MaxPool2dModule((17, 18)), torch.nn.MaxPool2d((17, 18))
    dout = rng.standard_normal((2, 1, 1, 1))
    assert_close(run(module, x, dout), run_in_torch(twin, module, x, dout), 1e-12)
    for corner in ((0, 0), (16, 17)):
        x[:] = 0
        x[..., corner[0], corner[1]] = 1
        assert (run(module, x, dout)["dx"][:, 0, corner[0], corner[1]] == dout[:, 0, 0, 0]).all()


def test_pixels_of_a_byte_are_numbers(rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (2, 3, 6, 6)).astype(np.uint8)
    y = MaxPool2dModule(3, 2, 1).forward(x)
    want = torch.nn.MaxPool2d(3, 2, 1)(torch.from_numpy(x.astype(float))).numpy()
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(
        AvgPool2dModule(2).forward(x), AvgPool2dModule(2).forward(x.astype(float))
    )


def test_a_value_that_is_no_number_is_not_lost() -> None:
    x = np.zeros((1, 1, 2, 2))
    x[0, 0, 1, 0] = np.nan
    assert np.isnan(MaxPool2dModule(2).forward(x)).all()
    assert np.isnan(AvgPool2dModule(2).forward(x)).all()


def test_where_all_is_minus_infinity_the_gradient_stays_in_the_image(
    rng: np.random.Generator,
) -> None:
    x, dout = np.full((2, 3, 5, 6), -np.inf), rng.standard_normal((2, 3, 3, 4))
    twin = torch.nn.MaxPool2d((4, 3), (2, 2), (1, 1))
    x[0, 0, 2, 3] = 1
    dout = dout[..., : twin(torch.tensor(x)).shape[2], : twin(torch.tensor(x)).shape[3]]
    module = MaxPool2dModule((4, 3), (2, 2), (1, 1))
    got, want = run(module, x, dout), run_in_torch(twin, module, x, dout)
    np.testing.assert_array_equal(got["y"], want["y"])
    np.testing.assert_allclose(got["dx"], want["dx"], 1e-12, 1e-12)


def test_the_global_mean_is_that_of_one_window(rng: np.random.Generator) -> None:
    x, dout = apart(rng, 3, 2, 4, 5), rng.standard_normal((3, 2, 1, 1))
    assert_close(run(GlobalAvgPoolModule(), x, dout), run(AvgPool2dModule((4, 5)), x, dout), 1e-12)


@EACH
@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((0,), "kernel_size must be a whole number of at least 1"),
        ((2, 0), "stride must be a whole number of at least 1"),
        ((2, 2, -1), "padding must be a whole number of at least 0"),
        ((2, (1, 2, 3)), "stride must be"),
        ((3, 1, 2), "padding must be at most half of kernel_size, got 2"),
        (((4, 2), 1, (2, 2)), r"at most half of kernel_size, got \(2, 2\)"),
    ],
)
def test_what_cannot_be_is_refused(kind: str, args: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        KINDS[kind][0](*args)


@EACH
def test_images_that_do_not_fit_are_named(kind: str) -> None:
    with pytest.raises(ValueError, match="reaches over 4×4 does not fit on an image of 3×5"):
        KINDS[kind][0](4).forward(np.ones((1, 1, 3, 5)))
    with pytest.raises(AssertionError, match=r"expected \(N, C, H, W\)"):
        KINDS[kind][0](2).forward(np.ones((3, 4)))
