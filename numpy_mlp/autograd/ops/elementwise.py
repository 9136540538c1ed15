"""Ops that take their inputs element by element, broadcast as NumPy does it."""

from __future__ import annotations

import numpy as np

from numpy_mlp.autograd.context import Context, needs
from numpy_mlp.autograd.core import Op
from numpy_mlp.autograd.gradients import Array
from numpy_mlp.autograd.ops.layers import apply_layer, recalled_layer
from numpy_mlp.modules import GELUModule

__all__ = [
    "ELU", "GELU", "Add", "Divide", "Exp", "Id", "LeakyReLU", "Log", "Multiply", "Power", "ReLU",
    "Sigmoid", "Sub", "Tanh",
]  # fmt: skip


class Add(Op, pure=True):
    """``a + b``; ∂L/∂a = go, ∂L/∂b = go."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        return np.asarray(a + b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, Array]:
        return go, go


class Sub(Op, pure=True):
    """``a - b``; ∂L/∂a = go, ∂L/∂b = -go."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        return np.asarray(a - b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, Array | None]:
        return go, -go if needs(context, 1) else None


class Multiply(Op, pure=True):
    """``a · b``, element by element; ∂L/∂a = go · b, ∂L/∂b = go · a."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        context["a"], context["b"] = a, b
        return np.asarray(a * b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array | None, Array | None]:
        a, b = context["a"], context["b"]
        return go * b if needs(context, 0) else None, go * a if needs(context, 1) else None


class Divide(Op, pure=True):
    """``a / b``, element by element; ∂L/∂a = go / b, ∂L/∂b = -go · a / b²."""

    @staticmethod
    def forward(context: Context, a: Array, b: Array) -> Array:
        context["a"], context["b"] = a, b
        return np.asarray(a / b)

    @staticmethod
    def backward(context: Context, go: Array) -> tuple[Array, Array | None]:
        a, b = context["a"], context["b"]
        da = go / b
        return da, -da * a / b if needs(context, 1) else None


class Power(Op, pure=True):
    """``x^p`` for a constant p; ∂L/∂x = go · p · x^(p-1)."""

    @staticmethod
    def forward(context: Context, x: Array, *, exponent: float) -> Array:
        context["x"], context["exponent"] = x, exponent
        return np.asarray(x**exponent)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        p = context["exponent"]
        if p == 0:
            return np.zeros_like(go)
        return np.asarray(go * p * context["x"] ** (p - 1))


class Log(Op, pure=True):
    """Natural logarithm; ∂L/∂x = go / x."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["x"] = x
        return np.asarray(np.log(x))

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go / context["x"])


class Exp(Op, pure=True):
    """``e^x``; ∂L/∂x = go · e^x."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["exp"] = np.asarray(np.exp(x))
        return np.asarray(context["exp"])

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * context["exp"])


class Id(Op, pure=True):
    """``x`` itself: another node for the same value; ∂L/∂x = go."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        return x

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return go


class Sigmoid(Op, pure=True):
    """``σ(x) = 1 / (1 + e^-x)``; ∂L/∂x = go · σ · (1 - σ)."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        # e^-|x| cannot overflow: σ(x) = 1 / (1 + e^-x) for x >= 0, e^x / (e^x + 1) below.
        e = np.exp(-np.abs(x))
        context["y"] = y = np.asarray(np.where(x >= 0, x.dtype.type(1), e) / (1 + e))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        y = context["y"]
        return np.asarray(go * (y * (1 - y)))


class Tanh(Op, pure=True):
    """``tanh(x)``; ∂L/∂x = go · (1 - tanh²)."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["y"] = y = np.asarray(np.tanh(x))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        y = context["y"]
        return np.asarray(go * (1 - y * y))


class ReLU(Op, pure=True):
    """``max(x, 0)``; ∂L/∂x = go where x > 0, 0 elsewhere."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["y"] = y = np.asarray(np.maximum(x, 0))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * (context["y"] > 0))


class LeakyReLU(Op, pure=True):
    """x where x > 0, ``slope``·x elsewhere; ∂L/∂x = go · (1 or ``slope``)."""

    @staticmethod
    def forward(context: Context, x: Array, *, slope: float = 0.01) -> Array:
        context["factor"] = factor = np.where(x > 0, x.dtype.type(1), x.dtype.type(slope))
        return np.asarray(x * factor)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * context["factor"])


class ELU(Op, pure=True):
    """x where x > 0, e^x - 1 elsewhere; ∂L/∂x = go · (1, or y + 1 = e^x)."""

    @staticmethod
    def forward(context: Context, x: Array) -> Array:
        context["y"] = y = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        return y

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return np.asarray(go * np.minimum(context["y"] + 1, 1))


class GELU(Op, pure=True):
    """``x Φ(x)``, as :class:`numpy_mlp.modules.GELUModule` computes it and its derivative.

    ∂L/∂x = go · (Φ(x) + x φ(x)); ``approximate`` is that class's argument.
    """

    @staticmethod
    def forward(context: Context, x: Array, *, approximate: str = "none") -> Array:
        return apply_layer(context, GELUModule(approximate), x)

    @staticmethod
    def backward(context: Context, go: Array) -> Array:
        return recalled_layer(context).backward(go)
