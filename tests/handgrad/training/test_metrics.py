from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad.errors import DataError
from handgrad.training.metrics import (
    COLUMNS,
    MetricsFile,
    Row,
    confusion_matrix,
    confusion_matrix_to_metrics,
    count_confusions,
    read_metrics,
)


def _slow_counts(predicted: np.ndarray, targets: np.ndarray, n_classes: int) -> list[list[int]]:
    counts = [[0] * n_classes for _ in range(n_classes)]
    for p, t in zip(predicted, targets, strict=True):
        counts[t][p] += 1
    return counts


@pytest.mark.parametrize(("n", "n_classes"), [(1, 2), (50, 3), (500, 10), (20, 10)])
def test_confusion_matrix(rng: np.random.Generator, n: int, n_classes: int) -> None:
    scores, targets = rng.normal(size=(n, n_classes)), rng.integers(0, n_classes, n)
    predicted = np.array([max(range(n_classes), key=row.__getitem__) for row in scores])
    expected = _slow_counts(predicted, targets, n_classes)
    assert confusion_matrix(scores, targets).tolist() == expected
    assert confusion_matrix(scores.tolist(), targets.tolist()).tolist() == expected
    assert count_confusions(predicted, targets, n_classes).tolist() == expected
    assert confusion_matrix(scores, targets).dtype == np.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint64])
@pytest.mark.parametrize("n_classes", [2, 17, 26, 100])
def test_labels_of_any_type_are_counted(dtype: type, n_classes: int) -> None:
    classes = np.arange(n_classes).astype(dtype)
    counts = count_confusions(classes, classes, n_classes)
    np.testing.assert_array_equal(counts, np.eye(n_classes))
    scores = np.eye(n_classes)
    assert confusion_matrix_to_metrics(confusion_matrix(scores, classes))["accuracy"] == 1


@pytest.mark.parametrize(
    ("predicted", "targets", "told"),
    [
        ([0, 1], [0, 2], "targets holds 2, expected 0 to 1"),
        ([0, -1], [0, 1], "predicted holds -1, expected 0 to 1"),
        ([0, 1], [0.0, 1.0], r"targets must be class indices of shape \(N,\), got float64"),
        ([True, False], [0, 1], "predicted must be class indices"),
        ([[0], [1]], [0, 1], r"got int64 of shape \(2, 1\)"),
        ([0, 1, 1], [0, 1], "3 predicted classes for 2 targets"),
    ],
)
def test_what_is_no_class_is_refused(predicted: list[int], targets: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        count_confusions(predicted, targets, 2)


def test_rows_are_the_true_classes() -> None:
    # Class 0 three times right; class 1 twice taken for class 2.
    counts = count_confusions(np.array([0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 1]), 3)
    assert counts.tolist() == [[3, 0, 0], [0, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_metrics_against_counting(rng: np.random.Generator, beta: float) -> None:
    n, n_classes = 300, 5
    predicted, targets = rng.integers(0, n_classes, n), rng.integers(0, n_classes, n)
    found = confusion_matrix_to_metrics(count_confusions(predicted, targets, n_classes), beta)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == targets))
    for c in range(n_classes):
        both = sum((predicted == c) & (targets == c))
        precision, recall = both / sum(predicted == c), both / sum(targets == c)
        f = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        assert found["precision"][c] == pytest.approx(precision)
        assert found["recall"][c] == pytest.approx(recall)
        assert found["f1_beta"][c] == pytest.approx(f)


def test_metrics_of_a_known_matrix() -> None:
    found = confusion_matrix_to_metrics(np.array([[8, 2], [1, 9]]))
    assert found["accuracy"] == pytest.approx(0.85)
    np.testing.assert_allclose(found["precision"], [8 / 9, 9 / 11])
    np.testing.assert_allclose(found["recall"], [0.8, 0.9])
    np.testing.assert_allclose(found["f1_beta"], [16 / 19, 18 / 21])


@pytest.mark.parametrize(
    ("counts", "precision", "recall"),
    [
        ([[3, 0], [2, 0]], [0.6, 0], [1, 0]),  # class 1 never predicted
        ([[3, 1], [0, 0]], [1, 0], [0.75, 0]),  # class 1 never true
        ([[0, 3], [2, 0]], [0, 0], [0, 0]),
        ([[0, 0], [0, 0]], [0, 0], [0, 0]),
    ],
)
def test_nothing_over_nothing_is_zero(
    counts: list[list[int]], precision: list[float], recall: list[float]
) -> None:
    found = confusion_matrix_to_metrics(np.array(counts))
    np.testing.assert_allclose(found["precision"], precision)
    np.testing.assert_allclose(found["recall"], recall)
    assert np.isfinite(found["f1_beta"]).all()
    assert found["f1_beta"][1] == 0


ROWS = [
    Row(0, 0.0, "validation", 2.302585092994046, 0.1, 0.1, 0.25),
    Row(5, 0.5, "train", 1 / 3, 0.2, 1e-17, 1.5),
    Row(5, 0.5, "validation", 1e-300, 2 / 3, 0.05, 1.75),
]


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.create()
    assert read_metrics(path) == []
    for row in ROWS:
        metrics.append(row)
    assert read_metrics(path) == metrics.rows == ROWS
    assert read_metrics(path, 2) == ROWS[:2]
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 4


@pytest.mark.parametrize("n_rows", range(4))
def test_reopened_file_is_cut_back(tmp_path: Path, n_rows: int) -> None:
    whole, again = tmp_path / "whole.csv", tmp_path / "again.csv"
    MetricsFile(whole, ROWS).create()
    MetricsFile(again, ROWS).create()
    metrics = MetricsFile.reopen(again, n_rows)
    assert read_metrics(again) == ROWS, "untouched until it is created anew"
    metrics.create()
    assert metrics.rows == read_metrics(again) == ROWS[:n_rows]
    for row in ROWS[n_rows:]:
        metrics.append(row)
    assert again.read_bytes() == whole.read_bytes()


def test_half_a_row_at_the_end_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, ROWS).create()
    whole = path.read_bytes()
    path.write_bytes(whole + b"10,1.0,tra")
    metrics = MetricsFile.reopen(path, 3)
    assert metrics.rows == ROWS
    metrics.create()
    assert path.read_bytes() == whole


