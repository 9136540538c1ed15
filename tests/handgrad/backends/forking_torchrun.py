"""``torchrun`` of ``train-mlp-pytorch``, whose processes are forks of the one that starts them.

    python forking_torchrun.py OPTIONS OF TORCHRUN train_mlp_pytorch.py OPTIONS

PyTorch, whose import takes longer than the training, is imported once for all. The rest is
torchrun's own: how the processes find each other, are watched, replaced and ended.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch.distributed import run

from handgrad.backends.command import train_mlp_pytorch


def train(*argv: str) -> None:
    """Run the command in a process of its own, and end that with the status."""
    if status := train_mlp_pytorch(argv):
        sys.exit(status)


def forking(arguments: Any) -> tuple[Any, Any, list[str]]:
    config, _, words = config_from_args(arguments)
    assert words[0] == "-u" and words[1].endswith("train_mlp_pytorch.py"), words
    config.start_method = "fork"
    return config, train, words[2:]


importlib.import_module("torch._dynamo")  # optimizers do, and that takes as long again
config_from_args, run.config_from_args = run.config_from_args, forking

if __name__ == "__main__":
    run.main()
