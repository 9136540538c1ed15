"""What the backends have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from handgrad.data import Dataset
from handgrad.data.loader import share
from handgrad.data.preprocess import fit_preprocessing
from handgrad.errors import UserError
from handgrad.runs.settings import MUON_LR, TrainSettings
from numpy_mlp.convnet import ConvNet, fast, whitening_filters
from numpy_mlp.optim import (
    Schedule,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    step_schedule,
)


def check_last_batch(batch_size: int, n_images: int, n_processes: int = 1) -> None:
    """Refuse a batch of one image in a process: batch normalisation knows no variance of it."""
    for n in (batch_size, n_images % batch_size):
        parts = [share(n, rank, n_processes) for rank in range(n_processes)]
        if any(part.stop - part.start == 1 for part in parts):
            raise UserError(
                f"--batch-size {batch_size} leaves a batch of one of the {n_images} training "
                f"images, which batch normalisation cannot normalise; choose another size"
            )


def check_last_batch_of(
    model: str, image_shape: tuple[int, ...], batch_size: int, n_images: int, n_processes: int = 1
) -> None:
    """Do so for the convolutional networks that normalise a single value a channel at the end."""
    if model == "preact-resnet" or (model == "vgg" and image_shape[1] <= 16):
        check_last_batch(batch_size, n_images, n_processes)


# The recipe that needs the least arithmetic for 0.90, found on validation images: optimizer and its
# rates, batch, warm-up, augmentation, smoothing.
FAST = (
    "--dataset cifar10 --validation-size 0 --model fast --optimizer muon --weight-decay 1e-3 "
    "--label-smoothing 0.2 --augment alternating-flip translate --schedule linear "
    "--warmup-steps 60 --max-steps 590 --batch-size 500 --tta"
)
# Muon's learning rates of what are no filters, where that of the filters is MUON_LR: of a bias, and
# of a linear layer with one input, an image each. Found together on validation images.
_BIAS_LR, _LINEAR_LR = 0.053, 0.67
_WHITENED = 5000  # images that decide the first layer of the fast network; more change it little


def muon_rates(settings: TrainSettings, shapes: Sequence[tuple[int, ...]]) -> list[float]:
    """Return what ``rest_lr`` is of parameters of these shapes; filters have no use for it.

    They were found for the sum of the losses of a batch, and logits divided by the number of
    inputs of the last layer: the mean has a gradient of 1/B of it, a layer that gives the undivided
    logits one n_in times as large, for weights 1/n_in as large.
    """
    unit = settings.batch_size * settings.lr / MUON_LR
    return [unit * (_BIAS_LR if len(s) == 1 else _LINEAR_LR / s[1] ** 2) for s in shapes]


def decays(settings: TrainSettings, shapes: Sequence[tuple[int, ...]]) -> list[float]:
    """Return the weight decay of parameters of these shapes; biases and norms are vectors."""
    everywhere = settings.weight_decay_of == "all"
    return [settings.weight_decay if everywhere or len(s) > 1 else 0.0 for s in shapes]


def fast_network(
    settings: TrainSettings,
    dataset: Dataset,
    dtype: DTypeLike,
    widths: Sequence[int] = (64, 256, 256),
) -> ConvNet:
    """Return the NumPy network ``fast`` as its training begins, in any library.

    Its weights are drawn from the seed, and its first layer whitens patches of training images.
    """
    height, width = dataset.image_shape[1:]
    if min(height, width) < 26:
        raise UserError(
            f"--model fast is for images of at least 26×26 pixels; those of {dataset.name} have "
            f"{height}×{width}"
        )
    rng = np.random.default_rng(settings.seed)
    shape, n_classes = dataset.image_shape, dataset.n_classes
    model = fast(shape, n_classes, widths=widths, dtype=dtype, rng=rng)
    images = dataset.train.images
    inputs = fit_preprocessing(settings.preprocess, images, np.float64)(images[:_WHITENED])
    model.params["features.0.weight"][...] = whitening_filters(inputs)
    return model


def build_schedule(settings: TrainSettings, total_steps: int) -> Schedule:
    """Return the learning rate of each step."""
    lr, warmup_steps, span = settings.lr, settings.warmup_steps, settings.schedule_steps
    if span is not None and settings.schedule == "constant":
        raise UserError(f"--schedule-steps {span} is for --schedule step, cosine or linear")
    n_steps = span or total_steps
    if warmup_steps > n_steps:
        whose = settings.end if span is None else f"--schedule-steps {span}"
        raise UserError(f"--warmup-steps {warmup_steps} exceeds the {n_steps} steps of {whose}")
    if settings.schedule == "cosine":
        schedule = cosine_schedule(lr, total_steps=n_steps, warmup_steps=warmup_steps)
    elif settings.schedule == "linear":
        schedule = linear_schedule(lr, total_steps=n_steps, warmup_steps=warmup_steps)
    elif settings.schedule == "step":
        step_size = settings.step_size or max(1, n_steps // 3)
        schedule = step_schedule(
            lr, step_size=step_size, gamma=settings.gamma, warmup_steps=warmup_steps
        )
    else:
        schedule = constant_schedule(lr, warmup_steps=warmup_steps)
    return schedule if span is None else lambda step: schedule(min(step, span))
