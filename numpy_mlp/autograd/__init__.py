"""A computation graph that differentiates what is computed with it, in NumPy.

>>> import numpy_mlp.autograd as vg
>>> a, b = vg.TensorNode(2.0), vg.TensorNode(3.0)
>>> loss = a * b + a
>>> loss.backward()
>>> float(a.grad), float(b.grad)
(4.0, 2.0)
"""

from numpy_mlp.autograd import graph
from numpy_mlp.autograd.core import ClearedGraphError, Module, Op, OpNode, TensorNode, no_grad
from numpy_mlp.autograd.data import load_mnist, load_synth
from numpy_mlp.autograd.functions import (
    celoss,
    elu,
    leaky_relu,
    logceloss,
    logsoftmax,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from numpy_mlp.autograd.modules import MLP, Linear
from numpy_mlp.autograd.ops import (
    ELU,
    Add,
    BatchMM,
    Concatenate,
    Divide,
    Exp,
    Expand,
    Id,
    LeakyReLU,
    Log,
    MatrixMultiply,
    Multiply,
    Normalize,
    Power,
    ReLU,
    Reshape,
    RowMax,
    RowSum,
    Select,
    Sigmoid,
    Slice,
    SoftmaxCrossEntropy,
    Squeeze,
    Sub,
    Sum,
    Tanh,
    Transpose,
    Unsqueeze,
)

__all__ = [
    "ELU", "MLP", "Add", "BatchMM", "ClearedGraphError", "Concatenate", "Divide", "Exp", "Expand",
    "Id", "LeakyReLU", "Linear", "Log", "MatrixMultiply", "Module", "Multiply", "Normalize", "Op",
    "OpNode", "Power", "ReLU", "Reshape", "RowMax", "RowSum", "Select", "Sigmoid", "Slice",
    "SoftmaxCrossEntropy", "Squeeze", "Sub", "Sum", "Tanh", "TensorNode", "Transpose",
    "Unsqueeze", "celoss", "elu",
    "graph", "leaky_relu", "load_mnist", "load_synth", "logceloss", "logsoftmax", "no_grad",
    "relu", "sigmoid", "softmax", "tanh",
]  # fmt: skip
