"""Normalisation layers in PyTorch, each twice: backward by autograd, and backward by hand.

Start reading at :mod:`custom_modules.custom_batchnorm`.
"""

from custom_modules.custom_batchnorm import (
    CustomBatchNormAutograd,
    CustomBatchNormManualFunction,
    CustomBatchNormManualModule,
)
from custom_modules.custom_layernorm import (
    CustomLayerNormAutograd,
    CustomLayerNormManualFunction,
    CustomLayerNormManualModule,
)

__all__ = [
    "CustomBatchNormAutograd",
    "CustomBatchNormManualFunction",
    "CustomBatchNormManualModule",
    "CustomLayerNormAutograd",
    "CustomLayerNormManualFunction",
    "CustomLayerNormManualModule",
]
