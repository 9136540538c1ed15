"""What the backends have in common."""

from __future__ import annotations

from handgrad.data.loader import share
from handgrad.errors import UserError


def check_last_batch(batch_size: int, n_images: int, n_processes: int = 1) -> None:
    """Refuse a batch of one image in a process: batch normalisation knows no variance of it."""
    for n in (batch_size, n_images % batch_size):
        parts = [share(n, rank, n_processes) for rank in range(n_processes)]
        if any(part.stop - part.start == 1 for part in parts):
            raise UserError(
                f"--batch-size {batch_size} leaves a batch of one of the {n_images} training "
                f"images, which batch normalisation cannot normalise; choose another size"
            )
