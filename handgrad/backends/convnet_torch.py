"""Train a convolutional network in PyTorch, on the same loader and the same loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handgrad.backends.common import check_last_batch
from handgrad.backends.presets import CONVNET_PRESETS
from handgrad.console import guarded, requires_torch
from handgrad.data import Dataset
from handgrad.data.preprocess import Preprocessing
from handgrad.runs.command_line import ConvNetSettings, parse_command_line
from handgrad.runs.run import run

if TYPE_CHECKING:
    from torch import nn


def build_model(
    settings: ConvNetSettings, image_shape: tuple[int, ...], n_classes: int
) -> nn.Module:
    """Return the network for ``settings``, sized for the images (C, H, W)."""
    from handgrad.backends.torch_common import norm_layer
    from torch_models.registry import MODELS

    channels, height, width = image_shape
    norm = norm_layer(settings.norm, 2)
    return MODELS[settings.model]((channels, height, width), n_classes, norm)


def load_run(folder: str | Path) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """Return the trained network of a run, what turns pixels into its inputs, and the class names.

    ``model(torch.from_numpy(preprocessing(images)))`` are the logits of uint8 images (N, C, H, W).

    Args:
        folder: of a finished run of this command.

    Raises:
        DataError: ``model.safetensors`` is missing or damaged.
    """
    from handgrad.backends.torch_common import load_torch_run

    return load_torch_run(Path(folder), ConvNetSettings, build_model)


def _main(argv: Sequence[str] | None) -> int:
    command = parse_command_line(
        ConvNetSettings, CONVNET_PRESETS, __doc__ or "", "train-convnet", argv
    )
    # Only now: --help and a mistyped option need not wait for PyTorch, nor have it.
    requires_torch()
    from handgrad.backends.torch_common import torch_backend, torch_team

    with torch_team() as team:

        def make_model(settings: ConvNetSettings, dataset: Dataset) -> nn.Module:
            # Networks that normalise a single value a channel, at the end.
            small_images = dataset.image_shape[1] <= 16
            if settings.model == "preact-resnet" or (settings.model == "vgg" and small_images):
                check_last_batch(settings.batch_size, len(dataset.train), team.size if team else 1)
            return build_model(settings, dataset.image_shape, dataset.n_classes)

        return run(command, torch_backend("convnet", make_model, images=True, team=team))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
