"""What the backends have in common."""

from __future__ import annotations

from handgrad.data.loader import share
from handgrad.errors import UserError
from handgrad.runs.settings import TrainSettings
from numpy_mlp.optim import Schedule, constant_schedule, cosine_schedule, step_schedule


def check_last_batch(batch_size: int, n_images: int, n_processes: int = 1) -> None:
    """Refuse a batch of one image in a process: batch normalisation knows no variance of it."""
    for n in (batch_size, n_images % batch_size):
        parts = [share(n, rank, n_processes) for rank in range(n_processes)]
        if any(part.stop - part.start == 1 for part in parts):
            raise UserError(
                f"--batch-size {batch_size} leaves a batch of one of the {n_images} training "
                f"images, which batch normalisation cannot normalise; choose another size"
            )


def check_last_batch_of(
    model: str, image_shape: tuple[int, ...], batch_size: int, n_images: int, n_processes: int = 1
) -> None:
    """Do so for the convolutional networks that normalise a single value a channel at the end."""
    if model == "preact-resnet" or (model == "vgg" and image_shape[1] <= 16):
        check_last_batch(batch_size, n_images, n_processes)


def build_schedule(settings: TrainSettings, total_steps: int) -> Schedule:
    """Return the learning rate of each step."""
    lr, warmup_steps = settings.lr, settings.warmup_steps
    if warmup_steps > total_steps:
        raise UserError(f"--warmup-steps {warmup_steps} exceeds the {total_steps} steps of the run")
    if settings.schedule == "cosine":
        return cosine_schedule(lr, total_steps=total_steps, warmup_steps=warmup_steps)
    if settings.schedule == "step":
        step_size = settings.step_size or max(1, total_steps // 3)
        return step_schedule(
            lr, step_size=step_size, gamma=settings.gamma, warmup_steps=warmup_steps
        )
    return constant_schedule(lr, warmup_steps=warmup_steps)
