"""The package from Python: it does what the commands do, and raises where they exit."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handgrad
from handgrad.backends.command import train_mlp_numpy
from handgrad.errors import DataError, StoppedError, UserError
from handgrad.runs.folder import MODEL
from handgrad.runs.trained import TrainedRun
from handgrad.training.checkpoint import load_arrays, save_arrays
from handgrad.training.metrics import Row
from handgrad.training.observers import Training
from numpy_mlp import MLP

IMAGES = handgrad.load_dataset("digits").test.images[:3]
SHORT: dict[str, Any] = {"max_steps": 6, "eval_every": 3, "threads": 1, "quiet": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("api") / "run"
    return handgrad.train("mlp-numpy", hidden_dims=(8,), dropout=0.2, out=folder, **SHORT)


def test_train_does_what_the_command_does(tmp_path: Path, run: TrainedRun) -> None:
    argv = "--hidden-dims 8 --dropout 0.2 --max-steps 6 --eval-every 3 --threads 1 --quiet --out"
    assert train_mlp_numpy([*argv.split(), str(tmp_path / "run")]) == 0
    for name in ("model.safetensors", "checkpoint.safetensors"):
        if name == "model.safetensors":
            assert (tmp_path / "run" / name).read_bytes() == (run.folder / name).read_bytes()
        assert (run.folder / name).exists()
    config = json.loads((run.folder / "config.json").read_text())
    (text,) = config["commands"]
    assert text.startswith("train-mlp-numpy --max-steps 6 --eval-every 3 --threads 1 --hidden-dims")
    # What is recorded gives the same run again.
    again = [*text.split()[1:], "--quiet", "--out", str(tmp_path / "again")]
    assert train_mlp_numpy(again) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        run.folder / "model.safetensors"
    ).read_bytes()


class Logistic:
    """σ(x), as a student writes it."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.y = 1 / (1 + np.exp(-x))
        return self.y

    def backward(self, dout: np.ndarray) -> np.ndarray:
        return dout * self.y * (1 - self.y)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "elu", "lr": 0.5},
        {"activation": "sigmoid", "optimizer": "adamw", "weight_std": 1e-30},
        {"engine": "graph", "activation": "tanh", "lr": 0.5},
    ],
)
def test_numpys_errors_of_the_program_stop_no_training(
    options: dict[str, Any], tmp_path: Path
) -> None:
    folders = [tmp_path / mode for mode in ("raise", "ignore")]
    for folder in folders:
        with np.errstate(all=folder.name):  # type: ignore[call-overload]
            trained = handgrad.train("mlp-numpy", out=folder, **{**SHORT, **options})
            p = trained.predict_proba(handgrad.load_dataset("digits").test.images)
            assert np.isfinite(p).all() and handgrad.check_gradients(Logistic).passed
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


def test_what_a_run_holds(run: TrainedRun) -> None:
    test = handgrad.load_dataset("digits").test
    assert isinstance(run.model, MLP) and not run.model.training
    assert run.class_names == tuple("0123456789") and run.image_shape == (1, 8, 8)
    assert run.settings.batch_size == 32 and run.settings.max_steps == 6
    assert [(row.step, row.split) for row in run.history] == [
        (0, "validation"), (3, "train"), (3, "validation"), (6, "train"), (6, "validation"),
    ]  # fmt: skip
    p = run.predict_proba(test.images)
    assert p.shape == (len(test), 10)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    predicted = run.predict(test.images)
    np.testing.assert_array_equal(predicted, p.argmax(axis=1))
    assert (predicted == test.labels).mean() == pytest.approx(run.summary["test_accuracy"])
    np.testing.assert_allclose(run.predict_proba(test.images[3]), p[3:4], rtol=1e-5)
    assert run.predict(test.images[:0]).shape == (0,)
    assert repr(run).endswith(f"run': MLP, test accuracy {run.summary['test_accuracy']:.4f})")


