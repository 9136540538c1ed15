"""PyTorch as one of the engines that are compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from handgrad.backends.registry import NETWORKS
from handgrad.data import Dataset
from handgrad.lockstep.engines import Array, LearnerEngine, Trace, assemble, places_of
from handgrad.lockstep.subject import CompareSettings
from numpy_mlp.modules import FlattenModule
from numpy_mlp.network import Network
from torch_models.learner import TorchLearner


class TorchEngine(LearnerEngine):
    """The PyTorch network, on the processor.

    Args:
        learner: of the network.
        twin: its NumPy twin, whose names of layers and parameters it has.
    """

    learner: TorchLearner

    def __init__(self, learner: TorchLearner, twin: Network) -> None:
        super().__init__(learner)
        self.layers = list(zip(twin.names, twin.layers, strict=True))[:-1]  # no softmax
        self.places = places_of(twin)

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        model = self.learner.model.train()
        model.zero_grad()
        images, target = self.learner.to_device(np.array(x), labels)
        values = [images.requires_grad_()]
        for name, layer in self.layers:
            flat = isinstance(layer, FlattenModule)  # in PyTorch, a function
            before = values[-1]
            values.append(before.flatten(1) if flat else model.get_submodule(name)(before))
            values[-1].retain_grad()
        loss = nn.functional.cross_entropy(
            values[-1], target, label_smoothing=self.learner.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return assemble(
            [value.detach().numpy() for value in values[1:]],
            loss.detach().numpy(),
            [_gradient(value) for value in values],
            {place: _gradient(model.get_parameter(name)) for name, place in self.places.items()},
        )


def _gradient(tensor: torch.Tensor) -> Array:
    assert tensor.grad is not None
    array: Array = tensor.grad.numpy()
    return array


def make_torch_engine(settings: CompareSettings, dataset: Dataset, twin: Network) -> TorchEngine:
    """Return PyTorch's network for ``settings``, with the weights of its NumPy ``twin``."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    network = NETWORKS["mlp-pytorch" if settings.model == "mlp" else "convnet"]
    shared = {field.name for field in dataclasses.fields(network.settings)}
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k in shared}
    theirs = network.settings(**values | {"device": "cpu", "precision": settings.dtype})
    learner = network.backend().build(theirs, dataset)
    assert isinstance(learner, TorchLearner)
    learner.load_weights(twin.state_dict())
    for name in twin.params.keys() - twin.trained_parameters().keys():
        learner.model.get_parameter(name).requires_grad_(False)
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.ReLU):  # or it would write over an output that is looked at
            module.inplace = False
    return TorchEngine(learner, twin)
