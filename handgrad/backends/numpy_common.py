"""What the NumPy networks have in common: optimizer and learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from handgrad.backends.common import decays, muon_rates
from handgrad.runs.settings import TrainSettings
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.muon import Muon
from numpy_mlp.network import Network
from numpy_mlp.optim import SGD, AdamW, Optimizer


def make_learner(
    settings: TrainSettings, model: Network, kind: type[NumpyLearner] = NumpyLearner
) -> NumpyLearner:
    """Return what trains ``model`` as ``settings`` say."""
    return kind(
        model,
        make_optimizer(settings, model.trained_parameters()),
        label_smoothing=settings.label_smoothing,
        clip_grad_norm=settings.clip_grad_norm,
        ema=settings.ema,
        detect_anomaly=settings.detect_anomaly,
    )


def make_optimizer(settings: TrainSettings, params: Mapping[str, NDArray[Any]]) -> Optimizer:
    """Return the optimizer of ``settings``."""
    shapes = [p.shape for p in params.values()]
    weight_decay = decays(settings, shapes)
    if settings.optimizer == "muon":
        return Muon(
            params,
            settings.lr,
            momentum=settings.momentum,
            rest_lr=muon_rates(settings, shapes),
            weight_decay=weight_decay,
        )
    if settings.optimizer in ("adam", "adamw"):
        decoupled = settings.optimizer == "adamw"
        return AdamW(params, settings.lr, weight_decay=weight_decay, decoupled=decoupled)
    return SGD(
        params,
        settings.lr,
        momentum=settings.momentum,
        weight_decay=weight_decay,
        nesterov=settings.nesterov,
    )