def test_a_run_is_found_by_its_folder(tmp_path: Path, run: TrainedRun) -> None:
    loaded = handgrad.load_run(str(run.folder))
    images = handgrad.load_dataset("digits").test.images[:9]
    np.testing.assert_array_equal(loaded.predict_proba(images), run.predict_proba(images))
    # The weights alone are enough.
    (tmp_path / "model.safetensors").write_bytes((run.folder / "model.safetensors").read_bytes())
    alone = handgrad.load_run(tmp_path)
    np.testing.assert_array_equal(alone.predict(images), run.predict(images))
    assert alone.history == [] and alone.summary == {}
    with pytest.raises(DataError, match=r"nowhere does not exist: there is no model"):
        handgrad.load_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a run of mlp-numpy, not of convnet"):
        handgrad.load_run(run.folder, "convnet")


def test_a_run_of_pytorch_in_both_libraries(tmp_path: Path) -> None:
    import torch

    options = {**SHORT, "precision": "float32", "batch_norm": True, "hidden_dims": 8}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    options["threads"] = threads + 1
    torch_run = handgrad.train("mlp-pytorch", out=tmp_path / "run", **options)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    images = handgrad.load_dataset("digits").test.images[:50]
    in_numpy = handgrad.load_run(torch_run.folder, "mlp-numpy")
    p, q = torch_run.predict_proba(images), in_numpy.predict_proba(images)
    assert type(torch_run.model).__module__.startswith("torch_models")
    assert isinstance(in_numpy.model, MLP)
    np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-6)


class Recorder(handgrad.Observer):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def begin(self, training: Training) -> None:
        self.heard.append(("begin", training.progress.step))

    def step(self, training: Training, n_images: int) -> None:
        self.heard.append(n_images)

    def evaluated(self, training: Training, rows: Sequence[Row]) -> None:
        self.heard.append([row.split for row in rows])

    def end(self, training: Training, error: BaseException | None) -> Any:
        self.heard.append(("end", error))
        return True  # swallows nothing


def test_observers_hear_everything(tmp_path: Path) -> None:
    recorder = Recorder()
    handgrad.train("mlp-numpy", out=tmp_path / "run", observers=recorder, **SHORT)
    both = ["train", "validation"]
    assert recorder.heard == [
        ("begin", 0), ["validation"], 32, 32, 32, both, 32, 32, 32, both, ("end", None),
    ]  # fmt: skip


def test_an_observer_that_fails_ends_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    class Failing(handgrad.Observer):
        def step(self, training: Training, n_images: int) -> None:
            if training.progress.step == 5:
                raise RuntimeError("no more")

    recorder, folder = Recorder(), tmp_path / "run"
    with pytest.raises(RuntimeError, match="no more"):
        handgrad.train("mlp-numpy", out=folder, observers=[recorder, Failing()], **SHORT)
    kind, error = recorder.heard[-1]
    assert kind == "end" and isinstance(error, RuntimeError)
    resumed = handgrad.train("mlp-numpy", resume=folder, quiet=True)
    assert resumed.history[-1].step == 6


def test_a_program_whose_output_is_not_unicode_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, "cp1251", errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    options = {**SHORT, "hidden_dims": [8], "quiet": False}
    handgrad.train("mlp-numpy", out=tmp_path / "run", **options)
    stdout.flush()
    assert b"test images of 1x8x8" in written.getvalue() and stdout.errors == "strict"


def test_a_signal_raises_and_the_run_goes_on(tmp_path: Path, run: TrainedRun) -> None:
    class Interrupting(handgrad.Observer):
        def step(self, training: Training, n_images: int) -> None:
            if training.progress.step == 2:
                signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "run"
    options = {**SHORT, "hidden_dims": [8], "dropout": 0.2}
    go_on = r"stopped after step 2 of 6; go on with: handgrad\.train\('mlp-numpy', resume='/"
    with pytest.raises(StoppedError, match=go_on) as stopped:
        handgrad.train("mlp-numpy", out=folder, observers=[Interrupting()], **options)
    assert stopped.value.signal == signal.SIGINT
    resumed = handgrad.train("mlp-numpy", resume=folder, quiet=True)
    names = "model.safetensors"
    assert (resumed.folder / names).read_bytes() == (run.folder / names).read_bytes()


