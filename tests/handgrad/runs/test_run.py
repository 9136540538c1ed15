"""Whole runs of the NumPy MLP on the digits: repeated, stopped and resumed, refused."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_cifar

from handgrad import load_run
from handgrad.backends.command import train_mlp_numpy as main
from handgrad.data import augment, load_dataset
from handgrad.data.preprocess import Preprocessing
from handgrad.runs.result import count_parameters
from handgrad.training.checkpoint import Arrays, Checkpoint, load_arrays
from handgrad.training.metrics import read_metrics
from numpy_mlp import MLP
from numpy_mlp.learner import NumpyLearner

# Everything that draws random numbers or keeps a state from step to step; 13 steps an epoch.
EVERYTHING = """
    --hidden-dims 24 16 --dropout 0.3 --batch-norm --momentum 0.9 --nesterov --weight-decay 1e-3
    --augment flip crop cutout --schedule cosine --warmup-steps 3 --batch-size 100 --max-steps 30
    --eval-every 7 --eval-splits validation test --seed 3 --threads 1
"""
ADAMW = """
    --optimizer adamw --lr 0.01 --dtype float64 --hidden-dims 8 --dropout 0.2 --augment crop
    --batch-norm --weight-decay 1e-3 --weight-decay-of matrices --label-smoothing 0.1
    --clip-grad-norm 1 --ema 0.9
    --batch-size 100 --max-steps 20 --eval-every 7
"""


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """They take most of the time of so short a run, and have their own tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
        yield


def _train(folder: Path, options: str) -> int:
    return main([*options.split(), "--quiet", "--out", str(folder)])


def _metrics_without_clock(folder: Path) -> list[str]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def _assert_equal(arrays: Arrays, others: Arrays) -> None:
    assert arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], strict=True)


def _assert_same_run(folder: Path, other: Path) -> None:
    (model, texts), (other_model, other_texts) = (
        load_arrays(path / "model.safetensors") for path in (folder, other)
    )
    _assert_equal(model, other_model)
    assert texts == other_texts
    ends = [Checkpoint.load(path / "checkpoint.safetensors") for path in (folder, other)]
    for group in ("weights", "learner", "best"):
        _assert_equal(getattr(ends[0], group), getattr(ends[1], group))
    assert ends[0].learner_text == ends[1].learner_text
    assert _metrics_without_clock(folder) == _metrics_without_clock(other)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, other)]
    for summary in summaries:
        for clock in ("seconds", "images_per_second", "peak_memory_bytes"):
            del summary[clock]
    assert summaries[0] == summaries[1]


