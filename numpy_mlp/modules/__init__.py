"""The layers and losses, one family per file, each with its derivation beside its code.

At length, from indices to code, the derivations stand in docs/derivations.md.
"""

from numpy_mlp.modules.activations import (
    ELUModule,
    LeakyReLUModule,
    ReLUModule,
    SigmoidModule,
    TanhModule,
)
from numpy_mlp.modules.batchnorm import BatchNormModule
from numpy_mlp.modules.dropout import DropoutModule
from numpy_mlp.modules.flatten import FlattenModule
from numpy_mlp.modules.linear import LinearModule
from numpy_mlp.modules.losses import CrossEntropyModule, SoftMaxCrossEntropyModule
from numpy_mlp.modules.module import BackwardBeforeForwardError, Module
from numpy_mlp.modules.softmax import SoftMaxModule

__all__ = [
    "BackwardBeforeForwardError",
    "BatchNormModule",
    "CrossEntropyModule",
    "DropoutModule",
    "ELUModule",
    "FlattenModule",
    "LeakyReLUModule",
    "LinearModule",
    "Module",
    "ReLUModule",
    "SigmoidModule",
    "SoftMaxCrossEntropyModule",
    "SoftMaxModule",
    "TanhModule",
]
