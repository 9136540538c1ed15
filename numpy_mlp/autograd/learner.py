"""One training step of the MLP on the graph engine, behind the interface of a training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numpy_mlp import mlp
from numpy_mlp.anomaly import check_finite, name_of
from numpy_mlp.autograd.core import TensorNode, no_grad
from numpy_mlp.autograd.functions import ACTIVATIONS, leaky_relu
from numpy_mlp.autograd.ops import BatchMM, SoftmaxCrossEntropy
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.mlp import MLP
from numpy_mlp.modules import (
    BatchNormModule,
    DropoutModule,
    FlattenModule,
    LeakyReLUModule,
    LinearModule,
    Module,
    SoftMaxModule,
)
from numpy_mlp.modules.losses import class_indices
from numpy_mlp.modules.module import underflow_is_zero
from numpy_mlp.network import Network
from numpy_mlp.optim import Optimizer

Array = NDArray[Any]

_ACTIVATIONS = {kind: ACTIVATIONS[name] for name, (kind, _) in mlp.ACTIVATIONS.items()}


class GraphLearner(NumpyLearner):
    """The learner of :class:`numpy_mlp.MLP` without its backward passes.

    The network's own arrays become nodes, each layer's forward pass is written in ops, and the
    gradients come from the graph. From the same seed the losses are those of
    :class:`numpy_mlp.learner.NumpyLearner`, at most rounding apart; weights, names and checkpoints
    are the same.

    Args:
        model: the network.
        optimizer: made with ``model.params``.
        options: those of the other learner; ``detect_anomaly`` checks the output of every layer,
            and the gradient of every parameter.

    Shapes: images (N, ...), as the network takes them; labels (N,), integers, or one-hot (N, C).
    """

    def __init__(self, model: Network, optimizer: Optimizer, **options: Any) -> None:
        super().__init__(model, optimizer, **options)
        # The nodes hold the very arrays that the optimizer updates in place.
        self.nodes = {name: TensorNode(array, name=name) for name, array in model.params.items()}

    @underflow_is_zero
    def train_step(self, images: Array, labels: Array, lr: float) -> tuple[float, int]:
        """Update the weights on one batch; return its mean loss and its correct predictions.

        Raises:
            FloatingPointError: the loss is not finite; no parameter is updated.
        """
        self._begin_step(lr)
        logits = self._logits(images)
        if np.ndim(labels) != 1:
            labels = class_indices(labels, *logits.value.shape)
        loss = SoftmaxCrossEntropy.do_forward(
            logits, targets=labels, label_smoothing=self.loss.label_smoothing
        )
        self._check_loss(float(loss.value), images)
        for node in self.nodes.values():
            node.grad = None
        loss.backward()
        grads = [node.grad for node in self.nodes.values()]
        if self.detect_anomaly:
            for name, grad in reversed(list(zip(self.nodes, grads, strict=True))):
                check_finite(grad, f"the gradient of {name}")
        self._end_step(grads)
        return float(loss.value), int((logits.value.argmax(axis=1) == labels).sum())

    def _eval_logits(self, images: Array) -> Array:
        self._begin_evaluation()
        with no_grad():
            return self._logits(images).value

    def _logits(self, images: Array) -> TensorNode:
        x = TensorNode(images, name="images", requires_grad=False)
        if isinstance(self.model, MLP):
            x = self.apply(self.model.flatten, "flatten", x)
        for name, layer in zip(self.model.names, self.model.layers, strict=True):
            if not isinstance(layer, SoftMaxModule):  # part of the loss
                x = self.apply(layer, name, x)
                if self.detect_anomaly and self.model.training:
                    check_finite(x.value, f"the output of {name_of(name, layer)}")
        return x

    def apply(self, layer: Module, name: str, x: TensorNode) -> TensorNode:
        """Return the output of ``layer``, called ``name`` in the network, as a node."""
        if isinstance(layer, LinearModule):
            product: TensorNode = BatchMM.do_forward(self.nodes[f"{name}.weight"], x)
            return product + self.nodes[f"{name}.bias"]
        if isinstance(layer, BatchNormModule):
            weight, bias = self.nodes[f"{name}.weight"], self.nodes[f"{name}.bias"]
            return batch_norm(layer, weight, bias, x)
        if isinstance(layer, DropoutModule):
            if not layer.training:
                return x
            kept = layer.rng.random(x.size(), dtype=np.float32) >= layer.p
            scale: Array = kept.astype(x.dtype) * x.dtype.type(1 / (1 - layer.p))
            return x * scale
        if isinstance(layer, FlattenModule):
            return x.reshape(x.size(0), -1)
        if isinstance(layer, LeakyReLUModule):
            return leaky_relu(x, layer.neg_slope)
        return _ACTIVATIONS[type(layer)](x)


def batch_norm(
    layer: BatchNormModule, weight: TensorNode, bias: TensorNode, x: TensorNode
) -> TensorNode:
    """Return ``weight · (x - μ) / √(σ² + eps) + bias``, (N, D) -> (N, D), in elementary ops.

    The backward pass that :class:`numpy_mlp.modules.BatchNormModule` derives on half a page is here
    the graph's affair, and costs several times as much.
    """
    if layer.training:
        layer._batch_statistics(x.value)  # updates the running ones; the graph computes its own
        n = x.size(0)
        deviation = x - x.sum(axis=0, keepdims=True) * (1 / n)
        variance = (deviation * deviation).sum(axis=0, keepdims=True) * (1 / n)
    else:
        deviation = x - TensorNode(layer.running_mean, requires_grad=False)
        variance = TensorNode(layer.running_var, requires_grad=False)
    x_hat: TensorNode = deviation * (variance + layer.eps) ** -0.5
    return weight * x_hat + bias
