"""Elementwise activations: ReLU, LeakyReLU, ELU, GELU, SiLU, sigmoid, tanh.

All are ``y[i] = f(x[i])``, so the Jacobian is diagonal and backward is one product:

    ∂L/∂x[i] = ∂L/∂y[i] · f'(x[i])                             ⇒   dx = dout * f'(x)

They differ in f' and in what they keep to compute it. Where f' can be written through y = f(x),
the output is kept rather than the input: the next layer holds it already, so it costs nothing.
Shapes: any; ``x``, ``y``, ``dout`` and ``dx`` have the same.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from numpy_mlp.modules.module import Array, Module
from numpy_mlp.parallel import PIECE, elementwise


class ReLUModule(Module, takes_workspace=True):
    """Rectified linear unit: ``y = max(x, 0)``.

    At the kink, x = 0, the derivative is taken as 0, as PyTorch does.
    Source: Nair and Hinton, *Rectified Linear Units Improve RBMs*, ICML 2010.
    """

    def forward(self, x: Array) -> Array:
        """Return ``max(x, 0)``."""
        x = self._real(x)
        # One byte an entry, and nobody else holds it: no later change of x or y can spoil it.
        positive, y = self._like("positive", x, bool), self._over("y", x)
        elementwise(_rectify, x, positive, y)
        self._remember(positive)
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: f'(x) = 1 where x > 0, else 0  ⇒  dx = dout * (x > 0)."""
        (positive,) = self._recall()
        dout = self._upstream(dout, positive.shape)
        dx = self._over("dx", dout)
        elementwise(_multiply, dout, positive, dx)
        return dx


def _rectify(x: Array, positive: Array, y: Array) -> None:
    np.greater(x, 0, out=positive)
    # NumPy has vector instructions for the maximum of two arrays, none for that with a number.
    whole = x.ndim != 1 or x.size > PIECE
    np.maximum(x, 0 if whole else _zeros(x.dtype)[: x.size], out=y)


@cache
def _zeros(dtype: Any) -> Array:
    return np.zeros(PIECE, dtype)


def _multiply(a: Array, b: Array, product: Array) -> None:
    np.multiply(a, b, out=product)


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
        slope = self._like("slope", x)
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
        y: Array = np.minimum(x, 0, out=self._like("y", x))
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
        dx: Array = np.add(y, self.alpha, out=self._like("dx", y, np.result_type(y, dout)))
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
        e = np.abs(x, out=self._like("e", x))
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
        dx: Array = np.subtract(1, y, out=self._like("dx", y, np.result_type(y, dout)))
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
        dx: Array = np.multiply(y, y, out=self._like("dx", y, np.result_type(y, dout)))
        np.subtract(1, dx, out=dx)
        dx *= dout
        return dx


class _SlopeModule(Module):
    """An activation whose derivative is cheapest to compute beside it, and is what is kept."""

    def forward(self, x: Array) -> Array:
        """Return f(x)."""
        x = self._real(x)
        slope = self._like("slope", x) if self.training else None
        y = self._over("y", x)
        with np.errstate(over="ignore"):  # of an exponential far from 0, whose limit is what counts
            if slope is None:
                elementwise(lambda x, y: self._compute(x, y, None), x, y)
            else:
                elementwise(self._compute, x, y, slope)
        self._remember(slope)
        return y

    def _compute(self, x: Array, y: Array, slope: Array | None) -> None:
        """Write f(x) into ``y``, which may be ``x``, and f'(x) into ``slope``, if it is wanted."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x = δ · f'(x)."""
        (slope,) = self._recall()
        dout = self._upstream(dout, slope.shape)
        dx = self._over("dx", dout, slope)
        elementwise(_multiply, dout, slope, dx)
        return dx


