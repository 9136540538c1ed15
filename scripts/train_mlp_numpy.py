"""Train a multi-layer perceptron whose backward pass is written by hand, in NumPy."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from numpy_mlp import MLP
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.optim import (
    SGD,
    AdamW,
    Optimizer,
    Schedule,
    constant_schedule,
    cosine_schedule,
    step_schedule,
)
from training.checkpoint import load_arrays
from training.cli import guarded
from training.config import MLPSettings, TrainSettings, parse_command_line
from training.data import Dataset
from training.data.preprocess import Preprocessing
from training.errors import UserError
from training.metrics import confusion_matrix, confusion_matrix_to_metrics
from training.presets import MLP_PRESETS
from training.run import Backend, run

__all__ = ["confusion_matrix", "confusion_matrix_to_metrics", "load_run", "main"]


def build_learner(settings: MLPSettings, dataset: Dataset) -> NumpyLearner:
    """Return the network and its optimizer for ``settings``."""
    check_batch_norm(settings, len(dataset.train))
    model = MLP(
        math.prod(dataset.image_shape),
        settings.hidden_dims,
        dataset.n_classes,
        settings.neg_slope,
        activation=settings.activation,
        dropout=settings.dropout,
        batch_norm=settings.batch_norm,
        dtype=settings.dtype,
        rng=np.random.default_rng(settings.seed),
        weight_std=settings.weight_std,
    )
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
    return NumpyLearner(model, optimizer)


def check_batch_norm(settings: MLPSettings, n_images: int) -> None:
    """Refuse a batch of one image, of which batch normalisation knows no variance."""
    if settings.batch_norm and (settings.batch_size == 1 or n_images % settings.batch_size == 1):
        raise UserError(
            f"--batch-size {settings.batch_size} leaves a batch of one of the {n_images} training "
            f"images, which --batch-norm cannot normalise; choose another size"
        )


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
    model = MLP(
        math.prod(about["image_shape"]),
        about["hidden_dims"],
        len(about["class_names"]),
        about["neg_slope"],
        activation=about["activation"],
        dropout=about["dropout"],
        batch_norm=about["batch_norm"],
        dtype=about["dtype"],
    )
    model.load_state_dict(weights)
    model.eval()
    mean, scale = np.array(fitted["mean"]), np.array(fitted["scale"])
    return model, Preprocessing(mean, scale, about["dtype"]), tuple(about["class_names"])


def build_schedule(settings: TrainSettings, total_steps: int) -> Schedule:
    """Return the learning rate of each step."""
    lr, warmup_steps = settings.lr, settings.warmup_steps
    if warmup_steps > total_steps:
        raise UserError(f"--warmup-steps {warmup_steps} exceeds the {total_steps} steps of the run")
    if settings.schedule == "cosine":
        return cosine_schedule(lr, total_steps=total_steps, warmup_steps=warmup_steps)
    if settings.schedule == "step":
        step_size = settings.step_size or max(1, total_steps // 3)
        return step_schedule(
            lr, step_size=step_size, gamma=settings.gamma, warmup_steps=warmup_steps
        )
    return constant_schedule(lr, warmup_steps=warmup_steps)


def _main(argv: Sequence[str] | None) -> int:
    # Overflow is not news here: the loop itself stops at the first loss that is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        command = parse_command_line(
            MLPSettings, MLP_PRESETS, __doc__ or "", "train-mlp-numpy", argv
        )
        return run(command, Backend("mlp-numpy", build_learner, build_schedule))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return guarded(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
