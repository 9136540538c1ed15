"""An average of the weights over the steps of training, to be looked at in their place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from numpy_mlp.modules.module import Array


class WeightAverage:
    """An exponential moving average of parameters and running statistics.

    After step t, counted from 1: ``a ← d a + (1 - d) θ`` with d = min(``decay``, t / (t + 9)), so
    that the random weights of the beginning are soon forgotten. Whole numbers are copied.

    Args:
        state: the arrays of a network by name, which stay those that it computes with.
        decay: in (0, 1).

    Attributes:
        shown: whether the network's arrays hold the average; otherwise they are trained.

    Raises:
        ValueError: ``decay`` is out of range.

    Source: Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992.
    """

    def __init__(self, state: Mapping[str, Array], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average must be in (0, 1), got {decay!r}")
        self.decay, self.steps, self.shown = decay, 0, False
        self._held = dict(state)
        self._other = {name: array.copy() for name, array in state.items()}

    @property
    def average(self) -> dict[str, Array]:
        """The averaged arrays by name, not copied."""
        return self._held if self.shown else self._other

    @property
    def trained(self) -> dict[str, Array]:
        """The arrays that the optimizer changes, by name, not copied."""
        return self._other if self.shown else self._held

    def show(self, shown: bool) -> None:
        """Let the network have the average, or the weights that are trained."""
        if shown is not self.shown:
            for name, held in self._held.items():
                kept = held.copy()
                held[...] = self._other[name]
                self._other[name][...] = kept
            self.shown = shown

    def update(self) -> None:
        """Let the average follow a step of training."""
        self.steps += 1
        share = 1 - min(self.decay, self.steps / (self.steps + 9))
        for name, trained in self.trained.items():
            average = self.average[name]
            if average.dtype.kind == "f":
                average += share * (trained - average)
            else:
                average[...] = trained

    def load(self, trained: Mapping[str, Array], steps: int) -> None:
        """Take up the trained weights of a run after so many steps; the average stays.

        Raises:
            ValueError: a name or a shape is another.
        """
        shapes = {name: array.shape for name, array in self.trained.items()}
        if shapes != {name: np.shape(array) for name, array in trained.items()}:
            raise ValueError("the weights behind the average are another network's")
        for name, array in self.trained.items():
            array[...] = trained[name]
        self.steps = steps
