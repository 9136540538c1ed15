"""Train the multi-layer perceptron in PyTorch, on the same loader and the same loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scripts.common import check_last_batch
from training.cli import guarded, requires_torch
from training.config import TorchMLPSettings, parse_command_line
from training.data import Dataset
from training.presets import TORCH_MLP_PRESETS
from training.run import run

if TYPE_CHECKING:
    from torch import nn


def _main(argv: Sequence[str] | None) -> int:
    command = parse_command_line(
        TorchMLPSettings, TORCH_MLP_PRESETS, __doc__ or "", "train-mlp-pytorch", argv
    )
    # Only now: --help and a mistyped option need not wait for PyTorch, nor have it.
    requires_torch()
    from scripts.torch_backend import norm_layer, torch_backend, torch_team
    from torch_models.mlp import MLP

    with torch_team() as team:

        def make_model(settings: TorchMLPSettings, dataset: Dataset) -> nn.Module:
            if settings.batch_norm:
                check_last_batch(settings.batch_size, len(dataset.train), team.size if team else 1)
            return MLP(
                math.prod(dataset.image_shape),
                settings.hidden_dims,
                dataset.n_classes,
                settings.neg_slope,
                activation=settings.activation,
                dropout=settings.dropout,
                input_dropout=settings.input_dropout,
                norm=norm_layer(settings.norm, 1) if settings.batch_norm else None,
                weight_std=settings.weight_std,
            )

        return run(command, torch_backend("mlp-pytorch", make_model, images=False, team=team))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
