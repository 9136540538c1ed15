"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from training.config import (
    ConvNetSettings,
    NumpyMLPSettings,
    TorchMLPSettings,
    TrainSettings,
    parse_command_line,
)
from training.presets import CONVNET_PRESETS, MLP_PRESETS, TORCH_MLP_PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_layer_of_your_own_prints_what_is_shown() -> None:
    section = README[README.index("## A layer of your own") :]
    blocks = re.findall(r"```(?:python)?\n(.*?)```", section, flags=re.S)
    code, shown = blocks[0], blocks[1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    # The digits of the rounding error are the machine's own.
    verdict = re.compile(r"^ok +x: worst relative error [\d.e-]+ at \(\d, \d\): backward ")
    assert verdict.match(shown)
    assert verdict.match(out.getvalue())


@pytest.mark.parametrize(
    ("command", "kind", "presets", "least"),
    [
        ("train-mlp-numpy", NumpyMLPSettings, MLP_PRESETS, 5),
        ("train-mlp-pytorch", TorchMLPSettings, TORCH_MLP_PRESETS, 2),
        ("train-convnet", ConvNetSettings, CONVNET_PRESETS, 3),
    ],
)
def test_every_command_shown_is_accepted(
    command: str, kind: type[TrainSettings], presets: dict[str, Any], least: int, tmp_path: Path
) -> None:
    shown = re.findall(rf"^\s*(?:\.venv/bin/)?{command}( .*|)$", README, flags=re.M)
    assert len(shown) >= least
    for arguments in shown:
        argv = arguments.partition("#")[0].replace("DATA", str(tmp_path)).split()
        if "--help" not in argv:
            parse_command_line(kind, presets, "", command, argv)


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 8
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_layer_shown_is_the_layers_code() -> None:
    section = README[README.index("## A layer, whole") :]
    (shown, *_) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    source = (ROOT / "numpy_mlp/modules/linear.py").read_text(encoding="utf-8")
    for line in shown.splitlines():
        code = line.partition("#")[0].strip()
        if code.startswith("return "):  # the file names and types what it returns
            code = code.removeprefix("return ")
        if code.startswith("def "):
            code = code.partition("(")[0]
        assert code in source, line


def test_using_the_weights_as_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.train_mlp_numpy import main

    folder = tmp_path / "run"
    assert main(["--max-steps", "50", "--quiet", "--out", str(folder)]) == 0
    section = README[README.index("Use the weights from Python") :]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    capsys.readouterr()
    exec(compile(code.replace("runs/NAME", str(folder)), "README.md", "exec"), {})
    shown = float(capsys.readouterr().out)
    assert shown == json.loads((folder / "summary.json").read_text())["test_accuracy"]


def test_the_graph_example_does_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README[README.index("## A graph that knows") :]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    shown = re.search(r"print\(.*# (.*)", code)
    assert shown is not None
    numbers = re.compile(r"\d+")
    assert numbers.findall(capsys.readouterr().out) == numbers.findall(shown[1])
    assert (tmp_path / "graph.png").stat().st_size > 5_000
