"""What is installed, and that nothing in the user's folder gets in its way."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

INSTALLED = {"handgrad", "numpy_mlp", "torch_models", "custom_modules"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built with the tools that are installed."""
    folder = tmp_path_factory.mktemp("sdist")
    _build("--sdist", ROOT, folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def _build(what: str, source: Path, out: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", what, "--outdir", str(out)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_wheel_of_the_sdist_holds_what_it_should(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    for name in ("Makefile", "README.md", "LICENSE", "docs/derivations.md", "tests/conftest.py"):
        assert name in names
    assert {f"scripts/{file.name}" for file in (ROOT / "scripts").glob("*.py")} <= names
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    _build("--wheel", source, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        files = packed.namelist()
    tops = {name.partition("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == INSTALLED
    sources = [p for name in INSTALLED for p in (ROOT / name).rglob("*") if p.is_file()]
    wanted = {str(p.relative_to(ROOT)) for p in sources if "__pycache__" not in p.parts}
    assert wanted == {name for name in files if ".dist-info/" not in name}


def test_a_users_own_names_are_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text("raise ImportError('the user\\'s own')")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "prepare.py").write_text("print('prepared')")
    (tmp_path / "data").mkdir()
    environment = {**os.environ, "PYTHONPATH": "."}

    def output(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert output("-m", "scripts.prepare") == "prepared\n"
    for name in ("train-mlp-numpy", "train-mlp-pytorch", "train-convnet", "check-gradients",
                 "compare-engines", "plot-runs", "handgrad"):  # fmt: skip
        assert output(str(Path(sys.executable).parent / name), "--help").startswith("usage: ")
    (tmp_path / "layer.py").write_text(
        "class Layer:\n"
        "    def forward(self, x):\n        return 3 * x\n"
        "    def backward(self, dout):\n        return 3 * dout\n"
    )
    commands = "from handgrad.commands import main; import sys; sys.exit(main(sys.argv[1:]))"
    assert "1 of 1 right" in output("-c", commands, "check-gradients", "layer.py")
    said = output("-c", commands, "train-mlp-numpy", "--max-steps", "2", "--out", "run")
    assert "run folder: run" in said
    code = "import handgrad; print(handgrad.load_run('run').predict_proba"
    output("-c", f"{code}(handgrad.load_dataset('digits').test.images).shape)")
