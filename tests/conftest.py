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
# Fixtures that take long: the tests of each run in one process, so that it is made once.
MADE_ONCE = {"planted", "whole", "default_run", "_finished_once"}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests belong together, and begin with what can take longest: mypy's first time."""
    items.sort(key=lambda item: item.path.stem != "test_code_quality")
    for item in items:
        for name in MADE_ONCE.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{name}"))


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
    monkeypatch.setattr("handgrad.runs.run._draw", lambda *args: None)
