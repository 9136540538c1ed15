"""Elementwise activations: ReLU, LeakyReLU, ELU, sigmoid, tanh.

All are ``y[i] = f(x[i])``, so the Jacobian is diagonal and backward is one product:

    ∂L/∂x[i] = ∂L/∂y[i] · f'(x[i])                             ⇒   dx = dout * f'(x)

They differ in f' and in what they keep to compute it. Where f' can be written through y = f(x),
the output is kept rather than the input: the next layer holds it already, so it costs nothing.
Shapes: any; ``x``, ``y``, ``dout`` and ``dx`` have the same.
"""

from __future__ import annotations

import numpy as np

from numpy_mlp.modules.module import Array, Module


class ReLUModule(Module, takes_workspace=True):
    """Rectified linear unit: ``y = max(x, 0)``.

    At the kink, x = 0, the derivative is taken as 0, as PyTorch does.
    Source: Nair and Hinton, *Rectified Linear Units Improve RBMs*, ICML 2010.
    """

    def forward(self, x: Array) -> Array:
        """Return ``max(x, 0)``."""
        x = self._real(x)
        # One byte an entry, and nobody else holds it: no later change of x or y can spoil it.
        self._remember(np.greater(x, 0, out=self._new("positive", x.shape, bool)))
        y: Array = np.maximum(x, 0, out=self._over("y", x))
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: f'(x) = 1 where x > 0, else 0  ⇒  dx = dout * (x > 0)."""
        (positive,) = self._recall()
        dout = self._upstream(dout, positive.shape)
        dx: Array = np.multiply(dout, positive, out=self._over("dx", dout))
        return dx


class LeakyReLUModule(Module, takes_workspace=True):
    """ReLU with a slope below zero: ``y = x if x > 0 else neg_slope · x``.

    Args:
        neg_slope: the slope for x ≤ 0.

    Source: Maas et al., *Rectifier Nonlinearities Improve Neural Network Acoustic Models*, 2013.
    """

    def __init__(self, neg_slope: float = 0.01) -> None:
        super().__init__()
        self.neg_slope = neg_slope

    def forward(self, x: Array) -> Array:
        """Return ``x`` where positive, ``neg_slope · x`` elsewhere."""
        x = self._real(x)
        slope = self._new("slope", x.shape, np.result_type(x, 0.0))
        slope[...] = self.neg_slope
        np.copyto(slope, 1, where=x > 0)
        self._remember(slope)
        y: Array = np.multiply(x, slope, out=self._over("y", x))
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: f'(x) = 1 where x > 0, else neg_slope."""
        (slope,) = self._recall()
        dout = self._upstream(dout, slope.shape)
        dx: Array = np.multiply(dout, slope, out=self._over("dx", dout, slope))
        return dx

    def __repr__(self) -> str:
        return f"LeakyReLUModule(neg_slope={self.neg_slope})"


class ELUModule(Module, takes_workspace=True):
    """Exponential linear unit: ``y = x if x > 0 else alpha · (exp(x) - 1)``.

    Args:
        alpha: the value approached, negated, for x → -∞; not negative.

    Raises:
        ValueError: ``alpha`` is negative (the sign of y would no longer tell that of x).

    Source: Clevert et al., *Fast and Accurate Deep Network Learning by ELUs*, ICLR 2016.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"alpha must be >= 0, got {alpha!r}")
        self.alpha = alpha

    def forward(self, x: Array) -> Array:
        """Return ``x`` where positive, ``alpha · (exp(x) - 1)`` elsewhere."""
        x = self._real(x)
        # exp sees only x <= 0, so that it cannot overflow on the branch that is thrown away.
        y: Array = np.minimum(x, 0, out=self._new("y", x.shape, np.result_type(x, 0.0)))
        np.expm1(y, out=y)
        y *= self.alpha
        np.copyto(y, x, where=x > 0)
        self._remember(y)
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x.

        For x > 0, f'(x) = 1. For x ≤ 0, f'(x) = alpha · exp(x), and as y = alpha · exp(x) - alpha:

            f'(x) = y + alpha                                  ⇒   dx = dout * (y + alpha)
        """
        (y,) = self._recall()
        dout = self._upstream(dout, y.shape)
        dx: Array = np.add(y, self.alpha, out=self._new("dx", y.shape, np.result_type(y, dout)))
        np.copyto(dx, 1, where=y > 0)  # f'(x), so far
        dx *= dout
        return dx

    def __repr__(self) -> str:
        return f"ELUModule(alpha={self.alpha})"


class SigmoidModule(Module, takes_workspace=True):
    """Logistic function: ``y = 1 / (1 + exp(-x))``."""

    def forward(self, x: Array) -> Array:
        """Return σ(x), exact to rounding for every x."""
        x = self._real(x)
        # exp(-|x|) cannot overflow, and σ(x) = e/(1+e) for x < 0 keeps the digits of tiny values.
        e = np.abs(x, out=self._new("e", x.shape, np.result_type(x, 0.0)))
        np.exp(np.negative(e, out=e), out=e)
        not_negative = x >= 0
        y: Array = np.add(e, 1, out=self._over("y", x))
        np.copyto(e, 1, where=not_negative)
        np.divide(e, y, out=y)
        self._remember(y)
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: σ'(x) = σ(x) (1 - σ(x))  ⇒  dx = dout * y * (1 - y)."""
        (y,) = self._recall()
        dout = self._upstream(dout, y.shape)
        dx: Array = np.subtract(1, y, out=self._new("dx", y.shape, np.result_type(y, dout)))
        dx *= y
        dx *= dout
        return dx


class TanhModule(Module, takes_workspace=True):
    """Hyperbolic tangent: ``y = tanh(x)``."""

    def forward(self, x: Array) -> Array:
        """Return tanh(x)."""
        x = self._real(x)
        y: Array = np.tanh(x, out=self._over("y", x))
        self._remember(y)
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: tanh'(x) = 1 - tanh²(x)  ⇒  dx = dout * (1 - y²)."""
        (y,) = self._recall()
        dout = self._upstream(dout, y.shape)
        dx: Array = np.multiply(y, y, out=self._new("dx", y.shape, np.result_type(y, dout)))
        np.subtract(1, dx, out=dx)
        dx *= dout
        return dx
