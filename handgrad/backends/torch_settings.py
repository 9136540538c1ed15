"""Settings of everything that PyTorch computes; read without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from handgrad.data.augment import AUGMENTATIONS
from handgrad.errors import UserError
from handgrad.runs.declare import setting
from handgrad.runs.settings import TrainSettings


@dataclass(frozen=True)
class TorchSettings(TrainSettings):
    """Settings of everything that PyTorch computes."""

    groups: ClassVar[Mapping[str, str]] = {
        **TrainSettings.groups,
        **dict.fromkeys(("mixup", "cutmix"), "data"),
        **dict.fromkeys(("device", "precision", "compile"), "optimisation"),
    }

    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = setting(
        "auto",
        "precision; auto takes bf16 autocast where the device has instructions for it",
        choices=("auto", "float32", "bf16", "float64"),
    )
    augment: tuple[str, ...] = setting(
        (), "random changes of the training images", choices=[*AUGMENTATIONS, "randaugment"]
    )
    mixup: float = setting(
        0.0, "blend pairs of images, their shares from Beta(α, α) with this α", least=0
    )
    cutmix: float = setting(
        0.0, "paste a box of another image, its area from Beta(α, α) with this α", least=0
    )
    norm: str = setting(
        "builtin", "whose batch normalisation", choices=("builtin", "autograd", "manual")
    )
    compile: bool = setting(False, "compile the model with torch.compile")

    @property
    def dtype(self) -> str:
        """Type of the images that the loader yields."""
        return "float64" if self.precision == "float64" else "float32"

    def check(self) -> None:
        """Check what must hold between settings."""
        super().check()
        if self.compile and self.detect_anomaly:
            raise UserError(
                "--detect-anomaly looks at one module after another: leave out --compile"
            )
