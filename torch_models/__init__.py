"""The networks in PyTorch, and the learner that trains them.

The augmentations of :mod:`torch_models.transforms` need torchvision too, and are imported from
there.
"""

from torch_models.convnet import ConvNet, PreActResNet, SmallVGG
from torch_models.device_loader import DeviceLoader
from torch_models.distributed import ProcessTeam
from torch_models.fast import FastConvNet
from torch_models.learner import TorchLearner
from torch_models.mlp import MLP
from torch_models.muon import Muon
from torch_models.registry import MODELS
from torch_models.vu_mnist import VUMLP, VUConvNet

__all__ = [
    "MLP",
    "MODELS",
    "VUMLP",
    "ConvNet",
    "DeviceLoader",
    "FastConvNet",
    "Muon",
    "PreActResNet",
    "ProcessTeam",
    "SmallVGG",
    "TorchLearner",
    "VUConvNet",
]
