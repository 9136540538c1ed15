from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from data_files import write_mnist

from handgrad.backends.mlp_numpy import PRESETS, NumpyMLPSettings
from handgrad.backends.registry import NETWORKS, Network
from handgrad.errors import UserError
from handgrad.runs.command_line import Command, parse_command_line
from handgrad.runs.settings import (
    TrainSettings,
    changed_settings,
    options_for,
    override,
    settings_from_dict,
)


def _parse(*argv: str) -> Command[NumpyMLPSettings]:
    return parse_command_line(NumpyMLPSettings, PRESETS, "Description.", "program", argv)


def _settings(*argv: str) -> NumpyMLPSettings:
    return _parse(*argv).settings


def _assert_has(settings: Any, **expected: Any) -> None:
    assert {name: getattr(settings, name) for name in expected} == expected


def test_defaults() -> None:
    assert _settings() == NumpyMLPSettings(batch_size=32, epochs=30), "the digits'"
    assert _settings("--dataset", "mnist") == NumpyMLPSettings(dataset="mnist")


def test_options_override_the_preset_and_the_preset_the_defaults() -> None:
    settings = _settings("--preset", "uva-2018", "--lr", "0.5")
    assert settings.lr == 0.5
    _assert_has(settings, batch_size=200, hidden_dims=(100,), dataset="cifar10", max_steps=1500)
    _assert_has(settings, momentum=0.0, optimizer="sgd", activation="relu")


def test_options_before_the_preset_override_it_too() -> None:
    assert _settings("--lr", "0.5", "--preset", "uva-2018").lr == 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    assert _settings("--preset", name) == _settings(*PRESETS[name].options.split())


def test_spelling_of_the_course_of_2018() -> None:
    settings = _settings(
        "--dnn_hidden_units", "100,100", "--learning_rate", "2e-3", "--max_steps", "1500",
        "--batch_size", "200", "--eval_freq", "100", "--data_dir", "D",
    )  # fmt: skip
    assert settings == NumpyMLPSettings(
        dataset="cifar10",
        hidden_dims=(100, 100),
        lr=2e-3,
        max_steps=1500,
        epochs=None,
        batch_size=200,
        eval_every=100,
        data_dir="D",
    )


def test_spelling_of_the_later_course() -> None:
    settings = _settings(
        "--hidden_dims", "256", "128", "--lr", "0.1", "--use_batch_norm", "--batch_size", "128",
        "--epochs", "10", "--seed", "42", "--data_dir", "D",
    )  # fmt: skip
    assert settings == NumpyMLPSettings(
        dataset="cifar10",
        hidden_dims=(256, 128),
        lr=0.1,
        batch_norm=True,
        batch_size=128,
        epochs=10,
        seed=42,
        data_dir="D",
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--hidden-dims", "3", "4"], {"hidden_dims": (3, 4)}),
        (["--hidden-dims", "3,4"], {"hidden_dims": (3, 4)}),
        (["--hidden-dims=3,4"], {"hidden_dims": (3, 4)}),
        (["--hidden_dims=3"], {"hidden_dims": (3,)}),
        (["--dnn_hidden_units", ""], {"hidden_dims": ()}),
        (["--dnn_hidden_units="], {"hidden_dims": ()}),
        (["--hidden-dims"], {"hidden_dims": ()}),
        (["--learning-rate=0.5"], {"lr": 0.5}),
        (["--weight_decay", "1e-4"], {"weight_decay": 1e-4}),
        (["--weight-decay", "1e-4"], {"weight_decay": 1e-4}),
        (["--augment", "flip", "crop"], {"augment": ("flip", "crop")}),
        (["--augment", "flip,crop"], {"augment": ("flip", "crop")}),
        (["--eval-splits", "validation", "test"], {"eval_splits": ("validation", "test")}),
        (["--neg_slope", "-0.5"], {"neg_slope": -0.5}),
        (["--batch_norm", "--no-batch-norm"], {"batch_norm": False}),
        (["--momentum", "0.9", "--nesterov"], {"momentum": 0.9, "nesterov": True}),
        (["--max-steps", "7"], {"max_steps": 7, "epochs": None}),
        (["--preset", "uva-2018", "--epochs", "2"], {"max_steps": None, "epochs": 2}),
        (["--preset", "uva-2018", "--max-steps", "2"], {"max_steps": 2, "epochs": None}),
        (["--data-dir", "my_folder"], {"data_dir": "my_folder", "dataset": "cifar10"}),
        (["--data-dir", "D", "--dataset", "mnist"], {"dataset": "mnist", "batch_size": 128}),
        (["--batch-size", "5"], {"batch_size": 5, "epochs": 30}),
        (["--validation-size", "5000"], {"validation_size": 5000.0}),
        (["--lr", "1", "--lr", "2"], {"lr": 2.0}),
    ],
    ids=" ".join,
)
def test_option(argv: list[str], expected: dict[str, Any]) -> None:
    _assert_has(_settings(*argv), **expected)


