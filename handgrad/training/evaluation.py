"""What a learner makes of a split: loss, accuracy, predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handgrad.training.learner import Learner, Loader
from handgrad.training.team import Alone, Team


class Evaluation(NamedTuple):
    """What :func:`evaluate` found.

    Attributes:
        loss: mean over the images.
        accuracy: share of correct predictions.
        predicted: class of each image, (N,).
    """

    loss: float
    accuracy: float
    predicted: NDArray[Any]


class Mistakes(NamedTuple):
    """The images that are classified wrongly, the surest mistake first; of equals the first image.

    Attributes:
        images: their indices, (M,).
        predicted: probabilities of the predicted classes, (M,).
        true: probabilities of the true classes, (M,).
    """

    images: NDArray[np.int64]
    predicted: NDArray[np.float32]
    true: NDArray[np.float32]


def evaluate(
    learner: Learner,
    loader: Loader,
    team: Team | None = None,
    between: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Evaluate a split, the processes of a team each their share of it.

    Args:
        learner: what to evaluate.
        loader: all images, or, in a team, this process's part of them; the parts follow each
            other in the order of the ranks.
        team: the processes; the same answer is given to all.
        between: called after each batch; may raise to break off.
    """
    team = team or Alone()
    total: Any = 0.0
    predicted = [np.empty(0, dtype=np.int64)]
    for images, labels in loader.batches(0):
        loss, classes = learner.eval_step(images, labels)
        total = total + loss * len(labels)
        predicted.append(np.asarray(classes))
        between()
    classes = np.concatenate(predicted)
    correct = np.count_nonzero(classes == loader.split.labels)
    sums = team.sum(np.array([float(total), float(correct), float(len(classes))]))
    loss, accuracy = float(sums[0] / sums[2]), float(sums[1] / sums[2])
    return Evaluation(loss, accuracy, team.gather(classes))


def probabilities(
    learner: Learner, loader: Loader, n_classes: int, team: Team | None = None
) -> NDArray[np.float32]:
    """Return the probabilities of the classes, (N, K), for the images of a split.

    In a team the processes look at their share each, as in :func:`evaluate`.
    """
    rows = [np.empty((0, n_classes), dtype=np.float32)]
    for images, _ in loader.batches(0):
        rows.append(np.asarray(learner.probabilities(images), dtype=np.float32))
    together: NDArray[np.float32] = (team or Alone()).gather(np.concatenate(rows))
    return together


def accuracy_of_mean(
    learner: Learner,
    views: Iterable[tuple[float, Loader]],
    n_classes: int,
    team: Team | None = None,
) -> float:
    """Return the accuracy of probabilities averaged over views of the same images.

    Args:
        learner: what to evaluate.
        views: weight and loader of each, the weights adding up to 1.
        n_classes: number of classes.
        team: the processes, as in :func:`evaluate`.
    """
    team, mean = team or Alone(), None
    for weight, loader in views:
        weighted = weight * probabilities(learner, loader, n_classes, team)
        mean = weighted if mean is None else mean + weighted
        labels = loader.split.labels
    assert mean is not None
    return float((mean.argmax(axis=1) == team.gather(labels)).mean())


def surest_mistakes(
    probabilities: NDArray[np.float32], predicted: NDArray[Any], labels: NDArray[Any]
) -> Mistakes:
    """Sort the wrong predictions.

    Args:
        probabilities: of the classes, (M, K), for the images classified wrongly.
        predicted: classes of all images, (N,).
        labels: true classes, (N,).
    """
    wrong = np.flatnonzero(predicted != labels)
    rows = np.arange(len(wrong))
    order = np.argsort(-probabilities[rows, predicted[wrong]], kind="stable")
    wrong, probabilities = wrong[order], probabilities[order]
    return Mistakes(
        wrong, probabilities[rows, predicted[wrong]], probabilities[rows, labels[wrong]]
    )
