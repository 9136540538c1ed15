"""The networks that can be trained: a row each, for the commands and for :func:`handgrad.train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handgrad.backends import convnet_numpy, convnet_torch, mlp_numpy, mlp_torch
from handgrad.console import requires_torch
from handgrad.runs.backend import Backend
from handgrad.runs.settings import Preset, TrainSettings


def _numpy_mlp() -> Backend[Any]:
    return mlp_numpy.NumpyMLPBackend()


def _numpy_convnet() -> Backend[Any]:
    return convnet_numpy.NumpyConvNetBackend()


def _torch_mlp() -> Backend[Any]:
    from handgrad.backends.torch_common import TorchBackend

    return TorchBackend("mlp-pytorch", mlp_torch.build_model, mlp_torch.make_model, images=False)


def _torch_convnet() -> Backend[Any]:
    from handgrad.backends.torch_common import TorchBackend

    return TorchBackend("convnet", convnet_torch.build_model, convnet_torch.make_model, images=True)


@dataclass(frozen=True)
class Network:
    """A network and the library that trains it.

    Attributes:
        name: of :func:`handgrad.train`; with ``train-`` before it, of the command.
        about: a sentence for ``--help``.
        settings: what it can be told.
        presets: named settings.
        needs_torch: whether PyTorch has to be there.
    """

    name: str
    about: str
    settings: type[TrainSettings]
    presets: Mapping[str, Preset]
    needs_torch: bool
    make_backend: Callable[[], Backend[Any]]

    @property
    def command(self) -> str:
        """The command's name."""
        return f"train-{self.name}"

    def backend(self) -> Backend[Any]:
        """Return what trains it; UserError where PyTorch is missing."""
        # Only now: --help and a mistyped option need not wait for PyTorch, nor have it.
        if self.needs_torch:
            requires_torch()
        return self.make_backend()


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "mlp-numpy",
            "Train a multi-layer perceptron whose backward pass is written by hand, in NumPy.",
            mlp_numpy.NumpyMLPSettings,
            mlp_numpy.PRESETS,
            False,
            _numpy_mlp,
        ),
        Network(
            "mlp-pytorch",
            "Train the multi-layer perceptron in PyTorch, on the same loader and the same loop.",
            mlp_torch.TorchMLPSettings,
            mlp_torch.PRESETS,
            True,
            _torch_mlp,
        ),
        Network(
            "convnet-numpy",
            "Train a convolutional network whose backward pass is written by hand, in NumPy.",
            convnet_numpy.NumpyConvNetSettings,
            convnet_numpy.PRESETS,
            False,
            _numpy_convnet,
        ),
        Network(
            "convnet",
            "Train a convolutional network in PyTorch, on the same loader and the same loop.",
            convnet_torch.ConvNetSettings,
            convnet_torch.PRESETS,
            True,
            _torch_convnet,
        ),
    )
}
