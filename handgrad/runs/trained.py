"""A finished run, read from its folder: the network, and what goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.images import as_pixels
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import DataError
from handgrad.runs.backend import Backend
from handgrad.runs.settings import TrainSettings
from handgrad.training.metrics import Row

_BATCH = 500  # images at a time, so that many of them need little memory


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A trained network and what it was trained with.

    Attributes:
        folder: of the run.
        model: the network, in evaluation mode: a :class:`numpy_mlp.MLP`, or a PyTorch module.
        preprocessing: turns uint8 images into the network's inputs.
        image_shape: (C, H, W) of the images.
        class_names: what the predicted numbers stand for.
        settings: of the training; where only the weights are left, those of the network, and
            defaults for the others.
        history: the rows of ``metrics.csv``: loss and accuracy at every evaluation.
        summary: what ``summary.json`` says: test accuracy, time, results of each class.
    """

    folder: Path
    model: Any
    preprocessing: Preprocessing
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    settings: TrainSettings
    history: list[Row]
    summary: dict[str, Any]
    backend: Backend[Any]

    def __repr__(self) -> str:
        accuracy = self.summary.get("test_accuracy", float("nan"))
        kind = type(self.model).__name__
        return f"TrainedRun({str(self.folder)!r}: {kind}, test accuracy {accuracy:.4f})"

    def predict_proba(self, images: Any) -> NDArray[np.floating[Any]]:
        """Return the probabilities of the classes, (N, number of classes).

        Args:
            images: one or many, in either layout, as an array, a tensor, a list, or as pictures or
                their paths; pixels of 0 to 255, or of 0 to 1 as floating-point numbers:
                :func:`handgrad.data.images.as_pixels` has it in full.

        Raises:
            UserError: their shape, scale or colours are not those of the training, or could be
                read in two ways.
            DataError: the weights are so large that what comes out is NaN.
        """
        batch = as_pixels(images, self.image_shape)
        with np.errstate(all="ignore"):  # what comes of it is looked at
            parts = [
                self.backend.probabilities(self.model, self.preprocessing(batch[i : i + _BATCH]))
                for i in range(0, max(1, len(batch)), _BATCH)
            ]
        found = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise DataError(f"the network of {self.folder} answers with NaN: its weights overflow")
        return found

    def predict(self, images: Any) -> NDArray[np.int64]:
        """Return the most probable class of each image, (N,): an index into ``class_names``.

        Args:
            images: as for :meth:`predict_proba`.
        """
        predicted: NDArray[np.int64] = self.predict_proba(images).argmax(axis=1)
        return predicted
