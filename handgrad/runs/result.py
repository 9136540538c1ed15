"""What a finished run leaves in its folder: summary, weights, pictures, report."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.console import printable
from handgrad.data import Dataset
from handgrad.data.preprocess import Preprocessing
from handgrad.environment import peak_memory_bytes
from handgrad.files import write_atomically
from handgrad.runs.declare import text_of
from handgrad.runs.folder import MODEL, REPORT, SUMMARY, read_config, to_json
from handgrad.runs.settings import LOOKING, TrainSettings, changed_settings, options_for
from handgrad.training.checkpoint import save_arrays
from handgrad.training.evaluation import Evaluation, Mistakes
from handgrad.training.loop import Loop
from handgrad.training.metrics import Row, confusion_matrix_to_metrics, count_confusions

PICTURES = (
    "loss.png", "accuracy.png", "confusion_matrix.png", "predictions.png", "first_layer.png"
)  # fmt: skip
_MAPPED = 6  # images whose feature maps are drawn


@dataclass
class Result:
    """A trained network, evaluated on the test images.

    Attributes:
        folder: of the run.
        settings: of the run.
        dataset: with the test images.
        preprocessing: turns pixels into inputs.
        loop: at its end, with the best weights there are.
        rows: of ``metrics.csv``.
        test: what the network makes of the test images.
        mistakes: where it is wrong about them.
        accuracy_tta: with test-time augmentation, if it was asked for; nothing else here has it.
    """

    folder: Path
    settings: TrainSettings
    dataset: Dataset
    preprocessing: Preprocessing
    loop: Loop
    rows: list[Row]
    test: Evaluation
    mistakes: Mistakes
    accuracy_tta: float | None = None

    def __post_init__(self) -> None:
        labels = self.dataset.test.labels
        self.confusions = count_confusions(self.test.predicted, labels, self.dataset.n_classes)

    def write(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary and weights, and return the summary.

        Args:
            measured: what is known of speed and memory from before, where nothing was trained.
        """
        summary = self._summary() | dict(measured)
        save_arrays(self.folder / MODEL, self.loop.learner.weights(), self._metadata())
        for name in PICTURES:  # of the result before, if the run was extended
            (self.folder / name).unlink(missing_ok=True)
        # After it, so that summary and pictures together say that the result is whole.
        write_atomically(self.folder / SUMMARY, to_json(summary))
        return summary

    def draw(self) -> None:
        """Draw the pictures."""
        draw_pictures(self)

    def _summary(self) -> dict[str, Any]:
        progress, dataset = self.loop.progress, self.dataset
        scores = confusion_matrix_to_metrics(self.confusions)
        images = self.loop.images_until(progress.step)
        training_seconds = max(1e-9, progress.seconds - progress.eval_seconds)
        tta = {} if self.accuracy_tta is None else {"test_accuracy_tta": self.accuracy_tta}
        return {
            "dataset": dataset.name,
            "test_accuracy": scores["accuracy"],
            **tta,
            "test_loss": self.test.loss,
            "best_validation_accuracy": progress.best_accuracy,
            "weights_of_step": progress.best_step if self.loop.best_weights else progress.step,
            "steps": progress.step,
            "seconds": round(progress.seconds, 3),
            "images_per_second": round(images / training_seconds, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "parameters": count_parameters(self.loop.learner.weights()),
            "per_class": {
                name: {
                    "precision": float(scores["precision"][i]),
                    "recall": float(scores["recall"][i]),
                    "f1": float(scores["f1_beta"][i]),
                    "images": int(self.confusions[i].sum()),
                }
                for i, name in enumerate(dataset.class_names)
            },
        }

    def _metadata(self) -> dict[str, str]:
        """Return what a user of ``model.safetensors`` needs beside the weights, as JSON texts."""
        shared = {field.name for field in dataclasses.fields(TrainSettings)}
        network = {k: v for k, v in asdict(self.settings).items() if k not in shared}
        shape, names = self.dataset.image_shape, self.dataset.class_names
        mean, scale = self.preprocessing.mean.tolist(), self.preprocessing.scale.tolist()
        return {
            "format": "handgrad-model-1",
            "model": json.dumps({**network, "image_shape": shape, "class_names": names}),
            "preprocessing": json.dumps({"mean": mean, "scale": scale}),
        }

    def report(self, summary: Mapping[str, Any], invocation: str) -> None:
        """Write ``report.html``.

        Args:
            summary: from :meth:`write`.
            invocation: how the program was called.
        """
        from handgrad.pictures import page

        changed = {n: v for n, v in changed_settings(self.settings).items() if n not in LOOKING}
        result = page.Result(
            folder=self.folder,
            settings={name: text_of(value) for name, value in asdict(self.settings).items()},
            defaults={name: text_of(default) for name, (_, default) in changed.items()},
            options=options_for(self.settings),
            config=read_config(self.folder),
            summary=summary,
            rows=self.rows,
            dataset=self.dataset,
            confusions=self.confusions,
            predicted=self.test.predicted,
            mistakes=self.mistakes,
            first_layer=self.loop.learner.first_layer(),
            invocation=invocation,
        )
        page.write_report(self.folder / REPORT, result)


def draw_pictures(result: Result) -> None:
    """Draw curves, confusion matrix, predictions and first layer of a result.

    A picture that cannot be drawn is a line on standard error; the result is there without it.
    """
    try:
        plots = _plots()
        from handgrad.pictures.features import plot_feature_maps
    except (ImportError, ValueError) as error:
        _complain("the pictures", error)
        return
    settings, dataset, loop = result.settings, result.dataset, result.loop
    accuracy = np.trace(result.confusions) / result.confusions.sum()
    title = (
        f"{dataset.name}, {settings.optimizer}, learning rate {settings.lr:g}, batches of "
        f"{settings.batch_size}: test accuracy {accuracy:.4f}"
    )
    if result.accuracy_tta is not None:
        title += f"\n({result.accuracy_tta:.4f} with test-time augmentation)"
    best_step = loop.progress.best_step if loop.best_weights else 0
    steps, names, test = len(loop.train_loader), dataset.class_names, dataset.test
    weight, predicted = loop.learner.first_layer(), result.test.predicted
    drawings: dict[str, Callable[[Path], None]] = {
        "loss.png": lambda p: plots.plot_curve(p, result.rows, "loss", steps, title, best_step),
        "accuracy.png": lambda p: plots.plot_curve(
            p, result.rows, "accuracy", steps, title, best_step
        ),
        "confusion_matrix.png": lambda p: plots.plot_confusion_matrix(p, result.confusions, names),
        "predictions.png": lambda p: plots.plot_predictions(
            p, test, predicted, result.mistakes, names
        ),
        "first_layer.png": lambda p: plots.plot_first_layer(p, weight, dataset.image_shape),
    }
    some = test.images[:_MAPPED]
    if maps := loop.learner.feature_maps(result.preprocessing(some)):
        drawings["feature_maps.png"] = lambda p: plot_feature_maps(p, some, maps)
    for name, draw in drawings.items():
        try:
            draw(result.folder / name)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            _complain(name, error)


def _plots() -> ModuleType:
    """Import what draws; Matplotlib takes as long to import as a small network to train."""
    try:
        from handgrad.pictures import plots
    except ValueError:  # MPLBACKEND names one that is not here, a notebook's, say; we need none
        named = os.environ.pop("MPLBACKEND", None)
        for half in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[half]
        try:
            from handgrad.pictures import plots
        finally:
            if named is not None:
                os.environ["MPLBACKEND"] = named
    return plots


def _complain(what: str, error: Exception) -> None:
    reason = printable(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    print(f"{what} could not be drawn: {reason}", file=sys.stderr)


def measured_before(folder: Path, step: int) -> dict[str, Any]:
    """Return what was measured when the run in ``folder`` came to ``step``, its end."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        names = ("seconds", "images_per_second", "peak_memory_bytes")
        return {name: summary[name] for name in names} if summary["steps"] == step else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def count_parameters(weights: Mapping[str, NDArray[Any]]) -> int:
    """Return the number of trained values; running statistics do not count."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(int(a.size) for name, a in weights.items() if not name.endswith(statistics))
