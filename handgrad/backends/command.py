"""The training commands, one a network."""

from __future__ import annotations

from collections.abc import Sequence

from handgrad.backends.registry import NETWORKS
from handgrad.console import guarded
from handgrad.runs.command_line import parse_command_line
from handgrad.runs.run import run


def train(name: str, argv: Sequence[str] | None = None) -> int:
    """Run the training command of a network and return its exit status."""

    def main() -> int:
        network = NETWORKS[name]
        command = parse_command_line(
            network.settings, network.presets, network.about, network.command, argv
        )
        return run(command, network.backend())

    return guarded(main)


def train_mlp_numpy(argv: Sequence[str] | None = None) -> int:
    """Run ``train-mlp-numpy``."""
    return train("mlp-numpy", argv)


def train_convnet_numpy(argv: Sequence[str] | None = None) -> int:
    """Run ``train-convnet-numpy``."""
    return train("convnet-numpy", argv)


def train_mlp_pytorch(argv: Sequence[str] | None = None) -> int:
    """Run ``train-mlp-pytorch``."""
    return train("mlp-pytorch", argv)


def train_convnet(argv: Sequence[str] | None = None) -> int:
    """Run ``train-convnet``."""
    return train("convnet", argv)
