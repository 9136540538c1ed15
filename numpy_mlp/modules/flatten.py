"""Flattening: whatever a sample is, as one row."""

from __future__ import annotations

import math

import numpy as np

from numpy_mlp.modules.module import Array, Module


class FlattenModule(Module, takes_workspace=True):
    """Each sample as a row, in C order: ``y[n] = x[n].ravel()``.

    Shapes: ``x`` and ``dx`` (N, ...), of at least two dimensions; ``y`` and ``dout`` (N, D), where
    D is the product of the other lengths of x.

    Example:
        >>> FlattenModule().forward(np.ones((5, 3, 8, 8))).shape
        (5, 192)
    """

    def forward(self, x: Array) -> Array:
        """Return the rows, (N, ...) -> (N, D)."""
        x = np.asarray(x)  # of any type, which the first layer converts
        assert x.ndim >= 2, f"FlattenModule.forward: x has shape {x.shape}, expected (N, ...)"
        self._remember(x.shape)
        return self._reshaped(x, (len(x), math.prod(x.shape[1:])))

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: each entry of x is one of y, and has its gradient  ⇒  dx is dout, reshaped.

        Entry by entry: y[n,d] = x[n,i,j,…] for the one d that (i, j, …) is counted as, so that
        ∂L/∂x[n,i,j,…] = δ[n,d].
        """
        (shape,) = self._recall()
        dout = self._upstream(dout, (shape[0], math.prod(shape[1:])))
        return self._reshaped(dout, shape)

    def _reshaped(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Return ``x`` in another shape; a view within a step, the caller's to keep outside."""
        reshaped = x.reshape(shape)
        return reshaped.copy() if self.workspace is None else reshaped
