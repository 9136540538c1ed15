"""The engines behind one interface: a training step, the weights, and every value on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from handgrad.training.learner import Learner
from numpy_mlp.autograd.core import TensorNode
from numpy_mlp.autograd.learner import GraphLearner
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import CrossEntropyModule
from numpy_mlp.modules.module import is_parametric
from numpy_mlp.network import Network

Array = NDArray[Any]


class Place(NamedTuple):
    """What is computed where: the key of a :data:`Trace`.

    Attributes:
        layer: number of the layer; the loss comes after the last one, in the place of softmax where
            the two are one.
        what: ``output``, ``dx`` (∂L/∂x, which the layer's backward returns) or a parameter's name,
            for its gradient.
    """

    layer: int
    what: str


Trace = dict[Place, Array]
"""Every value of a forward and a backward pass, in the order in which they are computed.

The outputs of the layers, then the loss, a number, and from there backwards the gradients.
"""


class Engine(Protocol):
    """What computes the network."""

    def step(self, x: Array, labels: Array, lr: float) -> float:
        """Update the weights on one batch, (N, ...) and (N,), and return its loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """

    def weights(self) -> dict[str, Array]:
        """Return parameters and running statistics by name; perhaps the live arrays."""

    def load(self, weights: Mapping[str, Array]) -> None:
        """Copy ``weights`` into the network."""

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute; no weight changes."""


def walk(layers: Sequence[Any], loss: Any, x: Array, labels: Array) -> Trace:
    """Return the trace of ``layers`` followed by ``loss``.

    The first layer's backward may return None: nobody reads what the images should be.
    """
    trace: Trace = {}
    for i, layer in enumerate(layers):
        x = trace[Place(i, "output")] = layer.forward(x)
    end = len(layers)
    trace[Place(end, "output")] = np.asarray(loss.forward(x, labels))
    dout = trace[Place(end, "dx")] = loss.backward(x, labels)
    for i, layer in reversed(list(enumerate(layers))):
        dout = layer.backward(dout)
        if is_parametric(layer):
            for key in layer.params:
                if key not in layer.frozen:
                    trace[Place(i, key)] = np.array(layer.grads[key])  # written into again
        if dout is not None:
            trace[Place(i, "dx")] = dout
    return trace


def places_of(model: Network) -> dict[str, Place]:
    """Return where in a trace the gradients of the trained parameters are, by their names."""
    return {
        name: Place(model.layers.index(layer), key)
        for name, layer, key in model.named_parameters()
        if key not in layer.frozen
    }


class LearnerEngine:
    """An engine that trains as the training commands do: by a learner."""

    def __init__(self, learner: Learner) -> None:
        self.learner: Any = learner

    def step(self, x: Array, labels: Array, lr: float) -> float:
        """Update the weights on one batch and return its loss."""
        return float(self.learner.train_step(x, labels, lr)[0])

    def weights(self) -> dict[str, Array]:
        """Return parameters and running statistics by name."""
        weights = self.learner.weights()
        return {name: array for name, array in weights.items() if array.dtype.kind == "f"}

    def load(self, weights: Mapping[str, Array]) -> None:
        """Copy ``weights`` into the network."""
        self.learner.load_weights({**self.learner.weights(), **weights})


class ModulesEngine(LearnerEngine):
    """The hand-written modules.

    Args:
        learner: of the network.
        parted: whether the trace has softmax and loss one after the other, to be compared with an
            engine that has them so. Training has the two in one, always.
    """

    learner: NumpyLearner

    def __init__(self, learner: NumpyLearner, *, parted: bool = False) -> None:
        super().__init__(learner)
        self.layers = learner.model.layers if parted else learner.model.layers[:-1]
        self.loss = CrossEntropyModule() if parted else learner.loss

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        self.learner.model.train()
        return walk(self.layers, self.loss, x, labels)


class GraphEngine(LearnerEngine):
    """The computation graph of :mod:`numpy_mlp.autograd`."""

    learner: GraphLearner

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        learner = self.learner
        learner.model.train()
        nodes = [TensorNode(x)]
        for name, layer in list(zip(learner.model.names, learner.model.layers, strict=True))[:-1]:
            nodes.append(learner.apply(layer, name, nodes[-1]))
        loss = learner.loss_of(nodes[-1], labels)
        loss.zero_grad()
        loss.backward()
        return assemble(
            [node.value for node in nodes[1:]],
            loss.value,
            [node.grad for node in nodes],
            {place: learner.nodes[name].grad for name, place in places_of(learner.model).items()},
        )


def assemble(
    outputs: Sequence[Array],
    loss: Array,
    dinputs: Sequence[Array],
    gradients: Mapping[Place, Array],
) -> Trace:
    """Return a trace from what an engine that differentiates by itself has afterwards.

    Args:
        outputs: of each layer, the logits last.
        loss: a number.
        dinputs: ∂L/∂x of each layer, that of softmax and loss together last.
        gradients: of the parameters.
    """
    n = len(outputs)
    trace = {Place(i, "output"): output for i, output in enumerate(outputs)}
    trace[Place(n, "output")] = loss
    trace[Place(n, "dx")] = dinputs[n]
    for i in reversed(range(n)):
        trace.update((place, grad) for place, grad in gradients.items() if place.layer == i)
        trace[Place(i, "dx")] = dinputs[i]
    return trace


MakeEngine = Callable[[], Engine]
"""Makes an engine with the initial weights of the seed; each call makes a new one."""
