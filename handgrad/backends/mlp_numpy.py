"""The multi-layer perceptron in NumPy: by hand-written layers, or on the computation graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handgrad.backends.common import build_schedule, check_last_batch
from handgrad.backends.numpy_common import make_learner
from handgrad.data import Dataset
from handgrad.environment import cost_of_held_blas
from handgrad.errors import UserError
from handgrad.runs.backend import Backend
from handgrad.runs.declare import setting
from handgrad.runs.settings import Preset, SettingsT, TrainSettings
from numpy_mlp import MLP
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.mlp import ACTIVATIONS
from numpy_mlp.optim import Schedule


@dataclass(frozen=True)
class MLPSettings(TrainSettings):
    """Settings of a multi-layer perceptron."""

    hidden_dims: tuple[int, ...] = setting(
        (128,),
        "widths of the hidden layers, none for logistic regression "
        "(also --dnn_hidden_units 100,100)",
        least=1,
    )
    activation: str = setting("relu", "nonlinearity", choices=list(ACTIVATIONS))
    neg_slope: float | None = setting(
        None, "slope below zero of leaky_relu (default: 0.01); implies that activation"
    )
    dropout: float = setting(0.0, "probability of dropping a hidden unit", least=0, below=1)
    input_dropout: float = setting(0.0, "probability of dropping an input", least=0, below=1)
    batch_norm: bool = setting(False, "normalise each hidden layer over the batch")
    weight_std: float | None = setting(
        None, "standard deviation of the initial weights (default: Kaiming's)", above=0
    )

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``values`` with the defaults that follow from some of them."""
        implied = super().implied(values)
        if implied.get("neg_slope") is not None:
            implied.setdefault("activation", "leaky_relu")
        return implied

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        if self.neg_slope is not None and self.activation != "leaky_relu":
            raise UserError(f"--neg-slope is for --activation leaky_relu, not {self.activation}")


@dataclass(frozen=True)
class NumpyMLPSettings(MLPSettings):
    """Settings of the NumPy multi-layer perceptron."""

    dtype: str = setting("float32", "precision", choices=("float32", "float64"))
    engine: str = setting(
        "modules",
        "hand-written backward passes, or the computation graph's",
        choices=("modules", "graph"),
    )


# Amsterdam's assignment of 2018: its defaults, and its habit of watching the test set while
# training. No validation split: all 50,000 images are trained on.
UVA_2018 = (
    "--dataset cifar10 --hidden-dims 100 --lr 2e-3 --max-steps 1500 --batch-size 200 "
    "--eval-every 100 --eval-splits test --validation-size 0 --weight-std 1e-4 "
    "--preprocess mean-image"
)
# Vrije Universiteit's assignment 2: the last 5,000 training images validate.
_VU = (
    "--dataset mnist --engine graph --validation-images last --validation-size 5000 "
    "--batch-size 128 --epochs 20"
)
PRESETS = {
    "uva-2018": Preset(
        UVA_2018,
        "CIFAR-10, one hidden layer of 100, as Amsterdam's assignment of 2018 has it",
        "0.4552",
    ),
    # Found on the validation split of seed 0: widths, dropout, weight decay, epochs.
    "best": Preset(
        "--dataset cifar10 --hidden-dims 1024 512 256 --batch-norm --dropout 0.1 --lr 0.1 "
        "--momentum 0.9 --nesterov --weight-decay 3e-3 --schedule cosine --batch-size 256 "
        "--epochs 20",
        "CIFAR-10, the best that was found: 1024-512-256 with batch normalisation",
        "0.5864",
    ),
    "mnist": Preset(
        "--dataset mnist --hidden-dims 512 256 --batch-norm --dropout 0.3 --lr 0.1 "
        "--momentum 0.9 --schedule cosine --epochs 15",
        "MNIST in half a minute: 512-256 with batch normalisation",
        "0.9844",
    ),
    "vu-sigmoid": Preset(
        f"{_VU} --hidden-dims 3136 --activation sigmoid --lr 0.1",
        "MNIST on the graph, one layer of sigmoids, as Vrije Universiteit's assignment 2 has it",
        "0.9704",
    ),
    "vu-relu": Preset(f"{_VU} --hidden-dims 3136 --lr 0.1", "the same with ReLU", "0.9824"),
    "vu-momentum": Preset(
        f"{_VU} --hidden-dims 1568 784 392 --lr 0.02 --momentum 0.9",
        "MNIST on the graph, three layers, momentum, as the same assignment has it",
        "0.9835",
    ),
    # Found on those validation images: widths, dropout, augmentation, epochs.
    "vu-best": Preset(
        f"{_VU} --hidden-dims 1024 512 --input-dropout 0.1 --dropout 0.3 --augment crop --lr 0.05 "
        "--momentum 0.9 --schedule cosine --epochs 40",
        "MNIST on the graph, the best that was found",
        "0.9888",
    ),
}


