"""Each augmentation against one that takes an image at a time, fed with the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from handgrad.data import augment
from handgrad.data.augment import AUGMENTATIONS, compose, crop, cutout, flip, translate

SHAPES = [(6, 3, 8, 8), (5, 1, 9, 12), (1, 2, 32, 32), (20, 1, 4, 4)]


def _images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).integers(1, 256, shape, dtype=np.uint8)


def _slow_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mirrored = rng.random(len(images)) < 0.5
    return np.stack(
        [np.flip(image, axis=2) if m else image for image, m in zip(images, mirrored, strict=True)]
    )


def _slow_crop(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    offsets = rng.integers(0, 2 * pad + 1, size=(2, n))
    result = np.zeros_like(images)
    for i in range(n):
        down, right = pad - offsets[0, i], pad - offsets[1, i]
        for y in range(height):
            for x in range(width):
                if 0 <= y - down < height and 0 <= x - right < width:
                    result[i, :, y, x] = images[i, :, y - down, x - right]
    return result


def _slow_translate(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, _, height, width = images.shape
    pad = max(1, height // 16)
    offsets = rng.integers(0, 2 * pad + 1, size=(2, n)) - pad

    def inside(place: int, size: int) -> int:
        return -place if place < 0 else 2 * (size - 1) - place if place >= size else place

    result = np.empty_like(images)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                row, column = inside(y + offsets[0, i], height), inside(x + offsets[1, i], width)
                result[i, :, y, x] = images[i, :, row, column]
    return result


def _slow_alternating_flip(images: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    pairs = zip(images, mirrored, strict=True)
    return np.stack([np.flip(image, axis=2) if m else image for image, m in pairs])


def _slow_cutout(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, _, height, width = images.shape
    size = height // 4
    rows = rng.integers(0, height, size=(n, 1)).ravel()
    columns = rng.integers(0, width, size=(n, 1)).ravel()
    result = images.copy()
    for i in range(n):
        top, left = rows[i] - size // 2, columns[i] - size // 2
        result[i, :, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
    return result


SLOW: dict[str, Callable[..., np.ndarray]] = {
    "flip": _slow_flip,
    "alternating-flip": _slow_alternating_flip,
    "crop": _slow_crop,
    "translate": _slow_translate,
    "cutout": _slow_cutout,
}


def _decided_by(name: str, n: int) -> np.random.Generator | np.ndarray:
    """Return what the augmentation takes beside the images."""
    rng = np.random.default_rng(3)
    return rng.random(n) < 0.5 if name == "alternating-flip" else rng


def test_every_augmentation_has_a_reference() -> None:
    assert SLOW.keys() == AUGMENTATIONS.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SLOW)
def test_against_the_slow_one(name: str, shape: tuple[int, ...]) -> None:
    images = _images(shape)
    before = images.copy()
    found = AUGMENTATIONS[name](images, _decided_by(name, len(images)))
    expected = SLOW[name](images, _decided_by(name, len(images)))
    assert found.dtype == np.uint8 and found.shape == shape
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(images, before)


def test_flip_mirrors_half_of_the_images(rng: np.random.Generator) -> None:
    images = _images((2000, 1, 4, 4))
    found = flip(images, rng)
    mirrored = (found == images[..., ::-1]).all(axis=(1, 2, 3))
    same = (found == images).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 0.45 < mirrored.mean() < 0.55


@pytest.mark.parametrize(("padding", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_crop_reaches_every_shift_equally(
    rng: np.random.Generator, padding: int | None, expected: int
) -> None:
    images = np.zeros((3000, 1, 9, 9), np.uint8)
    images[:, :, 4, 4] = 1
    rows, columns = crop(images, rng, padding).nonzero()[2:]
    assert len(rows) == 3000
    counts = np.bincount((rows - 4 + expected) * (2 * expected + 1) + columns - 4 + expected)
    assert len(counts) == (2 * expected + 1) ** 2
    assert counts.min() > 0.5 * counts.mean()


def test_crop_of_32_moves_by_up_to_4() -> None:
    images = np.zeros((2000, 1, 32, 32), np.uint8)
    images[:, :, 16, 16] = 1
    rows = crop(images, np.random.default_rng(0)).nonzero()[2]
    assert (rows.min(), rows.max()) == (12, 20)


@pytest.mark.parametrize(("side", "most"), [(8, 1), (28, 1), (32, 2), (64, 4)])
def test_translate_moves_by_a_sixteenth(side: int, most: int) -> None:
    images = np.zeros((1000, 1, side, side), np.uint8)
    images[:, :, side // 2, side // 2] = 1
    found = translate(images, np.random.default_rng(0))
    assert (found.sum(axis=(1, 2, 3)) == 1).all()  # nothing near the border is reflected
    for places in found.nonzero()[2:]:
        assert set(places - side // 2) == set(range(-most, most + 1))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cutout_blanks_at_most_a_square(rng: np.random.Generator, size: int) -> None:
    images = _images((3000, 2, 12, 12))
    holes = cutout(images, rng, size) == 0
    np.testing.assert_array_equal(holes[:, 0], holes[:, 1])
    areas = holes[:, 0].sum(axis=(1, 2))
    assert areas.max() == size**2
    assert areas.min() >= 1
    assert holes.any(axis=(0, 1)).all(), "any pixel can be blanked"


def test_compose_applies_in_the_order_given() -> None:
    images = _images((10, 1, 8, 8))

    def by_hand(*steps: Callable[..., np.ndarray]) -> np.ndarray:
        rng, result = np.random.default_rng(5), images
        for step in steps:
            result = step(result, rng)
        return result

    for names in (["flip"], ["flip", "crop"], ["crop", "flip", "cutout"]):
        augmentation = compose(names)
        assert augmentation is not None
        np.testing.assert_array_equal(
            augmentation(images, np.random.default_rng(5), np.zeros(10, bool)),
            by_hand(*(AUGMENTATIONS[name] for name in names)),
        )
    assert compose([]) is None


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_views_are_the_image_and_its_shifts(shape: tuple[int, ...], mirror: bool) -> None:
    images = _images(shape)
    views = list(augment.views_at_test_time(images, mirror=mirror))
    assert sum(weight for weight, _ in views) == 1
    n = 2 if mirror else 1
    assert [weight * n for weight, _ in views] == [0.5] * n + [0.25] * 2 * n
    plain = [view for _, view in views[::n]]
    np.testing.assert_array_equal(plain[0], images)
    np.testing.assert_array_equal(plain[1][:, :, 1:, 1:], images[:, :, :-1, :-1])
    np.testing.assert_array_equal(plain[2][:, :, :-1, :-1], images[:, :, 1:, 1:])
    np.testing.assert_array_equal(plain[1][:, :, 0, 1:], images[:, :, 1, :-1])  # reflected
    np.testing.assert_array_equal(plain[2][:, :, :-1, -1], images[:, :, 1:, -2])
    for (_, view), (_, mirrored) in zip(views[::n], views[1::n] if mirror else (), strict=False):
        np.testing.assert_array_equal(mirrored, view[..., ::-1])
