"""A run under a limit of memory: it fits, or one line says what the memory was wanted for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handgrad.runs import folder

resource = pytest.importorskip("resource")
ROOT = Path(__file__).parents[2]


def _limited(mebibytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))


def _train(
    folder: Path, data: Path, mebibytes: int, threads: int = 2
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "train_mlp_numpy.py")),
            *("--preset", "uva-2018", "--max-steps", "20", "--eval-every", "10"),
            *("--quiet", "--data-dir", str(data), "--out", str(folder)),
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_limited(mebibytes),
        env={"OPENBLAS_NUM_THREADS": str(threads)},
    )


def test_cifar10_fits_in_a_gibibyte(tmp_path: Path, real_data: Path) -> None:
    result = _train(tmp_path / "run", real_data, 1024)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "first_layer.png").exists()


def test_what_does_not_fit_is_said(tmp_path: Path, real_data: Path) -> None:
    # Each further thread of OpenBLAS takes memory of its own before anybody can be asked.
    result = _train(tmp_path / "run", real_data, 250, threads=1)
    assert result.returncode == 2
    assert result.stderr.startswith("error: out of memory (for the images of cifar10: ")
    assert re.search(r"Unable to allocate [\d.]+ MiB", result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_library_that_does_not_fit_any_more() -> None:
    named = r"for the pictures: libz.so: failed to map segment"
    with pytest.raises(MemoryError, match=named), folder.memory_for("the pictures"):
        raise ImportError("libz.so: failed to map segment from shared object")
    with pytest.raises(ImportError), folder.memory_for("the pictures"):
        raise ImportError("No module named 'matplotlib'")
