"""The training commands, one a network."""

from __future__ import annotations

from collections.abc import Sequence

from handgrad.backends.registry import NETWORKS
from handgrad.console import guarded
from handgrad.runs.command_line import parse_command_line
from handgrad.runs.run import run


def _train(name: str, argv: Sequence[str] | None) -> int:
    network = NETWORKS[name]
    command = parse_command_line(
        network.settings, network.presets, network.about, network.command, argv
    )
    return run(command, network.backend())


def train_mlp_numpy(argv: Sequence[str] | None = None) -> int:
    """Train the NumPy multi-layer perceptron and return the exit status."""
    return guarded(lambda: _train("mlp-numpy", argv))


def train_mlp_pytorch(argv: Sequence[str] | None = None) -> int:
    """Train the PyTorch multi-layer perceptron and return the exit status."""
    return guarded(lambda: _train("mlp-pytorch", argv))


def train_convnet(argv: Sequence[str] | None = None) -> int:
    """Train a convolutional network and return the exit status."""
    return guarded(lambda: _train("convnet", argv))
