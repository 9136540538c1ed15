"""An average of the weights over the steps of training: :mod:`numpy_mlp.averaging` in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of parameters and running statistics.

    As :class:`numpy_mlp.averaging.WeightAverage`, where the formula is.

    Args:
        model: the network, on its device.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average must be in (0, 1), got {decay!r}")
        self.decay, self.steps, self.shown = decay, 0, False
        self._held = dict(model.state_dict())
        self._other = {name: tensor.clone() for name, tensor in self._held.items()}

    @property
    def average(self) -> dict[str, Tensor]:
        """The averaged tensors by name, not copied."""
        return self._held if self.shown else self._other

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that the optimizer changes, by name, not copied."""
        return self._other if self.shown else self._held

    @torch.no_grad()
    def show(self, shown: bool) -> None:
        """Let the network have the average, or the weights that are trained."""
        if shown is not self.shown:
            for name, held in self._held.items():
                kept = held.clone()
                held.copy_(self._other[name])
                self._other[name].copy_(kept)
            self.shown = shown

    @torch.no_grad()
    def update(self) -> None:
        """Let the average follow a step of training."""
        self.steps += 1
        share = 1 - min(self.decay, self.steps / (self.steps + 9))
        for name, trained in self.trained.items():
            average = self.average[name]
            if average.is_floating_point():
                average.add_(trained - average, alpha=share)
            else:
                average.copy_(trained)

    @torch.no_grad()
    def load(self, trained: Mapping[str, Any], steps: int) -> None:
        """Take up the trained weights of a run after so many steps; the average stays.

        Raises:
            ValueError: a name or a shape is another.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.trained.items()}
        if shapes != {name: np.shape(array) for name, array in trained.items()}:
            raise ValueError("the weights behind the average are another network's")
        for name, tensor in self.trained.items():
            tensor.copy_(torch.from_numpy(np.array(trained[name])))
        self.steps = steps
