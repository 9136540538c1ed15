"""Convolution with a 3×3 kernel in a quarter of the multiplications."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.module import Array
from numpy_mlp.modules.window import Pair, Window, col2im, im2col
from numpy_mlp.parallel import for_chunks

# One dimension, F(4, 3): four outputs of a filter of three from six inputs in six multiplications
# instead of twelve, y = Aᵀ((G g) ⊙ (Bᵀ d)). The six are values of two polynomials at the points
# 0, 1, -1, 2, -2 and infinity, where the product of the polynomials is the product of the values.
_BT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_AT = [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]
_TILES_AT_ONCE = 256  # in the cache with all they are multiplied by
_WEIGHTS_AT_ONCE = 1 << 13  # transformed ones are 36 numbers, which then stay in the cache


@cache
def _transforms(dtype: DTypeLike) -> tuple[Array, Array, Array]:
    """Return B, G and A for rows and columns at once: Kronecker products."""
    bt, g, at = (np.kron(m, m).astype(dtype) for m in (np.array(_BT), np.array(_G), np.array(_AT)))
    return bt, g, at  # (36, 36), (36, 9), (16, 36)


class Winograd:
    """Winograd's minimal filtering F(4×4, 3×3): a tile of 4×4 outputs from one of 6×6 inputs.

    Image and filter are taken to a space of 36 numbers, by matrices B and G, where a convolution is
    a product number by number, and A takes the result back to 16 outputs. Over the channels the 36
    products are sums, so they are 36 matrix products:

        V = Bᵀ d,   U = G g,   M[ξ] = V[ξ] U[ξ] for ξ = 1..36,   y = Aᵀ M

    36 multiplications for 16 outputs, where the direct way takes 144. Every step is linear or a
    product, so that each gradient is the transpose of its step, in the same space:

        dM = A δ,   dU[ξ] = V[ξ]ᵀ dM[ξ],   dV[ξ] = dM[ξ] U[ξ]ᵀ,   dd = B dV,   dg = Gᵀ dU

    The tiles are the patches of a 6×6 window that moves by 4, whose overlaps ``col2im`` adds up.

    Source: Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self._tile = Window((6, 6), (4, 4), window.padding)

    @staticmethod
    def fits(window: Window) -> bool:
        """Say whether a convolution with this window can be computed so."""
        return (window.kernel_size, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))

    @staticmethod
    def tiles(places: Pair) -> Pair:
        """Return how many tiles cover the outputs, down and across; the last may stick out."""
        return -(-places[0] // 4), -(-places[1] // 4)

    def _tiles(self, height: int, width: int) -> Pair:
        return self.tiles(self.window.output_size(height, width))

    def images_at_once(self, height: int, width: int, pixel_bytes: int) -> int:
        """Return how many images to take at a time."""
        return max(1, _TILES_AT_ONCE // math.prod(self._tiles(height, width)))

    def matrix(self, weight: Array, new: Callable[..., Array]) -> Array:
        """Return U = G g, (3, 3, C, O) -> (36, C, O)."""
        _, g, _ = _transforms(weight.dtype)
        u = new("U", (36, *weight.shape[2:]))

        def work(channels: slice, lane: int) -> None:
            filters = weight[:, :, channels].reshape(9, -1)
            np.matmul(g, filters, out=u[:, channels].reshape(36, -1))

        for_chunks(u.shape[1], _channels_at_once(u), work)
        return u

    def weight(self, dmatrices: list[Array], dweight: Array) -> None:
        """Write dg = Gᵀ dU, (36, C, O) -> (3, 3, C, O), of the sum of the parts."""
        du, *others = dmatrices
        _, g, _ = _transforms(du.dtype)

        def work(channels: slice, lane: int) -> None:
            for other in others:
                du[:, channels] += other[:, channels]
            dfilters = g.T @ du[:, channels].reshape(36, -1)
            dweight[:, :, channels] = dfilters.reshape(3, 3, -1, du.shape[2])

        for_chunks(du.shape[1], _channels_at_once(du), work)

    def _padded(self, shape: tuple[int, ...], scratch: Callable[..., Array]) -> Array:
        n, height, width, channels = shape
        down, across = self._tiles(height, width)
        return scratch("padded", (n, 4 * down + 2, 4 * across + 2, channels))

    def _transformed(self, x: Array, scratch: Callable[..., Array]) -> Array:
        """Return V = Bᵀ d, (n, H, W, C) -> (36, tiles, C)."""
        n, height, width, channels = x.shape
        tiles = scratch("tiles", (6, 6, n, *self._tiles(height, width), channels))
        im2col(self._tile, self._tile.padded(x, self._padded(x.shape, scratch)), tiles)
        v = scratch("V", (36, tiles.size // (36 * channels), channels))
        np.matmul(_transforms(x.dtype)[0], tiles.reshape(36, -1), out=v.reshape(36, -1))
        return v

    def forward(self, x: Array, matrix: Array, y: Array, scratch: Callable[..., Array]) -> None:
        """Write y = Aᵀ M."""
        v, n_out = self._transformed(x, scratch), matrix.shape[2]
        m = np.matmul(v, matrix, out=scratch("M", (36, v.shape[1], n_out)))
        tiles = scratch("outputs", (4, 4, len(x), *self._tiles(*x.shape[1:3]), n_out))
        np.matmul(_transforms(x.dtype)[2], m.reshape(36, -1), out=tiles.reshape(16, -1))
        for i, j in np.ndindex(4, 4):
            place = y[:, i::4, j::4]
            place[...] = tiles[i, j, :, : place.shape[1], : place.shape[2]]

    def backward(
        self,
        x: Array,
        matrix: Array,
        dout: Array,
        dmatrix: Array | None,
        dx: Array | None,
        scratch: Callable[..., Array],
    ) -> None:
        """Write dU = Vᵀ dM, and dx through dV = dM Uᵀ."""
        bt, _, at = _transforms(x.dtype)
        down, across = self._tiles(*x.shape[1:3])
        tiles = scratch("outputs", (4, 4, len(x), down, across, dout.shape[3]))
        for i, j in np.ndindex(4, 4):
            place = dout[:, i::4, j::4]
            rows, columns = place.shape[1:3]
            tiles[i, j, :, :rows, :columns] = place
            tiles[i, j, :, rows:] = 0  # outputs that stick out of the image
            tiles[i, j, :, :, columns:] = 0
        dm = scratch("M", (36, len(x) * down * across, dout.shape[3]))
        np.matmul(at.T, tiles.reshape(16, -1), out=dm.reshape(36, -1))
        if dmatrix is not None:
            np.matmul(self._transformed(x, scratch).transpose(0, 2, 1), dm, out=dmatrix)
        if dx is not None:
            channels = x.shape[3]
            dv = np.matmul(
                dm, matrix.transpose(0, 2, 1), out=scratch("V", (*dm.shape[:2], channels))
            )
            dtiles = scratch("tiles", (6, 6, len(x), down, across, channels))
            np.matmul(bt.T, dv.reshape(36, -1), out=dtiles.reshape(36, -1))
            padded = self._padded(x.shape, scratch)
            col2im(self._tile, dtiles, padded)
            dx[...] = self._tile.inside(padded, *x.shape[1:3])


def _channels_at_once(u: Array) -> int:
    return max(1, _WEIGHTS_AT_ONCE // int(u.shape[2]))
