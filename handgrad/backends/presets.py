"""Named settings: the courses' own, and the best that were found on a validation split."""

from __future__ import annotations

from typing import Any

Preset = dict[str, Any]

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

# Vrije Universiteit, assignment 2: MLPs on the graph engine. The last 5,000 training images
# validate.
_VU: Preset = {
    "dataset": "mnist",
    "engine": "graph",
    "validation_images": "last",
    "validation_size": 5000.0,
    "batch_size": 128,
    "epochs": 20,
}
MLP_PRESETS |= {
    "vu-sigmoid": {**_VU, "hidden_dims": (3136,), "activation": "sigmoid", "lr": 0.1},
    "vu-relu": {**_VU, "hidden_dims": (3136,), "lr": 0.1},
    "vu-momentum": {**_VU, "hidden_dims": (1568, 784, 392), "lr": 0.02, "momentum": 0.9},
    # Chosen on those validation images: widths, dropout, augmentation, epochs.
    "vu-best": {
        **_VU,
        "hidden_dims": (1024, 512),
        "input_dropout": 0.1,
        "dropout": 0.3,
        "augment": ("crop",),
        "lr": 0.05,
        "momentum": 0.9,
        "schedule": "cosine",
        "epochs": 40,
    },
}

_WATCH_TEST: Preset = {"dataset": "cifar10", "eval_splits": ("test",), "validation_size": 0.0}

TORCH_MLP_PRESETS: dict[str, Preset] = {
    "uva-2018": MLP_PRESETS["uva-2018"],
    # The best network of a student's report on that assignment.
    "uva-report": {
        **_WATCH_TEST,
        "hidden_dims": (200, 200, 100),
        "optimizer": "adam",
        "lr": 2e-4,
        "max_steps": 3000,
        "batch_size": 200,
        "eval_every": 100,
    },
    # The best of a search on the validation split of seed 0, a tenth of the images: widths, depth,
    # both kinds of dropout, label smoothing, weight decay, epochs. Then trained on all of them.
    "best": {
        "dataset": "cifar10",
        "validation_size": 0.0,
        "hidden_dims": (3072, 1536, 768),
        "batch_norm": True,
        "dropout": 0.3,
        "input_dropout": 0.3,
        "label_smoothing": 0.1,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 2e-3,
        "schedule": "cosine",
        "warmup_steps": 200,
        "batch_size": 256,
        "epochs": 24,
    },
    # Vrije Universiteit, the MLP on MNIST.
    "vu-mnist": {
        "dataset": "mnist",
        "hidden_dims": (4096, 1024, 128),
        "dropout": 0.3,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "epochs": 20,
    },
}

CONVNET_PRESETS: dict[str, Preset] = {
    # University of Amsterdam, assignment 1 of 2018, the convolutional network.
    "uva-2018": {
        **_WATCH_TEST,
        "model": "vgg",
        "optimizer": "adam",
        "lr": 1e-4,
        "max_steps": 5000,
        "batch_size": 32,
        "eval_every": 500,
    },
    # Vrije Universiteit, the convolutional network on MNIST.
    "vu-mnist": {
        "dataset": "mnist",
        "model": "vu-convnet",
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "epochs": 20,
    },
    # The best of a search on the validation split of seed 0: network, augmentation, epochs.
    "best-mnist": {
        "dataset": "mnist",
        "model": "small-vgg",
        "augment": ("crop",),
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 200,
        "batch_size": 128,
        "epochs": 12,
    },
}
