"""The multi-layer perceptron: linear layers with a nonlinearity between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from numpy_mlp.modules.module import Array, is_parametric
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


class MLP:
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
        batch_norm: bool = False,
        dtype: DTypeLike = np.float64,
        rng: Source = None,
        weight_std: float | None = None,
    ) -> None:
        if isinstance(n_hidden, int | np.integer):
            n_hidden = [int(n_hidden)]
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
        self.layers: list[Module] = []
        if input_dropout:
            self.layers.append(DropoutModule(input_dropout, rng=dropout_rng))
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
            self.layers.append(linear)
            if i == len(n_hidden):
                break
            if batch_norm:
                self.layers.append(BatchNormModule(n_out, dtype=dtype))
            self.layers.append(
                make_activation() if neg_slope is None else LeakyReLUModule(neg_slope)
            )
            if dropout:
                self.layers.append(DropoutModule(dropout, rng=dropout_rng))
        self.layers.append(SoftMaxModule())
        self.training = True

    def logits(self, x: Array) -> Array:
        """Return the scores before softmax, (N, ...) -> (N, C)."""
        x = self.flatten.forward(x)
        for layer in self.layers[:-1]:
            x = layer.forward(x)
        return x

    def forward(self, x: Array) -> Array:
        """Return class probabilities, (N, ...) -> (N, C)."""
        return self.layers[-1].forward(self.logits(x))

    def __call__(self, x: Array) -> Array:
        """Return :meth:`forward` of ``x``."""
        return self.forward(x)

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x from ``dout`` = ∂L/∂probabilities; parameter gradients go into ``grads``.

        The chain rule, a layer at a time: the ``dx`` of one layer is the ``dout`` of the layer
        before it.
        """
        return self.backward_logits(self.layers[-1].backward(dout))

    def backward_logits(self, dlogits: Array) -> Array:
        """Return ∂L/∂x from ∂L/∂logits, for a loss that contains the softmax."""
        for layer in reversed(self.layers[:-1]):
            dlogits = layer.backward(dlogits)
        return self.flatten.backward(dlogits)

    def backward_parameters(
        self, dlogits: Array, done: Callable[[Module], object] = lambda layer: None
    ) -> None:
        """Store the parameter gradients, and leave out ∂L/∂x, which training never reads.

        In the first layer with parameters, usually the largest, ∂L/∂x costs as much as ∂L/∂W.

        Args:
            dlogits: ∂L/∂logits, (N, C).
            done: called with each layer as soon as its gradients are there and nothing reads its
                parameters any more.
        """
        first = next(i for i, layer in enumerate(self.layers) if is_parametric(layer))
        for layer in reversed(self.layers[first + 1 : -1]):
            dlogits = layer.backward(dlogits)
            done(layer)
        self.layers[first].backward_parameters(dlogits)
        done(self.layers[first])

    def modules(self) -> list[Module]:
        """Return the flattening of the input and the layers, in the order of the forward pass."""
        return [self.flatten, *self.layers]

    def train(self, mode: bool = True) -> None:
        """Put every layer into training mode (or evaluation mode)."""
        self.training = mode
        for layer in self.modules():
            layer.train(mode) if mode else layer.eval()

    def eval(self) -> None:
        """Put every layer into evaluation mode."""
        self.train(False)

    def clear_cache(self) -> None:
        """Make every layer forget its last forward pass."""
        for layer in self.modules():
            layer.clear_cache()

    @property
    def params(self) -> dict[str, Array]:
        """The parameters themselves, by name: ``layers.0.weight`` and so on."""
        return {name: layer.params[key] for name, layer, key in self.named_parameters()}

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients of the last backward pass, with the names of :attr:`params`.

        The arrays stay the same ones: each backward pass writes into them.
        """
        return {name: layer.grads[key] for name, layer, key in self.named_parameters()}

    def named_parameters(self) -> Iterator[tuple[str, Module, str]]:
        """Yield name, layer and the layer's own name of each parameter."""
        for i, layer in enumerate(self.layers):
            if is_parametric(layer):
                for key in layer.params:
                    yield f"layers.{i}.{key}", layer, key

    def state_dict(self) -> dict[str, Array]:
        """Return parameters and running statistics by name: the arrays themselves, no copies."""
        state = self.params
        for i, layer in enumerate(self.layers):
            for key, buffer in getattr(layer, "buffers", {}).items():
                state[f"layers.{i}.{key}"] = buffer
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the arrays of ``state`` into this network.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs; nothing is changed then.
        """
        mine = self.state_dict()
        for name in (*mine, *state):
            if name not in mine or name not in state:
                side = "missing from the state" if name in mine else "not part of this network"
                raise ValueError(f"{name} is {side}: was it saved from another architecture?")
        for name, array in mine.items():
            if array.shape != np.shape(state[name]):
                raise ValueError(
                    f"{name} has shape {np.shape(state[name])}, this network expects {array.shape}"
                )
        for name, array in mine.items():
            array[...] = state[name]

    def __repr__(self) -> str:
        return "MLP(\n" + "".join(f"  ({i}) {layer}\n" for i, layer in enumerate(self.layers)) + ")"
