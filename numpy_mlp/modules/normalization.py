"""Normalisation of each sample by itself: over its features, or over groups of its channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.module import Array, Module, check_dtype


class _SampleNorm(Module):
    """What both have in common: rows that are standardised, each by itself.

    ``x_hat = (x - μ) / √(σ² + eps)``, with μ and the biased σ² of a row of K values; then
    ``y = weight · x_hat + bias``. Statistics are the same in training and in evaluation.

    The derivation is :meth:`numpy_mlp.modules.BatchNormModule.backward`'s, along a row instead of a
    column. With g = δ · weight = ∂L/∂x_hat, and means over the row:

        dx = s (g - mean(g) - x_hat · mean(g · x_hat)),   s = (σ² + eps)^(-1/2)

    Scale and shift are shared by the samples, so that their gradients are sums over them.
    """

    eps: float

    def _standardise(self, rows: Array) -> tuple[Array, Array]:
        """Return ``x_hat`` and s of rows (..., K)."""
        deviation = rows - rows.mean(axis=-1, keepdims=True)
        inv_std = 1 / np.sqrt(np.mean(deviation**2, axis=-1, keepdims=True) + self.eps)
        return deviation * inv_std, inv_std

    @staticmethod
    def _through(g: Array, x_hat: Array, inv_std: Array) -> Array:
        """Return dx of rows, from g = ∂L/∂x_hat."""
        along = x_hat * np.mean(g * x_hat, axis=-1, keepdims=True)
        dx: Array = inv_std * (g - g.mean(axis=-1, keepdims=True) - along)
        return dx

    def _make_parameters(self, shape: tuple[int, ...], affine: bool, dtype: DTypeLike) -> None:
        check_dtype(dtype)
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps!r}")
        self.params = {}
        if affine:
            self.params = {"weight": np.ones(shape, dtype), "bias": np.zeros(shape, dtype)}
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}


class LayerNormModule(_SampleNorm, takes_workspace=True):
    """Standardise each sample over its last axes, then scale and shift: ``torch.nn.LayerNorm``.

    Args:
        normalized_shape: of those axes; one number for the last axis.
        eps: added to the variance.
        elementwise_affine: learn a weight and a bias.
        dtype: ``float32`` or ``float64``.

    Shapes: ``x``, ``y``, ``dout``, ``dx`` (..., *normalized_shape); ``weight``, ``bias``
    normalized_shape.

    Raises:
        ValueError: a size or ``eps`` is not positive.

    Source: Ba, Kiros and Hinton, *Layer Normalization*, 2016.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float64,
    ) -> None:
        super().__init__()
        one = isinstance(normalized_shape, int | np.integer)
        shape: Any = (normalized_shape,) if one else tuple(normalized_shape)  # type: ignore[arg-type]
        if not shape or min(shape) < 1:
            raise ValueError(f"normalized_shape must be positive, got {normalized_shape!r}")
        self.normalized_shape = tuple(int(n) for n in shape)
        self.eps = eps
        self._make_parameters(self.normalized_shape, elementwise_affine, dtype)

    def forward(self, x: Array) -> Array:
        """Return ``weight · x_hat + bias``, the shape of ``x``."""
        x = self._real(x)
        axes = len(self.normalized_shape)
        assert x.shape[-axes:] == self.normalized_shape, (
            f"LayerNormModule.forward: x has shape {x.shape}, expected "
            f"(..., {', '.join(map(str, self.normalized_shape))})"
        )
        rows = x.reshape(-1, math.prod(self.normalized_shape))
        x_hat, inv_std = self._standardise(rows)
        self._remember(x_hat, inv_std, x.shape)
        y: Array = x_hat.reshape(x.shape)
        if self.params:
            y = y * self.params["weight"] + self.params["bias"]
        return y

    def backward(self, dout: Array) -> Array:
        """Store ∂L/∂weight = Σ δ · x_hat and ∂L/∂bias = Σ δ, over samples; return ∂L/∂x."""
        x_hat, inv_std, shape = self._recall()
        dout = self._upstream(dout, shape)
        g = rows = dout.reshape(x_hat.shape)
        if self.params:
            of_weight = self.normalized_shape
            self._grad("weight")[...] = np.sum(rows * x_hat, axis=0).reshape(of_weight)
            self._grad("bias")[...] = rows.sum(axis=0).reshape(of_weight)
            g = rows * self.params["weight"].reshape(-1)
        return self._through(g, x_hat, inv_std).reshape(dout.shape)

    def __repr__(self) -> str:
        return f"LayerNormModule({self.normalized_shape}, eps={self.eps})"


class GroupNormModule(_SampleNorm, takes_workspace=True):
    """Standardise each image over groups of its channels: ``torch.nn.GroupNorm``.

    Each of G groups of C/G channels has the mean and the variance of all its values, those of every
    pixel; scale and shift are a channel's.

    Args:
        num_groups: G; 1 takes all channels together, C each by itself (instance normalisation).
        num_channels: C.
        eps: added to the variance.
        affine: learn a weight and a bias for each channel.
        dtype: ``float32`` or ``float64``.

    Shapes: ``x``, ``y``, ``dout``, ``dx`` (N, C, ...); ``weight``, ``bias`` (C,).

    Raises:
        ValueError: a number is not positive, or ``num_groups`` does not divide ``num_channels``.

    Source: Wu and He, *Group Normalization*, ECCV 2018.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: DTypeLike = np.float64,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups must divide num_channels={num_channels!r}, got {num_groups!r}"
            )
        self.num_groups, self.num_channels, self.eps = int(num_groups), int(num_channels), eps
        self._make_parameters((self.num_channels,), affine, dtype)

    def forward(self, x: Array) -> Array:
        """Return ``weight · x_hat + bias``, the shape of ``x``."""
        x = self._real(x)
        assert x.ndim >= 2 and x.shape[1] == self.num_channels, (
            f"GroupNormModule.forward: x has shape {x.shape}, expected "
            f"(N, {self.num_channels}, ...)"
        )
        size = math.prod(x.shape[1:]) // self.num_groups
        x_hat, inv_std = self._standardise(x.reshape(len(x), self.num_groups, size))
        self._remember(x_hat, inv_std, x.shape)
        y: Array = x_hat.reshape(x.shape)
        if self.params:
            weight, bias = (self._of_channels(self.params[k], x.ndim) for k in ("weight", "bias"))
            y = y * weight + bias
        return y

    def backward(self, dout: Array) -> Array:
        """Store ∂L/∂weight = Σ δ · x_hat and ∂L/∂bias = Σ δ, over images and pixels; return dx."""
        x_hat, inv_std, shape = self._recall()
        g = dout = self._upstream(dout, shape)
        if self.params:
            others = (0, *range(2, dout.ndim))
            self._grad("weight")[...] = np.sum(dout * x_hat.reshape(dout.shape), axis=others)
            self._grad("bias")[...] = dout.sum(axis=others)
            g = dout * self._of_channels(self.params["weight"], dout.ndim)
        return self._through(g.reshape(x_hat.shape), x_hat, inv_std).reshape(dout.shape)

    @staticmethod
    def _of_channels(values: Array, ndim: int) -> Array:
        """Return (C,) as (C, 1, ...), which broadcasts along the pixels."""
        return values.reshape(-1, *[1] * (ndim - 2))

    def __repr__(self) -> str:
        return f"GroupNormModule({self.num_groups}, {self.num_channels}, eps={self.eps})"
