"""Layers in a row with a softmax at the end: what every network here is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from numpy_mlp.modules import Module
from numpy_mlp.modules.module import Array, is_parametric, is_trained


class Network:
    """Layers one after the other, the last of them a softmax.

    Args:
        layers: in the order of the forward pass.
        names: of the layers; their numbers by default.

    Attributes:
        layers: the layers.
        training: whether the layers are in training mode.

    Shapes: ``forward`` maps inputs (N, ...) to probabilities (N, C); :meth:`logits` to what softmax
    is applied to.
    """

    def __init__(self, layers: Sequence[Module], names: Sequence[str] | None = None) -> None:
        self.layers = list(layers)
        self.training = True
        self._names = names

    @property
    def names(self) -> Sequence[str]:
        """The layers' names, which stand before those of their parameters: ``layers.0``."""
        return self._names or [f"layers.{i}" for i in range(len(self.layers))]

    def logits(self, x: Array) -> Array:
        """Return the scores before softmax, (N, ...) -> (N, C)."""
        for layer in self.chain:
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
        for layer in reversed(self.chain):
            dlogits = layer.backward(dlogits)
        return dlogits

    def backward_parameters(
        self, dlogits: Array, done: Callable[[Module], object] = lambda layer: None
    ) -> None:
        """Store the parameter gradients, and leave out ∂L/∂x, which training never reads.

        In the first layer that is trained, usually the largest, ∂L/∂x costs as much as ∂L/∂W.

        Args:
            dlogits: ∂L/∂logits, (N, C).
            done: called with each layer as soon as its gradients are there and nothing reads its
                parameters any more.
        """
        chain = self.chain
        first = next(i for i, layer in enumerate(chain) if is_trained(layer))
        for layer in reversed(chain[first + 1 :]):
            dlogits = layer.backward(dlogits)
            done(layer)
        chain[first].backward_parameters(dlogits)
        done(chain[first])

    @property
    def chain(self) -> list[Module]:
        """The modules from the input to the logits, in the order of the forward pass."""
        return self.layers[:-1]

    def modules(self) -> list[Module]:
        """Return all modules, in the order of the forward pass, those within others too."""
        return [module for layer in (*self.chain, self.layers[-1]) for module in layer.modules()]

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
        for name, layer in zip(self.names, self.layers, strict=True):
            if is_parametric(layer):
                for key in layer.params:
                    yield f"{name}.{key}", layer, key

    def trained_parameters(self) -> dict[str, Array]:
        """Return the parameters that training changes, by name: those that are not frozen."""
        named = self.named_parameters()
        return {n: layer.params[key] for n, layer, key in named if key not in layer.frozen}

    def state_dict(self) -> dict[str, Array]:
        """Return parameters and running statistics by name: the arrays themselves, no copies."""
        state = self.params
        for name, layer in zip(self.names, self.layers, strict=True):
            for key, buffer in getattr(layer, "buffers", {}).items():
                state[f"{name}.{key}"] = buffer
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
        named = zip(self.names, self.layers, strict=True)
        lines = "".join(f"  ({name.removeprefix('layers.')}) {layer}\n" for name, layer in named)
        return f"{type(self).__name__}(\n{lines})"