BAD = [
    ("--lr 0", "--lr 0", "above 0"),
    ("--lr -1", "--lr -1", "above 0"),
    ("--lr nan", "--lr nan", "above 0"),
    ("--lr inf", "--lr inf", "above 0"),
    ("--lr fast", "--lr", "'fast' is not a number"),
    ("--learning_rate 0", "--lr 0", "above 0"),
    ("--lr", "--lr", "expected one argument"),
    ("--batch-size 0", "--batch-size 0", "at least 1"),
    ("--batch-size -3", "--batch-size -3", "at least 1"),
    ("--batch-size 2.5", "--batch-size", "'2.5' is not a whole number"),
    ("--batch-size 1e3", "--batch-size", "'1e3' is not a whole number"),
    ("--epochs 0", "--epochs 0", "at least 1"),
    ("--max-steps 0", "--max-steps 0", "at least 1"),
    ("--epochs 1 --max-steps 1", "--epochs and --max-steps", "exclude each other"),
    ("--hidden-dims 0", "--hidden-dims 0", "at least 1"),
    ("--hidden-dims 100,-1", "--hidden-dims -1", "at least 1"),
    ("--hidden-dims 100 wide", "--hidden-dims", "'100,wide' is not a list of whole numbers"),
    ("--hidden-dims 1.5", "--hidden-dims", "is not a list of whole numbers"),
    ("--momentum 1", "--momentum 1", "at least 0 and below 1"),
    ("--momentum -0.1", "--momentum -0.1", "at least 0 and below 1"),
    ("--nesterov", "--nesterov", "--momentum above 0"),
    ("--weight-decay -1", "--weight-decay -1", "at least 0"),
    ("--weight-decay inf", "--weight-decay inf", "at least 0"),
    ("--dropout 1", "--dropout 1", "below 1"),
    ("--engine grpah", "--engine 'grpah'", "did you mean graph"),
    ("--validation-images first", "--validation-images 'first'", "random, last"),
    ("--input-dropout -0.1", "--input-dropout -0.1", "at least 0"),
    ("--weight-std 0", "--weight-std 0", "above 0"),
    ("--neg-slope nan", "--neg-slope nan", "a finite number"),
    ("--gamma 0", "--gamma 0", "above 0"),
    ("--step-size 0", "--step-size 0", "at least 1"),
    ("--schedule-steps 0", "--schedule-steps 0", "at least 1"),
    ("--warmup-steps -1", "--warmup-steps -1", "at least 0"),
    ("--eval-every 0", "--eval-every 0", "at least 1"),
    ("--checkpoint-every 0", "--checkpoint-every 0", "at least 1"),
    ("--seed -1", "--seed -1", "at least 0"),
    ("--threads 0", "--threads 0", "at least 1"),
    ("--validation-size -1", "--validation-size -1", "at least 0"),
    ("--validation-size 1.5", "--validation-size 1.5", "whole number, or a share below 1"),
    ("--target-accuracy -1", "--target-accuracy -1", "at least 0"),
    ("--dataset cifar", "--dataset 'cifar'", "did you mean cifar10?"),
    ("--dataset imagenet", "--dataset 'imagenet'", "one of: digits, mnist, cifar10"),
    ("--preset uva2018", "--preset 'uva2018'", "did you mean uva-2018?"),
    ("--preset xyz", "--preset 'xyz'", "expected one of: uva-2018"),
    ("--optimizer adamv", "--optimizer 'adamv'", "did you mean adam"),
    ("--optimizer muon", "--optimizer 'muon'", "expected one of: sgd, adam, adamw"),
    ("--weight-decay-of matrix", "--weight-decay-of 'matrix'", "did you mean matrices?"),
    ("--label-smoothing 1", "--label-smoothing 1.0", "at least 0 and below 1"),
    ("--clip-grad-norm 0", "--clip-grad-norm 0", "above 0"),
    ("--ema 1", "--ema 1.0", "at least 0 and below 1"),
    ("--activation rellu", "--activation 'rellu'", "did you mean relu?"),
    ("--schedule cosin", "--schedule 'cosin'", "did you mean cosine?"),
    ("--preprocess none", "--preprocess 'none'", "standardize, mean-image"),
    ("--augment flip,cropp", "--augment 'cropp'", "did you mean crop?"),
    ("--eval-splits train", "--eval-splits 'train'", "validation, test"),
    ("--dtype float16", "--dtype 'float16'", "did you mean float"),
    ("--hiden-dims 3", "--hiden-dims", "did you mean --hidden-dims?"),
    ("--bach_size=3", "--bach-size", "did you mean --batch-size?"),
    ("--learning-rat 3", "--learning-rat", "did you mean --learning-rate?"),
    ("--zzzzzz", "--zzzzzz", "--help lists them all"),
    ("--batch 3", "unknown option --batch", ""),
    ("stray", "stray", "unexpected argument"),
    ("--resume runs/a --lr 0.1", "--lr", "cannot be changed when a run is resumed"),
    ("--resume runs/a --batch_size 2", "--batch-size", "cannot be changed"),
    ("--resume runs/a --out b", "--out", "cannot be changed"),
    ("--resume runs/a --preset uva-2018", "--preset", "cannot be changed"),
    ("--resume runs/a --use_batch_norm", "--batch-norm", "cannot be changed"),
    ("--resume runs/a --epochs 0", "--epochs 0", "at least 1"),
]