@pytest.mark.parametrize(
    ("network", "settings", "told"),
    [
        ("mlp-nunpy", {}, "network 'mlp-nunpy' is unknown; did you mean mlp-numpy?"),
        ("mlp-numpy", {"hiden_dims": 3}, "hiden_dims is no setting; did you mean hidden_dims?"),
        ("mlp-numpy", {"lr": "0.1"}, "lr is '0.1', expected float"),
        ("mlp-numpy", {"lr": -1.0}, "lr -1.0 is out of range; expected above 0"),
        ("mlp-numpy", {"hidden_dims": (0,)}, "hidden_dims 0 is out of range; expected at least 1"),
        ("mlp-numpy", {"epochs": 1, "max_steps": 1}, "epochs and max_steps exclude each other"),
        ("mlp-numpy", {"nesterov": True}, "nesterov needs a momentum above 0"),
        (
            "mlp-numpy",
            {"optimizer": "adamw", "nesterov": True, "momentum": 0.9},
            "for adam, give momentum 0 nesterov=False",
        ),
        ("mlp-numpy", {"preset": "bset"}, "preset 'bset' is unknown; did you mean best?"),
        ("mlp-numpy", {"preset": 5}, "preset '5' is unknown"),
        ("mlp-numpy", {"batch_size": 10**6}, "batch_size 1000000 is larger than the"),
        ("mlp-numpy", {"target_accuracy": 0.9}, 'look at run.summary["test_accuracy"]'),
        ("mlp-numpy", {"hidden_dims": 0.5}, "hidden_dims is 0.5, expected int"),
        ("mlp-numpy", {"dataset": "mnits"}, "dataset 'mnits' is unknown; did you mean mnist?"),
        ("mlp-numpy", {"resume": "x", "lr": 0.1}, "lr cannot be changed when a run is resumed"),
        ("mlp-numpy", {"resume": "nowhere"}, "nowhere: no run there"),
        ("mlp-numpy", {"observers": [Recorder]}, "expected objects made from handgrad.Observer"),
        ("mlp-numpy", {"resume": 5}, "5 is not a path; give a text or a Path"),
        ("mlp-numpy", {"out": "~no-such-user/x"}, "there is no home folder for ~no-such-user"),
    ],
)
def test_mistakes_are_named_as_they_are_written(
    network: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        handgrad.train(network, **settings)
    assert told in str(error.value) and "--lr" not in str(error.value)


def test_numbers_of_numpy_and_lists_are_taken(tmp_path: Path) -> None:
    import torch

    options = {
        **SHORT,
        "hidden_dims": np.array([4, 3]),
        "data_dir": tmp_path,
        "dataset": "digits",
        "lr": np.float32(0.5),
        "augment": "crop",
    }
    run = handgrad.train("mlp-numpy", out=tmp_path / "run", seed=np.int64(3), **options)
    assert (run.settings.seed, run.settings.augment) == (3, ("crop",))
    assert getattr(run.settings, "hidden_dims") == (4, 3)  # noqa: B009
    options = {**SHORT, "hidden_dims": torch.tensor(4), "lr": 1, "epochs": None}
    run = handgrad.train("mlp-numpy", out=tmp_path / "again", **options)
    assert (getattr(run.settings, "hidden_dims"), run.settings.max_steps) == ((4,), 6)  # noqa: B009
    assert json.loads((run.folder / "config.json").read_text())["settings"]["lr"] == 1.0
    assert ",1.0," in (run.folder / "metrics.csv").read_text()


def test_no_end_is_the_default_end(tmp_path: Path) -> None:
    run = handgrad.train("mlp-numpy", max_steps=None, hidden_dims=(), out=tmp_path / "run")
    assert run.settings.epochs == 30


def test_what_is_said_when_a_run_goes_on_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    handgrad.train("mlp-numpy", out=folder, **SHORT)
    run = handgrad.train("mlp-numpy", resume=folder, max_steps=9, quiet=True)
    assert run.history[-1].step == 9
    _, second = json.loads((folder / "config.json").read_text())["commands"]
    assert second == f"train-mlp-numpy --resume {folder} --max-steps 9 --quiet"


def test_the_home_folder_is_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = handgrad.train("mlp-numpy", out="~/run", **SHORT)
    assert run.folder == tmp_path / "run" == handgrad.load_run("~/run").folder


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("mlp-numpy", {"dropout": 0.1, "augment": ("crop", "flip")}),
        ("mlp-numpy", {"engine": "graph"}),
        ("mlp-pytorch", {"dropout": 0.1, "precision": "float32"}),
        ("convnet", {"model": "vu-convnet", "precision": "float32"}),
    ],
)
def test_seeds_of_64_bits(network: str, options: dict[str, Any], tmp_path: Path) -> None:
    last = 2**64 - 1
    for seed in (last, np.uint64(last - 1)):
        folder = tmp_path / str(seed)
        handgrad.train(network, out=folder, seed=seed, **{**SHORT, "max_steps": 1}, **options)
        assert json.loads((folder / "config.json").read_text())["settings"]["seed"] == int(seed)
        run = handgrad.train(network, resume=folder, max_steps=3, quiet=True)
        assert run.settings.seed == handgrad.load_run(folder).settings.seed == int(seed)
    files = [tmp_path / str(seed) / "model.safetensors" for seed in (last, last - 1)]
    assert files[0].read_bytes() != files[1].read_bytes()
    with pytest.raises(UserError, match=r"seed 18446744073709551616 is out of range; expected at"):
        handgrad.train(network, seed=last + 1)


