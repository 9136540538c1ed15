"""Random changes of training images, vectorised over the batch, on uint8 pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from handgrad.data.dataset import Images

Mirrored = NDArray[np.bool_]
"""Which images of a batch :func:`alternating_flip` mirrors in this epoch, (N,)."""

Augmentation = Callable[[Images, np.random.Generator, Mirrored], Images]
"""What changes a batch, as :func:`compose` makes it."""


def flip(images: Images, rng: np.random.Generator) -> Images:
    """Mirror each image left to right with probability 1/2; (N, C, H, W) -> the same."""
    return alternating_flip(images, rng.random(len(images)) < 0.5)


def alternating_flip(images: Images, mirrored: Mirrored) -> Images:
    """Mirror each image left to right in every other epoch.

    A coin decides once for each image whether that begins with the first epoch. Two epochs then
    show every image both ways, where coins of their own show half of them the same way twice.

    Source: Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024, section 3.6.
    """
    changed = images.copy()
    changed[mirrored] = images[mirrored][..., ::-1]
    return changed


def crop(images: Images, rng: np.random.Generator, padding: int | None = None) -> Images:
    """Shift each image by up to ``padding`` pixels each way, zeros moving in.

    The padded random crop of He et al., *Deep Residual Learning*, CVPR 2016, section 4.2: 4 pixels
    at 32×32, and the same share, an eighth, of other sizes by default.
    """
    pad = max(1, images.shape[2] // 8) if padding is None else padding
    return _shifted(images, rng, pad, "constant")


def translate(images: Images, rng: np.random.Generator) -> Images:
    """Shift each image by up to a sixteenth of its size each way, its border reflected.

    2 pixels at 32×32; the border itself is not repeated.
    """
    return _shifted(images, rng, max(1, images.shape[2] // 16), "reflect")


def _shifted(
    images: Images, rng: np.random.Generator, pad: int, mode: Literal["constant", "reflect"]
) -> Images:
    """Shift each image by up to ``pad`` pixels each way."""
    n, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = rng.integers(0, 2 * pad + 1, size=(2, n))
    shifted: Images = windows[np.arange(n), :, top, left]
    return shifted


def cutout(images: Images, rng: np.random.Generator, size: int | None = None) -> Images:
    """Blank one square a side of ``size`` at a random place of each image.

    Source: DeVries and Taylor, *Improved Regularization with Cutout*, 2017. The centre may lie
    anywhere, so that a square may stick out. A quarter of the height by default.
    """
    n, _, height, width = images.shape
    size = height // 4 if size is None else size
    row = np.arange(height) - (rng.integers(0, height, size=(n, 1)) - size // 2)  # (N, H)
    column = np.arange(width) - (rng.integers(0, width, size=(n, 1)) - size // 2)  # (N, W)
    inside_rows, inside_columns = (row >= 0) & (row < size), (column >= 0) & (column < size)
    hole = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]  # (N, 1, H, W)
    return np.where(hole, np.uint8(0), images)


AUGMENTATIONS: dict[str, Callable[..., Images]] = {
    "flip": flip,
    "alternating-flip": alternating_flip,
    "crop": crop,
    "translate": translate,
    "cutout": cutout,
}


def compose(
    names: Sequence[str], more: Mapping[str, Callable[..., Images]] | None = None
) -> Augmentation | None:
    """Return one function that applies the named augmentations in the order given.

    Args:
        names: each in :data:`AUGMENTATIONS`, or in ``more``.
        more: augmentations of a backend's own.
    """
    if not names:
        return None
    known = {**AUGMENTATIONS, **(more or {})}

    def apply(images: Images, rng: np.random.Generator, mirrored: Mirrored) -> Images:
        for name in names:
            images = known[name](images, mirrored if name == "alternating-flip" else rng)
        return images

    return apply


def views_at_test_time(images: Images, *, mirror: bool) -> Iterator[tuple[float, Images]]:
    """Yield what test-time augmentation shows of images (N, C, H, W), with the weight of each.

    The images themselves, weight 1/2, and shifted by a pixel along a diagonal either way, their
    border reflected, 1/4 each; with ``mirror``, half of each weight goes to the mirror image.
    """
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")
    for corner, weight in ((1, 0.5), (0, 0.25), (2, 0.25)):
        view = padded[:, :, corner : corner + height, corner : corner + width]
        both = [view, view[..., ::-1]] if mirror else [view]
        yield from ((weight / len(both), np.ascontiguousarray(one)) for one in both)