@pytest.mark.parametrize(("line", "named", "hint"), BAD, ids=[line for line, _, _ in BAD])
def test_bad_value(line: str, named: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse(*line.split())
    assert named in str(caught.value)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bounded_setting_is_in_the_table_of_bad_values() -> None:
    tried = {token for line, _, _ in BAD for token in line.replace("_", "-").split()}
    for field in dataclasses.fields(NumpyMLPSettings):
        bounds = [field.metadata[key] for key in ("above", "least", "below")]
        if field.metadata["choices"] or any(bound is not None for bound in bounds):
            assert f"--{field.name.replace('_', '-')}" in tried


OTHERS = {
    "empty": ([], "no files"),
    "CIFAR-100": (["train", "test", "meta"], r"CIFAR-100 \(meta, test, train\)"),
    "pictures": (["cats/1.png", "dogs/1.png"], "2 pictures in 2 folders"),
    "npz": (["mnist.npz"], r"MNIST in another form \(mnist.npz\)"),
    "csv": (["digits.csv"], "digits.csv"),
    "Fashion-MNIST beside": (["FashionMNIST/raw/train-images-idx3-ubyte"], "Fashion-MNIST"),
    "three of four": (["train-images-idx3-ubyte.gz"], "a part of a set in MNIST's format"),
}


@pytest.mark.parametrize(("files", "found"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_folder_with_something_else(
    tmp_path: Path, network: Network, files: list[str], found: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def parse(*more: str) -> Any:
        argv = ["--data-dir", str(tmp_path), *more]
        return parse_command_line(network.settings, network.presets, "", "program", argv)

    with pytest.raises(UserError, match=f"--data-dir .* holds {found}.*; expected .*--dataset"):
        parse()
    assert parse("--dataset", "mnist").settings.dataset == "mnist"
    assert parse("--preset", "uva-2018").settings.dataset == "cifar10" or not network.presets
    assert parse("--resume", "run").overrides == {"data_dir": str(tmp_path)}


def test_the_home_folder_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_mnist(tmp_path / "data")
    assert _settings("--data-dir", "~/data").dataset == "mnist"


def test_resume() -> None:
    line = "--resume runs/a --epochs 3 --threads 2 --quiet --live --report"
    command = _parse(*line.split())
    assert command.resume == Path("runs/a")
    looking = {"quiet": True, "live": True, "report": True}
    assert command.overrides == {"epochs": 3, "threads": 2, **looking}
    assert _parse("--epochs", "3").resume is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"epochs": 10, "max_steps": None}),
        ({"epochs": 20}, {"epochs": 20, "max_steps": None}),
        ({"max_steps": 5}, {"epochs": None, "max_steps": 5}),
        ({"quiet": True, "threads": 1}, {"quiet": True, "threads": 1, "epochs": 10}),
    ],
)
def test_override(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = NumpyMLPSettings(lr=0.25)
    _assert_has(override(settings, changes), lr=0.25, **expected)
    assert settings == NumpyMLPSettings(lr=0.25), "unchanged"


def test_override_of_a_run_in_steps() -> None:
    settings = NumpyMLPSettings(epochs=None, max_steps=100)
    _assert_has(override(settings, {"epochs": 2}), epochs=2, max_steps=None)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--preset uva-2018",
        "--hidden-dims --augment flip crop --eval-splits test --max-steps 3",
        "--hidden_dims 5 6 --neg_slope 0.1 --nesterov --momentum 0.9 --threads 2 --data_dir D",
        "--weight-std 1e-4 --batch-norm --schedule step --step-size 7 --target-accuracy 0.5",
        "--lr 1 --validation-size 0",
    ],
)
def test_round_trip_through_json(line: str) -> None:
    settings = _settings(*line.split())
    text = json.dumps(dataclasses.asdict(settings))
    assert settings_from_dict(NumpyMLPSettings, json.loads(text), "config.json") == settings


