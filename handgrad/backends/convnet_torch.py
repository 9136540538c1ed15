"""Convolutional networks in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from handgrad.backends.common import check_last_batch_of, fast_network
from handgrad.backends.mlp_torch import WATCH_TEST
from handgrad.backends.torch_settings import TorchSettings
from handgrad.data import Dataset
from handgrad.errors import UserError
from handgrad.runs.declare import setting
from handgrad.runs.settings import Preset

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ConvNetSettings(TorchSettings):
    """Settings of the convolutional networks."""

    model: str = setting(
        "vgg",
        "architecture",
        choices=("vgg", "preact-resnet", "small-vgg", "vu-convnet", "vu-mlp", "fast"),
    )
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adam", "adamw", "muon"))

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        if self.optimizer == "muon" and self.model != "fast":
            raise UserError(f"--optimizer muon is for --model fast, not {self.model}")
        if self.norm != "builtin" and self.model == "vu-mlp":
            raise UserError(f"--norm {self.norm}: vu-mlp has no normalisation")


PRESETS = {
    "uva-2018": Preset(
        f"{WATCH_TEST} --model vgg --optimizer adam --lr 1e-4 --max-steps 5000 --batch-size 32 "
        "--eval-every 500",
        "CIFAR-10, the small VGG of Amsterdam's assignment of 2018",
        "0.7482",
    ),
    "vu-mnist": Preset(
        "--dataset mnist --model vu-convnet --optimizer adam --lr 1e-4 --weight-decay 1e-4 "
        "--batch-size 32 --epochs 20",
        "MNIST, the convolutional network of Vrije Universiteit's assignment 2",
        "0.9926",
    ),
    # Found on the validation split of seed 0: network, augmentation, epochs.
    "best-mnist": Preset(
        "--dataset mnist --model small-vgg --augment crop --optimizer adamw --lr 2e-3 "
        "--weight-decay 1e-2 --schedule cosine --warmup-steps 200 --batch-size 128 --epochs 12",
        "MNIST, the best that was found: a small VGG on shifted images",
        "0.9968",
    ),
}


def build_model(
    settings: ConvNetSettings, image_shape: tuple[int, ...], n_classes: int
) -> nn.Module:
    """Return the network for ``settings``, sized for the images (C, H, W)."""
    from handgrad.backends.torch_common import norm_layer
    from torch_models.registry import MODELS

    channels, height, width = image_shape
    norm = norm_layer(settings.norm, 2)
    return MODELS[settings.model]((channels, height, width), n_classes, norm)


def make_model(settings: ConvNetSettings, dataset: Dataset, n_processes: int = 1) -> nn.Module:
    """Return the network, unless its last batch could not be normalised.

    The fast one begins as the NumPy one does.
    """
    from handgrad.backends.torch_common import begin_as

    check_last_batch_of(
        settings.model, dataset.image_shape, settings.batch_size, len(dataset.train), n_processes
    )
    if settings.model != "fast":
        return build_model(settings, dataset.image_shape, dataset.n_classes)
    twin = fast_network(settings, dataset, np.float64)
    model = build_model(settings, dataset.image_shape, dataset.n_classes)
    if settings.precision == "float64":
        model = model.double()
    begin_as(model, twin.params)
    return model
