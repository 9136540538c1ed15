"""Numbers that describe a classifier, and the file that records them during a run."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handgrad.errors import DataError
from handgrad.files import write_atomically

COLUMNS = ("step", "epoch", "split", "loss", "accuracy", "learning_rate", "seconds")


@dataclass(frozen=True)
class Row:
    """One line of ``metrics.csv``: what one split gave at one step.

    Attributes:
        step: updates made so far.
        epoch: the same in passes over the training images.
        split: ``train`` (mean over the steps since the last row), ``validation`` or ``test``.
        loss: mean cross-entropy, in nats.
        accuracy: share of correct predictions, 0 to 1.
        learning_rate: of the next step.
        seconds: training time so far, evaluation included.
    """

    step: int
    epoch: float
    split: str
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float


class MetricsFile:
    """``metrics.csv``, a row an evaluation; ``rows`` holds what it says.

    Args:
        path: the file; None keeps the rows in memory only, for a process that does not write.
        rows: those there are already.
    """

    def __init__(self, path: Path | None, rows: Sequence[Row] = ()) -> None:
        self.path, self.rows = path, list(rows)

    def create(self) -> None:
        """Write the file anew, with the rows there are."""
        if self.path is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_cells(row) for row in self.rows)
        write_atomically(self.path, text.getvalue().encode())

    def append(self, row: Row) -> None:
        """Add a row, in memory and on disk."""
        self.rows.append(row)
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(_cells(row))
                # On disk before the checkpoint that counts it.
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    @classmethod
    def reopen(cls, path: Path, n_rows: int) -> MetricsFile:
        """Return the file's first ``n_rows`` rows; :meth:`create` then drops the others from it.

        Raises:
            DataError: it has fewer, or a row cannot be read.
        """
        rows = read_metrics(path, n_rows)
        if len(rows) < n_rows:
            raise DataError(
                f"{path} has {len(rows)} rows, its checkpoint was written after {n_rows}"
            )
        return cls(path, rows)


def _cells(row: Row) -> list[Any]:
    values = asdict(row)
    values["epoch"] = f"{row.epoch:.4f}"
    values["seconds"] = f"{row.seconds:.3f}"
    return list(values.values())


def read_metrics(path: Path, limit: int | None = None) -> list[Row]:
    """Return the rows of a ``metrics.csv``, the first ``limit`` of them if that is given.

    Raises:
        DataError: the file is missing or is not one.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise DataError(f"{path} does not have the columns {','.join(COLUMNS)}")
            return [
                Row(
                    step=_step(cells["step"]),
                    epoch=float(cells["epoch"]),
                    split=cells["split"],
                    loss=float(cells["loss"]),
                    accuracy=float(cells["accuracy"]),
                    learning_rate=float(cells["learning_rate"]),
                    seconds=float(cells["seconds"]),
                )
                for cells in itertools.islice(reader, limit)
            ]
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (TypeError, KeyError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {error}") from None


def _step(text: str) -> int:
    step = int(text)
    if not 0 <= step < 2**63:
        raise ValueError(f"{text[:30]!r} is no number of steps")
    return step


def confusion_matrix(predictions: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Return counts M[t, p] of samples of class t that were predicted to be p, (C, C).

    Args:
        predictions: scores or probabilities (N, C).
        targets: labels (N,).

    Raises:
        ValueError: the shapes do not fit, or a label is out of range.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or not predictions.shape[1]:
        raise ValueError(f"predictions must be scores of shape (N, C), got {predictions.shape}")
    return count_confusions(predictions.argmax(axis=1), targets, predictions.shape[1])


def count_confusions(predicted: ArrayLike, targets: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix M[target, predicted] from class indices (N,) and (N,).

    Raises:
        ValueError: they are no whole numbers from 0 to ``n_classes`` - 1, or not as many.
    """
    found = []
    for name, classes in (("predicted", predicted), ("targets", targets)):
        classes = np.asarray(classes)
        if classes.ndim != 1 or (classes.size and classes.dtype.kind not in "iu"):
            raise ValueError(
                f"{name} must be class indices of shape (N,), got {classes.dtype} of shape "
                f"{classes.shape}"
            )
        if classes.size and not (classes.min() >= 0 and classes.max() < n_classes):
            bad = classes[(classes < 0) | (classes >= n_classes)][0]
            raise ValueError(f"{name} holds {bad}, expected 0 to {n_classes - 1}")
        found.append(classes.astype(np.int64))  # of 8 bits, the products below would overflow
    if len(found[0]) != len(found[1]):
        raise ValueError(f"{len(found[0])} predicted classes for {len(found[1])} targets")
    flat = np.bincount(found[1] * n_classes + found[0], minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def confusion_matrix_to_metrics(confusion_matrix: ArrayLike, beta: float = 1.0) -> dict[str, Any]:
    """Return accuracy and, per class, precision, recall and F-beta.

    For class c: precision = M[c,c] / Σ_t M[t,c]; recall = M[c,c] / Σ_p M[c,p];
    ``F = (1 + beta²) · precision · recall / (beta² · precision + recall)``. A ratio 0/0 is 0 (van
    Rijsbergen, *Information Retrieval*, 1979).

    Args:
        confusion_matrix: counts M[target, predicted], (C, C).
        beta: weight of recall against precision.

    Returns:
        ``accuracy``, a number, and ``precision``, ``recall``, ``f1_beta``, arrays (C,).

    Raises:
        ValueError: it is not square.
    """
    counts = np.asarray(confusion_matrix)
    if counts.ndim != 2 or len(counts) != counts.shape[1]:
        raise ValueError(f"a confusion matrix is of shape (C, C), got {counts.shape}")
    hits = np.diag(counts).astype(np.float64)
    precision = _ratio(hits, counts.sum(axis=0))
    recall = _ratio(hits, counts.sum(axis=1))
    f_beta = _ratio((1 + beta**2) * precision * recall, beta**2 * precision + recall)
    accuracy = float(hits.sum() / max(1, counts.sum()))
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1_beta": f_beta}


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    zero = np.zeros(len(numerator), dtype=np.float64)
    ratio: NDArray[np.float64] = np.divide(numerator, denominator, out=zero, where=denominator != 0)
    return ratio
