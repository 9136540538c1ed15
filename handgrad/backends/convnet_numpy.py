"""Convolutional networks in NumPy, every backward pass written by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

from handgrad.backends.common import FAST, check_last_batch_of, fast_network
from handgrad.backends.convnet_torch import PRESETS as TORCH_PRESETS
from handgrad.backends.mlp_numpy import NumpyBackend
from handgrad.backends.numpy_common import make_learner
from handgrad.data import Dataset
from handgrad.errors import UserError
from handgrad.runs.declare import setting
from handgrad.runs.settings import Preset, TrainSettings
from numpy_mlp.convnet import CONVNETS, ConvNet
from numpy_mlp.cost import training_operations
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.parallel import get_num_threads, set_num_threads


@dataclass(frozen=True)
class NumpyConvNetSettings(TrainSettings):
    """Settings of the convolutional networks in NumPy."""

    model: str = setting("vgg", "architecture", choices=list(CONVNETS))
    widths: tuple[int, ...] = setting(
        (64, 256, 256), "channels of the three blocks of --model fast", least=4
    )
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adam", "adamw", "muon"))
    dtype: str = setting("float32", "precision", choices=("float32", "float64"))

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        if self.optimizer == "muon" and self.model != "fast":
            raise UserError(f"--optimizer muon is for --model fast, not {self.model}")
        if self.model != "fast" and self.widths != type(self).widths:
            raise UserError(f"--widths is for --model fast, not {self.model}")
        if len(self.widths) != 3:
            raise UserError(f"--widths takes three numbers, got {len(self.widths)}")


PRESETS = {
    "uva-2018": replace(TORCH_PRESETS["uva-2018"], reached="0.7246"),
    "fast": Preset(FAST, "CIFAR-10, the network that learns with the least arithmetic", "0.8909"),
    # Found on 5,000 of the training images, held out, as the other is.
    "quick": Preset(
        f"{FAST} --widths 32 128 128 --max-steps 420 --warmup-steps 42",
        "CIFAR-10, a narrower one of the same kind, in minutes",
        "0.8621",
    ),
}


def build_model(
    settings: NumpyConvNetSettings, shape: tuple[int, ...], n_classes: int, dtype: DTypeLike
) -> ConvNet:
    """Return the network for ``settings``, with the initial weights of its seed."""
    rng = np.random.default_rng(settings.seed)
    more = {"widths": settings.widths} if settings.model == "fast" else {}
    return CONVNETS[settings.model](shape, n_classes, dtype=dtype, rng=rng, **more)


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
        shape, n_classes = dataset.image_shape, dataset.n_classes
        check_last_batch_of(settings.model, shape, settings.batch_size, len(dataset.train))
        if settings.model == "fast":
            model = fast_network(settings, dataset, settings.dtype, settings.widths)
        else:
            model = build_model(settings, shape, n_classes, settings.dtype)
        return make_learner(settings, model)

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
