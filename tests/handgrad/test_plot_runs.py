"""plot-runs, on runs made by hand: what it finds, what it says, what it draws."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from handgrad.backends.mlp_numpy import NumpyMLPSettings
from handgrad.backends.mlp_torch import TorchMLPSettings
from handgrad.errors import UserError
from handgrad.pictures.curves import mean_curve
from handgrad.plot_runs import _DEFAULTS, main
from handgrad.runs import overlay
from handgrad.runs.overlay import Panel, group_runs, make_panels, table
from handgrad.runs.record import RunRecord, find_runs, read_run
from handgrad.runs.settings import TrainSettings
from handgrad.training.metrics import MetricsFile, Row

DIGITS = NumpyMLPSettings(batch_size=32, epochs=30)


def _make(
    folder: Path,
    settings: TrainSettings = DIGITS,
    *,
    program: str = "train-mlp-numpy",
    finished: bool = True,
    splits: tuple[str, ...] = ("train", "validation"),
    accuracy: float = 0.9,
) -> Path:
    folder.mkdir(parents=True)
    config = {"commands": [f"{program} --lr 1"], "settings": asdict(settings)}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        Row(step, step / 10, split, 2 / (step + 1) + settings.seed / 10, accuracy, 0.1, step / 7)
        for step in range(0, 50, 10)
        for split in splits
    ]
    MetricsFile(folder / "metrics.csv", rows).create()
    if finished:
        summary = {"steps": 40, "test_accuracy": accuracy, "seconds": 12.25}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _labels(*folders: Path) -> list[str]:
    groups = group_runs([read_run(folder) for folder in folders], _DEFAULTS)
    return [group.label for group in groups]


def _panels(*paths: Path, split: str | None = None) -> list[Panel]:
    return make_panels([read_run(folder) for folder in find_runs(paths)], _DEFAULTS, split)


def _plot(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("one", "other", "labels"),
    [
        ({"lr": 0.1}, {"lr": 0.02}, ["lr 0.1", "lr 0.02"]),
        ({}, {"engine": "graph"}, ["engine modules", "engine graph"]),
        ({"hidden_dims": (100,)}, {"hidden_dims": ()}, ["hidden-dims 100", "hidden-dims none"]),
        ({"batch_norm": True}, {}, ["batch-norm", "no batch-norm"]),
        ({"max_steps": 9, "epochs": None}, {"epochs": 2}, ["max-steps 9", "epochs 2"]),
        ({"lr": 1.0, "seed": 1}, {"lr": 2.0}, ["lr 1", "lr 2"]),
        ({"epochs": None}, {"epochs": 2}, ["epochs none", "epochs 2"]),
        ({"out": "a", "quiet": True}, {"out": "b", "live": True, "seed": 1}, ["all"]),
        (
            {"lr": 0.5, "momentum": 0.9},
            {"dropout": 0.1, "dtype": "float64"},
            ["lr 0.5, momentum 0.9", "dropout 0.1, dtype float64"],
        ),
    ],
)
def test_labels_say_what_differs(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], labels: list[str]
) -> None:
    folders = [_make(tmp_path / n, replace(DIGITS, **c)) for n, c in (("a", one), ("b", other))]
    assert _labels(*folders) == labels


def test_of_two_commands_only_common_settings_differ(tmp_path: Path) -> None:
    mine = _make(tmp_path / "a")
    torch = TorchMLPSettings(batch_size=32, epochs=30, lr=0.2)
    theirs = _make(tmp_path / "b", torch, program="train-mlp-pytorch")
    assert _labels(mine, theirs) == ["mlp-numpy, lr 0.1", "mlp-pytorch, lr 0.2"]


def test_runs_that_are_alike_are_called_by_their_folders(tmp_path: Path) -> None:
    folders = [_make(tmp_path / name) for name in "ab"]
    assert _labels(*folders) == [str(folder) for folder in folders]
    assert _labels(folders[0]) == [str(folders[0])]


def test_seeds_make_one_group_with_a_mean(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.8, 0.9)):
        _make(tmp_path / f"a{seed}", replace(DIGITS, seed=seed), accuracy=accuracy)
    _make(tmp_path / "b", replace(DIGITS, lr=1.0), accuracy=0.5)
    panels = _panels(tmp_path)
    assert [(g.label, len(g.runs)) for g in panels[0].groups] == [("lr 0.1", 2), ("lr 1", 1)]
    lines = table(panels)
    assert "0.8500 ± 0.0707" in lines[3] and lines[3].endswith("lr 0.1, mean ± deviation of 2")
    assert lines[1].split() == [
        str(tmp_path / "a0"), "digits", "0.8000", "0.8000", "12.2", "lr", "0.1,", "seed", "0",
    ]  # fmt: skip


def test_a_mean_is_of_all_runs_that_have_a_value(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.0, 0.5, 0.7)):
        own = replace(DIGITS, seed=seed)
        _make(tmp_path / f"{seed}", own, accuracy=accuracy, finished=seed > 0)
    lines = table(_panels(tmp_path))
    assert "0.6000 ± 0.1414" in lines[-1] and "0.4000 ± 0.3606" in lines[-1]
    assert lines[-1].endswith("mean ± deviation of 2 and 3")


def test_mean_curve() -> None:
    x = np.array([0.0, 1.0, 2.0])
    mean = mean_curve([(x, x), (x[:2], x[:2] + 1)])
    assert mean is not None
    assert mean[0].tolist() == [0, 1] and mean[1].tolist() == [0.5, 1.5]
    assert mean_curve([(x, x), (x + 0.5, x)]) is None


@pytest.mark.parametrize("name", ["runs.png", "x.SVG", "x.pdf", "x.html"])
@pytest.mark.parametrize("over", ["steps", "epochs", "seconds"])
def test_a_picture_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, over: str
) -> None:
    folders = [
        _make(tmp_path / f"{lr}-{seed}", replace(DIGITS, lr=lr, seed=seed))
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    assert _plot(*folders, "--out", tmp_path / name, "--over", over) == 0
    content = (tmp_path / name).read_bytes()
    kinds = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!DOCTYPE"}
    assert content.startswith(kinds[Path(name).suffix.lower()])
    assert f"{tmp_path / name}: validation curves of digits" in capsys.readouterr().out


def test_another_run_another_picture(tmp_path: Path) -> None:
    pictures = []
    for i, lr in enumerate((0.1, 0.2)):
        other = _make(tmp_path / f"run{i}", replace(DIGITS, seed=i, lr=lr))
        assert _plot(other, "--out", tmp_path / "a.png") == 0
        pictures.append(imread(tmp_path / "a.png"))
        assert pictures[-1][..., :3].std() > 0.01
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    "name",
    ["m$\\frac{$", "n$^$", os.fsdecode(b"bad\xff"), "猫 with 犬", "esc\x1b[31mred", "two\nlines"],
    ids=ascii,
)
def test_names_of_folders_are_no_instructions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (name, f"{name}2"):
        _make(Path(folder), splits=("train",))
    assert _plot(name, f"{name}2", "--out", f"{name}.svg") == 0
    assert _plot(name, "--split", "test", "--out", "x.pdf") == 2
    _make(Path(name) / "late", finished=False, splits=())
    assert _plot(name, Path(name) / "late", "--out", "x.pdf") == 0
    out, err = capfd.readouterr()
    shown = "".join(c if c.isprintable() else "�" for c in name)
    assert f"{shown}2" in out and "left out: " in err
    assert "\x1b" not in out + err and "Warning" not in err


@pytest.mark.parametrize("names", [("_a", "_b"), ("m$x$", "$")])
def test_the_legend_has_every_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in names:
        _make(Path(name))
    # Pictures are drawn by Matplotlib's defaults: texts are texts for once.
    monkeypatch.setitem(matplotlib.rcParamsDefault, "svg.fonttype", "none")
    assert _plot(*names, "--out", "a.svg") == 0
    texts = re.findall("<text [^>]*>([^<]*)</text>", Path("a.svg").read_text())
    assert set(names) <= set(texts)


def test_thirty_runs(tmp_path: Path) -> None:
    for i in range(30):
        _make(tmp_path / f"{i:02}", replace(DIGITS, lr=0.1 + i))
    assert _plot(tmp_path, "--out", tmp_path / "a.png") == 0
    assert min(imread(tmp_path / "a.png").shape[:2]) > 400


def test_the_default_split_is_one_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _make(Path("a"), splits=("train", "validation", "test"))
    _make(Path("b"), replace(DIGITS, lr=1.0), splits=("train", "test"))
    assert _plot("a", "b") == 0
    assert capsys.readouterr().out.endswith("runs.png: test curves of digits\n")
    assert _plot("a", "b", "--split", "validation") == 0
    assert capsys.readouterr().err == "not drawn: b has no evaluation of validation\n"
    assert _plot("b", "--split", "validation") == 2
    assert "none of these runs was evaluated on it" in capsys.readouterr().err
    _make(Path("c"), splits=("validation",))
    _make(Path("d"), splits=("test",))
    assert _plot("c", "d") == 0
    assert capsys.readouterr().out.endswith("runs.png: validation curves of digits\n")


def test_several_datasets_are_several_panels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(overlay, "save", lambda path, figure, dpi: drawn.append(figure))
    mnist = replace(DIGITS, dataset="mnist")
    for i, (settings, splits) in enumerate(
        [
            (DIGITS, ("train", "validation", "test")),
            (replace(mnist, lr=0.5), ("train", "validation", "test")),
            (mnist, ("train", "test")),
            (replace(DIGITS, lr=0.5, seed=1), ("train", "validation")),
        ]
    ):
        _make(tmp_path / f"{i}", settings, splits=splits, accuracy=1.0)
    assert _plot(tmp_path, "--out", "a.png") == 0
    out, err = capsys.readouterr()
    assert out.endswith("a.png: validation curves of digits, test curves of mnist\n") and not err
    digits, other = drawn[0].subfigs
    assert (digits.get_suptitle(), other.get_suptitle()) == ("digits", "mnist")
    for part, split, runs in ((digits, "validation", 2), (other, "test", 2)):
        titles = [axes.get_title() for axes in part.axes]
        assert titles == [f"{split} loss", f"{split} accuracy"]
        for axes in part.axes:
            assert len(axes.lines) == runs
        accuracy = part.axes[1]
        assert accuracy.get_yscale() == "linear" and accuracy.get_ylim()[1] > 1
        texts = [text.get_text() for text in part.legends[0].get_texts()]
        assert len(texts) == 2 and all("lr 0." in text and "dataset" not in text for text in texts)


def test_held_out_images_come_before_those_of_the_training(tmp_path: Path) -> None:
    _make(tmp_path / "a", splits=("train", "validation"))
    _make(tmp_path / "b", replace(DIGITS, lr=0.5), splits=("train", "test"))
    _make(tmp_path / "c", replace(DIGITS, lr=0.7), splits=("train", "test"))
    assert [panel.split for panel in _panels(tmp_path)] == ["test"]
    _make(tmp_path / "d" / "e", splits=("train",))
    assert [panel.split for panel in _panels(tmp_path / "d")] == ["train"]
    assert [panel.split for panel in _panels(tmp_path, split="train")] == ["train"]


def test_a_page_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        _make(tmp_path / f"a{seed}", replace(DIGITS, seed=seed), accuracy=0.5 + seed / 10)
    _make(tmp_path / "<b>", replace(DIGITS, lr=1.0), splits=("validation",))
    _make(tmp_path / "late", replace(DIGITS, lr=2.0), splits=("train",), finished=False)
    _make(tmp_path / "m", replace(DIGITS, dataset="mnist"), splits=("test",), accuracy=1.0)
    assert _plot(tmp_path, "--out", tmp_path / "runs.html") == 0
    assert capsys.readouterr().out.endswith("validation curves of digits, test curves of mnist\n")
    text = (tmp_path / "runs.html").read_text()
    assert '<h2 id="panel1">digits: validation curves</h2>' in text
    assert '<h2 id="panel2">mnist: test curves</h2>' in text
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert "0.5500 ± 0.0707" in text and "unfinished, step 40" in text
    legends = re.findall(r"</svg> ([^<]*)</li>", text)
    assert legends[:2] == ["lr 1", "lr 0.1 (2 seeds)"] and len(legends) == 3
    assert "by step 40: 0.9000 lr 1; 0.5500 lr 0.1 (2 seeds)" in text
    assert text.count('class="line colour1 dash1 thin"') == 2 * 2 * 2, "runs, charts and scales"


def test_runs_under_way_are_drawn_as_far_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _make(tmp_path / "run", finished=False)
    with (folder / "metrics.csv").open("a") as file:
        file.write("50,5.0,train,0.0")  # being written at this moment
    assert _plot(folder, "--out", tmp_path / "a.png") == 0
    assert "unfinished, step 40" in capsys.readouterr().out


def test_a_run_that_goes_on_is_not_finished(tmp_path: Path) -> None:
    folder = _make(tmp_path / "run")
    assert read_run(folder).summary is not None
    with (folder / "metrics.csv").open("a") as file:
        file.write("50,5.0,train,0.5,0.5,0.1,9.0\n")
    assert read_run(folder).summary is None


HEAD = "step,epoch,split,loss,accuracy,learning_rate,seconds\n"
DAMAGE = {
    "config cut": ("config.json", '{"settings"', "config.json is damaged"),
    "no settings": ("config.json", "{}", "holds no settings"),
    "config a list": ("config.json", "[]", "no names and values"),
    "not utf-8": ("config.json", None, "config.json is damaged"),
    "no rows": ("metrics.csv", HEAD, "no eval"),
    "other columns": ("metrics.csv", "a,b\n1,2\n", "does not have the columns"),
    "a seed that is none": ("config.json", '{"settings": {"seed": [1]}}', "its seed is [1]"),
    "a step": ("metrics.csv", f"{HEAD}{'4' * 400},1,test,1,1,1,1\n", "is no number of steps"),
    "another split": ("metrics.csv", f"{HEAD}4,1,foo,1,1,1,1\n", "no evaluation of train, valid"),
    "long seconds": (
        "summary.json",
        f'{{"steps": 40, "test_accuracy": 1, "seconds": {"4" * 400}}}',
        "its seconds is 444",
    ),
    "summary": ("summary.json", '{"steps": "many"}', "its steps is 'many'"),
}


@pytest.mark.parametrize(("name", "content", "told"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_runs_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, told: str
) -> None:
    good, bad = _make(tmp_path / "good"), _make(tmp_path / "bad", replace(DIGITS, lr=1.0))
    (bad / name).write_bytes(b"\xff\xfe\x00" if content is None else content.encode())
    assert _plot(tmp_path, "--out", tmp_path / "a.png") == 0
    out, err = capsys.readouterr()
    assert err.startswith("left out: ") and err.count("\n") == 1 and told in err
    assert str(good) in out and str(bad) not in out
    assert _plot(bad, "--out", tmp_path / "b.png") == 2
    assert "no run is left to draw" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "arguments are required: RUN"),
        ("nowhere", "nowhere does not exist; give the folder of a run"),
        ("file", "file is a file; a folder is expected"),
        ("empty", "empty is no run, and there is none below it"),
        ("run --out a.gif", "--out a.gif: expected a name that ends in .png, .svg, .pdf, .html"),
        ("run --out no/a.png", "the folder no does not exist"),
        ("run --out folder.png", "folder.png is a folder"),
        ("run --split tst", "--split: invalid choice: 'tst'"),
        ("run --over time", "--over: invalid choice"),
        ("run --colour red", "unknown option --colour; --help"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _make(Path("run"))
    Path("file").touch()
    for name in ("empty", "folder.png"):
        Path(name).mkdir()
    assert main(arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    folder = _make(tmp_path / "run")
    assert find_runs([folder, tmp_path, folder]) == [folder]
    with pytest.raises(UserError, match="does not exist"):
        find_runs([tmp_path / "x"])


def test_the_table_fits_a_terminal() -> None:
    rows = [Row(3, 1.0, "validation", 0.5, 0.75, 0.1, 2.0)]
    settings: list[dict[str, Any]] = [{"lr": 0.1, "hidden_dims": [1024, 512]}, {"lr": 0.2}]
    folders = [Path("runs/a-rather-long-name-of-a-folder"), Path("runs/" + "x" * 80)]
    runs = [
        RunRecord(folder, "train-mlp-numpy", mine, rows, None)
        for folder, mine in zip(folders, settings, strict=True)
    ]
    panels = make_panels(runs, {}, None)
    wide, narrow = table(panels), table(panels, 80)
    assert len(wide) == 3 and max(map(len, wide)) > 80
    assert all(len(line) <= 80 or line == str(folders[1]) for line in narrow)
    assert "".join(" ".join(wide).split()) == "".join(" ".join(narrow).split()), "all is there"
