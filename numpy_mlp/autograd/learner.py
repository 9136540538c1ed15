"""One training step of a network on the graph engine, behind the interface of a training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numpy_mlp import mlp
from numpy_mlp.anomaly import check_finite, name_of
from numpy_mlp.autograd.core import TensorNode, no_grad
from numpy_mlp.autograd.functions import ACTIVATIONS, gelu, leaky_relu, silu
from numpy_mlp.autograd.ops import AvgPool2d, BatchMM, Conv2d, MaxPool2d, SoftmaxCrossEntropy
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.mlp import MLP
from numpy_mlp.modules import (
    AvgPool2dModule,
    BatchNormModule,
    Conv2dModule,
    DropoutModule,
    FlattenModule,
    GELUModule,
    GlobalAvgPoolModule,
    LeakyReLUModule,
    LinearModule,
    MaxPool2dModule,
    Module,
    ResidualModule,
    SequentialModule,
    SiLUModule,
    SoftMaxModule,
)
from numpy_mlp.modules.losses import class_indices
from numpy_mlp.modules.module import underflow_is_zero
from numpy_mlp.modules.window import channels_last
from numpy_mlp.network import Network
from numpy_mlp.optim import Optimizer

Array = NDArray[Any]

_ACTIVATIONS = {kind: ACTIVATIONS[name] for name, (kind, _) in mlp.ACTIVATIONS.items()}
_ACTIVATIONS[SiLUModule] = silu


class GraphLearner(NumpyLearner):
    """The learner of a :class:`numpy_mlp.network.Network` without its backward passes.

    The network's own arrays become nodes, each layer's forward pass is written in ops, and the
    gradients come from the graph. From the same seed the losses are those of
    :class:`numpy_mlp.learner.NumpyLearner`, at most rounding apart; weights, names and checkpoints
    are the same.

    Args:
        model: the network.
        optimizer: made with ``model.trained_parameters()``.
        options: those of the other learner; ``detect_anomaly`` checks the output of every layer,
            and the gradient of every parameter.

    Shapes: images (N, ...), as the network takes them; labels (N,), integers, or one-hot (N, C).
    """

    def __init__(self, model: Network, optimizer: Optimizer, **options: Any) -> None:
        super().__init__(model, optimizer, **options)
        # The nodes hold the very arrays that the optimizer updates in place.
        trained = model.trained_parameters()
        self.nodes = {
            name: TensorNode(array, name=name, requires_grad=name in trained)
            for name, array in model.params.items()
        }

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
        loss = self.loss_of(logits, labels)
        self._check_loss(float(loss.value), images)
        trained = [node for node in self.nodes.values() if node.requires_grad]
        for node in trained:
            node.grad = None
        loss.backward()
        grads = [node.grad for node in trained]
        if self.detect_anomaly:
            for node in reversed(trained):
                check_finite(node.grad, f"the gradient of {node.name}")
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

    def loss_of(self, logits: TensorNode, labels: Array) -> TensorNode:
        """Return the mean loss of a training batch, a number, as a node."""
        loss: TensorNode = SoftmaxCrossEntropy.do_forward(
            logits, targets=labels, label_smoothing=self.loss.label_smoothing
        )
        return loss

    def apply(self, layer: Module, name: str, x: TensorNode) -> TensorNode:
        """Return the output of ``layer``, called ``name`` in the network, as a node.

        Raises:
            TypeError: the layer is of a kind that is not written in ops.
        """
        names = [f"{name}.{key}" for key in ("weight", "bias")]
        parameters = [self.nodes[key] for key in names if key in self.nodes]
        match layer:
            case LinearModule():
                product: TensorNode = BatchMM.do_forward(parameters[0], x)
                return product + parameters[1] if len(parameters) > 1 else product
            case Conv2dModule():
                return convolution(layer, x, *parameters)
            case BatchNormModule():
                return batch_norm(layer, parameters[0], parameters[1], x)
            case MaxPool2dModule() | AvgPool2dModule():
                op = MaxPool2d if isinstance(layer, MaxPool2dModule) else AvgPool2d
                w = layer.window
                pooled: TensorNode = op.do_forward(
                    x, kernel_size=w.kernel_size, stride=w.stride, padding=w.padding
                )
                return pooled
            case GlobalAvgPoolModule():
                n_pixels: int = x.size(2) * x.size(3)
                return x.sum(axis=(2, 3), keepdims=True) * (1 / n_pixels)
            case SequentialModule():
                for key, child in layer.children.items():
                    x = self.apply(child, f"{name}.{key}", x)
                return x
            case ResidualModule():
                return x + self.apply(layer.children["residual"], f"{name}.residual", x)
            case DropoutModule():
                return dropout(layer, x)
            case FlattenModule():
                return x.reshape(x.size(0), -1)
            case LeakyReLUModule():
                return leaky_relu(x, layer.neg_slope)
            case GELUModule():
                return gelu(x, layer.approximate)
        if type(layer) not in _ACTIVATIONS:
            raise TypeError(f"the graph engine does not know {layer!r}; train it on the modules")
        return _ACTIVATIONS[type(layer)](x)


def dropout(layer: DropoutModule, x: TensorNode) -> TensorNode:
    """Return x with a share of its entries zeroed and the others scaled up, while training."""
    if not layer.training:
        return x
    kept = layer.rng.random(x.size(), dtype=np.float32) >= layer.p
    scale: Array = kept.astype(x.dtype) * x.dtype.type(1 / (1 - layer.p))
    return x * scale


def batch_norm(
    layer: BatchNormModule, weight: TensorNode, bias: TensorNode, x: TensorNode
) -> TensorNode:
    """Return ``weight · (x - μ) / √(σ² + eps) + bias`` of (N, D) or (N, C, H, W) in elementary ops.

    The backward pass that :class:`numpy_mlp.modules.BatchNormModule` derives on half a page is here
    the graph's affair, and costs several times as much.
    """
    images = len(x.size()) == 4
    axes, n = ((0, 2, 3), x.value.size // x.size(1)) if images else (0, x.size(0))

    def of_channels(node: TensorNode) -> TensorNode:
        return node.reshape(1, -1, 1, 1) if images else node

    if layer.training:
        # Updates the running ones; the graph computes its own.
        layer._batch_statistics(channels_last(x.value) if images else x.value)
        deviation = x - x.sum(axis=axes, keepdims=True) * (1 / n)
        variance = (deviation * deviation).sum(axis=axes, keepdims=True) * (1 / n)
    else:
        mean, variance = (
            of_channels(TensorNode(value, requires_grad=False))
            for value in (layer.running_mean, layer.running_var)
        )
        deviation = x - mean
    x_hat: TensorNode = deviation * (variance + layer.eps) ** -0.5
    return of_channels(weight) * x_hat + of_channels(bias)


def convolution(layer: Conv2dModule, x: TensorNode, *parameters: TensorNode) -> TensorNode:
    """Return the convolution of x with the weight, and the bias if there is one."""
    window = layer.window
    result: TensorNode = Conv2d.do_forward(
        x,
        *parameters,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=layer.groups,
        algorithm=layer.algorithm,
    )
    return result
