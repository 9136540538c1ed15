"""What is compared: a network and its learner, as the settings of the comparison ask for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from handgrad.backends.common import check_last_batch_of, fast_network
from handgrad.backends.mlp_numpy import MLPSettings, NumpyMLPSettings, build_mlp
from handgrad.backends.mlp_numpy import build_learner as build_mlp_learner
from handgrad.backends.numpy_common import make_learner
from handgrad.data import Dataset
from handgrad.errors import UserError
from handgrad.runs.declare import option_of, setting
from handgrad.runs.settings import TrainSettings
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.convnet import CONVNETS
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import DropoutModule
from numpy_mlp.network import Network

ENGINES = ("modules", "graph", "pytorch")
_OUT = "runs/compare-engines"


@dataclass(frozen=True)
class CompareSettings(NumpyMLPSettings):
    """Settings of the comparison."""

    not_offered: ClassVar[frozenset[str]] = frozenset(
        {"epochs", "max_steps", "eval_every", "checkpoint_every", "eval_splits", "engine"}
        | {"target_accuracy", "detect_anomaly", "quiet", "dropout", "input_dropout", "resume"}
        | {"live", "report", "schedule_steps", "tta", "label_smoothing", "clip_grad_norm", "ema"}
    )
    model: str = setting(
        "mlp", "network; convolutional ones without dropout", choices=("mlp", *CONVNETS)
    )
    dtype: str = setting("float64", "precision", choices=("float32", "float64"))
    steps: int = setting(100, "steps in lockstep", least=1)
    engines: tuple[str, ...] = setting(
        ENGINES, "which; the first is what the others are compared with", choices=ENGINES
    )
    modules: str | None = setting(
        None, "a Python file with layers of your own, which take the place of ours by their names"
    )
    tolerance: float | None = setting(
        None, "largest absolute difference (default: 1e-10; float32: 1e-4)", above=0
    )
    time_limit: float = setting(
        300.0, "seconds for the comparison, with --modules", above=0, most=10**6
    )
    out: str | None = setting(_OUT, "folder for engines.json and engines.png")

    @property
    def end(self) -> str:
        """When it ends, as it was given."""
        return f"--steps {self.steps}"

    @property
    def folder(self) -> Path:
        """Where the results are written."""
        return Path(self.out or _OUT)

    @property
    def users(self) -> Path | None:
        """Where the user's layers are, if there are any."""
        return None if self.modules is None else Path(self.modules)

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        own = {field.name for field in dataclasses.fields(TrainSettings)}
        for field in dataclasses.fields(MLPSettings):
            value = getattr(self, field.name)
            if self.model != "mlp" and field.name not in own and value != field.default:
                raise UserError(f"{option_of(field.name)} is for --model mlp, not {self.model}")


def build_network(settings: CompareSettings, dataset: Dataset) -> Network:
    """Return the NumPy network, with the initial weights of the seed."""
    shape, n_classes = dataset.image_shape, dataset.n_classes
    if settings.model == "mlp":
        return build_mlp(settings, shape, n_classes, settings.dtype)
    check_last_batch_of(settings.model, shape, settings.batch_size, len(dataset.train))
    if settings.model == "fast":
        return fast_network(settings, dataset, settings.dtype)
    rng = np.random.default_rng(settings.seed)
    network = CONVNETS[settings.model](shape, n_classes, dtype=settings.dtype, rng=rng)
    for module in network.modules():
        if isinstance(module, DropoutModule):  # whose masks each engine would draw by itself
            module.p = 0.0
    return network


def build_learner(settings: CompareSettings, dataset: Dataset) -> NumpyLearner:
    """Return the NumPy network and its optimizer, on the engine of ``settings``."""
    if settings.model == "mlp":
        return build_mlp_learner(settings, dataset)
    kind = GraphLearner if settings.engine == "graph" else NumpyLearner
    return make_learner(settings, build_network(settings, dataset), kind)
