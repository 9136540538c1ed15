"""Neural networks whose backward pass is written by hand and proven.

    import handgrad

    run = handgrad.train("mlp-numpy", dataset="digits", hidden_dims=(64,), epochs=10)
    images = handgrad.load_dataset("digits").test.images       # (N, C, H, W), uint8
    run.predict(images)                                        # classes (N,)

What a name needs is imported when the name is first used: ``import handgrad`` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from handgrad.version import __version__

__all__ = [
    "Observer",
    "__version__",
    "check_gradients",
    "load_dataset",
    "load_run",
    "train",
]

if TYPE_CHECKING:
    from handgrad.api import load_run as load_run
    from handgrad.api import train as train
    from handgrad.checker.interface import check_gradients as check_gradients
    from handgrad.data import load_dataset as load_dataset
    from handgrad.training.observers import Observer as Observer

# Where the public names are.
_HOMES = {
    "Observer": "handgrad.training.observers",
    "check_gradients": "handgrad.checker.interface",
    "load_dataset": "handgrad.data",
    "load_run": "handgrad.api",
    "train": "handgrad.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
