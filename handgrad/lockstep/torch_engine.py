"""PyTorch as one of the engines that are compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from handgrad.backends.mlp_torch import make_model
from handgrad.backends.torch_common import torch_backend
from handgrad.data import Dataset
from handgrad.lockstep.engines import Array, LearnerEngine, Trace, assemble
from handgrad.runs.command_line import NumpyMLPSettings, TorchMLPSettings
from torch_models.learner import TorchLearner


class TorchEngine(LearnerEngine):
    """The PyTorch network, on the processor."""

    learner: TorchLearner

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        model = self.learner.model.train()
        model.zero_grad()
        images, target = self.learner.to_device(np.array(x), labels)
        values = [images.requires_grad_()]
        layers = model.layers
        assert isinstance(layers, nn.Sequential)
        for layer in layers:
            values.append(layer(values[-1]))
            values[-1].retain_grad()
        loss = nn.functional.cross_entropy(values[-1], target)
        loss.backward()  # type: ignore[no-untyped-call]
        return assemble(
            [value.detach().numpy() for value in values[1:]],
            loss.detach().numpy(),
            [_gradient(value) for value in values],
            {name: _gradient(p) for name, p in model.named_parameters()},
        )


def _gradient(tensor: torch.Tensor) -> Array:
    assert tensor.grad is not None
    array: Array = tensor.grad.numpy()
    return array


def make_torch_engine(settings: NumpyMLPSettings, dataset: Dataset) -> TorchEngine:
    """Return PyTorch's network for ``settings``, with the weights that NumPy's begins with."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shared = {field.name for field in dataclasses.fields(TorchMLPSettings)}
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k in shared}
    theirs = TorchMLPSettings(**values | {"device": "cpu", "precision": settings.dtype})
    learner = torch_backend("compare", make_model, images=False).build(theirs, dataset)
    assert isinstance(learner, TorchLearner)
    return TorchEngine(learner)
