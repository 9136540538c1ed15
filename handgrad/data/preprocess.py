"""From uint8 pixels to the numbers a network sees: one multiply-add, fitted on training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handgrad.data.dataset import Images
from handgrad.errors import UserError

PREPROCESSING = ("standardize", "mean-image")


class Preprocessing:
    """The affine map ``x = (pixel - mean) · scale``.

    Args:
        mean: subtracted; broadcasts against (C, H, W).
        scale: multiplied; broadcasts against (C, H, W).
        dtype: of the result.
    """

    def __init__(
        self, mean: NDArray[np.float64], scale: NDArray[np.float64], dtype: DTypeLike
    ) -> None:
        self.mean, self.scale = mean, scale
        self.dtype = np.dtype(dtype)
        self._scale = scale.astype(dtype)
        self._shift = (-mean * scale).astype(dtype)
        self._scales = bool((scale != 1).any())

    def __call__(self, images: Images) -> NDArray[np.floating]:
        """Return the images (N, C, H, W) as floating-point numbers, in a new array.

        Raises:
            UserError: they are not pixels in uint8: of another scale, a network would only guess.
        """
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            what = getattr(images, "dtype", type(images).__name__)
            raise UserError(
                f"images of {what}; preprocessing takes pixels of 0 to 255 in a NumPy array of "
                f"uint8 (a run's predict takes others as well)"
            )
        # A conversion and two operations in place: one that converts as it goes takes longer.
        x: NDArray[np.floating] = images.astype(self.dtype)
        if self._scales:
            x *= self._scale
        x += self._shift
        return x


def fit_preprocessing(kind: str, images: Images, dtype: DTypeLike = np.float32) -> Preprocessing:
    """Return the preprocessing called ``kind``, its statistics taken from ``images``.

    Args:
        kind: ``standardize``: zero mean and unit variance per channel; ``mean-image``: raw pixels,
            0 to 255, less the mean image (the course of 2018).
        images: training images (N, C, H, W).
        dtype: of the result.
    """
    assert kind in PREPROCESSING, kind
    # Exact sums in integers, a slice at a time: no floating-point copy of the whole dataset.
    total = np.zeros(images.shape[1:], dtype=np.uint64)
    squares = np.zeros(images.shape[1], dtype=np.uint64)
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096]
        total += part.sum(axis=0, dtype=np.uint64)
        if kind == "standardize":
            counts = [np.bincount(part[:, c].ravel(), minlength=256) for c in range(part.shape[1])]
            squares += (np.array(counts) @ np.arange(256) ** 2).astype(np.uint64)
    if kind == "mean-image":
        return Preprocessing(total / len(images), np.ones((1, 1, 1)), dtype)
    n = len(images) * images.shape[2] * images.shape[3]
    mean = total.sum(axis=(1, 2)) / n
    std = np.sqrt(squares / n - mean**2)
    std[std == 0] = 1  # a constant channel becomes 0, not NaN
    return Preprocessing(mean[:, None, None], 1 / std[:, None, None], dtype)