def test_a_pytorch_run_with_settings_that_numpy_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    options = {**SHORT, "precision": "float64", "optimizer": "adam"}
    run = handgrad.train("mlp-pytorch", out=tmp_path / "run", **options)
    state = torch.get_rng_state()
    in_numpy = handgrad.load_run(run.folder, "mlp-numpy")
    images = handgrad.load_dataset("digits").test.images[:50]
    p, q = run.predict_proba(images), in_numpy.predict_proba(images)
    assert p.dtype == q.dtype == np.float64
    np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-12)
    assert in_numpy.settings == run.settings and run.settings.optimizer == "adam"
    handgrad.load_run(run.folder)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"^PyTorch cannot be imported"):
        handgrad.load_run(run.folder)
    handgrad.load_run(run.folder, "mlp-numpy")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    handgrad.train("mlp-numpy", out=folder, **SHORT)
    with (folder / "metrics.csv").open("a") as file:
        file.write("7,0.1")  # a row that is being written
    assert handgrad.load_run(folder).history[-1].step == 6
    (folder / "config.json").write_text('{"settings": null}')
    with pytest.raises(DataError, match=r"config\.json holds no settings"):
        handgrad.load_run(folder)


def test_load_dataset_takes_text(tmp_path: Path) -> None:
    assert handgrad.load_dataset("digits", str(tmp_path)).n_classes == 10
    with pytest.raises(UserError, match="dataset 'digit' is unknown; expected one of: digits"):
        handgrad.load_dataset("digit")


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, handgrad; handgrad.train; handgrad.load_run; handgrad.load_dataset\n"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert handgrad.__version__ and 'train' in dir(handgrad)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = handgrad.nonsense  # type: ignore[attr-defined]


