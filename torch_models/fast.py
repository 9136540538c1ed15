"""The network that learns with the least arithmetic: :func:`numpy_mlp.convnet.fast` in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torch_models.convnet import FeatureClassifier, Norm


class FastConvNet(FeatureClassifier):
    """A convolutional network for images of at least 26×26 pixels.

    whitening conv 2×2 - GELU - [conv - maxpool 2 - norm - GELU - conv - norm - GELU] × 3 -
    maxpool 3 - linear. Names and numbers are those of its NumPy twin, whose docstring says why it
    is built so. The filters of the first layer are not trained: who trains the network puts
    :func:`numpy_mlp.convnet.whitening_filters` there. Normalisation learns its bias alone.

    Args:
        n_channels: channels of the images.
        n_classes: number of classes.
        image_size: height and width of the images.
        widths: channels of the three blocks.
        norm: makes the normalisation of a layer from its number of channels.

    Shapes: (N, n_channels, image_size, image_size) -> logits (N, n_classes).

    Raises:
        ValueError: the images are too small.

    Source: Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        image_size: int,
        *,
        widths: Sequence[int] = (64, 256, 256),
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        side = (image_size - 1) // 8 // 3
        if not side:
            raise ValueError(f"images must be at least 26×26, got {image_size}×{image_size}")
        n_in = 8 * n_channels
        whitening = nn.Conv2d(n_channels, n_in, kernel_size=2)
        whitening.weight.requires_grad_(False)
        stages: list[nn.Module] = [whitening, nn.GELU("tanh")]
        for n_out in widths:
            block: list[nn.Module] = []
            for pool in ([nn.MaxPool2d(2)], []):
                conv = nn.Conv2d(n_in, n_out, kernel_size=3, padding=1, bias=False)
                nn.init.dirac_(conv.weight[: min(n_in, n_out)].detach())
                block += [conv, *pool, _norm_with_bias_alone(norm, n_out), nn.GELU("tanh")]
                n_in = n_out
            stages.append(nn.Sequential(*block))
        self.features = nn.Sequential(*stages, nn.MaxPool2d(3))
        self.classifier = nn.Linear(n_in * side**2, n_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=1 / n_in)


def _norm_with_bias_alone(norm: Norm, n_channels: int) -> nn.Module:
    """Return a normalisation whose scale stays 1 and whose running statistics follow quickly."""
    layer = norm(n_channels)
    scale = next(layer.parameters())  # `weight` in PyTorch's own, `gamma` in ours
    scale.requires_grad_(False)
    layer.momentum = 0.4  # type: ignore[assignment]
    return layer
