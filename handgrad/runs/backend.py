"""What a run asks of the library that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from handgrad.data import BatchLoader, Dataset
from handgrad.data.augment import Augmentation, compose
from handgrad.environment import blas_threads
from handgrad.runs.settings import SettingsT
from handgrad.training.learner import Learner, Loader
from handgrad.training.team import Alone, Team


class Backend(Generic[SettingsT]):
    """A network and the library that computes it; a subclass writes at least what raises here.

    Attributes:
        name: first part of the default run folder's name.
        team: the processes that train together.
    """

    name: str
    team: Team = Alone()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold what training needs from beginning to end."""
        yield

    def resolve(self, settings: SettingsT, dataset: Dataset) -> SettingsT:
        """Replace what the settings leave to be decided on the spot (``auto``).

        What was decided is recorded, and a resumed run goes on with it.
        """
        return settings

    def hold_threads(self, settings: SettingsT) -> AbstractContextManager[object]:
        """Hold the number of threads that training computes with."""
        n = settings.threads
        return nullcontext() if n is None else threadpool_limits(n)

    def training_operations(self, learner: Any, shape: tuple[int, ...]) -> int | None:
        """Return the floating-point operations of a step, for each image; None if unknown."""
        return None

    def build(self, settings: SettingsT, dataset: Dataset) -> Learner:
        """Return the learner for the settings and the dataset."""
        raise NotImplementedError

    def schedule(self, settings: SettingsT, total_steps: int) -> Callable[[int], float]:
        """Return the learning rate of each step, counted from 0."""
        raise NotImplementedError

    def threads(self, settings: SettingsT) -> int | None:
        """Return how many threads compute; None where they decide no bit, or nobody knows."""
        return blas_threads()

    def adapt(self, settings: SettingsT, loader: BatchLoader) -> Loader:
        """Return a loader that yields the same batches, perhaps elsewhere."""
        return loader

    def augmentation(self, settings: SettingsT) -> Augmentation | None:
        """Return what changes the training images."""
        return compose(settings.augment)

    def load(
        self,
        settings: SettingsT,
        image_shape: tuple[int, ...],
        class_names: tuple[str, ...],
        weights: Mapping[str, NDArray[Any]],
    ) -> Any:
        """Return the trained network, in evaluation mode.

        Args:
            settings: of the run.
            image_shape: (C, H, W).
            class_names: C' of them.
            weights: by name, as ``model.safetensors`` holds them.

        Raises:
            ValueError: the weights do not fit.
        """
        raise NotImplementedError

    def probabilities(self, model: Any, inputs: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return the probabilities of the classes, (N, C'), for inputs (N, C, H, W)."""
        raise NotImplementedError
