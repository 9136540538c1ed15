"""The multi-layer perceptron: linear layers with a nonlinearity between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules import (
    BatchNormModule,
    DropoutModule,
    ELUModule,
    FlattenModule,
    LeakyReLUModule,
    LinearModule,
    Module,
    ReLUModule,
    SigmoidModule,
    SoftMaxModule,
    TanhModule,
)
from numpy_mlp.network import Network
from numpy_mlp.randomness import Source, as_generator

# Each activation with the gain of the weights after it: √2 makes up for the half that ReLU zeroes
# (He et al. 2015), and is the courses' choice for ELU; 1 and 5/3 are torch.nn.init's.
ACTIVATIONS: dict[str, tuple[type[Module], float]] = {
    "relu": (ReLUModule, math.sqrt(2.0)),
    "leaky_relu": (LeakyReLUModule, math.sqrt(2.0)),
    "elu": (ELUModule, math.sqrt(2.0)),
    "sigmoid": (SigmoidModule, 1.0),
    "tanh": (TanhModule, 5.0 / 3.0),
}


class MLP(Network):
    """Linear layers with activations between them, and a softmax at the end.

    ``(Dropout) - [Linear - (BatchNorm) - activation - (Dropout)] * len(n_hidden) - Linear -
    SoftMax``

    Args:
        n_inputs: number of input features D.
        n_hidden: widths of the hidden layers, or the width of the only one; an empty list is
            multinomial logistic regression.
        n_classes: number of classes C.
        neg_slope: slope below zero of a leaky ReLU; given, it selects that activation.
        activation: one of :data:`ACTIVATIONS`.
        dropout: probability of dropping a hidden unit; 0 adds no layer.
        input_dropout: probability of dropping an input; 0 adds no layer.
        batch_norm: normalise before each activation.
        dtype: ``float32`` or ``float64``, of the parameters and so of the computation.
        rng: source of the initial weights and of the dropout masks, a generator or a seed; by
            default NumPy's global one, so that ``np.random.seed(0)`` decides.
        weight_std: initial standard deviation of every weight, instead of Kaiming's.

    Shapes: ``forward`` maps (N, D), or images (N, ...) of D values each, to probabilities (N, C);
    :meth:`logits` to what softmax is applied to.

    Raises:
        ValueError: a size is not a positive integer, or ``activation`` is unknown.
        TypeError: ``n_hidden`` is neither a number nor several.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: Iterable[int] | int,
        n_classes: int,
        neg_slope: float | None = None,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        batch_norm: bool = False,
        dtype: DTypeLike = np.float64,
        rng: Source = None,
        weight_std: float | None = None,
    ) -> None:
        if isinstance(n_hidden, int | np.integer):
            n_hidden = [int(n_hidden)]
        if not isinstance(n_hidden, Iterable):
            raise TypeError(f"n_hidden must be a width, or a list of widths, got {n_hidden!r}")
        n_hidden = list(n_hidden)
        if neg_slope is not None:
            activation = "leaky_relu"
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}, expected one of {list(ACTIVATIONS)}"
            )
        # One stream for the weights, one for the masks: the initial weights do not depend on
        # whether dropout is on.
        init_rng, dropout_rng = as_generator(rng).spawn(2)
        make_activation, gain = ACTIVATIONS[activation]
        if neg_slope is not None:
            gain = math.sqrt(2.0 / (1.0 + neg_slope**2))  # He et al. 2015, equation 15
        self.flatten = FlattenModule()  # not one of the layers, whose numbers are their names
        layers: list[Module] = []
        if input_dropout:
            layers.append(DropoutModule(input_dropout, rng=dropout_rng))
        sizes = [n_inputs, *n_hidden, n_classes]
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            linear = LinearModule(
                n_in,
                n_out,
                input_layer=i == 0,
                dtype=dtype,
                rng=init_rng,
                gain=gain,
                weight_std=weight_std,
            )
            layers.append(linear)
            if i == len(n_hidden):
                break
            if batch_norm:
                layers.append(BatchNormModule(n_out, dtype=dtype))
            layers.append(make_activation() if neg_slope is None else LeakyReLUModule(neg_slope))
            if dropout:
                layers.append(DropoutModule(dropout, rng=dropout_rng))
        layers.append(SoftMaxModule())
        super().__init__(layers)

    @property
    def chain(self) -> list[Module]:
        """The modules from the input to the logits: flattening comes first."""
        return [self.flatten, *self.layers[:-1]]
