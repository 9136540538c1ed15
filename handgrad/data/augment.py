"""Random changes of training images, vectorised over the batch, on uint8 pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from handgrad.data.dataset import Images

Augmentation = Callable[[Images, np.random.Generator], Images]


def flip(images: Images, rng: np.random.Generator) -> Images:
    """Mirror each image left to right with probability 1/2; (N, C, H, W) -> the same."""
    mirrored = rng.random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[..., ::-1], images)


def crop(images: Images, rng: np.random.Generator, padding: int | None = None) -> Images:
    """Shift each image by up to ``padding`` pixels each way, zeros moving in.

    The padded random crop of He et al., *Deep Residual Learning*, CVPR 2016, section 4.2: 4 pixels
    at 32×32, and the same share, an eighth, of other sizes by default.
    """
    n, _, height, width = images.shape
    pad = max(1, height // 8) if padding is None else padding
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
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


AUGMENTATIONS: dict[str, Augmentation] = {"flip": flip, "crop": crop, "cutout": cutout}


def compose(
    names: Sequence[str], more: Mapping[str, Augmentation] | None = None
) -> Augmentation | None:
    """Return one function that applies the named augmentations in the order given.

    Args:
        names: each in :data:`AUGMENTATIONS`, or in ``more``.
        more: augmentations of a backend's own.
    """
    if not names:
        return None
    known = {**AUGMENTATIONS, **(more or {})}
    chosen = [known[name] for name in names]

    def apply(images: Images, rng: np.random.Generator) -> Images:
        for augmentation in chosen:
            images = augmentation(images, rng)
        return images

    return apply
