"""Train a convolutional network in PyTorch, on the same loader and the same loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scripts.common import check_last_batch
from training.cli import guarded, requires_torch
from training.config import ConvNetSettings, parse_command_line
from training.data import Dataset
from training.presets import CONVNET_PRESETS
from training.run import run

if TYPE_CHECKING:
    from torch import nn


def _main(argv: Sequence[str] | None) -> int:
    command = parse_command_line(
        ConvNetSettings, CONVNET_PRESETS, __doc__ or "", "train-convnet", argv
    )
    # Only now: --help and a mistyped option need not wait for PyTorch, nor have it.
    requires_torch()
    from scripts.torch_backend import norm_layer, torch_backend, torch_team
    from torch_models.registry import MODELS

    with torch_team() as team:

        def make_model(settings: ConvNetSettings, dataset: Dataset) -> nn.Module:
            # Networks that normalise a single value a channel, at the end.
            small_images = dataset.image_shape[1] <= 16
            if settings.model == "preact-resnet" or (settings.model == "vgg" and small_images):
                check_last_batch(settings.batch_size, len(dataset.train), team.size if team else 1)
            return MODELS[settings.model](
                dataset.image_shape, dataset.n_classes, norm_layer(settings.norm, 2)
            )

        return run(command, torch_backend("convnet", make_model, images=True, team=team))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
