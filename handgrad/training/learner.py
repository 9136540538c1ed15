"""What the loop asks of a backend, and of a loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, SupportsFloat

from numpy.typing import NDArray

from handgrad.data.dataset import Split

Array = NDArray[Any]


class Scalar(SupportsFloat, Protocol):
    """A number that may still be on its way from a device: it adds up; ``float`` waits for it."""

    def __add__(self, other: Any, /) -> Any:
        """Return the sum."""
        ...

    def __mul__(self, other: Any, /) -> Any:
        """Return the product."""
        ...


class Learner(Protocol):
    """A model, its loss and its optimizer, in any backend.

    Batches are what the loader yields: images (B, C, H, W) and labels (B,). A NumPy learner
    returns plain numbers; a device's may return scalars that the loop converts only when it
    reports, so that no step waits for the device.
    """

    def train_step(self, images: Any, labels: Any, lr: float) -> tuple[Scalar, Scalar]:
        """Update the weights on a batch; return its mean loss and its number of correct answers."""
        ...

    def eval_step(self, images: Any, labels: Any) -> tuple[Scalar, Array]:
        """Return the mean loss of a batch and the predicted classes (B,)."""
        ...

    def probabilities(self, images: Any) -> Array:
        """Return the probabilities of the classes, (B, K), for a batch."""
        ...

    def weights(self) -> Mapping[str, Array]:
        """Return the trained model's arrays by name, live or copied."""
        ...

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Set the model's arrays; ValueError when they do not fit."""
        ...

    def state(self) -> tuple[Mapping[str, Array], str]:
        """Return what else a resumed run needs: arrays by name, and a text."""
        ...

    def load_state(self, arrays: Mapping[str, Array], text: str) -> None:
        """Restore what :meth:`state` returned; ValueError when it does not fit."""
        ...

    def feature_maps(self, images: Any) -> list[tuple[str, Array]]:
        """Return outputs (N, C, h, w) of layers on the way by name, for a picture; or none."""
        ...

    def first_layer(self) -> Array:
        """Return the weights that look at the input, (n_filters, C·h·w), for a picture."""
        ...


class Loader(Protocol):
    """What the loop asks of a loader; :class:`handgrad.data.BatchLoader` is one."""

    split: Split
    batch_size: int

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield ``(images, labels)`` of an epoch, from batch number ``start`` on."""
        ...
