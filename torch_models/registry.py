"""The networks by name, each sized for the dataset."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from torch_models.convnet import ConvNet, Norm, PreActResNet, SmallVGG
from torch_models.fast import FastConvNet
from torch_models.vu_mnist import VUMLP, VUConvNet

Shape = tuple[int, int, int]

# Each makes a network from the image shape (C, H, W), the number of classes and a normalisation.
MODELS: dict[str, Callable[[Shape, int, Norm], nn.Module]] = {
    "vgg": lambda shape, n_classes, norm: ConvNet(shape[0], n_classes, norm=norm),
    "preact-resnet": lambda shape, n_classes, norm: PreActResNet(shape[0], n_classes, norm=norm),
    "small-vgg": lambda shape, n_classes, norm: SmallVGG(shape[0], n_classes, shape[1], norm=norm),
    "vu-convnet": lambda shape, n_classes, norm: VUConvNet(
        shape[0], n_classes, shape[1], norm=norm
    ),
    "fast": lambda shape, n_classes, norm: FastConvNet(shape[0], n_classes, shape[1], norm=norm),
    "vu-mlp": lambda shape, n_classes, norm: VUMLP(math.prod(shape), n_classes),
}
