"""Functions put together from ops: each call adds its ops to the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numpy_mlp.autograd.core import TensorNode
from numpy_mlp.autograd.ops import (
    ELU,
    GELU,
    Exp,
    LeakyReLU,
    Log,
    Normalize,
    ReLU,
    Select,
    Sigmoid,
    Sum,
    Tanh,
)

Array = NDArray[Any]


def sigmoid(x: TensorNode) -> TensorNode:
    """Return ``1 / (1 + e^-x)``, element by element."""
    result: TensorNode = Sigmoid.do_forward(x)
    return result


def tanh(x: TensorNode) -> TensorNode:
    """Return the hyperbolic tangent, element by element."""
    result: TensorNode = Tanh.do_forward(x)
    return result


def relu(x: TensorNode) -> TensorNode:
    """Return ``max(x, 0)``, element by element."""
    result: TensorNode = ReLU.do_forward(x)
    return result


def leaky_relu(x: TensorNode, slope: float = 0.01) -> TensorNode:
    """Return x where it is positive, ``slope``·x elsewhere."""
    result: TensorNode = LeakyReLU.do_forward(x, slope=slope)
    return result


def elu(x: TensorNode) -> TensorNode:
    """Return x where it is positive, ``e^x - 1`` elsewhere."""
    result: TensorNode = ELU.do_forward(x)
    return result


def gelu(x: TensorNode, approximate: str = "none") -> TensorNode:
    """Return x times the normal distribution function of x, exactly or by ``"tanh"``."""
    result: TensorNode = GELU.do_forward(x, approximate=approximate)
    return result


def silu(x: TensorNode) -> TensorNode:
    """Return ``x / (1 + e^-x)``, element by element."""
    return x * sigmoid(x)


ACTIVATIONS: dict[str, Callable[[TensorNode], TensorNode]] = {
    "relu": relu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


def softmax(x: TensorNode) -> TensorNode:
    """Return ``e^x[n,c] / Σ_k e^x[n,k]``, (N, C) -> (N, C): each row sums to 1."""
    result: TensorNode = Normalize.do_forward(Exp.do_forward(_below_zero(x)))
    return result


def logsoftmax(x: TensorNode) -> TensorNode:
    """Return ``x[n,c] - log Σ_k e^x[n,k]``, (N, C) -> (N, C), without overflow."""
    x = _below_zero(x)
    log_of_sum: TensorNode = Log.do_forward(Exp.do_forward(x).sum(axis=1, keepdims=True))
    return x - log_of_sum


def _below_zero(x: TensorNode) -> TensorNode:
    """Return each row less its maximum, which softmax does not notice.

    Softmax is the same for x and for x + c, so that its derivative by c is 0: the maximum may stand
    as a constant.
    """
    return x - TensorNode(x.value.max(axis=1, keepdims=True), requires_grad=False)


def celoss(outputs: TensorNode, targets: Array) -> TensorNode:
    """Return the cross-entropy ``-Σ_n log p[n, t_n]``, a sum over the batch, in nats.

    Args:
        outputs: probabilities p (N, C), of :func:`softmax`, say. Where one may be very small,
            :func:`logsoftmax` with :func:`logceloss` is exact.
        targets: classes t (N,), integers, or (N, C) one-hot rows.
    """
    return logceloss(Log.do_forward(outputs), targets)


def logceloss(logprobs: TensorNode, targets: Array) -> TensorNode:
    """Return the cross-entropy ``-Σ_n log p[n, t_n]`` of logarithms of probabilities.

    Args:
        logprobs: log p (N, C), of :func:`logsoftmax`.
        targets: classes t (N,), integers, or (N, C) one-hot rows.
    """
    right: TensorNode = Select.do_forward(logprobs, indices=np.asarray(targets))
    total: TensorNode = Sum.do_forward(right)
    return total * -1.0
