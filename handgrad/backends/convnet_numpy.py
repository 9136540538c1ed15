"""Convolutional networks in NumPy, every backward pass written by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

from handgrad.backends.common import check_last_batch, fast_network, muon_rates
from handgrad.backends.convnet_torch import PRESETS as TORCH_PRESETS
from handgrad.backends.mlp_numpy import NumpyBackend
from handgrad.data import Dataset
from handgrad.errors import UserError
from handgrad.runs.declare import setting
from handgrad.runs.settings import Preset, TrainSettings
from numpy_mlp.convnet import CONVNETS, ConvNet
from numpy_mlp.cost import training_operations
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.muon import Muon
from numpy_mlp.optim import SGD, AdamW, Optimizer
from numpy_mlp.parallel import get_num_threads, set_num_threads


@dataclass(frozen=True)
class NumpyConvNetSettings(TrainSettings):
    """Settings of the convolutional networks in NumPy."""

    model: str = setting("vgg", "architecture", choices=list(CONVNETS))
    widths: tuple[int, ...] = setting(
        (64, 256, 256), "channels of the three blocks of --model fast", least=4
    )
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adam", "adamw", "muon"))
    label_smoothing: float = setting(
        0.0, "share of the label given to all classes alike, in training", least=0, below=1
    )
    dtype: str = setting("float32", "precision", choices=("float32", "float64"))

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        if self.optimizer == "muon" and self.model != "fast":
            raise UserError(f"--optimizer muon is for --model fast, not {self.model}")
        if len(self.widths) != 3:
            raise UserError(f"--widths takes three numbers, got {len(self.widths)}")


_RECIPE = (
    "--dataset cifar10 --validation-size 0 --model fast --augment alternating-flip translate "
    "--label-smoothing 0.2 --optimizer muon --lr 0.12 --weight-decay 1e-3 --schedule linear "
    "--batch-size 500 --tta"
)
PRESETS = {
    "uva-2018": TORCH_PRESETS["uva-2018"],
    "best-mnist": TORCH_PRESETS["best-mnist"],
    # Found on 5,000 of the training images, held out: rates, epochs, warm-up, augmentation.
    "fast": Preset(
        f"{_RECIPE} --max-steps 640 --warmup-steps 64",
        "CIFAR-10, the network that learns with the least arithmetic",
        "-",
    ),
    "quick": Preset(
        f"{_RECIPE} --widths 32 128 128 --max-steps 420 --warmup-steps 42",
        "CIFAR-10, a narrower one of the same kind, in minutes",
        "-",
    ),
}


def build_model(
    settings: NumpyConvNetSettings, shape: tuple[int, ...], n_classes: int, dtype: DTypeLike
) -> ConvNet:
    """Return the network for ``settings``, with the initial weights of its seed."""
    rng = np.random.default_rng(settings.seed)
    more = {"widths": settings.widths} if settings.model == "fast" else {}
    return CONVNETS[settings.model](shape, n_classes, dtype=dtype, rng=rng, **more)


def build_optimizer(settings: NumpyConvNetSettings, model: ConvNet) -> Optimizer:
    """Return the optimizer for ``settings``."""
    params, lr, decay = model.trained_parameters(), settings.lr, settings.weight_decay
    if settings.optimizer == "muon":
        rates = muon_rates(settings, [p.shape for p in params.values()])
        return Muon(params, lr, momentum=settings.momentum, rest_lr=rates, weight_decay=decay)
    if settings.optimizer in ("adam", "adamw"):
        decoupled = settings.optimizer == "adamw"
        return AdamW(params, lr, weight_decay=decay, decoupled=decoupled)
    return SGD(
        params, lr, momentum=settings.momentum, weight_decay=decay, nesterov=settings.nesterov
    )


class NumpyConvNetBackend(NumpyBackend[NumpyConvNetSettings]):
    """NumPy, on the processor, a thread a core."""

    name = "convnet-numpy"

    @contextlib.contextmanager
    def hold_threads(self, settings: NumpyConvNetSettings) -> Iterator[None]:
        """Let threads of our own work on the batch, each with a BLAS of one."""
        before = get_num_threads()
        set_num_threads(self.threads(settings))
        try:
            with threadpool_limits(1, user_api="blas"):
                yield
        finally:
            set_num_threads(before)

    def threads(self, settings: NumpyConvNetSettings) -> int:
        """Return how many threads compute."""
        return settings.threads or _cores()

    def build(self, settings: NumpyConvNetSettings, dataset: Dataset) -> NumpyLearner:
        """Return the network and its optimizer."""
        if settings.model == "preact-resnet":
            check_last_batch(settings.batch_size, len(dataset.train))
        if settings.model == "fast":
            model = fast_network(settings, dataset, settings.dtype, settings.widths)
        else:
            shape, n_classes = dataset.image_shape, dataset.n_classes
            model = build_model(settings, shape, n_classes, settings.dtype)
        return NumpyLearner(
            model,
            build_optimizer(settings, model),
            label_smoothing=settings.label_smoothing,
            detect_anomaly=settings.detect_anomaly,
        )

    def training_operations(self, learner: NumpyLearner, shape: tuple[int, ...]) -> int:
        """Return the floating-point operations of a step, for each image."""
        return training_operations(learner.model, shape)

    def load(
        self,
        settings: NumpyConvNetSettings,
        image_shape: tuple[int, ...],
        class_names: tuple[str, ...],
        weights: Mapping[str, NDArray[Any]],
    ) -> ConvNet:
        """Return the trained network."""
        dtype = next(a.dtype for a in weights.values() if a.dtype.kind == "f")
        model = build_model(settings, image_shape, len(class_names), dtype)
        model.load_state_dict(weights)
        model.eval()
        return model

    def probabilities(self, model: ConvNet, inputs: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return the probabilities of the classes."""
        return model.forward(inputs)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows, nor on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
