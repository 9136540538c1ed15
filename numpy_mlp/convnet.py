"""Convolutional networks: the courses', and a fast one. Their PyTorch twins are in torch_models.

Names of layers and parameters are those of the twin, so that ``state_dict`` goes either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules import (
    BatchNorm2dModule,
    Conv2dModule,
    DropoutModule,
    FlattenModule,
    GELUModule,
    GlobalAvgPoolModule,
    LinearModule,
    MaxPool2dModule,
    Module,
    ReLUModule,
    ResidualModule,
    SequentialModule,
    SoftMaxModule,
)
from numpy_mlp.modules.module import Array
from numpy_mlp.modules.window import channels_last
from numpy_mlp.network import Network
from numpy_mlp.randomness import Source, as_generator

Shape = tuple[int, int, int]
"""Of an image: (C, H, W)."""


class ConvNet(Network):
    """Features of an image, flattened, then a classifier and a softmax.

    Args:
        features: modules; a list among them is a chain of its own, whose numbers have two parts.
        classifier: a linear layer, or modules that end in one.

    Shapes: images (N, C, H, W) -> probabilities (N, K).
    """

    def __init__(
        self, features: Sequence[Module | list[Module]], classifier: Module | Sequence[Module]
    ) -> None:
        named: list[tuple[str, Module]] = []
        for i, module in enumerate(features):
            chain = module if isinstance(module, list) else [module]
            inner = [f".{j}" for j in range(len(chain))] if isinstance(module, list) else [""]
            named += [(f"features.{i}{j}", part) for j, part in zip(inner, chain, strict=True)]
        named.append(("flatten", FlattenModule()))
        if isinstance(classifier, Module):
            named.append(("classifier", classifier))
        else:
            named += [(f"classifier.{i}", module) for i, module in enumerate(classifier)]
        named.append(("softmax", SoftMaxModule()))
        super().__init__([module for _, module in named], [name for name, _ in named])


class _Maker:
    """Makes layers of one type of number, their weights from one generator."""

    def __init__(self, dtype: DTypeLike, rng: Source) -> None:
        # One stream for the weights, one for the masks of dropout, as in the MLP.
        self.dtype = dtype
        self.rng, self.dropout_rng = as_generator(rng).spawn(2)

    def conv(
        self, n_in: int, n_out: int, kernel_size: int = 3, *, padding: int = 1, bias: bool = True
    ) -> Conv2dModule:
        return Conv2dModule(
            n_in,
            n_out,
            kernel_size,
            padding=padding,
            bias=bias,
            dtype=self.dtype,
            rng=self.rng,
        )

    def norm(self, n_channels: int) -> BatchNorm2dModule:
        return BatchNorm2dModule(n_channels, dtype=self.dtype)

    def linear(self, n_in: int, n_out: int, *, last: bool = False) -> LinearModule:
        return LinearModule(n_in, n_out, input_layer=last, dtype=self.dtype, rng=self.rng)

    def dropout(self, p: float = 0.3) -> DropoutModule:
        return DropoutModule(p, rng=self.dropout_rng)

    def conv_norm_relu(self, n_in: int, n_out: int) -> list[Module]:
        # No bias: the normalisation that follows subtracts the mean, and brings a bias of its own.
        return [self.conv(n_in, n_out, bias=False), self.norm(n_out), ReLUModule()]

    def preactivation(self, n_channels: int) -> ResidualModule:
        conv = self.conv(n_channels, n_channels)
        return ResidualModule(SequentialModule(self.norm(n_channels), ReLUModule(), conv))


def _halve() -> MaxPool2dModule:
    return MaxPool2dModule(3, stride=2, padding=1)


def vgg(
    shape: Shape,
    n_classes: int,
    *,
    dtype: DTypeLike = np.float64,
    rng: Source = None,
) -> ConvNet:
    """Return the small VGG of Amsterdam's course of 2018, :class:`torch_models.ConvNet`.

    conv 64 - pool - conv 128 - pool - 2 × conv 256 - pool - 2 × conv 512 - pool - 2 × conv 512 -
    pool - average pool - linear; every convolution 3×3, followed by batch normalisation and ReLU.

    Source: Simonyan and Zisserman, ICLR 2015.
    """
    make, features, n_in = _Maker(dtype, rng), list[Module | list[Module]](), shape[0]
    for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for n_out in widths:
            features.append(make.conv_norm_relu(n_in, n_out))
            n_in = n_out
        features.append(_halve())
    return ConvNet([*features, GlobalAvgPoolModule()], make.linear(512, n_classes, last=True))


def preact_resnet(
    shape: Shape,
    n_classes: int,
    *,
    dtype: DTypeLike = np.float64,
    rng: Source = None,
) -> ConvNet:
    """Return the course's variant of 2020, :class:`torch_models.PreActResNet`.

    conv 64 - block - [1×1 conv to the next width - pool - blocks] × (128: 1; 256: 2; 512: 2;
    512: 2) - pool - norm - ReLU - average pool - linear; a block is x + conv(ReLU(norm(x))).

    Source: He et al., *Identity Mappings in Deep Residual Networks*, ECCV 2016.
    """
    make = _Maker(dtype, rng)
    features: list[Module | list[Module]] = [make.conv(shape[0], 64), make.preactivation(64)]
    for n_in, n_out, n_blocks in ((64, 128, 1), (128, 256, 2), (256, 512, 2)):
        features += [make.conv(n_in, n_out, 1, padding=0), _halve()]
        features += [make.preactivation(n_out) for _ in range(n_blocks)]
    features += [_halve(), make.preactivation(512), make.preactivation(512), _halve()]
    features += [make.norm(512), ReLUModule(), GlobalAvgPoolModule()]
    return ConvNet(features, make.linear(512, n_classes, last=True))


def small_vgg(
    shape: Shape,
    n_classes: int,
    *,
    dtype: DTypeLike = np.float64,
    rng: Source = None,
) -> ConvNet:
    """Return a VGG of three stages for images as simple as MNIST's, :class:`torch_models.SmallVGG`.

    [2 × conv - pool 2] × 3 with 32, 64 and 128 channels - dropout 0.3 - linear.
    """
    make, features = _Maker(dtype, rng), list[Module | list[Module]]()
    for n_in, n_out in ((shape[0], 32), (32, 64), (64, 128)):
        features += [make.conv_norm_relu(n_in, n_out), make.conv_norm_relu(n_out, n_out)]
        features.append(MaxPool2dModule(2))
    n_features = 128 * (shape[1] // 8) * (shape[2] // 8)
    return ConvNet(features, [make.dropout(), make.linear(n_features, n_classes, last=True)])


def vu_convnet(
    shape: Shape,
    n_classes: int,
    *,
    dtype: DTypeLike = np.float64,
    rng: Source = None,
) -> ConvNet:
    """Return Vrije Universiteit's network for MNIST, :class:`torch_models.VUConvNet`.

    BatchNorm - [conv 3×3 - ReLU - maxpool 2] × 3 (32, 64, 128) - linear 1152-256-64-10, dropout 0.3
    after each hidden linear layer. Its twin ends in log-softmax, which changes no probability.
    """
    make = _Maker(dtype, rng)
    features: list[Module | list[Module]] = [make.norm(shape[0])]
    for n_in, n_out in ((shape[0], 32), (32, 64), (64, 128)):
        features += [make.conv(n_in, n_out), ReLUModule(), MaxPool2dModule(2)]
    classifier: list[Module] = []
    for n_in, n_out in ((128 * (shape[1] // 8) * (shape[2] // 8), 256), (256, 64)):
        classifier += [make.linear(n_in, n_out), ReLUModule(), make.dropout()]
    return ConvNet(features, [*classifier, make.linear(64, n_classes, last=True)])


def fast(
    shape: Shape,
    n_classes: int,
    *,
    widths: Sequence[int] = (64, 256, 256),
    dtype: DTypeLike = np.float64,
    rng: Source = None,
) -> ConvNet:
    """Return the network that learns with the least arithmetic, ``torch_models.FastConvNet``.

    whitening conv 2×2 - GELU - [conv - maxpool 2 - norm - GELU - conv - norm - GELU] × 3 -
    maxpool 3 - linear. The filters of the first layer are not trained: :func:`whitening_filters`
    makes them from training images. The other convolutions are 3×3 and begin as the identity on
    the channels that there are, with random filters beside it. Normalisation learns its bias alone:
    the next convolution can undo any scale.

    Args:
        shape: of the images; 32×32, as those of CIFAR-10, or at least 26 a side.
        n_classes: number of classes.
        widths: channels of the three blocks.
        dtype: ``float32`` or ``float64``.
        rng: source of the initial weights.

    Source: Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024.
    """
    make = _Maker(dtype, rng)
    n_in = 8 * shape[0]
    whitening = make.conv(shape[0], n_in, 2, padding=0)
    whitening.frozen = frozenset({"weight"})
    features: list[Module | list[Module]] = [whitening, GELUModule("tanh")]
    for n_out in widths:
        block: list[Module] = []
        for pool in ([MaxPool2dModule(2)], []):
            conv, norm = make.conv(n_in, n_out, bias=False), make.norm(n_out)
            _begin_as_identity(conv)
            norm.frozen = frozenset({"weight"})
            norm.momentum = 0.4
            block += [conv, *pool, norm, GELUModule("tanh")]
            n_in = n_out
        features.append(block)
    side = [((size - 1) // 2 // 2 // 2) // 3 for size in shape[1:]]
    n_features = n_in * math.prod(side)
    head = LinearModule(
        n_features, n_classes, bias=False, dtype=dtype, rng=make.rng, weight_std=1 / n_in
    )
    return ConvNet([*features, MaxPool2dModule(3)], head)


def _begin_as_identity(conv: Conv2dModule) -> None:
    """Let the first filters copy a channel each."""
    weight = conv.params["weight"]
    n = min(conv.out_channels, conv.in_channels)
    weight[:n] = 0
    weight[np.arange(n), np.arange(n), 1, 1] = 1


def whitening_filters(images: Array, kernel_size: int = 2, eps: float = 5e-4) -> Array:
    """Return filters whose outputs on patches of ``images`` are uncorrelated and of variance 1.

    With C = E[p pᵀ] = V diag(λ) Vᵀ over the patches p, the filters are the rows of
    diag(λ + eps)^(-1/2) Vᵀ, and their negatives, as a nonlinearity follows.

    Args:
        images: (N, C, H, W), preprocessed; a few thousand suffice.
        kernel_size: rows and columns of a patch.
        eps: added to the eigenvalues, below which there is nothing but noise.

    Returns:
        (2·C·kernel_size², C, kernel_size, kernel_size).

    Source: Page, *How to Train Your ResNet*, 2019.
    """
    rows = channels_last(images, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (kernel_size,) * 2, axis=(1, 2))
    depth = images.shape[1] * kernel_size**2
    covariance, count = np.zeros((depth, depth)), 0
    for part in windows:  # (H', W', C, kernel_size, kernel_size): an image's
        patches = part.reshape(-1, depth)
        covariance += patches.T @ patches
        count += len(patches)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance / count)
    # The sign of an eigenvector is the library's choice; both signs are there anyway.
    filters = eigenvectors.T / np.sqrt(eigenvalues + eps)[:, None]
    shape = (-1, images.shape[1], kernel_size, kernel_size)
    return np.concatenate([filters, -filters]).reshape(shape)


CONVNETS: dict[str, Callable[..., ConvNet]] = {
    "vgg": vgg,
    "preact-resnet": preact_resnet,
    "small-vgg": small_vgg,
    "vu-convnet": vu_convnet,
    "fast": fast,
}