HEADER = ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"loss,accuracy\n1,2\n",
        f"{HEADER}1,2,train\n".encode(),
        f"{HEADER}one,0.1,train,1,1,1,1\n".encode(),
        b"\xff\xfe\x00 no text",
    ],
    ids=["empty", "other columns", "short row", "words", "bytes"],
)
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_metrics(path)
    assert str(path) in str(caught.value)


def test_fewer_rows_than_the_checkpoint_has_seen(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, ROWS).create()
    with pytest.raises(DataError, match=r"3 rows, .* after 4"):
        MetricsFile.reopen(path, 4)
    assert read_metrics(path) == ROWS, "untouched"
    with pytest.raises(DataError, match="is missing"):
        MetricsFile.reopen(tmp_path / "other.csv", 1)


@pytest.mark.parametrize("predictions", [np.zeros(3), np.zeros((3, 0)), np.zeros((1, 3, 2)), 5])
def test_predictions_are_scores_of_each_class(predictions: Any) -> None:
    with pytest.raises(ValueError, match=r"scores of shape \(N, C\), got \("):
        confusion_matrix(predictions, [0, 1, 1])


@pytest.mark.parametrize("targets", [[[0], [1]], [[1, 0], [0, 1]], [0.0, 1.0], [0, 2], [0, -1]])
def test_targets_that_are_no_indices_are_refused(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"targets (must be class indices of shape \(N,\)|holds )"):
        confusion_matrix(np.eye(2), targets)


def test_a_confusion_matrix_may_be_lists_and_must_be_square() -> None:
    assert confusion_matrix_to_metrics([[3, 1], [0, 4]])["accuracy"] == 7 / 8
    for counts in ([[1, 2]], [1, 2], 3):
        with pytest.raises(ValueError, match=r"of shape \(C, C\), got \("):
            confusion_matrix_to_metrics(counts)