SETTINGS = [
    "",
    "--data-dir D --dataset digits",
    "--dataset cifar10 --validation-size 5000 --lr 0.1234567891",
    "--hidden-dims --eval-splits --neg-slope -0.5 --threads 2",
    "--optimizer adamw",
    "--optimizer adamw --lr 0.1",
    "--epochs 10 --batch-size 128 --augment crop flip",
    "--max-steps 7 --weight-std 1e-7 --momentum 0.5 --nesterov --batch-norm",
    *(f"--preset {name}" for name in PRESETS),
]


@pytest.mark.parametrize("line", SETTINGS)
def test_options_give_the_settings_back(line: str) -> None:
    settings = _settings(*line.split(), "--seed", "3")
    assert _settings(*options_for(settings)) == settings


def test_options_leave_out_where_and_how_a_run_is_watched() -> None:
    settings = _settings("--out", "a", "--quiet", "--live", "--report", "--lr", "0.5")
    assert options_for(settings) == ["--lr", "0.5"]
    assert changed_settings(settings).keys() == {"out", "quiet", "live", "report", "lr"}


def test_the_defaults_of_a_dataset_and_an_optimizer_count_as_such() -> None:
    assert changed_settings(_settings()) == {}
    assert changed_settings(_settings("--optimizer", "adamw")) == {"optimizer": ("adamw", "sgd")}
    cifar = changed_settings(_settings("--dataset", "cifar10", "--batch-size", "32"))
    assert cifar == {"dataset": ("cifar10", "digits"), "batch_size": (32, 128)}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (None, "no settings"),
        ([1], "no settings"),
        ({"colour": 1}, "'colour'"),
        ({"lr": "fast"}, "lr is 'fast', expected float"),
        ({"lr": None}, "lr is None"),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected int"),
        ({"batch_size": [2]}, "batch_size"),
        ({"hidden_dims": [3, "x"]}, "hidden_dims"),
        ({"quiet": "yes"}, "quiet is 'yes', expected bool"),
        ({"lr": -1.0}, "--lr -1"),
        ({"dataset": "imagenet"}, "--dataset 'imagenet'"),
    ],
)
def test_damaged_settings(values: Any, named: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_from_dict(NumpyMLPSettings, values, "config.json")
    assert named in str(caught.value)


def test_help_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _parse("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(NumpyMLPSettings):
        assert f"--{field.name.replace('_', '-')} " in text.replace("\n", " ").replace(",", " ")
    for name in PRESETS:
        assert name in "".join(text.split())  # names are broken at their hyphens


def test_the_home_folder_is_not_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_mnist(tmp_path / "data")
    for argv in (
        ["--out=~/runs/x", "--data-dir=~/data"],
        ["--out", "~/runs/x", "--data_dir", "~/data"],
    ):
        settings = _parse(*argv).settings
        assert settings.out == str(tmp_path / "runs" / "x")
        assert (settings.data_dir, settings.dataset) == (str(tmp_path / "data"), "mnist")
    assert _parse("--resume=~/x").resume == tmp_path / "x"


def test_command_is_recorded() -> None:
    assert _parse("--lr", "0.5").text == "program --lr 0.5"


def test_other_settings_have_no_network_options() -> None:
    with pytest.raises(UserError, match="--hidden-dims"):
        parse_command_line(TrainSettings, {}, "", "program", ["--hidden-dims", "3"])
    assert parse_command_line(TrainSettings, {}, "", "program", []).settings.dataset == "digits"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--seed", "9" * 400], "--seed"),
        (["--seed", str(2**64)], "at least 0 and at most 18446744073709551615"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--out", "~no-such-user/x"], "~no-such-user/x: there is no home folder"),
        (["--resume=~no-such-user/x"], "--resume: ~no-such-user/x: there is no home folder"),
        (["--hidden-dims", "99999999999999999999"], "at most 1000000000"),
        (["--threads", "100000"], "--threads"),
        (["--target-accuracy", "95"], "at most 1"),
        (["--gamma", "10"], "--gamma"),
        (["--optimizer", "adamw", "--momentum", "0.9"], "--momentum"),
        (["--neg-slope", "0.2", "--activation", "sigmoid"], "--neg-slope"),
        (["--learning-rte", "1"], "did you mean --learning-rate"),
    ],
)
def test_values_that_would_crash_or_be_ignored(argv: list[str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_command_line(NumpyMLPSettings, {}, "", "train-mlp-numpy", argv)
    assert named in str(caught.value)


def test_adamw_has_a_learning_rate_of_its_own() -> None:
    settings = parse_command_line(NumpyMLPSettings, {}, "", "p", ["--optimizer", "adamw"]).settings
    assert settings.lr == 1e-3
    explicit = ["--optimizer", "adamw", "--lr", "0.5"]
    assert parse_command_line(NumpyMLPSettings, {}, "", "p", explicit).settings.lr == 0.5


@pytest.mark.parametrize(
    "values",
    [{"hidden_dims": 5}, {"augment": "flip"}, {"batch_size": True}, {"lr": "0.1"}, {"lr": [0.1]}],
)
def test_settings_of_the_wrong_kind_in_a_file(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        settings_from_dict(NumpyMLPSettings, values, "config.json")
