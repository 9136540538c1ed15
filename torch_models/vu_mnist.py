"""The MNIST networks of the Vrije Universiteit's assignment."""

from __future__ import annotations

from torch import Tensor, nn

from torch_models.convnet import FeatureClassifier, Norm

_DROPOUT = 0.3


class VUMLP(nn.Module):
    """784-4096-1024-128-10 with ReLU and dropout 0.3 after each hidden linear layer.

    Ends in log-softmax: its loss is ``nn.NLLLoss``, and cross-entropy on its output is the same
    number, since the log-softmax of a log-softmax is itself.

    Args:
        n_inputs: number of pixels.
        n_classes: number of classes.

    Shapes: (N, C, H, W) -> log-probabilities (N, n_classes).
    """

    def __init__(self, n_inputs: int = 784, n_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in ((n_inputs, 4096), (4096, 1024), (1024, 128)):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(_DROPOUT)]
        self.layers = nn.Sequential(*layers, nn.Linear(128, n_classes), nn.LogSoftmax(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (N, n_classes)."""
        out: Tensor = self.layers(x.flatten(1))
        return out


class VUConvNet(FeatureClassifier):
    """BatchNorm - [conv 3×3 - ReLU - maxpool 2] × 3 (32, 64, 128) - linear 1152-256-64-10.

    Dropout 0.3 after each hidden linear layer; ends in log-softmax, as :class:`VUMLP`.

    Args:
        n_channels: channels of the images.
        n_classes: number of classes.
        image_size: height and width of the images; 28 gives the assignment's 1152 features.
        norm: makes the normalisation of the images from their number of channels.

    Shapes: (N, n_channels, image_size, image_size) -> log-probabilities (N, n_classes).
    """

    def __init__(
        self,
        n_channels: int = 1,
        n_classes: int = 10,
        image_size: int = 28,
        *,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [norm(n_channels)]
        for n_in, n_out in ((n_channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(n_in, n_out, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        n_features = 128 * (image_size // 8) ** 2
        self.classifier = nn.Sequential(
            nn.Linear(n_features, 256),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(64, n_classes),
            nn.LogSoftmax(dim=1),
        )
