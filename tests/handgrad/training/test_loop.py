"""The loop, driven by a learner that learns nothing and remembers everything."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad.data import BatchLoader, Split
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import DataError, DivergedError
from handgrad.training.checkpoint import Checkpoint
from handgrad.training.evaluation import evaluate, probabilities
from handgrad.training.loop import Loop
from handgrad.training.metrics import MetricsFile, read_metrics
from handgrad.training.observers import MetricsRecorder, ProgressBar
from handgrad.training.team import Alone

IDENTITY = Preprocessing(np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.float32)


def _loader(n: int, batch_size: int = 4, shuffle: bool = False) -> BatchLoader:
    images = np.zeros((n, 1, 2, 2), np.uint8)
    return BatchLoader(Split(images, np.arange(n)), batch_size, IDENTITY, shuffle=shuffle)


class FakeLearner:
    """Its weight counts the steps; losses and accuracies are what the test asks for.

    Args:
        loss: loss of a training step, from its number, counted from 0.
        accuracies: accuracy of each evaluation of ten images, in turn; the last one repeats.
        eval_loss: loss of an evaluation, from the number of steps made.
        on_step: called in each training step, with its number.
    """

    def __init__(
        self,
        loss: Callable[[int], Any] = lambda step: 1.0,
        accuracies: list[float] | None = None,
        eval_loss: Callable[[int], float] = lambda steps: 1.0,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.loss, self.eval_loss, self.on_step = loss, eval_loss, on_step
        self.accuracies = accuracies or [0.5]
        self.weight = np.zeros(2)
        self.calls: list[tuple[list[int], float]] = []
        self.evaluated: list[int] = []

    @property
    def steps(self) -> int:
        return int(self.weight[0])

    def train_step(self, images: Any, labels: Any, lr: float) -> tuple[Any, int]:
        self.on_step(self.steps)
        loss = self.loss(self.steps)
        self.calls.append((labels.tolist(), lr))
        self.weight += 1
        return loss, 1

    def eval_step(self, images: Any, labels: Any) -> tuple[float, np.ndarray]:
        if labels[0] == 0:
            self.evaluated.append(self.steps)
        accuracy = self.accuracies[min(len(self.evaluated), len(self.accuracies)) - 1]
        return self.eval_loss(self.steps), np.where(labels < round(10 * accuracy), labels, -1)

    def probabilities(self, images: Any) -> np.ndarray:
        return np.tile([0.25, 0.75], (len(images), 1))

    def weights(self) -> dict[str, np.ndarray]:
        return {"weight": self.weight}

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        if weights.keys() != {"weight"}:
            raise ValueError(f"unexpected {sorted(weights)}")
        self.weight[...] = weights["weight"]

    def state(self) -> tuple[dict[str, np.ndarray], str]:
        return {"count": np.array(self.steps)}, json.dumps({"steps": self.steps})

    def load_state(self, arrays: Mapping[str, np.ndarray], text: str) -> None:
        assert int(arrays["count"]) == json.loads(text)["steps"] == self.steps

    def first_layer(self) -> np.ndarray:
        return self.weight[None]


def _loop(learner: FakeLearner, folder: Path, **options: Any) -> Loop:
    settings: dict[str, Any] = {
        "train_loader": _loader(10),
        "eval_loaders": {"validation": _loader(10)},
        "schedule": lambda step: 0.1 / (step + 1),
        "total_steps": 8,
        "eval_every": 3,
        "checkpoint_path": folder / "checkpoint.safetensors",
        **options,
    }
    metrics = settings.pop("metrics", None) or MetricsFile(folder / "metrics.csv")
    metrics.create()
    settings["observers"] = [MetricsRecorder(metrics), *settings.get("observers", ())]
    return Loop(learner=learner, **settings)


def test_every_step_has_its_batch_and_its_learning_rate(tmp_path: Path) -> None:
    learner = FakeLearner()
    assert _loop(learner, tmp_path).run() is True
    epoch = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [labels for labels, _ in learner.calls] == [*epoch, *epoch, *epoch[:2]]
    assert [lr for _, lr in learner.calls] == [0.1 / (step + 1) for step in range(8)]


@pytest.mark.parametrize(
    ("total_steps", "eval_every", "expected"),
    [
        (8, 3, [0, 3, 6, 8]),
        (9, 3, [0, 3, 6, 9]),
        (2, 3, [0, 2]),
        (1, 1, [0, 1]),
        (4, 1, [0, 1, 2, 3, 4]),
        (7, 100, [0, 7]),
    ],
)
def test_when_it_evaluates(
    tmp_path: Path, total_steps: int, eval_every: int, expected: list[int]
) -> None:
    learner = FakeLearner()
    loop = _loop(learner, tmp_path, total_steps=total_steps, eval_every=eval_every)
    assert loop.run()
    assert len(learner.calls) == total_steps
    assert learner.evaluated == expected
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row.step for row in rows if row.split == "validation"] == expected
    assert [row.step for row in rows if row.split == "train"] == expected[1:]
    assert [row.epoch for row in rows if row.split == "train"] == pytest.approx(
        [step / 3 for step in expected[1:]], abs=1e-4
    )
    assert all(row.learning_rate == 0.1 / (row.step + 1) for row in rows)
    assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)


def test_means_are_weighted_by_the_number_of_images(tmp_path: Path) -> None:
    losses = [1.0, 2.0, 6.0, 4.0]  # of batches of 4, 4, 2 and 4 images, each with one hit
    learner = FakeLearner(loss=lambda step: losses[step])
    _loop(learner, tmp_path, total_steps=4, eval_every=3).run()
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if row.split == "train"]
    assert [row.loss for row in rows] == pytest.approx([(4 * 1 + 4 * 2 + 2 * 6) / 10, 4.0])
    assert [row.accuracy for row in rows] == pytest.approx([3 / 10, 1 / 4])


def test_evaluate_weighs_by_the_number_of_images() -> None:
    class Learner(FakeLearner):
        def eval_step(self, images: Any, labels: Any) -> tuple[float, np.ndarray]:
            return float(labels[0]), labels + 1

    loss, accuracy, predicted = evaluate(Learner(), _loader(10))
    assert loss == pytest.approx((4 * 0 + 4 * 4 + 2 * 8) / 10)
    assert predicted.tolist() == list(range(1, 11))
    assert accuracy == 0


@pytest.mark.parametrize("n", [10, 0])
def test_probabilities_of_all_shares_are_put_together(n: int) -> None:
    class Two(Alone):
        def gather(self, array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.full((3, 2), 0.5, array.dtype)])

    found = probabilities(FakeLearner(), _loader(n), 2, Two())
    assert found.dtype == np.float32
    assert found.tolist() == [[0.25, 0.75]] * n + [[0.5, 0.5]] * 3


def test_several_splits(tmp_path: Path) -> None:
    splits = {"validation": _loader(10), "test": _loader(20)}
    _loop(FakeLearner(), tmp_path, eval_loaders=splits, total_steps=2, eval_every=2).run()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row.step, row.split) for row in rows] == [
        (0, "validation"), (0, "test"), (2, "train"), (2, "validation"), (2, "test"),
    ]  # fmt: skip
    assert [row.accuracy for row in rows if row.split == "test"] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("accuracies", "eval_loss", "best_step"),
    [
        ([0.1, 0.5, 0.3, 0.2], lambda steps: 1.0, 3),
        ([0.1, 0.5, 0.5, 0.2], lambda steps: 1.0, 3),  # of equals the first
        ([0.1, 0.5, 0.5, 0.2], lambda steps: 10.0 - steps, 6),  # unless its loss is higher
        ([0.9, 0.5, 0.5, 0.2], lambda steps: 10.0 - steps, 0),
        ([0.1, 0.2, 0.3, 0.4], lambda steps: 1.0 + steps, 8),
    ],
)
def test_best_weights_on_validation_are_kept(
    tmp_path: Path, accuracies: list[float], eval_loss: Callable[[int], float], best_step: int
) -> None:
    loop = _loop(FakeLearner(accuracies=accuracies, eval_loss=eval_loss), tmp_path)
    loop.run()
    assert loop.progress.best_step == best_step
    assert loop.progress.best_accuracy == max(accuracies)
    assert loop.best_weights["weight"][0] == best_step, "a copy, not the live array"
    saved = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert saved.best["weight"][0] == best_step
    assert saved.weights["weight"][0] == 8


@pytest.mark.parametrize("splits", [{}, {"test": _loader(10)}], ids=["none", "test"])
def test_without_validation_nothing_is_best(tmp_path: Path, splits: dict[str, Any]) -> None:
    loop = _loop(FakeLearner(), tmp_path, eval_loaders=splits)
    assert loop.run()
    assert loop.best_weights == {} and loop.progress.best_accuracy is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("convert", [float, np.float32, np.array], ids=lambda kind: kind.__name__)
def test_divergence_keeps_the_last_good_checkpoint(
    tmp_path: Path, value: float, convert: Callable[[float], Any]
) -> None:
    learner = FakeLearner(loss=lambda step: convert(value if step == 4 else 1.0))
    with pytest.raises(DivergedError) as caught:
        _loop(learner, tmp_path).run()
    message = str(caught.value)
    for piece in (str(value), "--lr", "step 3", str(tmp_path / "checkpoint.safetensors")):
        assert piece in message
    saved = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert saved.progress["step"] == 3
    assert saved.weights["weight"].tolist() == [3, 3]
    assert max(row.step for row in read_metrics(tmp_path / "metrics.csv")) == 3


def test_a_float_loss_stops_at_once(tmp_path: Path) -> None:
    learner = FakeLearner(loss=lambda step: math.nan if step == 4 else 1.0)
    with pytest.raises(DivergedError, match=r"loss became nan at step 5 \(learning rate "):
        _loop(learner, tmp_path).run()
    assert learner.steps == 5


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    learner = FakeLearner()

    def spoil(step: int) -> None:
        if step == 4:
            learner.weight[1] = np.inf

    learner.on_step = spoil
    with pytest.raises(DivergedError, match="weight weight"):
        _loop(learner, tmp_path).run()
    saved = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert saved.weights["weight"].tolist() == [3, 3]


def test_evaluation_loss_that_is_not_finite(tmp_path: Path) -> None:
    learner = FakeLearner(eval_loss=lambda steps: math.inf if steps > 3 else 1.0)
    with pytest.raises(DivergedError, match="validation loss became inf at step 6"):
        _loop(learner, tmp_path).run()
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == 3


def _stop_at(step: int) -> Callable[[int], None]:
    return lambda now: signal.raise_signal(signal.SIGINT) if now == step else None


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6, 7])
def test_stopped_and_resumed_is_as_never_stopped(tmp_path: Path, stop_after: int) -> None:
    def options() -> dict[str, Any]:
        return {"train_loader": _loader(10, shuffle=True)}

    folders = tmp_path / "whole", tmp_path / "stopped"
    for folder in folders:
        folder.mkdir()
    loss = {"loss": lambda step: 1 / (step + 3), "accuracies": [0.1, 0.7, 0.3]}
    whole = FakeLearner(**loss)
    assert _loop(whole, folders[0], **options()).run()

    first = FakeLearner(**loss, on_step=_stop_at(stop_after - 1))
    loop = _loop(first, folders[1], **options())
    assert loop.run() is False
    assert loop.stop_signal == signal.SIGINT
    assert first.steps == stop_after, "the step was finished, no other begun"

    checkpoint = Checkpoint.load(folders[1] / "checkpoint.safetensors")
    assert checkpoint.progress["step"] == stop_after
    # An evaluation that was due was broken off after a batch, and is begun again.
    evaluated = [step for step in first.evaluated if step < stop_after]
    second = FakeLearner(loss["loss"], loss["accuracies"][len(evaluated) :] or [0.3])
    metrics = MetricsFile.reopen(folders[1] / "metrics.csv", checkpoint.progress["rows"])
    loop = _loop(second, folders[1], **options(), metrics=metrics)
    loop.resume(checkpoint)
    assert loop.run() is True

    assert first.calls + second.calls == whole.calls
    assert evaluated + second.evaluated == whole.evaluated
    tables = [
        [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
        for folder in folders
    ]
    assert tables[0] == tables[1]
    ends = [Checkpoint.load(folder / "checkpoint.safetensors") for folder in folders]
    for end in ends:
        for clock in ("seconds", "eval_seconds"):
            del end.progress[clock]
    assert ends[0].progress == ends[1].progress
    np.testing.assert_array_equal(ends[0].best["weight"], ends[1].best["weight"])


def test_a_signal_in_the_last_step_leaves_the_evaluation_to_the_resumed_run(tmp_path: Path) -> None:
    loop = _loop(FakeLearner(on_step=_stop_at(7)), tmp_path)
    assert loop.run() is False
    assert [row.step for row in read_metrics(tmp_path / "metrics.csv")] == [0, 3, 3, 6, 6]
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert checkpoint.progress["step"] == 8
    metrics = MetricsFile.reopen(tmp_path / "metrics.csv", checkpoint.progress["rows"])
    loop = _loop(FakeLearner(), tmp_path, metrics=metrics)
    loop.resume(checkpoint)
    assert loop.run() is True
    assert [row.step for row in read_metrics(tmp_path / "metrics.csv")] == [0, 3, 3, 6, 6, 8, 8]
    assert _loop(FakeLearner(), tmp_path).run() is True


def test_a_signal_ends_an_evaluation_after_a_batch(tmp_path: Path) -> None:
    class Slow(FakeLearner):
        batches = 0

        def eval_step(self, images: Any, labels: Any) -> tuple[float, np.ndarray]:
            self.batches += self.steps == 3
            if self.batches == 2:
                signal.raise_signal(signal.SIGTERM)
            return super().eval_step(images, labels)

    learner = Slow()
    loop = _loop(learner, tmp_path)
    assert loop.run() is False
    assert learner.batches == 2 and loop.progress.step == 3
    assert [row.step for row in read_metrics(tmp_path / "metrics.csv")] == [0]
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert checkpoint.progress["step"] == 3 and checkpoint.progress["evaluated"] == 0
    assert checkpoint.progress["sums"][0][2] == 10, "the images of the three steps still count"


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 2, 3, 4, 6, 8]), (100, [0, 3, 6, 8])])
def test_checkpoints_between_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, steps: list[int]
) -> None:
    saved = []
    save = Checkpoint.save

    def watching(self: Checkpoint, path: Path) -> None:
        saved.append(self.progress["step"])
        save(self, path)

    monkeypatch.setattr(Checkpoint, "save", watching)
    learner = FakeLearner()
    assert _loop(learner, tmp_path, checkpoint_every=every).run() is True
    assert saved == steps and learner.evaluated == [0, 3, 6, 8]


def test_sigterm_stops_too(tmp_path: Path) -> None:
    learner = FakeLearner(
        on_step=lambda step: signal.raise_signal(signal.SIGTERM) if step == 1 else None
    )
    loop = _loop(learner, tmp_path)
    assert loop.run() is False
    assert loop.stop_signal == signal.SIGTERM


@pytest.fixture
def hangup() -> Iterator[Callable[[], None]]:
    """Return what raises SIGHUP, which whoever runs the tests may have had ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield lambda: signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("others", [[], [signal.SIGHUP], [signal.SIGTERM]], ids=str)
