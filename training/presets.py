"""Named settings: the courses' own, and the best that were found on a validation split."""

from __future__ import annotations

from typing import Any

MLP_PRESETS: dict[str, dict[str, Any]] = {
    # University of Amsterdam, assignment 1 of 2018: its defaults, and its habit of watching the
    # test set while training. No validation split: all 50,000 images are trained on.
    "uva-2018": {
        "dataset": "cifar10",
        "hidden_dims": (100,),
        "lr": 2e-3,
        "max_steps": 1500,
        "batch_size": 200,
        "eval_every": 100,
        "eval_splits": ("test",),
        "validation_size": 0.0,
        "weight_std": 1e-4,
        "preprocess": "mean-image",
    },
    # The best of a search on the validation split of seed 0: widths, dropout, weight decay, epochs.
    "best": {
        "dataset": "cifar10",
        "hidden_dims": (1024, 512, 256),
        "batch_norm": True,
        "dropout": 0.1,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 3e-3,
        "schedule": "cosine",
        "batch_size": 256,
        "epochs": 20,
    },
    "mnist": {
        "dataset": "mnist",
        "hidden_dims": (512, 256),
        "batch_norm": True,
        "dropout": 0.3,
        "lr": 0.1,
        "momentum": 0.9,
        "schedule": "cosine",
        "epochs": 15,
    },
}
