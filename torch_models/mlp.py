"""The multi-layer perceptron in PyTorch, the twin of :class:`numpy_mlp.MLP`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from torch_models.convnet import Norm

# Each activation with the gain of its initialisation, as in the NumPy network.
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, math.sqrt(2.0)),
    "leaky_relu": (nn.LeakyReLU, math.sqrt(2.0)),
    "elu": (nn.ELU, math.sqrt(2.0)),
    "sigmoid": (nn.Sigmoid, 1.0),
    "tanh": (nn.Tanh, 5.0 / 3.0),
}


class MLP(nn.Module):
    """A stack ``(Dropout) - [Linear - (norm) - activation - (Dropout)] * len(n_hidden) - Linear``.

    Option for option the NumPy network, with the same names in ``state_dict`` (``layers.0.weight``
    and so on): weights saved by the one load into the other and give the same logits. ``forward``
    returns logits; ``nn.CrossEntropyLoss`` contains the softmax.

    Args:
        n_inputs: number of input features D; images (N, C, H, W) are flattened.
        n_hidden: widths of the hidden layers, or the width of the only one; an empty list is
            multinomial logistic regression.
        n_classes: number of classes C.
        neg_slope: slope below zero of a leaky ReLU; given, it selects that activation.
        activation: one of :data:`ACTIVATIONS`.
        dropout: probability of dropping a hidden unit; 0 adds no layer.
        input_dropout: probability of dropping an input; 0 adds no layer.
        norm: makes the normalisation of a hidden layer from its width; None for none.
        weight_std: initial standard deviation of every weight, instead of Kaiming's
            N(0, gain²/n_in) with gain 1 in the first layer.
        generator: source of the initial weights.

    Shapes: (N, D) or (N, C, H, W) -> (N, n_classes).

    Raises:
        ValueError: a size is not a positive integer, or ``activation`` is unknown.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: Sequence[int] | int,
        n_classes: int,
        neg_slope: float | None = None,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        norm: Norm | None = None,
        weight_std: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        n_hidden = [int(n_hidden)] if isinstance(n_hidden, int | np.integer) else n_hidden
        if neg_slope is not None:
            activation = "leaky_relu"
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}, expected one of {list(ACTIVATIONS)}"
            )
        make_activation, gain = ACTIVATIONS[activation]
        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        sizes = [n_inputs, *n_hidden, n_classes]
        for size in sizes:
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"sizes must be positive integers, got {size!r}")
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(n_in, n_out)
            std = weight_std or (1.0 if i == 0 else gain) / math.sqrt(n_in)
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if i == len(n_hidden):
                break
            if norm is not None:
                layers.append(norm(n_out))
            layers.append(make_activation() if neg_slope is None else nn.LeakyReLU(neg_slope))
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes)."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits
