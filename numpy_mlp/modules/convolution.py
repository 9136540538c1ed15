"""Two-dimensional convolution: patches as rows of a matrix, and one matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.linear import initial_weight
from numpy_mlp.modules.module import Array, Module, check_dtype
from numpy_mlp.modules.window import (
    Pair,
    Window,
    channels_first,
    channels_last,
    col2im,
    im2col,
    pair,
)
from numpy_mlp.modules.winograd import Winograd
from numpy_mlp.parallel import for_chunks
from numpy_mlp.randomness import Source

Scratch = Callable[[str, tuple[int, ...]], Array]
"""Returns an array to work in, by its name and shape, its contents undefined."""

_CHUNK_BYTES = 2 << 20  # of patches: about what stays in a core's cache
_WORTH_A_TRANSFORM = 2000  # multiplications that take as long as the transform of one weight


class Algorithm(Protocol):
    """How a convolution is computed, for some images (n, H, W, C) at a time.

    ``matrix`` is the weight in the form that it multiplies by.
    """

    def images_at_once(self, height: int, width: int, pixel_bytes: int) -> int:
        """Return how many images of H×W pixels to take at a time."""
        ...

    def matrix(self, weight: Array, new: Scratch) -> Array:
        """Return ``weight`` (kH, kW, C/groups, O) in the form that is multiplied by."""
        ...

    def weight(self, dmatrices: list[Array], dweight: Array) -> None:
        """Write ∂L/∂weight, given the parts of ∂L/∂matrix: the transpose of :meth:`matrix`."""
        ...

    def forward(self, x: Array, matrix: Array, y: Array, scratch: Scratch) -> None:
        """Write the convolution of ``x`` into ``y`` (n, OH, OW, O)."""
        ...

    def backward(
        self,
        x: Array,
        matrix: Array,
        dout: Array,
        dmatrix: Array | None,
        dx: Array | None,
        scratch: Scratch,
    ) -> None:
        """Write ∂L/∂matrix and ∂L/∂x, each unless it is None."""
        ...


class Im2col:
    """Convolution as a matrix product, for every stride, padding, dilation and number of groups.

    A window at place p = (n, r, c) sees kH·kW·C numbers. Written as row p of a matrix P, they make
    the convolution a product, with the weight as a matrix W of a column for each output channel:

        y[p, o] = Σ_{i,j,c} x[n, r·stride + i·dilation - padding, ..., c] · weight[o, c, i, j]
                = Σ_k P[p, k] W[k, o],   k = (i, j, c)               ⇒   Y = P W

    That is a linear layer whose rows are patches, and so are its gradients; between P and x stands
    the copying, whose transpose is :func:`~numpy_mlp.modules.window.col2im`:

        dW = Pᵀ δ,    dP = δ Wᵀ,    dx = col2im(dP)

    With groups, channels fall into groups that know nothing of each other: a P, a W each.

    Source: Chellapilla, Puri and Simard, *High Performance Convolutional Neural Networks for
    Document Processing*, 2006.
    """

    def __init__(self, window: Window, groups: int = 1) -> None:
        self.window, self.groups = window, groups

    def images_at_once(self, height: int, width: int, pixel_bytes: int) -> int:
        """Return how many images' patches stay in the cache."""
        places = math.prod(self.window.output_size(height, width))
        return max(1, _CHUNK_BYTES // (places * math.prod(self.window.kernel_size) * pixel_bytes))

    def matrix(self, weight: Array, new: Scratch) -> Array:
        """Return ``weight`` as (groups, kH·kW·C/groups, O/groups), a view."""
        n_out = weight.shape[3] // self.groups
        return weight.reshape(-1, self.groups, n_out).transpose(1, 0, 2)

    def weight(self, dmatrices: list[Array], dweight: Array) -> None:
        """Write the sum of the parts in the order of the weight."""
        for part in dmatrices[1:]:
            dmatrices[0] += part
        dweight[...] = dmatrices[0].transpose(1, 0, 2).reshape(dweight.shape)

    def _patches(self, shape: tuple[int, ...], scratch: Scratch) -> tuple[Array, Array]:
        """Return memory for patches, as matrices (G, n·OH·OW, K) and as (kH, kW, n, OH, OW, C)."""
        n, height, width, channels = shape
        places, kernel = self.window.output_size(height, width), self.window.kernel_size
        depth = channels // self.groups
        memory = scratch("patches", (self.groups, n, *places, *kernel, depth))
        by_offset = memory.transpose(4, 5, 1, 2, 3, 0, 6)  # (kH, kW, n, OH, OW, G, C/G)
        return memory.reshape(self.groups, -1, math.prod(kernel) * depth), by_offset

    def _padded(self, shape: tuple[int, ...], scratch: Scratch) -> Array:
        n, height, width, channels = shape
        top, left = self.window.padding
        return scratch("padded", (n, height + 2 * top, width + 2 * left, channels))

    def _by_group(self, images: Array) -> Array:
        """Return (n, h, w, C) as (n, h, w, G, C/G), a view."""
        return images.reshape(*images.shape[:3], self.groups, images.shape[3] // self.groups)

    def _rows(self, y: Array) -> Array:
        """Return (n, OH, OW, O) as (G, n·OH·OW, O/G), a view."""
        return y.reshape(-1, self.groups, y.shape[3] // self.groups).transpose(1, 0, 2)

    def _fill(self, x: Array, scratch: Scratch) -> Array:
        """Return the matrix of the patches of ``x``."""
        matrix, by_offset = self._patches(x.shape, scratch)
        padded = self.window.padded(x, self._padded(x.shape, scratch))
        im2col(self.window, self._by_group(padded), by_offset)
        return matrix

    def forward(self, x: Array, matrix: Array, y: Array, scratch: Scratch) -> None:
        """Write Y = P W."""
        np.matmul(self._fill(x, scratch), matrix, out=self._rows(y))

    def backward(
        self,
        x: Array,
        matrix: Array,
        dout: Array,
        dmatrix: Array | None,
        dx: Array | None,
        scratch: Scratch,
    ) -> None:
        """Write dW = Pᵀ δ and dx = col2im(δ Wᵀ)."""
        rows = self._rows(dout)
        if dmatrix is not None:
            np.matmul(self._fill(x, scratch).transpose(0, 2, 1), rows, out=dmatrix)
        if dx is not None:
            dpatches, by_offset = self._patches(x.shape, scratch)  # of P, which has been used
            np.matmul(rows, matrix.transpose(0, 2, 1), out=dpatches)
            padded = self._padded(x.shape, scratch)
            col2im(self.window, by_offset, self._by_group(padded))
            dx[...] = self.window.inside(padded, *x.shape[1:3])


ALGORITHMS = ("auto", "im2col", "winograd")


class Conv2dModule(Module, takes_workspace=True):
    r"""Slide ``out_channels`` filters over images: a cross-correlation, as in ``torch.nn.Conv2d``.

    ``y[n,o,r,s] = bias[o] + Σ_{c,i,j} weight[o,c,i,j] · x[n,c, r·stride + i·dilation - padding,
    s·stride + j·dilation - padding]``, where x is 0 outside of the image.

    Args:
        in_channels: channels C of the images.
        out_channels: number of filters O.
        kernel_size: of a filter, kH×kW; one number, or (rows, columns), as the next three.
        stride: distance of one place of the window from the next.
        padding: rows and columns of zeros on either side.
        dilation: distance between the pixels that a filter looks at.
        groups: channels fall into so many groups, and each filter sees one of them.
        bias: add a number to each output channel.
        dtype: ``float32`` or ``float64``.
        rng: source of the initial weights, as in :class:`~numpy_mlp.modules.LinearModule`.
        gain: of the activation before this layer.
        weight_std: draw the weights from N(0, ``weight_std``²) instead of Kaiming's scheme, whose
            variance is gain² / fan_in, of fan_in = C/groups · kH · kW.
        weight: the weights themselves, which are not copied, instead of random ones.
        algorithm: ``"im2col"``; ``"winograd"``, which needs fewer multiplications where the kernel
            is 3×3 with stride 1, no dilation and one group; ``"auto"`` takes the faster one.

    Shapes:
        ``x``, ``dx`` (N, C, H, W); ``y``, ``dout`` (N, O, OH, OW), with OH =
        ⌊(H + 2 padding - dilation (kH - 1) - 1) / stride⌋ + 1; ``weight`` (O, C/groups, kH, kW);
        ``bias`` (O,). y is channels-last in memory; see :mod:`numpy_mlp.modules.window`.

    Raises:
        ValueError: a number is out of range, ``groups`` does not divide the channels, the algorithm
            is not one for this kernel, or the window is larger than an image.

    Source: LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float64,
        rng: Source = None,
        gain: float = math.sqrt(2.0),
        weight_std: float | None = None,
        weight: Array | None = None,
        algorithm: str = "auto",
    ) -> None:
        super().__init__()
        for name, size in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
            if groups < 1 or size % groups:
                raise ValueError(f"groups must divide {name}={size}, got {groups!r}")
        check_dtype(dtype)
        self.window = Window(
            pair("kernel_size", kernel_size, 1),
            pair("stride", stride, 1),
            pair("padding", padding, 0),
            pair("dilation", dilation, 1),
        )
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.groups = int(groups)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        if algorithm == "winograd" and not (Winograd.fits(self.window) and groups == 1):
            raise ValueError("winograd needs a 3×3 kernel with stride 1, no dilation and one group")
        self.algorithm = algorithm
        shape = (self.out_channels, self.in_channels // self.groups, *self.window.kernel_size)
        if weight is not None and weight.shape != shape:
            raise ValueError(f"weight has shape {weight.shape}, expected {shape}")
        if weight is None:
            weight = initial_weight(shape, gain, weight_std, rng, dtype)
            # In the order of the matrix, (kH, kW, C/groups, O), and seen as (O, C/groups, kH, kW).
            weight = _seen_as_filters(np.ascontiguousarray(_as_rows(weight)))
        self.params = {"weight": weight}
        if bias:
            self.params["bias"] = np.zeros(self.out_channels, dtype=dtype)
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}

    def forward(self, x: Array) -> Array:
        """Return the convolution of ``x``, (N, C, H, W) -> (N, O, OH, OW)."""
        x = self._real(x)
        assert x.ndim == 4 and x.shape[1] == self.in_channels, (
            f"Conv2dModule.forward: x has shape {x.shape}, expected (N, {self.in_channels}, H, W)"
        )
        weight = self.params["weight"]
        rows = channels_last(x, np.result_type(x, weight))
        places = self.window.output_size(*rows.shape[1:3])
        y = self._new("y", (len(x), *places, self.out_channels), rows.dtype)
        algorithm = self._algorithm(len(rows), places)
        matrix = algorithm.matrix(_as_rows(weight), self._new_of(weight.dtype))
        self._remember(rows, algorithm, matrix)

        def work(chunk: slice, lane: int) -> None:
            algorithm.forward(rows[chunk], matrix, y[chunk], self._scratch_of(lane, rows.dtype))
            if "bias" in self.params:
                y[chunk] += self.params["bias"]

        for_chunks(len(x), self._images_at_once(algorithm, rows), work)
        return channels_first(y)

    def backward(self, dout: Array) -> Array:
        """Store the parameters' gradients and return ∂L/∂x; :class:`Im2col` derives all three.

        The bias is added at every place of every image, so its gradient is the sum over them:

            ∂L/∂bias[o] = Σ_{n,r,s} δ[n,o,r,s]
        """
        rows, algorithm, matrix = self._recall()
        dx = self._new("dx", rows.shape, rows.dtype)
        self._backward(dout, rows, algorithm, matrix, dx)
        return channels_first(dx)

    def backward_parameters(self, dout: Array) -> None:
        """Store ∂L/∂weight and ∂L/∂bias; enough for the first layer of a network."""
        rows, algorithm, matrix = self._recall()
        self._backward(dout, rows, algorithm, matrix, None)

    def _backward(
        self, dout: Array, rows: Array, algorithm: Algorithm, matrix: Array, dx: Array | None
    ) -> None:
        places = self.window.output_size(*rows.shape[1:3])
        dout = self._upstream(dout, (len(rows), self.out_channels, *places))
        upstream = channels_last(dout, rows.dtype)
        trained = self.params.keys() - self.frozen
        sums: dict[int, dict[str, Array]] = {}  # of each lane

        def work(chunk: slice, lane: int) -> None:
            scratch, δ = self._scratch_of(lane, rows.dtype), upstream[chunk]
            part = {}
            if "weight" in trained:
                name = "dmatrix" if lane in sums else "sum of dmatrix"
                part["weight"] = scratch(name, matrix.shape)
            if "bias" in trained:
                ones = np.ones(math.prod(δ.shape[:3]), δ.dtype)
                part["bias"] = ones @ δ.reshape(-1, self.out_channels)
            dx_part = None if dx is None else dx[chunk]
            algorithm.backward(rows[chunk], matrix, δ, part.get("weight"), dx_part, scratch)
            if lane not in sums:
                sums[lane] = part
                return
            for key in part:
                sums[lane][key] += part[key]

        lanes = range(for_chunks(len(rows), self._images_at_once(algorithm, rows), work))
        if "weight" in trained:
            parts = [sums[lane]["weight"] for lane in lanes]
            algorithm.weight(parts, _as_rows(self._grad("weight")))
        if "bias" in trained:
            self._grad("bias")[...] = sum(sums[lane]["bias"] for lane in lanes)

    def _algorithm(self, n_images: int, places: Pair) -> Algorithm:
        """Return what computes the convolution of so many images at so many places."""
        im2col = Im2col(self.window, self.groups)
        if self.algorithm == "im2col" or not Winograd.fits(self.window) or self.groups > 1:
            return im2col
        winograd = Winograd(self.window)
        if self.algorithm == "winograd":
            return winograd
        # Multiplications for each pair of channels, against the transforms: of the weights, which
        # many images share, and of the images, which many channels share.
        saved = 9 * n_images * math.prod(places) - 36 * n_images * math.prod(winograd.tiles(places))
        channels = min(self.in_channels, self.out_channels)
        return winograd if saved > _WORTH_A_TRANSFORM and channels >= 16 else im2col

    def _images_at_once(self, algorithm: Algorithm, rows: Array) -> int:
        height, width = rows.shape[1:3]
        return algorithm.images_at_once(height, width, rows.itemsize * self.in_channels)

    def _new_of(self, dtype: DTypeLike) -> Scratch:
        """Return what gives arrays that are this module's until the end of the step."""
        return lambda name, shape: self._new(name, shape, dtype)

    def _scratch_of(self, lane: int, dtype: DTypeLike) -> Scratch:
        """Return what gives this lane arrays to work in."""
        return lambda name, shape: self._scratch(name, lane, shape, dtype)

    def __repr__(self) -> str:
        names = ("kernel_size", "stride", "padding", "dilation")
        numbers = ", ".join(f"{name}={getattr(self.window, name)}" for name in names)
        return (
            f"Conv2dModule({self.in_channels}, {self.out_channels}, {numbers}, "
            f"groups={self.groups}, bias={'bias' in self.params})"
        )


def _as_rows(weight: Array) -> Array:
    """Return (O, C, kH, kW) as (kH, kW, C, O), a view."""
    return weight.transpose(2, 3, 1, 0)


def _seen_as_filters(rows: Array) -> Array:
    """Return (kH, kW, C, O) as (O, C, kH, kW), a view."""
    return rows.transpose(3, 2, 0, 1)