class SiLUModule(_SlopeModule, takes_workspace=True):
    """Sigmoid-weighted linear unit, or swish: ``y = x σ(x)``.

    ``f'(x) = σ(x) (1 + x (1 - σ(x)))``.

    Source: Elfwing, Uchibe and Doya, *Sigmoid-weighted linear units*, 2017.
    """

    def _compute(self, x: Array, y: Array, slope: Array | None) -> None:
        σ = np.negative(x)
        np.exp(σ, out=σ)  # where it is inf, σ(x) is 0
        σ += 1
        np.divide(1, σ, out=σ)
        np.multiply(x, σ, out=y)
        if slope is not None:  # σ + y (1 - σ)
            np.subtract(1, σ, out=slope)
            slope *= y
            slope += σ


class GELUModule(_SlopeModule, takes_workspace=True):
    """Gaussian error linear unit: ``y = x Φ(x)``, with Φ the normal distribution function.

    ``Φ(x) = (1 + erf(x / √2)) / 2`` and ``f'(x) = Φ(x) + x φ(x)``, where φ(x) = exp(-x²/2) / √(2π).

    Args:
        approximate: ``"none"``, or ``"tanh"``, which is faster and off by at most 5e-4: Φ(x) ≈
            (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), so that f'(x) = (1 + tanh u) / 2 +
            x (1 - tanh² u) u' / 2. As in ``torch.nn.GELU``.

    Raises:
        ValueError: ``approximate`` is neither.

    Source: Hendrycks and Gimpel, *Gaussian Error Linear Units*, 2016.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def _compute(self, x: Array, y: Array, slope: Array | None) -> None:
        if self.approximate == "tanh":
            self._by_tanh(x, y, slope)
            return
        φ = np.multiply(x, x)
        φ *= -0.5
        np.exp(φ, out=φ)  # √(2π) times it
        Φ = _normal_cdf(x, φ)
        if slope is not None:
            np.multiply(x, φ, out=slope)
            slope *= 1 / math.sqrt(2 * math.pi)
            slope += Φ
        np.multiply(x, Φ, out=y)

    @staticmethod
    def _by_tanh(x: Array, y: Array, slope: Array | None) -> None:
        a, b = math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi)
        square = x * x
        t = square * b
        t += a
        t *= x  # u
        np.tanh(t, out=t)
        half = 0.5 * t
        half += 0.5  # (1 + tanh u) / 2
        np.multiply(x, half, out=y)
        if slope is not None:  # half + y (1 - tanh u) u', since (1 - t²)/2 = half (1 - t)
            square *= 3 * b
            square += a  # u'
            np.subtract(1, t, out=slope)
            slope *= square
            slope *= y
            slope += half

    def __repr__(self) -> str:
        return f"GELUModule(approximate={self.approximate!r})"


def _normal_cdf(x: Array, gauss: Array) -> Array:
    """Return Φ(x), given exp(-x²/2).

    1 - Φ(z) = exp(-z²/2) q(t) for z ≥ 0, with q smooth in t = 2 / (2 + z): a polynomial.
    """
    z = np.abs(np.clip(x, -9, 9))  # Φ(-9) is 1e-19
    t = 2 / (2 + z)
    lowest = 2 / (2 + 9)
    t -= (1 + lowest) / 2
    t *= 2 / (1 - lowest)  # in [-1, 1]
    coefficients = _tail_polynomial(9 if x.dtype == np.float32 else 24)
    tail: Array = np.full_like(t, coefficients[-1])
    for c in coefficients[-2::-1]:
        tail *= t
        tail += c
    tail *= gauss
    # 1 - tail where x > 0, without a np.where, which takes as long as all of the above.
    rest = -2 * tail
    rest += 1
    rest *= x > 0
    tail += rest
    return tail


@cache
def _tail_polynomial(degree: int) -> list[float]:
    """Return the coefficients of q, by interpolation at Chebyshev's points."""
    lowest = 2 / (2 + 9)

    def q(s: Array) -> Any:
        z = 2 / ((1 + lowest) / 2 + s * (1 - lowest) / 2) - 2
        return np.array([math.erfc(v / math.sqrt(2)) * math.exp(v * v / 2) / 2 for v in z])

    chebyshev = np.polynomial.chebyshev
    found: list[float] = chebyshev.cheb2poly(chebyshev.chebinterpolate(q, degree)).tolist()
    return found
