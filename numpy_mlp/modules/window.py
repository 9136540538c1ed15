"""A window that slides over images: what convolution and pooling have in common.

Images are (N, C, H, W) for whoever calls a layer, and channels-last inside, (N, H, W, C): the
values that a product sums over, those of all channels at one pixel, are then next to each other.
An array can be both at once. What a layer returns is a *view* in the shape (N, C, H, W) of memory
in the order (N, H, W, C), and :func:`channels_last` of such a view copies nothing: between the
first convolution of a network and the last, nothing is converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.module import Array

Pair = tuple[int, int]
"""Rows, columns."""


def pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """Return a number, or two, for rows and columns, as a pair.

    Raises:
        ValueError: it is neither, or below ``least``.
    """
    numbers = (value, value) if isinstance(value, int | np.integer) else value
    whole = isinstance(numbers, Sequence) and all(isinstance(n, int | np.integer) for n in numbers)
    if not whole or len(numbers) != 2 or min(numbers) < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, or two (rows, columns), "
            f"got {value!r}"
        )
    return int(numbers[0]), int(numbers[1])


def channels_last(x: Array, dtype: DTypeLike | None = None) -> Array:
    """Return images (N, C, H, W) as (N, H, W, C), one after the other; a copy only if need be."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype)


def channels_first(x: Array) -> Array:
    """Return (N, H, W, C) as a view in the shape (N, C, H, W)."""
    return x.transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Window:
    """Where a window looks while it slides over an image.

    Attributes:
        kernel_size: rows and columns that it covers, less those that dilation skips.
        stride: how far it moves from one place to the next.
        padding: rows and columns added on either side of the image.
        dilation: distance of the rows, and columns, that it looks at.
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def overlaps(self) -> bool:
        """Say whether a pixel can be seen from more than one place."""
        sizes = zip(self.kernel_size, self.dilation, self.stride, strict=True)
        return any((kernel - 1) * dilation >= stride for kernel, dilation, stride in sizes)

    def output_size(self, height: int, width: int) -> Pair:
        """Return at how many places it stops, ⌊(H + 2 padding - reach) / stride⌋ + 1 each way.

        Raises:
            ValueError: it is larger than the padded image.
        """
        (top, left), (down, across) = self.padding, self.stride
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        rows = (height + 2 * top - reach[0]) // down + 1
        columns = (width + 2 * left - reach[1]) // across + 1
        if min(rows, columns) < 1:
            raise ValueError(
                f"a window that reaches over {reach[0]}×{reach[1]} does not fit on an image of "
                f"{height}×{width} with a padding of {top} and {left}"
            )
        return rows, columns

    def padded(self, x: Array, buffer: Array, value: float = 0.0) -> Array:
        """Copy images (n, H, W, C) into ``buffer``, and ``value`` around them."""
        if buffer is x:
            return x
        (top, left), (height, width) = self.padding, x.shape[1:3]
        buffer[:, :top] = buffer[:, top + height :] = value
        buffer[:, :, :left] = buffer[:, :, left + width :] = value
        buffer[:, top : top + height, left : left + width] = x
        return buffer

    def inside(self, buffer: Array, height: int, width: int) -> Array:
        """Return the images in a padded ``buffer``, a view."""
        top, left = self.padding
        return buffer[:, top : top + height, left : left + width]

    def offsets(self) -> Iterator[Pair]:
        """Yield each place within the window: row and column of the kernel."""
        return np.ndindex(self.kernel_size)

    def seen_at(self, offset: Pair, padded: Array, places: Pair) -> Array:
        """Return what stands at ``offset`` of the window wherever it stops.

        Args:
            offset: one of :meth:`offsets`.
            padded: images (n, H', W', C) with their padding.
            places: of :meth:`output_size`.

        Returns:
            A view (n, places, C): pixel ``offset · dilation + place · stride`` of each image.
        """
        (row, column), (rows, columns) = offset, places
        top, left = row * self.dilation[0], column * self.dilation[1]
        bottom = top + (rows - 1) * self.stride[0] + 1
        right = left + (columns - 1) * self.stride[1] + 1
        return padded[:, top : bottom : self.stride[0], left : right : self.stride[1]]


def im2col(window: Window, padded: Array, patches: Array) -> None:
    """Write what the window sees at each place: ``patches[i, j]`` of (kH, kW, n, OH, OW, C)."""
    places = patches.shape[3:5]
    for i, j in window.offsets():
        patches[i, j] = window.seen_at((i, j), padded, places)


def col2im(window: Window, patches: Array, padded: Array) -> None:
    """Add up, for each pixel, what belongs to it in every patch: the transpose of :func:`im2col`.

    Windows overlap where the stride is smaller than the kernel. A pixel that k of them saw got k
    copies, so its gradient is the sum of theirs: ``+=``, for an ``=`` keeps one of them.
    """
    padded[...] = 0
    places = patches.shape[3:5]
    for i, j in window.offsets():
        seen = window.seen_at((i, j), padded, places)
        if i * window.dilation[0] < window.stride[0] and j * window.dilation[1] < window.stride[1]:
            seen[...] = patches[i, j]  # no offset before this one saw any of these pixels
        else:
            seen += patches[i, j]
