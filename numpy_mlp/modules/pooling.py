"""Pooling: the largest, or the mean, of what a window sees of each channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from numpy_mlp.modules.module import Array, Module
from numpy_mlp.modules.window import Pair, Window, channels_first, channels_last, pair
from numpy_mlp.parallel import for_chunks

_CHUNK_BYTES = 1 << 18  # of images: a chunk is read once for each place of the window


class _PoolModule(Module):
    """A window that slides over each channel."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        kernel = pair("kernel_size", kernel_size, 1)
        moves = kernel if stride is None else pair("stride", stride, 1)
        self.window = Window(kernel, moves, pair("padding", padding, 0))
        if any(2 * pad > size for pad, size in zip(self.window.padding, kernel, strict=True)):
            raise ValueError(f"padding must be at most half of kernel_size, got {padding!r}")

    def _images_at_once(self, rows: Array) -> int:
        return max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))

    def _padded(self, rows: Array, lane: int) -> Array:
        """Return memory for images (n, H, W, C) and their padding: ``rows`` itself, without one."""
        (n, height, width, channels), (top, left) = rows.shape, self.window.padding
        if not top + left:
            return rows
        shape = (n, height + 2 * top, width + 2 * left, channels)
        return self._scratch("padded", lane, shape, rows.dtype)

    def _check(self, x: Array) -> Pair:
        """Return the size of the output for x."""
        assert x.ndim == 4, f"{type(self).__name__}: x has shape {x.shape}, expected (N, C, H, W)"
        return self.window.output_size(x.shape[2], x.shape[3])

    def __repr__(self) -> str:
        w = self.window
        return (
            f"{type(self).__name__}(kernel_size={w.kernel_size}, stride={w.stride}, "
            f"padding={w.padding})"
        )


