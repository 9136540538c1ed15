"""A result is told and kept before its pictures, and does not need them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handgrad.backends.command import train_mlp_numpy
from handgrad.pictures import plots

SHORT = ["--max-steps", "2", "--eval-every", "2", "--hidden-dims", "4", "--quiet", "--out", "run"]


@pytest.mark.parametrize(
    ("backend", "style"),
    [
        ("module://matplotlib_inline.backend_that_is_not_here", ""),
        ("nonsense", ""),
        (None, "text.usetex: True\nfont.size: 40\n"),
    ],
)
def test_pictures_need_no_backend_and_no_settings(
    tmp_path: Path, backend: str | None, style: str
) -> None:
    (tmp_path / "matplotlibrc").write_text(style)
    environment = {**os.environ, "PATH": str(tmp_path)}  # there is no LaTeX
    environment |= {} if backend is None else {"MPLBACKEND": backend}
    code = "import sys; from handgrad.backends.command import train_mlp_numpy as main\n"
    code += "import os; status = main(sys.argv[1:]); print(os.environ.get('MPLBACKEND'))\n"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(status)", *SHORT],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert result.stdout.startswith("test accuracy ") and result.stdout.endswith(f"{backend}\n")
    assert len(list((tmp_path / "run").glob("*.png"))) == 5


def test_a_picture_that_fails_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no\nink")

    monkeypatch.setattr(plots, "plot_predictions", fail)
    monkeypatch.chdir(tmp_path)
    assert train_mlp_numpy(SHORT) == 0
    out, err = capsys.readouterr()
    assert out.startswith("test accuracy ")
    assert err == "predictions.png could not be drawn: RuntimeError: no ink\n"
    assert (tmp_path / "run" / "first_layer.png").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()
