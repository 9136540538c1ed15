from __future__ import annotations

import numpy as np
import pytest

from handgrad.data.preprocess import PREPROCESSING, fit_preprocessing


@pytest.fixture(params=[(7, 3, 5, 4), (1, 1, 8, 8), (5000, 2, 3, 3)], ids=str)
def images(request: pytest.FixtureRequest, rng: np.random.Generator) -> np.ndarray:
    pixels = rng.integers(0, 256, request.param, dtype=np.uint8)
    return pixels // (1 + np.arange(request.param[1], dtype=np.uint8)[:, None, None])


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_standardize(images: np.ndarray, dtype: type, atol: float) -> None:
    found = fit_preprocessing("standardize", images, dtype)(images)
    assert found.dtype == dtype
    plain = images.astype(np.float64)
    mean = plain.mean(axis=(0, 2, 3), keepdims=True)
    std = plain.std(axis=(0, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, (plain - mean) / std, atol=atol)
    np.testing.assert_allclose(found.mean(axis=(0, 2, 3), dtype=np.float64), 0, atol=atol)
    np.testing.assert_allclose(found.std(axis=(0, 2, 3), dtype=np.float64), 1, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-4), (np.float64, 1e-11)])
def test_mean_image(images: np.ndarray, dtype: type, atol: float) -> None:
    found = fit_preprocessing("mean-image", images, dtype)(images)
    assert found.dtype == dtype
    plain = images.astype(np.float64)
    np.testing.assert_allclose(found, plain - plain.mean(axis=0), atol=atol)


def test_statistics_are_of_the_images_fitted_on(rng: np.random.Generator) -> None:
    train = rng.integers(0, 100, (50, 1, 4, 4), dtype=np.uint8)
    test = np.full((2, 1, 4, 4), 200, np.uint8)
    found = fit_preprocessing("standardize", train, np.float64)(test)
    np.testing.assert_allclose(found, (200 - train.mean()) / train.std(), rtol=1e-12)


@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_constant_channel_becomes_zero(rng: np.random.Generator, value: int) -> None:
    images = rng.integers(0, 256, (11, 2, 3, 3), dtype=np.uint8)
    images[:, 1] = value
    found = fit_preprocessing("standardize", images, np.float64)(images)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-12)
    assert found[:, 0].std() == pytest.approx(1)


@pytest.mark.parametrize("kind", PREPROCESSING)
def test_pixels_are_not_modified_nor_shared(kind: str, images: np.ndarray) -> None:
    before = images.copy()
    found = fit_preprocessing(kind, images)(images)
    found += 1
    np.testing.assert_array_equal(images, before)


def test_real_data(real_data) -> None:  # type: ignore[no-untyped-def]
    from handgrad.data.sources import cifar10

    images = cifar10.load(real_data, download=False)[0]
    fitted = fit_preprocessing("standardize", images)
    # The statistics everybody uses for CIFAR-10; these images went through JPEG once.
    np.testing.assert_allclose(fitted.mean.ravel() / 255, [0.4914, 0.4822, 0.4465], atol=1e-3)
    np.testing.assert_allclose(1 / fitted.scale.ravel() / 255, [0.2470, 0.2435, 0.2616], atol=5e-3)
    part = fitted(images[:5000])
    assert part.dtype == np.float32
    np.testing.assert_allclose(part.mean(axis=(0, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(part.std(axis=(0, 2, 3)), 1, atol=0.05)