class MaxPool2dModule(_PoolModule, takes_workspace=True):
    """The largest value that a window sees, as ``torch.nn.MaxPool2d``.

    ``y[n,c,r,s] = max_{i,j} x[n,c, r·stride + i - padding, s·stride + j - padding]``, where x is -∞
    outside of the image.

    Args:
        kernel_size: of the window; one number, or (rows, columns), as the next two.
        stride: distance of one place of the window from the next; ``kernel_size`` by default, so
            that windows do not overlap.
        padding: rows and columns added on either side, at most half of the kernel.

    Shapes: ``x``, ``dx`` (N, C, H, W); ``y``, ``dout`` (N, C, OH, OW), with OH =
    ⌊(H + 2 padding - kernel) / stride⌋ + 1.

    Raises:
        ValueError: a number is out of range, or the window is larger than an image.

    Source: Ranzato et al., *Unsupervised Learning of Invariant Feature Hierarchies*, CVPR 2007.
    """

    def forward(self, x: Array) -> Array:
        """Return the maxima, (N, C, H, W) -> (N, C, OH, OW)."""
        x = self._real(x)
        places = self._check(x)
        rows = channels_last(x)
        shape = (len(rows), *places, rows.shape[3])
        y = self._new("y", shape, rows.dtype)
        # Which place of the window held the maximum: one byte, where the images take four.
        kind = np.uint8 if math.prod(self.window.kernel_size) <= 256 else np.int64
        winner = self._new("winner", shape, kind)
        first = self._first_inside(places)

        def work(chunk: slice, lane: int) -> None:
            padded = self.window.padded(part := rows[chunk], self._padded(part, lane), -np.inf)
            best, index = y[chunk], winner[chunk]
            for number, offset in enumerate(self.window.offsets()):
                seen = self.window.seen_at(offset, padded, places)
                if number == 0:
                    best[...], index[...] = seen, first
                    continue
                # Strictly greater: of equals the first stays, row by row, as in PyTorch.
                greater = np.greater(seen, best)
                np.maximum(index, np.multiply(greater, number, dtype=kind), out=index)
                np.maximum(best, seen, out=best)

        for_chunks(len(rows), self._images_at_once(rows), work)
        self._remember(winner, rows.shape)
        return channels_first(y)

    def _first_inside(self, places: Pair) -> Array:
        """Return which place of the window is the first in the image, (OH, OW, 1).

        It wins where all that a window sees is -∞, as the padding is.
        """
        w = self.window
        row, column = (
            np.maximum(0, pad - np.arange(n) * stride)
            for pad, n, stride in zip(w.padding, places, w.stride, strict=True)
        )
        found: Array = (row[:, None] * w.kernel_size[1] + column)[..., None]
        return found

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x.

        y is the entry that won, so its gradient goes there and nowhere else; a tie sends it to one
        entry, the first. With w the winner's place in the window at (r, s):

            ∂L/∂x[n,c,h,v] = Σ over the windows (r, s) that see (h, v) as their winner of δ[n,c,r,s]

        Where windows overlap, one entry can win in several: their gradients add up.
        """
        winner, shape = self._recall()
        upstream = channels_last(self._upstream(dout, channels_first(winner).shape))
        dx = self._new("dx", shape, upstream.dtype)

        def work(chunk: slice, lane: int) -> None:
            padded = self._padded(part := dx[chunk], lane)
            padded[...] = 0
            for number, offset in enumerate(self.window.offsets()):
                place = self.window.seen_at(offset, padded, winner.shape[1:3])
                won = winner[chunk] == number
                if self.window.overlaps:
                    place += upstream[chunk] * won
                else:
                    np.multiply(upstream[chunk], won, out=place)
            if padded is not part:
                part[...] = self.window.inside(padded, *shape[1:3])

        for_chunks(len(dx), self._images_at_once(dx), work)
        return channels_first(dx)


class AvgPool2dModule(_PoolModule, takes_workspace=True):
    """The mean of what a window sees, as ``torch.nn.AvgPool2d``.

    ``y[n,c,r,s] = 1/(kH kW) Σ_{i,j} x[n,c, r·stride + i - padding, s·stride + j - padding]``; the
    zeros of the padding count. Arguments and errors are those of :class:`MaxPool2dModule`.

    Shapes: ``x``, ``dx`` (N, C, H, W); ``y``, ``dout`` (N, C, OH, OW), as for max-pooling.
    """

    def forward(self, x: Array) -> Array:
        """Return the means, (N, C, H, W) -> (N, C, OH, OW)."""
        x = self._real(x)
        places = self._check(x)
        rows = channels_last(x)
        y = self._new("y", (len(rows), *places, rows.shape[3]), rows.dtype)

        def work(chunk: slice, lane: int) -> None:
            padded = self.window.padded(part := rows[chunk], self._padded(part, lane))
            mean = y[chunk]
            mean[...] = 0
            for offset in self.window.offsets():
                mean += self.window.seen_at(offset, padded, places)
            mean /= math.prod(self.window.kernel_size)

        for_chunks(len(rows), self._images_at_once(rows), work)
        self._remember(rows.shape, y.shape)
        return channels_first(y)

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: each entry has a share of 1/(kH kW) in every window that sees it.

        ∂L/∂x[n,c,h,v] = 1/(kH kW) Σ over the windows (r, s) that see (h, v) of δ[n,c,r,s]
        """
        shape, out_shape = self._recall()
        dout = self._upstream(dout, (out_shape[0], out_shape[3], *out_shape[1:3]))
        upstream = channels_last(dout)
        dx = self._new("dx", shape, upstream.dtype)

        def work(chunk: slice, lane: int) -> None:
            padded = self._padded(part := dx[chunk], lane)
            padded[...] = 0
            share = upstream[chunk] / math.prod(self.window.kernel_size)
            for offset in self.window.offsets():
                place = self.window.seen_at(offset, padded, out_shape[1:3])
                place += share
            if padded is not part:
                part[...] = self.window.inside(padded, *shape[1:3])

        for_chunks(len(dx), self._images_at_once(dx), work)
        return channels_first(dx)


class GlobalAvgPoolModule(Module, takes_workspace=True):
    """The mean of each channel: ``y[n,c] = 1/(H W) Σ_{h,v} x[n,c,h,v]``.

    As ``torch.nn.AdaptiveAvgPool2d(1)``.

    Shapes: ``x``, ``dx`` (N, C, H, W); ``y``, ``dout`` (N, C, 1, 1).

    Source: Lin, Chen and Yan, *Network In Network*, ICLR 2014.
    """

    def forward(self, x: Array) -> Array:
        """Return the means, (N, C, H, W) -> (N, C, 1, 1)."""
        x = self._real(x)
        assert x.ndim == 4, f"GlobalAvgPoolModule: x has shape {x.shape}, expected (N, C, H, W)"
        self._remember(x.shape)
        mean: Array = x.mean(axis=(2, 3), keepdims=True)
        return mean

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: every pixel has the same share, ∂L/∂x[n,c,h,v] = δ[n,c] / (H W)."""
        ((n, channels, height, width),) = self._recall()
        dout = self._upstream(dout, (n, channels, 1, 1))
        dx = self._new("dx", (n, height, width, channels), np.result_type(dout, 0.0))
        dx[...] = channels_last(dout) / (height * width)
        return channels_first(dx)
