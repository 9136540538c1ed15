"""The layers and losses, one family per file, each with its derivation beside its code.

At length, from indices to code, the derivations stand in docs/derivations.md.
"""

from numpy_mlp.modules.activations import (
    ELUModule,
    GELUModule,
    LeakyReLUModule,
    ReLUModule,
    SigmoidModule,
    SiLUModule,
    TanhModule,
)
from numpy_mlp.modules.batchnorm import BatchNorm2dModule, BatchNormModule
from numpy_mlp.modules.containers import ResidualModule, SequentialModule
from numpy_mlp.modules.convolution import Conv2dModule
from numpy_mlp.modules.dropout import DropoutModule
from numpy_mlp.modules.flatten import FlattenModule
from numpy_mlp.modules.linear import LinearModule
from numpy_mlp.modules.losses import CrossEntropyModule, SoftMaxCrossEntropyModule
from numpy_mlp.modules.module import BackwardBeforeForwardError, Module
from numpy_mlp.modules.normalization import GroupNormModule, LayerNormModule
from numpy_mlp.modules.pooling import AvgPool2dModule, GlobalAvgPoolModule, MaxPool2dModule
from numpy_mlp.modules.softmax import SoftMaxModule

__all__ = [
    "AvgPool2dModule",
    "BackwardBeforeForwardError",
    "BatchNorm2dModule",
    "BatchNormModule",
    "Conv2dModule",
    "CrossEntropyModule",
    "DropoutModule",
    "ELUModule",
    "FlattenModule",
    "GELUModule",
    "GlobalAvgPoolModule",
    "GroupNormModule",
    "LayerNormModule",
    "LeakyReLUModule",
    "LinearModule",
    "MaxPool2dModule",
    "Module",
    "ReLUModule",
    "ResidualModule",
    "SequentialModule",
    "SiLUModule",
    "SigmoidModule",
    "SoftMaxCrossEntropyModule",
    "SoftMaxModule",
    "TanhModule",
]
