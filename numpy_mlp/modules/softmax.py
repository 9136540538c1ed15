"""Softmax: scores to probabilities."""

from __future__ import annotations

import numpy as np

from numpy_mlp.modules.module import Array, Module, as_real, underflow_is_zero


@underflow_is_zero
def softmax(x: Array) -> Array:
    """Return ``exp(x[n,c]) / Σ_k exp(x[n,k])``, (N, C) -> (N, C).

    Subtracting the row's maximum m changes nothing, since exp(x - m) = exp(x) / exp(m) and exp(m)
    cancels; but the largest exponent is then 0 and the sum at least 1, so that neither overflow
    nor 0/0 can happen (Goodfellow et al., *Deep Learning*, 2016, section 4.1).
    """
    x = as_real(x, "softmax: x")
    y: Array = np.exp(x - x.max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    return y


class SoftMaxModule(Module, takes_workspace=True):
    """Softmax over each row: ``y[n,c] = exp(x[n,c]) / Σ_k exp(x[n,k])``.

    Shapes: ``x``, ``y``, ``dout``, ``dx`` all (N, C).
    """

    def forward(self, x: Array) -> Array:
        """Return the probabilities, (N, C) -> (N, C); each row sums to 1."""
        x = self._real(x)
        assert x.ndim == 2, f"SoftMaxModule.forward: x has shape {x.shape}, expected (N, C)"
        y = softmax(x)
        self._remember(y)
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x.

        Every output of a row depends on every input of it, ∂y[c]/∂x[k] = y[c] ([c = k] - y[k]),
        where [c = k] is 1 if c = k, else 0; so, with δ = ``dout``,

            ∂L/∂x[k] = Σ_c δ[c] y[c] ([c = k] - y[k])
                     = y[k] (δ[k] - Σ_c δ[c] y[c])         ⇒   dx = y * (dout - Σ_c dout*y)

        which never builds the (C, C) Jacobian.
        """
        (y,) = self._recall()
        dout = self._upstream(dout, y.shape)
        dx: Array = y * (dout - (dout * y).sum(axis=1, keepdims=True))
        return dx
