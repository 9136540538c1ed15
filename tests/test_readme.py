"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(page: str, heading: str, language: str = "python") -> list[str]:
    """Return the blocks of code in a section."""
    section = page[page.index(f"## {heading}") :].partition("\n## ")[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, flags=re.S | re.M)
    return [text for kind, text in found if kind == language]


def without_digits(text: str) -> str:
    return re.sub(r"[-\d.e+]*\d", "0", text)


def test_the_layer_of_your_own_is_told_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from handgrad.checker.command import main

    layer, checker = blocks(README, "A layer of your own")
    (shown,) = blocks(README, "A layer of your own", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "square.py").write_text(layer, encoding="utf-8")
    assert 8 <= len(layer.splitlines()) <= 11
    assert main(["square.py"]) == 1
    assert without_digits(capsys.readouterr().out) == without_digits(shown)
    right = layer.replace("2 * dout", "2 * dout * self.x")
    (tmp_path / "square.py").write_text(right, encoding="utf-8")
    assert main(["square.py"]) == 0
    exec(compile(checker, "README.md", "exec"), {})
    assert "ok    x: worst relative error" in capsys.readouterr().out


def test_the_results_are_those_of_the_page_of_results() -> None:
    rows = re.compile(r"^\| `([\w-]+)` \|(.*)\|$", flags=re.M)
    page = dict(rows.findall((ROOT / "docs/results.md").read_text(encoding="utf-8")))
    section = README[README.index("## Results") :].partition("\n## ")[0]
    ours = dict(rows.findall(section))
    assert len(ours) >= 12
    for name, cells in ours.items():
        for number in re.findall(r"0\.\d{4}", cells):
            assert number in page[name], (name, number)


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_every_linked_file_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", text):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_layer_shown_is_the_layers_code() -> None:
    (shown,) = blocks(README, "A layer, whole")
    source = (ROOT / "numpy_mlp/modules/linear.py").read_text(encoding="utf-8")
    for line in shown.splitlines():
        code = line.partition("#")[0].strip()
        if code.startswith("return "):  # the file names and types what it returns
            code = code.removeprefix("return ")
        if code.startswith("def "):
            code = code.partition("(")[0]
        assert code in source, line


def test_using_the_weights_as_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from handgrad.backends.command import train_mlp_numpy as main

    folder = tmp_path / "run"
    assert main(["--max-steps", "50", "--quiet", "--out", str(folder)]) == 0
    code, watched = blocks(TRAINING, "The weights in Python")
    capsys.readouterr()
    exec(compile(code.replace("runs/NAME", str(folder)), "training.md", "exec"), {})
    shown = float(capsys.readouterr().out)
    assert shown == json.loads((folder / "summary.json").read_text())["test_accuracy"]
    watched = watched.replace("epochs=2", f"max_steps=4, eval_every=2, out={str(tmp_path / 'w')!r}")
    exec(compile(watched, "training.md", "exec"), {})
    assert capsys.readouterr().out.count("('validation', ") == 3


def test_the_notebook(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training, checking = blocks(README, "In a notebook")
    assert len([line for line in training.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(training, "README.md", "exec"), {})
    assert "test accuracy 0.9" in capsys.readouterr().out
    exec(compile(checking, "README.md", "exec"), {})
    assert "1 of 1 right" in capsys.readouterr().out


def test_the_graph_example_does_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks(README, "A graph that knows")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    shown = re.search(r"print\(.*# (.*)", code)
    assert shown is not None
    numbers = re.compile(r"\d+")
    assert numbers.findall(capsys.readouterr().out) == numbers.findall(shown[1])
    assert (tmp_path / "graph.png").stat().st_size > 5_000
