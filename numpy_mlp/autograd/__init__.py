"""A computation graph that differentiates what is computed with it, in NumPy.

>>> import numpy_mlp.autograd as vg
>>> a, b = vg.TensorNode(2.0), vg.TensorNode(3.0)
>>> loss = a * b + a
>>> loss.backward()
>>> float(a.grad), float(b.grad)
(4.0, 2.0)
"""

from numpy_mlp.autograd import graph, ops
from numpy_mlp.autograd.core import ClearedGraphError, Module, Op, OpNode, TensorNode, no_grad
from numpy_mlp.autograd.data import load_mnist, load_synth
from numpy_mlp.autograd.functions import (
    celoss,
    elu,
    gelu,
    leaky_relu,
    logceloss,
    logsoftmax,
    relu,
    sigmoid,
    silu,
    softmax,
    tanh,
)
from numpy_mlp.autograd.modules import MLP, Linear
from numpy_mlp.autograd.ops import *  # noqa: F403

__all__ = [
    *ops.__all__, "MLP", "ClearedGraphError", "Linear", "Module", "Op", "OpNode", "TensorNode",
    "celoss", "elu", "gelu", "graph", "leaky_relu", "load_mnist", "load_synth", "logceloss",
    "logsoftmax", "no_grad", "relu", "sigmoid", "silu", "softmax", "tanh",
]  # fmt: skip
