"""The command ``handgrad``: all commands as subcommands, grouped."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from handgrad.console import command
from handgrad.errors import UserError
from handgrad.version import __version__

# Group -> subcommand -> where it is, and what it does.
_COMMANDS = {
    "train": {
        "train-mlp-numpy": (
            "handgrad.backends.command:train_mlp_numpy",
            "a multi-layer perceptron in NumPy, by hand",
        ),
        "train-convnet-numpy": (
            "handgrad.backends.command:train_convnet_numpy",
            "convolutional networks in NumPy, by hand",
        ),
        "train-mlp-pytorch": (
            "handgrad.backends.command:train_mlp_pytorch",
            "the same perceptron in PyTorch",
        ),
        "train-convnet": (
            "handgrad.backends.command:train_convnet",
            "convolutional networks in PyTorch",
        ),
    },
    "prove": {
        "check-gradients": (
            "handgrad.checker.command:main",
            "check backward passes, and say what is wrong with them",
        ),
        "compare-engines": (
            "handgrad.lockstep.command:main",
            "train on several engines in lockstep",
        ),
    },
    "look back": {
        "plot-runs": ("handgrad.plot_runs:main", "lay runs over one another"),
        "reproduce": (
            "handgrad.reproduction.command:main",
            "run the results of the courses' reports again",
        ),
        "benchmark": ("handgrad.benchmark.command:main", "measure what things cost"),
    },
}


def _help() -> str:
    width = max(len(name) for group in _COMMANDS.values() for name in group) + 2
    lines = [
        "usage: handgrad [-h] [--version] COMMAND ...",
        "",
        "Neural networks whose backward pass is written by hand and proven.",
    ]
    for title, group in _COMMANDS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}{about}" for name, (_, about) in group.items()]
    lines += ["", "handgrad COMMAND --help says what a command can be told."]
    return "\n".join(lines)


@command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"handgrad {__version__}")
        return 0
    homes = {name: home for group in _COMMANDS.values() for name, (home, _) in group.items()}
    name = argv[0].replace("_", "-")
    if name not in homes:
        close = difflib.get_close_matches(name, homes, n=1)
        hint = f"did you mean {close[0]}?" if close else "handgrad --help lists them all"
        raise UserError(f"unknown command {argv[0]!r}; {hint}")
    module, _, function = homes[name].partition(":")
    status: int = getattr(importlib.import_module(module), function)(argv[1:])
    return status