def _stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send Ctrl-C during training step number ``steps``, once."""
    train_step, count = NumpyLearner.train_step, 0

    def interrupted(self: NumpyLearner, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)
        return train_step(self, *args)

    monkeypatch.setattr(NumpyLearner, "train_step", interrupted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert _train(folder, EVERYTHING) == 0
    return folder


def test_same_command_same_run(tmp_path: Path, whole: Path) -> None:
    assert _train(tmp_path / "again", EVERYTHING) == 0
    _assert_same_run(tmp_path / "again", whole)


def test_another_seed_another_run(tmp_path: Path, whole: Path) -> None:
    assert _train(tmp_path / "other", f"{EVERYTHING} --seed 4") == 0
    assert _metrics_without_clock(tmp_path / "other") != _metrics_without_clock(whole)


# Within an epoch and between two evaluations; at an evaluation; at the end of an epoch; twice.
@pytest.mark.parametrize("stops", [[5], [14], [13], [1, 3, 16]], ids=str)
def test_stopped_and_resumed_is_as_never_stopped(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stops: list[int],
) -> None:
    folder, done = tmp_path / "run", 0
    for stop in stops:
        with monkeypatch.context() as context:
            _stop_after(context, stop)
            if done == 0:
                assert _train(folder, EVERYTHING) == 130
            else:
                assert main(["--resume", str(folder)]) == 130
        done += stop
        assert f"stopped after step {done} of 30" in capsys.readouterr().err
        assert Checkpoint.load(folder / "checkpoint.safetensors").progress["step"] == done
    assert main(["--resume", str(folder), "--quiet"]) == 0
    _assert_same_run(folder, whole)


def test_adamw_in_float64_resumes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _train(tmp_path / "whole", ADAMW) == 0
    with monkeypatch.context() as context:
        _stop_after(context, 9)
        assert _train(tmp_path / "run", ADAMW) == 130
    assert main(["--resume", str(tmp_path / "run")]) == 0
    _assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_rows_written_after_the_checkpoint_are_cut_off(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as context:
        _stop_after(context, 9)
        assert _train(folder, EVERYTHING) == 130
    with (folder / "metrics.csv").open("a") as file:
        file.write("14,1.0769,train,1.0,0.5,0.1,1.0\n14,1.0769,vali")
    assert main(["--resume", str(folder)]) == 0
    _assert_same_run(folder, whole)


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    options = "--max-steps {} --eval-every 5 --hidden-dims 8".format
    assert _train(tmp_path / "long", options(20)) == 0
    assert _train(tmp_path / "short", options(10)) == 0
    assert main(["--resume", str(tmp_path / "short"), "--max-steps", "20"]) == 0
    _assert_same_run(tmp_path / "short", tmp_path / "long")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config["settings"]["max_steps"] == 20


def test_steps_of_the_metrics(whole: Path) -> None:
    rows = read_metrics(whole / "metrics.csv")
    steps = [0, 7, 14, 21, 28, 30]
    assert [row.step for row in rows if row.split == "validation"] == steps
    assert [row.step for row in rows if row.split == "test"] == steps
    assert [row.step for row in rows if row.split == "train"] == steps[1:]
    rates = [row.learning_rate for row in rows if row.split == "test"]
    assert rates[0] == pytest.approx(0.1 / 3), "the first of three steps of warm-up"
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] == 0


def test_the_model_file_is_enough_to_use_the_model(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    weights, texts = load_arrays(whole / "model.safetensors")
    model, scaling = json.loads(texts["model"]), json.loads(texts["preprocessing"])
    network = MLP(
        int(np.prod(model["image_shape"])),
        model["hidden_dims"],
        len(model["class_names"]),
        model["neg_slope"],
        activation=model["activation"],
        dropout=model["dropout"],
        batch_norm=model["batch_norm"],
        dtype=model["dtype"],
    )
    network.load_state_dict(weights)
    network.eval()
    preprocessing = Preprocessing(
        np.array(scaling["mean"]), np.array(scaling["scale"]), model["dtype"]
    )
    test = load_dataset("digits").test
    predicted = network(preprocessing(test.images).reshape(len(test), -1)).argmax(axis=1)
    assert (predicted == test.labels).mean() == summary["test_accuracy"]
    assert summary["parameters"] == count_parameters(network.params)


def test_the_best_weights_on_validation_are_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step, count = NumpyLearner.train_step, 0

    def spoiled(self: NumpyLearner, *args: Any) -> Any:
        nonlocal count
        count += 1
        result = train_step(self, *args)
        if count > 20:  # the last evaluations are bad ones
            for array in self.weights().values():
                array[...] = 0
        return result

    monkeypatch.setattr(NumpyLearner, "train_step", spoiled)
    options = "--max-steps 30 --eval-every 10 --eval-splits validation test --hidden-dims 8"
    assert _train(tmp_path / "run", options) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    best = max(
        (row for row in rows if row.split == "validation"), key=lambda r: (r.accuracy, -r.loss)
    )
    assert 0 < best.step < 30
    assert summary["best_validation_accuracy"] == best.accuracy
    assert summary["weights_of_step"] == best.step
    (test,) = (row for row in rows if (row.step, row.split) == (best.step, "test"))
    assert summary["test_accuracy"] == test.accuracy
    assert summary["test_loss"] == pytest.approx(test.loss)
    weights, _ = load_arrays(tmp_path / "run" / "model.safetensors")
    _assert_equal(weights, Checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").best)


def test_test_time_augmentation_is_recorded_beside_the_accuracy_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options = tmp_path / "run", "--hidden-dims 16 --max-steps 40 --augment flip --report"
    assert _train(folder, options) == 0
    before = json.loads((folder / "summary.json").read_text())
    assert "test_accuracy_tta" not in before
    assert main(["--resume", str(folder), "--tta", "--target-accuracy", "1"]) == 1
    out, err = capsys.readouterr()
    summary = json.loads((folder / "summary.json").read_text())
    assert {**summary, "test_accuracy_tta": 0} == {**before, "test_accuracy_tta": 0}

    trained, test = load_run(folder), load_dataset("digits").test
    mean = sum(
        weight * trained.predict_proba(view)
        for weight, view in augment.views_at_test_time(test.images, mirror=True)
    )
    expected = (mean.argmax(axis=1) == test.labels).mean()
    assert summary["test_accuracy_tta"] == expected != summary["test_accuracy"]
    told = f"{summary['test_accuracy']:.4f} ({expected:.4f} with test-time augmentation)"
    assert f"test accuracy {told}" in out
    assert f"test accuracy with --tta {expected:.4f} is below --target-accuracy 1" in err
    report = (folder / "report.html").read_text()
    assert "with test-time augmentation" in report and f"{expected:.4f}" in report


def test_without_validation_the_last_weights_are_the_models(tmp_path: Path) -> None:
    assert _train(tmp_path / "run", "--validation-size 0 --max-steps 3 --hidden-dims 8") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_validation_accuracy"] is None
    assert summary["weights_of_step"] == 3
    saved = Checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")
    weights, _ = load_arrays(tmp_path / "run" / "model.safetensors")
    assert saved.best == {}
    for name, array in weights.items():
        np.testing.assert_array_equal(array, saved.weights[name])


def test_parameters_do_not_count_statistics() -> None:
    model = MLP(6, [5], 3, batch_norm=True)
    assert count_parameters(model.state_dict()) == 6 * 5 + 5 + 2 * 5 + 5 * 3 + 3


def test_default_folder_is_named_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("handgrad.runs.folder.time.strftime", lambda pattern: "20260102-030405")
    for _ in range(2):
        assert main(["--max-steps", "1", "--hidden-dims", "--quiet"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["mlp-numpy-digits-20260102-030405", "mlp-numpy-digits-20260102-030405-2"]
    for name in names:
        assert (tmp_path / "runs" / name / "summary.json").is_file()


def test_threads_are_limited_during_the_run_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}

    during: set[int] = set()
    train_step = NumpyLearner.train_step

    def watched(self: NumpyLearner, *args: Any) -> Any:
        during.update(threads())
        return train_step(self, *args)

    monkeypatch.setattr(NumpyLearner, "train_step", watched)
    with threadpool_limits(2, "blas"):
        before = threads()
        assert _train(tmp_path / "run", "--threads 1 --max-steps 2") == 0
        assert during == {1}
        assert threads() == before == {2}


def _edit_settings(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config["settings"])
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40]) and None


NOT_RESUMABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no run there"),
    "config cut": (_cut("config.json"), r"config.json is damaged"),
    "config without settings": (
        lambda folder: (folder / "config.json").write_text("{}"), "holds no settings",
    ),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "no settings"),
    "unknown setting": (_edit_settings(lambda s: s.update(colour=1)), "'colour'"),
    "bad value": (_edit_settings(lambda s: s.update(lr=-1.0)), "--lr -1"),
    "no checkpoint": (
        lambda folder: (folder / "checkpoint.safetensors").unlink(), "safetensors does not exist",
    ),
    "checkpoint cut": (_cut("checkpoint.safetensors"), "checkpoint.safetensors is truncated"),
    "checkpoint is the model": (
        lambda folder: (folder / "model.safetensors").replace(folder / "checkpoint.safetensors"),
        "not a checkpoint",
    ),
    "another network": (_edit_settings(lambda s: s.update(hidden_dims=[9])), "does not fit"),
    "another optimizer": (
        _edit_settings(lambda s: s.update(optimizer="adamw", momentum=0, nesterov=False)),
        "does not fit",
    ),
    "no metrics": (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv is missing"),
    "metrics cut": (
        lambda folder: (folder / "metrics.csv").write_text(
            (folder / "metrics.csv").read_text().splitlines()[0] + "\n"
        ),
        "has 0 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), NOT_RESUMABLE.values(), ids=NOT_RESUMABLE.keys())
def test_runs_that_cannot_be_resumed(
    tmp_path: Path,
    finished: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    damage(tmp_path)
    assert main(["--resume", str(tmp_path), "--max-steps", "10"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small finished run."""
    folder = tmp_path_factory.mktemp("finished")
    assert _train(folder, "--max-steps 4 --hidden-dims 8 --momentum 0.5") == 0
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_resume_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(tmp_path / "missing")]) == 2
    assert "no run there" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["--resume", str(tmp_path / "file")]) == 2
    assert "is a file; a run folder is expected" in capsys.readouterr().err


