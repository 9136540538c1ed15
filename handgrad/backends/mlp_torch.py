"""Train the multi-layer perceptron in PyTorch, on the same loader and the same loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from handgrad.backends.common import build_mlp, check_last_batch
from handgrad.backends.presets import TORCH_MLP_PRESETS
from handgrad.console import guarded, requires_torch
from handgrad.data import Dataset
from handgrad.data.preprocess import Preprocessing
from handgrad.runs.command_line import TorchMLPSettings, parse_command_line
from handgrad.runs.run import run

if TYPE_CHECKING:
    from torch import nn


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


def begin_as_in_numpy(model: nn.Module, settings: TorchMLPSettings, dataset: Dataset) -> None:
    """Give ``model`` the initial weights that the NumPy network has for the same seed."""
    import torch

    twin = build_mlp(settings, dataset.image_shape, dataset.n_classes, np.float64)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear):  # normalisation begins as 1 and 0 in both
                layer.weight.copy_(torch.from_numpy(twin.params[f"{name}.weight"]))
                layer.bias.copy_(torch.from_numpy(twin.params[f"{name}.bias"]))


def make_model(settings: TorchMLPSettings, dataset: Dataset) -> nn.Module:
    """Return the network in the precision of ``settings``, beginning as the NumPy one does."""
    model = build_model(settings, dataset.image_shape, dataset.n_classes)
    if settings.precision == "float64":
        model = model.double()
    begin_as_in_numpy(model, settings, dataset)
    return model


def load_run(folder: str | Path) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """Return the trained network of a run, what turns pixels into its inputs, and the class names.

    ``model(torch.from_numpy(preprocessing(images)))`` are the logits of uint8 images (N, C, H, W).

    Args:
        folder: of a finished run of this command.

    Raises:
        DataError: ``model.safetensors`` is missing or damaged.
    """
    from handgrad.backends.torch_common import load_torch_run

    return load_torch_run(Path(folder), TorchMLPSettings, build_model)


def _main(argv: Sequence[str] | None) -> int:
    command = parse_command_line(
        TorchMLPSettings, TORCH_MLP_PRESETS, __doc__ or "", "train-mlp-pytorch", argv
    )
    # Only now: --help and a mistyped option need not wait for PyTorch, nor have it.
    requires_torch()
    from handgrad.backends.torch_common import torch_backend, torch_team

    with torch_team() as team:

        def checked_model(settings: TorchMLPSettings, dataset: Dataset) -> nn.Module:
            if settings.batch_norm:
                check_last_batch(settings.batch_size, len(dataset.train), team.size if team else 1)
            return make_model(settings, dataset)

        return run(command, torch_backend("mlp-pytorch", checked_model, images=False, team=team))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
