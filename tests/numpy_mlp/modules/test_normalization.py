"""Normalisation of images: over a batch, over each sample, over groups of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from module_proofs import (
    LAYOUTS,
    apart,
    assert_close,
    assert_gradients_are_differences,
    run,
    run_in_torch,
    with_random_parameters,
)

from numpy_mlp.modules import (
    BatchNorm2dModule,
    BatchNormModule,
    GroupNormModule,
    LayerNormModule,
    batchnorm,
)
from numpy_mlp.optim import SGD
from numpy_mlp.workspace import Workspace


@pytest.mark.parametrize("layout", LAYOUTS)
def test_running_statistics_and_evaluation_are_pytorchs(
    layout: str, rng: np.random.Generator
) -> None:
    module = with_random_parameters(BatchNorm2dModule(3, eps=1e-3, momentum=0.3))
    twin = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        for name, param in twin.named_parameters():
            param.copy_(torch.from_numpy(module.params[name]))
    for n in (5, 1, 4):
        x = LAYOUTS[layout](rng.standard_normal((n, 3, 4, 3)) * 3 + 1)
        want = twin(torch.tensor(x.copy())).detach().numpy()
        np.testing.assert_allclose(module.forward(x), want, rtol=1e-11, atol=1e-13)
    for name, buffer in twin.named_buffers():
        np.testing.assert_allclose(module.buffers[name], buffer.numpy(), rtol=1e-12)
    module.eval()
    want = twin.eval()(torch.tensor(x.copy())).detach().numpy()
    np.testing.assert_allclose(module.forward(x), want, rtol=1e-12)
    np.testing.assert_array_equal(module.buffers["num_batches_tracked"], 3)  # evaluation is none


def test_of_images_of_one_pixel_it_is_that_of_rows(rng: np.random.Generator) -> None:
    images, rows = (
        with_random_parameters(kind(3)) for kind in (BatchNorm2dModule, BatchNormModule)
    )
    x, dout = rng.standard_normal((2, 6, 3))
    got = run(images, x[:, :, None, None], dout[:, :, None, None])
    got |= {name: got[name][:, :, 0, 0] for name in ("y", "dx")}
    assert_close(got, run(rows, x, dout), 1e-12)


def test_a_batch_in_parts_has_the_statistics_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    module, x = BatchNorm2dModule(3), rng.standard_normal((7, 3, 4, 5))
    x += np.arange(7).reshape(-1, 1, 1, 1)  # images of different means
    dout = rng.standard_normal(x.shape)
    want = run(module, x, dout)
    for images in (1, 2, 3):
        monkeypatch.setattr(batchnorm, "_CHUNK_BYTES", images * x[0].nbytes)
        assert_close(run(module, x, dout), want, 1e-12)


def test_float32_far_from_zero_keeps_its_digits(rng: np.random.Generator) -> None:
    """Mean 1000, deviation 1: squares of the values would leave nothing of the variance."""
    x = (rng.standard_normal((64, 4, 16, 16)) + 1000).astype(np.float32)
    module = BatchNorm2dModule(4, dtype=np.float32)
    module.forward(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(
        module.running_var - 0.9, 0.1 * exact.var(axis=(0, 2, 3), ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(module.running_mean, 0.1 * exact.mean(axis=(0, 2, 3)), rtol=1e-6)
    for norm in (GroupNormModule(2, 4, dtype=np.float32), LayerNormModule(16, dtype=np.float32)):
        wide = type(norm).forward(norm, exact)
        assert np.abs(norm.forward(x) - wide).max() < 1e-3


def test_a_constant_channel_stays_finite(rng: np.random.Generator) -> None:
    x = np.full((3, 4, 2, 2), 7.0)
    with np.errstate(all="raise"):
        for module in (BatchNorm2dModule(4), GroupNormModule(2, 4), LayerNormModule(2)):
            got = run(module, x, rng.standard_normal(x.shape))
            np.testing.assert_array_equal(got["y"], np.zeros_like(x))
            assert all(np.isfinite(array).all() for array in got.values())


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (1, 3, 1, 1)])
def test_one_value_has_no_variance(shape: tuple[int, ...]) -> None:
    module = BatchNorm2dModule(3)
    with pytest.raises(ValueError, match=f"{shape[0]} image"):
        module.forward(np.ones(shape))
    np.testing.assert_array_equal(module.running_mean, np.zeros(3))
    module.eval()
    assert module.forward(np.ones(shape)).shape == shape


def test_in_a_step_its_gradient_may_lie_over_the_one_it_is_given(rng: np.random.Generator) -> None:
    outside, inside = (with_random_parameters(BatchNorm2dModule(3)) for _ in range(2))
    workspace, x = Workspace(), rng.standard_normal((4, 3, 5, 5))
    values = rng.standard_normal((4, 5, 5, 3))
    want = run(outside, x, values.transpose(0, 3, 1, 2))
    with workspace.lent_to([inside]):
        inside.forward(x)
        dout = workspace.array("dout", values.shape, np.float64).transpose(0, 3, 1, 2)
        dout[...] = values.transpose(0, 3, 1, 2)
        dx = inside.backward(dout)
        assert np.shares_memory(dx, dout)
        np.testing.assert_array_equal(dx, want["dx"])


@pytest.mark.parametrize(
    ("groups", "shape"),
    [
        (groups, shape)
        for groups in (1, 2, 3, 6)
        for shape in ((2, 6), (2, 6, 3), (3, 6, 2, 5))
        if (groups, shape) != (6, (2, 6))  # a group of one value is constant
    ],
)
def test_groups_of_any_number(
    groups: int, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    module = with_random_parameters(GroupNormModule(groups, 6, eps=0.1))
    twin = torch.nn.GroupNorm(groups, 6, eps=0.1, dtype=torch.float64)
    x, dout = apart(rng, *shape), rng.standard_normal(shape)
    assert_close(run(module, x, dout), run_in_torch(twin, module, x, dout), 1e-12)
    assert_gradients_are_differences(module, x, rng)


@pytest.mark.parametrize("normalized", [5, (5,), (2, 5), (6, 2, 5)])
def test_last_axes_of_any_number(normalized: Any, rng: np.random.Generator) -> None:
    module = with_random_parameters(LayerNormModule(normalized, eps=0.1))
    twin = torch.nn.LayerNorm(normalized, eps=0.1, dtype=torch.float64)
    x, dout = apart(rng, 3, 6, 2, 5), rng.standard_normal((3, 6, 2, 5))
    assert_close(run(module, x, dout), run_in_torch(twin, module, x, dout), 1e-12)
    assert_gradients_are_differences(module, x[:2], rng)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: BatchNorm2dModule(0), "num_features must be a positive integer, got 0"),
        (lambda: BatchNorm2dModule(3, eps=0), "eps must be positive, got 0"),
        (lambda: BatchNorm2dModule(3, dtype=int), "dtype must be float32 or float64"),
        (lambda: GroupNormModule(4, 6), "num_groups must divide num_channels=6, got 4"),
        (lambda: GroupNormModule(0, 6), "num_groups must divide num_channels=6, got 0"),
        (lambda: GroupNormModule(2, 0), "num_channels=0"),
        (lambda: GroupNormModule(2, 4, eps=-1.0), "eps must be positive, got -1.0"),
        (lambda: GroupNormModule(2, 4, dtype=np.float16), "dtype must be .* got float16"),
        (lambda: LayerNormModule(0), "normalized_shape must be positive, got 0"),
        (lambda: LayerNormModule(()), r"normalized_shape must be positive, got \(\)"),
        (lambda: LayerNormModule((3, -1)), r"normalized_shape must be positive, got \(3, -1\)"),
        (lambda: LayerNormModule(3, eps=float("nan")), "eps must be positive, got nan"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_images_of_another_shape_are_named() -> None:
    for module, expected in (
        (BatchNorm2dModule(3), r"\(N, 3, H, W\)"),
        (GroupNormModule(1, 3), r"\(N, 3, ...\)"),
        (LayerNormModule((3, 5)), r"\(..., 3, 5\)"),
    ):
        with pytest.raises(AssertionError, match=f"expected {expected}"):
            module.forward(np.ones((2, 4, 5, 5)))


def test_without_parameters_there_is_nothing_to_train() -> None:
    for module in (GroupNormModule(1, 3, affine=False), LayerNormModule(2, 1e-5, False)):
        assert module.params == {} == module.grads
        SGD(list(module.params.values()), 0.1).step([])