def test_resume_beyond_the_end(
    tmp_path: Path, finished: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    assert main(["--resume", str(tmp_path), "--max-steps", "3"]) == 2
    assert "is at step 4 already, beyond --max-steps 3; " in capsys.readouterr().err
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == finished["checkpoint.safetensors"]


def test_a_refused_resume_leaves_the_run_as_it_was(
    tmp_path: Path, finished: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    assert main(["--resume", str(tmp_path), "--max-steps", "1"]) == 2
    assert "beyond --max-steps 1; " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == finished


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("rows"),
        lambda p: p.update(rows="3"),
        lambda p: p.update(step=-1),
        lambda p: p.update(step=True),
        lambda p: p.update(best_accuracy="high"),
        lambda p: p.update(surprise=1),
    ],
)
def test_damaged_progress_is_refused(
    tmp_path: Path,
    finished: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], Any],
) -> None:
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = Checkpoint.load(path)
    change(checkpoint.progress)
    checkpoint.save(path)
    assert main(["--resume", str(tmp_path)]) == 2
    assert "does not fit this run" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, finished: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = Checkpoint.load(path)
    checkpoint.weights["layers.0.weight"][0, 0] = np.nan
    checkpoint.save(path)
    assert main(["--resume", str(tmp_path)]) == 2
    assert "layers.0.weight is not finite" in capsys.readouterr().err