def test_a_hangup_stops_too_however_often_it_comes(
    others: list[int], hangup: Callable[[], None], tmp_path: Path
) -> None:
    def close(step: int) -> None:
        if step == 1:
            hangup()
            for number in others:
                signal.raise_signal(number)

    loop = _loop(FakeLearner(on_step=close), tmp_path)
    assert loop.run() is False
    assert loop.stop_signal == signal.SIGHUP and loop.progress.step == 2
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == 2
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_hangup_that_is_ignored_stays_so(hangup: Callable[[], None], tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert _loop(FakeLearner(on_step=lambda step: hangup()), tmp_path).run() is True


def test_a_second_ctrl_c_stops_now(tmp_path: Path) -> None:
    def impatient(step: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    learner = FakeLearner(on_step=impatient)
    with pytest.raises(KeyboardInterrupt):
        _loop(learner, tmp_path).run()
    assert learner.steps == 4
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == 3


def test_a_signal_that_another_process_got_first_is_not_counted_twice(tmp_path: Path) -> None:
    class ToldByOthers(Alone):
        asked = 0

        def largest(self, value: int) -> int:
            self.asked += 1
            return signal.SIGTERM if self.asked > 3 else value

        def wait(self) -> None:  # while it writes its last checkpoint
            if self.asked > 3:
                signal.raise_signal(signal.SIGTERM)

    previous = signal.getsignal(signal.SIGTERM)
    loop = _loop(FakeLearner(), tmp_path, team=ToldByOthers())
    assert loop.run() is False
    assert loop.stop_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == previous
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == 3


def test_a_signal_while_the_processes_talk_is_not_lost(tmp_path: Path) -> None:
    class Interrupted(Alone):
        asked = 0

        def largest(self, value: int) -> int:
            self.asked += 1
            if self.asked == 3:  # they have compared their signals, and found none
                signal.raise_signal(signal.SIGTERM)
            return value

    loop = _loop(FakeLearner(), tmp_path, team=Interrupted())
    assert loop.run() is False
    assert loop.stop_signal == signal.SIGTERM
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == 3


def test_a_signal_that_is_still_to_come_does_no_harm(tmp_path: Path) -> None:
    class ToldByOthers(Alone):
        def largest(self, value: int) -> int:
            return signal.SIGTERM

    previous = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert _loop(FakeLearner(), tmp_path, team=ToldByOthers()).run() is False
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    _loop(FakeLearner(on_step=_stop_at(1)), tmp_path).run()
    with pytest.raises(DivergedError):
        _loop(FakeLearner(loss=lambda step: math.nan), tmp_path).run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(_loop(FakeLearner(), tmp_path).run()))
    thread.start()
    thread.join()
    assert results == [True]


def test_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    _loop(FakeLearner(), tmp_path).run()
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    learner = FakeLearner()
    loop = _loop(learner, tmp_path)
    loop.resume(checkpoint)
    assert loop.run() is True
    assert learner.calls == [] and learner.evaluated == []


@pytest.mark.parametrize("group", ["weights", "best"])
def test_checkpoint_of_weights_that_are_not_finite(tmp_path: Path, group: str) -> None:
    _loop(FakeLearner(), tmp_path).run()
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    setattr(checkpoint, group, {"weight": np.array([8, np.nan])})
    with pytest.raises(DataError, match=r"is damaged: .* is not finite"):
        _loop(FakeLearner(), tmp_path).resume(checkpoint)


@pytest.mark.parametrize("change", ["weights", "learner_text", "progress"])
def test_checkpoint_of_another_run(tmp_path: Path, change: str) -> None:
    _loop(FakeLearner(), tmp_path).run()
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    other = {
        "weights": {"other": np.zeros(2)},
        "learner_text": "no json",
        "progress": {"steps": 3},
    }
    setattr(checkpoint, change, other[change])
    with pytest.raises(DataError, match="does not fit this run"):
        _loop(FakeLearner(), tmp_path).resume(checkpoint)


def test_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _loop(FakeLearner(), tmp_path).run()
    assert capsys.readouterr() == ("", "")
    _loop(FakeLearner(), tmp_path, observers=[ProgressBar()]).run()
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()] == ["0/8", "3/8", "6/8", "8/8"]
    assert "validation loss 1.0000 accuracy 0.5000" in out
    assert err == "", "no bar where nobody watches"


def test_progress_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("handgrad.training.observers._REPORT_SECONDS", 0.0)
    assert _loop(FakeLearner(), tmp_path, observers=[ProgressBar()]).run()
    out, err = capsys.readouterr()
    assert "/28.0 " in err, "2 epochs of 10 images and 8 more"
    assert "step 8/8" in out
