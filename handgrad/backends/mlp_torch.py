"""The multi-layer perceptron in PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from handgrad.backends import mlp_numpy
from handgrad.backends.common import check_last_batch
from handgrad.backends.mlp_numpy import UVA_2018, MLPSettings, build_mlp
from handgrad.backends.torch_settings import TorchSettings
from handgrad.data import Dataset
from handgrad.errors import UserError
from handgrad.runs.settings import Preset

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TorchMLPSettings(TorchSettings, MLPSettings):
    """Settings of the PyTorch multi-layer perceptron."""

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        if self.norm != "builtin" and not self.batch_norm:
            raise UserError(f"--norm {self.norm} is for a network with --batch-norm")


# As Amsterdam's course does: the test set is watched, nothing is held out.
WATCH_TEST = "--dataset cifar10 --eval-splits test --validation-size 0"
PRESETS = {
    "uva-2018": Preset(UVA_2018, mlp_numpy.PRESETS["uva-2018"].about, "0.4575"),
    "uva-report": Preset(
        f"{WATCH_TEST} --hidden-dims 200 200 100 --optimizer adam --lr 2e-4 --max-steps 3000 "
        "--batch-size 200 --eval-every 100",
        "CIFAR-10, 200-200-100, the best network of a student's report on that assignment",
        "0.5124",
    ),
    # Found on the validation split of seed 0, a tenth of the images: widths, depth, both kinds of
    # dropout, label smoothing, weight decay, epochs. Then trained on all of them.
    "best": Preset(
        "--dataset cifar10 --validation-size 0 --hidden-dims 3072 1536 768 --batch-norm "
        "--dropout 0.3 --input-dropout 0.3 --label-smoothing 0.1 --lr 0.1 --momentum 0.9 "
        "--nesterov --weight-decay 2e-3 --schedule cosine --warmup-steps 200 --batch-size 256 "
        "--epochs 24",
        "CIFAR-10, the best that was found: 3072-1536-768, trained on all images",
        "0.6037",
    ),
    "vu-mnist": Preset(
        "--dataset mnist --hidden-dims 4096 1024 128 --dropout 0.3 --lr 1e-3 --momentum 0.9 "
        "--weight-decay 1e-4 --batch-size 32 --epochs 20",
        "MNIST, 4096-1024-128, the MLP of Vrije Universiteit's assignment 2",
        "0.9825",
    ),
}


def build_model(
    settings: TorchMLPSettings, image_shape: tuple[int, ...], n_classes: int
) -> nn.Module:
    """Return the network for ``settings``."""
    from handgrad.backends.torch_common import norm_layer
    from torch_models.mlp import MLP

    return MLP(
        math.prod(image_shape),
        settings.hidden_dims,
        n_classes,
        settings.neg_slope,
        activation=settings.activation,
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        norm=norm_layer(settings.norm, 1) if settings.batch_norm else None,
        weight_std=settings.weight_std,
    )


def make_model(settings: TorchMLPSettings, dataset: Dataset, n_processes: int = 1) -> nn.Module:
    """Return the network in the precision of ``settings``, beginning as the NumPy one does."""
    from handgrad.backends.torch_common import begin_as

    if settings.batch_norm:
        check_last_batch(settings.batch_size, len(dataset.train), n_processes)
    model = build_model(settings, dataset.image_shape, dataset.n_classes)
    if settings.precision == "float64":
        model = model.double()
    twin = build_mlp(settings, dataset.image_shape, dataset.n_classes, np.float64)
    begin_as(model, twin.params)
    return model