def test_the_libraries_export_their_classes() -> None:
    code = (
        "from torch_models import ConvNet, MLP\n"
        "from custom_modules import CustomBatchNormManualFunction\n"
        "from numpy_mlp.modules import *\n"
        "LinearModule, ReLUModule, ELUModule, SoftMaxModule, CrossEntropyModule"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WIDE = {"hidden_dims": [1 << 20]}
DAMAGE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (WIDE, {}, r"its settings ask for layers of 64x1048576 1048576x10, its weights are 64x8 8x10"),
    ({"hidden_dims": [8] * 9}, {}, "ask for layers of 64x8 8x8"),
    ({"hidden_dims": [1 << 40]}, {}, "out of range"),
    ({"hidden_dim": [8]}, {}, "its text has a setting 'hidden_dim' that this version"),
    ({"image_shape": [0, 8, 8]}, {}, r"images are of shape \(0, 8, 8\)"),
    ({"image_shape": [1, 8.0, 8]}, {}, "images are of shape"),
    ({"image_shape": [1, 8]}, {}, "images are of shape"),
    ({"image_shape": [1, 1 << 20, 1 << 20]}, {}, "images are of shape"),
    ({"image_shape": 8}, {}, "is not a run of handgrad"),
    ({"class_names": []}, {}, "classes are"),
    ({"class_names": [1, 2]}, {}, "classes are"),
    ({"class_names": ["a", "b"]}, {}, "ask for layers of 64x8 8x2"),
    ({}, {"mean": [[[1, 2]]]}, "is not a run of handgrad: shape mismatch"),
    ({}, {"mean": [[[[1]]]]}, r"its preprocessing is not for images of \(1, 8, 8\)"),
    ({}, {"scale": [[[float("nan")]]]}, "preprocessing is not finite"),
    ({}, {"scale": 1e300}, "is not a run of handgrad: overflow"),
    ({}, {"scale": 10**400}, "is not a run of handgrad"),
    ({}, {"mean": "grey"}, "is not a run of handgrad"),
    ({}, {"mean": None}, "preprocessing is not finite"),
]


@pytest.mark.parametrize("network", ["mlp-numpy", "mlp-pytorch"])
@pytest.mark.parametrize(("model", "preprocessing", "said"), DAMAGE)
def test_what_a_file_of_weights_says_is_looked_at_before_a_network_is_built(
    tmp_path: Path,
    run: TrainedRun,
    network: str,
    model: dict[str, Any],
    preprocessing: dict[str, Any],
    said: str,
) -> None:
    arrays, texts = load_arrays(run.folder / MODEL)
    about = json.loads(texts["model"])
    if network == "mlp-pytorch":
        del about["dtype"], about["engine"]
        about["device"] = "cpu"
    fitted = json.loads(texts["preprocessing"])
    for changed in ({}, model):
        texts["model"] = json.dumps(about | changed)
        texts["preprocessing"] = json.dumps(fitted | (preprocessing if changed is model else {}))
        save_arrays(tmp_path / MODEL, arrays, texts)
        if changed is not model:
            assert handgrad.load_run(tmp_path, network).predict(IMAGES).shape == (3,)
    tracemalloc.start()
    with pytest.raises(DataError, match=said) as error:
        handgrad.load_run(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20 and str(tmp_path / MODEL) in str(error.value)


def test_text_that_nests_without_end(tmp_path: Path, run: TrainedRun) -> None:
    arrays, texts = load_arrays(run.folder / MODEL)
    for name in ("model", "preprocessing"):
        save_arrays(tmp_path / MODEL, arrays, texts | {name: "[" * 100_000})
        with pytest.raises(DataError, match="is not a run of handgrad"):
            handgrad.load_run(tmp_path)


def test_weights_that_are_not_finite_or_overflow(tmp_path: Path, run: TrainedRun) -> None:
    arrays, texts = load_arrays(run.folder / MODEL)
    weight = arrays["layers.0.weight"].copy()
    for value in (np.nan, -np.inf):
        weight[3, 5] = value
        save_arrays(tmp_path / MODEL, {**arrays, "layers.0.weight": weight}, texts)
        with pytest.raises(DataError, match=r"layers\.0\.weight is not finite"):
            handgrad.load_run(tmp_path)
    save_arrays(tmp_path / MODEL, {name: a * 1e38 for name, a in arrays.items()}, texts)
    loaded = handgrad.load_run(tmp_path)
    with pytest.raises(DataError, match="answers with NaN"):
        loaded.predict(IMAGES)
    for kept in ({}, {"layers.0.weight": np.zeros(3, np.int64)}):
        save_arrays(tmp_path / MODEL, kept, texts)
        with pytest.raises(DataError, match="it holds no weights"):
            handgrad.load_run(tmp_path)