def build_mlp(
    settings: MLPSettings, image_shape: tuple[int, ...], n_classes: int, dtype: DTypeLike
) -> MLP:
    """Return the NumPy network for ``settings``, with the initial weights of its seed."""
    return MLP(
        math.prod(image_shape),
        settings.hidden_dims,
        n_classes,
        settings.neg_slope,
        activation=settings.activation,
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        batch_norm=settings.batch_norm,
        dtype=dtype,
        rng=np.random.default_rng(settings.seed),
        weight_std=settings.weight_std,
    )


def check_widths(
    hidden_dims: Sequence[int],
    image_shape: Sequence[int],
    n_classes: int,
    weights: Mapping[str, NDArray[Any]],
) -> None:
    """Raise ValueError unless ``weights`` hold a layer for each two neighbouring widths.

    Looked at before a network is built: a damaged file may ask for any.
    """
    pairs = list(itertools.pairwise([math.prod(image_shape), *hidden_dims, n_classes]))
    held = [array.shape[::-1] for array in weights.values() if array.ndim == 2]
    if sorted(pairs) != sorted(held):
        asked, has = (" ".join(f"{a}x{b}" for a, b in some) for some in (pairs, held))
        raise ValueError(f"its settings ask for layers of {asked}, its weights are {has}")


def build_learner(settings: NumpyMLPSettings, dataset: Dataset) -> NumpyLearner:
    """Return the network and its optimizer for ``settings``."""
    if settings.batch_norm:
        check_last_batch(settings.batch_size, len(dataset.train))
    model = build_mlp(settings, dataset.image_shape, dataset.n_classes, settings.dtype)
    return make_learner(
        settings, model, GraphLearner if settings.engine == "graph" else NumpyLearner
    )


class NumpyBackend(Backend[SettingsT]):
    """NumPy, on the processor."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Let numbers overflow: the loop itself stops at the first loss that is not finite."""
        with np.errstate(all="ignore"):
            yield

    def schedule(self, settings: SettingsT, total_steps: int) -> Schedule:
        """Return the learning rate of each step."""
        return build_schedule(settings, total_steps)

    def resolve(self, settings: SettingsT, dataset: Dataset) -> SettingsT:
        """Say what it costs when the environment chooses OpenBLAS's kernels."""
        if not settings.quiet and (line := cost_of_held_blas(settings.threads)):
            print(line)
        return settings


class NumpyMLPBackend(NumpyBackend[NumpyMLPSettings]):
    """The multi-layer perceptron, by layers or on the graph."""

    name = "mlp-numpy"

    def build(self, settings: NumpyMLPSettings, dataset: Dataset) -> NumpyLearner:
        """Return the network and its optimizer."""
        return build_learner(settings, dataset)

    def load(
        self,
        settings: NumpyMLPSettings,
        image_shape: tuple[int, ...],
        class_names: tuple[str, ...],
        weights: Mapping[str, NDArray[Any]],
    ) -> MLP:
        """Return the trained network."""
        dtype = next(iter(weights.values())).dtype
        model = build_mlp(settings, image_shape, len(class_names), dtype)
        model.load_state_dict(weights)
        model.eval()
        return model

    def probabilities(self, model: MLP, inputs: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return the probabilities of the classes."""
        return model.forward(inputs.reshape(len(inputs), math.prod(inputs.shape[1:])))
