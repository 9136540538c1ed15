"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# One thread a process, of BLAS and of PyTorch, in the tests and in what they start: two of the
# tests' processes share the cores, and threads that wait for each other's turn cost more than they
# bring. To be said before NumPy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
# The files that take longest come first, so that none is left for one process at the end.
LONGEST = [
    "test_code_quality", "test_torchrun", "test_check_gradients", "test_readme_commands",
    "test_storage", "test_pytorch", "test_reproduce", "test_kill_and_resume", "test_mlp_numpy",
    "test_benchmark", "test_compare_engines", "test_page", "test_terminal", "test_distributed",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Leave what has been imported, PyTorch above all, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real CIFAR-10 and MNIST: $HANDGRAD_DATA_DIR, or shared/data beside us."""
    named = os.environ.get("HANDGRAD_DATA_DIR")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / "cifar-10-batches-py").is_dir() or not (folder / "MNIST").is_dir():
        pytest.skip(f"no cifar-10-batches-py and MNIST in {folder}; set HANDGRAD_DATA_DIR")
    return folder.resolve()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no pictures, which takes most of the time of a short one, and has its own tests."""
    monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
