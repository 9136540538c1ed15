"""The assignment's convolutional networks for small colour images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def _conv(n_in: int, n_out: int, norm: Norm) -> nn.Sequential:
    # No bias: the normalisation that follows subtracts the mean, and brings a bias of its own.
    convolution = nn.Conv2d(n_in, n_out, kernel_size=3, stride=1, padding=1, bias=False)
    return nn.Sequential(convolution, norm(n_out), nn.ReLU(inplace=True))


def _maxpool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


class FeatureClassifier(nn.Module):
    """``features``, flattened, then ``classifier``: what the convolutional networks share."""

    features: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return what the classifier makes of the features, (N, n_classes)."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


class ConvNet(FeatureClassifier):
    """A small VGG (Simonyan and Zisserman, ICLR 2015), as the course of 2018 draws it.

    conv 64 - pool - conv 128 - pool - 2 × conv 256 - pool - 2 × conv 512 - pool - 2 × conv 512 -
    pool - average pool - linear. Convolutions are 3×3, stride 1, padding 1, each followed by
    normalisation and ReLU; max-pools are 3×3, stride 2, padding 1, so that each halves the size,
    rounding up, whatever it was: 32×32, 28×28 and 8×8 images all end at 1×1.

    Args:
        n_channels: channels of the images.
        n_classes: number of classes.
        norm: makes the normalisation of a layer from its number of channels.

    Shapes: (N, n_channels, H, W) -> logits (N, n_classes).
    """

    def __init__(self, n_channels: int, n_classes: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(n_channels, 64, norm),
            _maxpool(),
            _conv(64, 128, norm),
            _maxpool(),
            _conv(128, 256, norm),
            _conv(256, 256, norm),
            _maxpool(),
            _conv(256, 512, norm),
            _conv(512, 512, norm),
            _maxpool(),
            _conv(512, 512, norm),
            _conv(512, 512, norm),
            _maxpool(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(512, n_classes)


class SmallVGG(FeatureClassifier):
    """A VGG of three stages, for images as simple as MNIST's: a fifth of the arithmetic.

    [2 × conv - pool 2] × 3 with 32, 64 and 128 channels - dropout 0.3 - linear, the convolutions as
    in :class:`ConvNet`.

    Args:
        n_channels: channels of the images.
        n_classes: number of classes.
        image_size: height and width of the images.
        norm: makes the normalisation of a layer from its number of channels.

    Shapes: (N, n_channels, image_size, image_size) -> logits (N, n_classes).
    """

    def __init__(
        self, n_channels: int, n_classes: int, image_size: int, *, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for n_in, n_out in ((n_channels, 32), (32, 64), (64, 128)):
            stages += [_conv(n_in, n_out, norm), _conv(n_out, n_out, norm), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*stages)
        n_features = 128 * (image_size // 8) ** 2
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(n_features, n_classes))


class PreActBlock(nn.Module):
    """``x + conv(relu(norm(x)))``: a pre-activation residual block.

    Source: He et al., *Identity Mappings in Deep Residual Networks*, ECCV 2016, figure 4 (e).
    """

    def __init__(self, n_channels: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            norm(n_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_channels, n_channels, kernel_size=3, stride=1, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the block's residual, the same shape."""
        out: Tensor = x + self.residual(x)
        return out


class PreActResNet(FeatureClassifier):
    """The variant of 2020: the widths of :class:`ConvNet`, in pre-activation residual blocks.

    conv 64 - block - [1×1 conv to the next width - pool - blocks] × (128: 1; 256: 2; 512: 2;
    512: 2) - pool - norm - ReLU - average pool - linear.

    Args:
        n_channels: channels of the images.
        n_classes: number of classes.
        norm: makes the normalisation of a layer from its number of channels.

    Shapes: (N, n_channels, H, W) -> logits (N, n_classes).
    """

    def __init__(self, n_channels: int, n_classes: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        stages: list[nn.Module] = [
            nn.Conv2d(n_channels, 64, kernel_size=3, stride=1, padding=1),
            PreActBlock(64, norm),
        ]
        for n_in, n_out, n_blocks in ((64, 128, 1), (128, 256, 2), (256, 512, 2)):
            stages += [nn.Conv2d(n_in, n_out, kernel_size=1), _maxpool()]
            stages += [PreActBlock(n_out, norm) for _ in range(n_blocks)]
        stages += [_maxpool(), PreActBlock(512, norm), PreActBlock(512, norm), _maxpool()]
        self.features = nn.Sequential(
            *stages, norm(512), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )
        self.classifier = nn.Linear(512, n_classes)
