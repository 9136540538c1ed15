"""Train a multi-layer perceptron whose backward pass is written by hand, in NumPy."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handgrad.backends.common import build_mlp, build_schedule, check_last_batch
from handgrad.backends.presets import MLP_PRESETS
from handgrad.console import guarded
from handgrad.data import Dataset
from handgrad.data.preprocess import Preprocessing
from handgrad.environment import cost_of_held_blas
from handgrad.runs.command_line import NumpyMLPSettings, parse_command_line
from handgrad.runs.run import Backend, run
from handgrad.training.checkpoint import load_arrays
from handgrad.training.metrics import confusion_matrix, confusion_matrix_to_metrics
from numpy_mlp import MLP
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.optim import SGD, AdamW, Optimizer

__all__ = ["confusion_matrix", "confusion_matrix_to_metrics", "load_run", "main"]


def build_learner(settings: NumpyMLPSettings, dataset: Dataset) -> NumpyLearner:
    """Return the network and its optimizer for ``settings``."""
    if settings.batch_norm:
        check_last_batch(settings.batch_size, len(dataset.train))
    model = build_mlp(settings, dataset.image_shape, dataset.n_classes, settings.dtype)
    params = list(model.params.values())
    optimizer: Optimizer
    if settings.optimizer == "adamw":
        optimizer = AdamW(params, settings.lr, weight_decay=settings.weight_decay)
    else:
        optimizer = SGD(
            params,
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    kind = GraphLearner if settings.engine == "graph" else NumpyLearner
    return kind(model, optimizer, detect_anomaly=settings.detect_anomaly)


def load_run(folder: str | Path) -> tuple[MLP, Preprocessing, tuple[str, ...]]:
    """Return the trained network of a run, what turns pixels into its inputs, and the class names.

    ``model.forward(preprocessing(images).reshape(len(images), -1))`` are the probabilities of the
    classes for uint8 images (N, C, H, W).

    Args:
        folder: of a finished run of this command.

    Raises:
        DataError: ``model.safetensors`` is missing or damaged.
    """
    weights, texts = load_arrays(Path(folder) / "model.safetensors")
    about, fitted = json.loads(texts["model"]), json.loads(texts["preprocessing"])
    dtype = about.get("dtype", "float32")  # of PyTorch's, the weights are the same
    model = MLP(
        math.prod(about["image_shape"]),
        about["hidden_dims"],
        len(about["class_names"]),
        about["neg_slope"],
        activation=about["activation"],
        dropout=about["dropout"],
        input_dropout=about["input_dropout"],
        batch_norm=about["batch_norm"],
        dtype=dtype,
    )
    model.load_state_dict(weights)
    model.eval()
    mean, scale = np.array(fitted["mean"]), np.array(fitted["scale"])
    return model, Preprocessing(mean, scale, dtype), tuple(about["class_names"])


def tell_of_held_blas(settings: NumpyMLPSettings, dataset: Dataset) -> NumpyMLPSettings:
    """Say what it costs when the environment chooses OpenBLAS's kernels."""
    if not settings.quiet and (line := cost_of_held_blas(settings.threads)):
        print(line)
    return settings


def _main(argv: Sequence[str] | None) -> int:
    # Overflow is not news here: the loop itself stops at the first loss that is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        command = parse_command_line(
            NumpyMLPSettings, MLP_PRESETS, __doc__ or "", "train-mlp-numpy", argv
        )
        return run(command, Backend("mlp-numpy", build_learner, build_schedule, tell_of_held_blas))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
