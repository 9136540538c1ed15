"""The operations of several processes; what they are for is tested with the commands."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from handgrad.data.dataset import Split
from handgrad.data.loader import BatchLoader, share
from handgrad.data.preprocess import fit_preprocessing
from handgrad.training.team import Alone


def test_operations_of_three_processes() -> None:
    script = Path(__file__).with_name("team_script.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    result = subprocess.run(
        [sys.executable, *torchrun, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("OK") == 3


@pytest.mark.parametrize(("n", "size"), [(0, 2), (1, 3), (5, 1), (6, 3), (7, 3), (10, 4)])
def test_shares_cover_everything_once(n: int, size: int) -> None:
    parts = [list(range(n))[share(n, rank, size)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(n))
    assert max(map(len, parts)) <= -(-n // size)


def test_shares_of_the_batches_are_the_batches(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (23, 1, 4, 4), dtype=np.uint8)
    split = Split(images, np.arange(23))
    preprocessing = fit_preprocessing("standardize", images)

    def labels(**where: int) -> list[list[int]]:
        loader = BatchLoader(split, 6, preprocessing, shuffle=True, **where)
        assert len(loader) == 4
        return [labels.tolist() for _, labels in loader.batches(1, 1)]

    parts = [labels(rank=rank, size=3) for rank in range(3)]
    together = [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
    assert together == labels()
    assert [[len(batch) for batch in part] for part in parts] == [[2, 2, 2], [2, 2, 2], [2, 2, 1]]


def test_augmentation_differs_between_processes(rng: np.random.Generator) -> None:
    images = np.repeat(rng.integers(0, 256, (1, 1, 4, 4), dtype=np.uint8), 40, axis=0)
    split = Split(images, np.zeros(40, np.int64))
    seen = []

    def note(
        pixels: np.ndarray, generator: np.random.Generator, mirrored: np.ndarray
    ) -> np.ndarray:
        seen.append(generator.random())
        return pixels

    for rank in (0, 1):
        preprocessing = fit_preprocessing("standardize", images)
        loader = BatchLoader(split, 20, preprocessing, augmentation=note, rank=rank, size=2)
        assert len(list(loader.batches(0))) == 2
    assert len(set(seen)) == 4


def test_alone() -> None:
    team, array = Alone(), np.arange(3.0)
    assert team.largest(2) == 2 and team.agree_on("x") == "x"
    assert team.sum(array) is array and team.gather(array) is array