def test_changed_data_are_noticed_and_the_folder_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    monkeypatch.chdir(tmp_path)
    options = "--dataset cifar10 --data-dir data --batch-size 20 --hidden-dims 4 --quiet --out run"
    assert main([*options.split(), "--max-steps", "3"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", "../run", "--max-steps", "4"]) == 0
    path = tmp_path / "data" / "cifar-10-batches-py" / "test_batch"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1  # one bit of one pixel or file name
    content[len(content) // 2] ^= 1  # one bit of one pixel
    path.write_bytes(content)
    assert main(["--resume", "../run", "--max-steps", "5"]) == 2
    assert "the data are not those" in capsys.readouterr().err


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        assert _train(tmp_path / name, "--max-steps 5 --batch-norm") == 0
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("options", ["--batch-size 5", "--batch-size 1"])
def test_a_batch_of_one_and_batch_norm(
    tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--batch-norm", *options.split(), "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    assert "leaves a batch of one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_divergence_before_the_first_checkpoint_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weight-std", "1e30", "--quiet", "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "lower --weight-std" in err and "no checkpoint yet" in err
    assert not (tmp_path / "run").exists()


def test_what_was_measured_stays_when_a_finished_run_is_taken_up(tmp_path: Path) -> None:
    from handgrad.backends.command import train_mlp_numpy as main

    folder = tmp_path / "run"
    assert main(["--max-steps", "30", "--quiet", "--out", str(folder)]) == 0
    before = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**before, "seconds": 12345.0}))
    assert main(["--resume", str(folder), "--report"]) == 0
    after = json.loads((folder / "summary.json").read_text())
    assert after == {**before, "seconds": 12345.0}
    assert main(["--resume", str(folder), "--max-steps", "40"]) == 0
    assert json.loads((folder / "summary.json").read_text())["seconds"] < 12345
