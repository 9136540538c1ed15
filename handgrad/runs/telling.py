"""What a run says of itself when it begins and when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from handgrad.data import Dataset
from handgrad.runs.result import count_parameters
from handgrad.runs.settings import TrainSettings
from handgrad.training.loop import Loop


def beginning(
    dataset: Dataset, settings: TrainSettings, loop: Loop, petaflop: float | None
) -> Iterator[str]:
    """Yield the lines that say what is to be trained, on what, and at what cost."""
    sizes = ", ".join(
        f"{len(dataset.split(name)):,} {name}"
        for name in ("train", "validation", "test")
        if len(dataset.split(name))
    )
    yield f"{dataset.name}: {sizes} images of {'×'.join(map(str, dataset.image_shape))}"
    epochs = f"{settings.epochs:,} epochs, " if settings.epochs else ""
    cost = f", {petaflop:.2g} PFLOP" if petaflop is not None else ""
    yield (
        f"{count_parameters(loop.learner.weights()):,} parameters, {settings.optimizer}, "
        f"learning rate {settings.lr:g}, {epochs}{loop.total_steps:,} steps of "
        f"{settings.batch_size} images{cost}"
    )


def result(summary: Mapping[str, Any]) -> str:
    """Return the line that says what came of it."""
    best, with_tta = summary["best_validation_accuracy"], summary.get("test_accuracy_tta")
    return (
        f"test accuracy {summary['test_accuracy']:.4f}"
        + (f" ({with_tta:.4f} with test-time augmentation)" if with_tta is not None else "")
        + f", test loss {summary['test_loss']:.4f}"
        + (f", best validation accuracy {best:.4f}" if best is not None else "")
        + f"; {summary['seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s"
    )
