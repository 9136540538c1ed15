"""Modules: parameters, and the graph that a forward pass builds from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.autograd.core import Module, TensorNode
from numpy_mlp.autograd.functions import ACTIVATIONS, softmax
from numpy_mlp.autograd.ops import BatchMM
from numpy_mlp.randomness import Source, as_generator


class Linear(Module):
    """``y = x @ wᵀ + b``, (N, input_size) -> (N, output_size).

    Initialisation: w[o,i] ~ N(0, 2/(input_size + output_size)), b = 0 (Glorot and Bengio 2010).

    Args:
        input_size: number of input features.
        output_size: number of output features.
        dtype: ``float32`` or ``float64``.
        rng: source of the initial weights, a generator or a seed; NumPy's global one by default.

    Attributes:
        w: weights (output_size, input_size).
        b: bias (1, output_size), broadcast over the batch.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        dtype: DTypeLike = np.float64,
        rng: Source = None,
    ) -> None:
        # Old sources are drawn from directly: after np.random.seed() these are vugrad's weights.
        source: Any = np.random if rng is None else rng
        if source is not np.random and not isinstance(rng, np.random.RandomState):
            source = as_generator(rng)
        draw = source.standard_normal
        weights = draw((output_size, input_size)) * np.sqrt(2.0 / (input_size + output_size))
        self.w = TensorNode(weights.astype(dtype), name="w")
        self.b = TensorNode(np.zeros((1, output_size), dtype=dtype), name="b")

    def forward(self, input: TensorNode) -> TensorNode:
        """Return y; (N, input_size) -> (N, output_size)."""
        product: TensorNode = BatchMM.do_forward(self.w, input)
        return product + self.b

    def parameters(self) -> list[TensorNode]:
        """Return w and b."""
        return [self.w, self.b]


class MLP(Module):
    """``Linear - (activation - Linear) * n - softmax``: (N, input_size) -> probabilities.

    Args:
        input_size: number of input features.
        output_size: number of classes.
        hidden_mult: without ``hidden_sizes``, there is one hidden layer, this many times as wide
            as the input.
        hidden_sizes: widths of the hidden layers, any number of them, or the width of the only one.
        activation: one of :data:`ACTIVATIONS`.
        dtype: ``float32`` or ``float64``.
        rng: source of the initial weights, as for :class:`Linear`.

    Raises:
        ValueError: ``activation`` is unknown.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_mult: int = 4,
        *,
        hidden_sizes: Sequence[int] | int | None = None,
        activation: str = "sigmoid",
        dtype: DTypeLike = np.float64,
        rng: Source = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}, expected one of {list(ACTIVATIONS)}"
            )
        hidden = hidden_mult * input_size if hidden_sizes is None else hidden_sizes
        hidden = [hidden] if isinstance(hidden, int | np.integer) else hidden
        # One stream for all layers: a seed is made a generator once.
        rng = as_generator(rng) if isinstance(rng, int | np.integer) else rng
        sizes = [input_size, *hidden, output_size]
        self.layers = [
            Linear(n_in, n_out, dtype=dtype, rng=rng) for n_in, n_out in itertools.pairwise(sizes)
        ]
        self.activation = ACTIVATIONS[activation]

    def logits(self, input: TensorNode) -> TensorNode:
        """Return the scores before the softmax, (N, input_size) -> (N, output_size)."""
        for layer in self.layers[:-1]:
            input = self.activation(layer(input))
        scores: TensorNode = self.layers[-1](input)
        return scores

    def forward(self, input: TensorNode) -> TensorNode:
        """Return probabilities, (N, input_size) -> (N, output_size)."""
        return softmax(self.logits(input))

    def parameters(self) -> list[TensorNode]:
        """Return w and b of each layer, from input to output."""
        return [node for layer in self.layers for node in layer.parameters()]
