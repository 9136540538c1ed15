"""The PyTorch commands under torchrun: the same run, in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from handgrad.backends.command import train_mlp_pytorch
from handgrad.training.checkpoint import load_arrays
from handgrad.training.metrics import read_metrics

ROOT = Path(__file__).parents[3]
TORCHRUN = ("-m", "torch.distributed.run")
FORKING = (str(Path(__file__).with_name("forking_torchrun.py")),)
DEADLINE = 300.0  # seconds that a launch may take, on a machine with much else to do
# Dropout, so that each process draws masks of its own; a last batch of an epoch that is uneven.
OPTIONS = "--precision float32 --dropout 0.2 --batch-size 50 --hidden-dims 32 --eval-every 40"


def _torchrun(
    options: str,
    n: int = 2,
    restarts: int = 0,
    cwd: Path | None = None,
    launcher: tuple[str, ...] = FORKING,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, *launcher, "--standalone"),
            *("--nproc-per-node", str(n), "--max-restarts", str(restarts)),
            *(str(ROOT / "scripts" / "train_mlp_pytorch.py"), *options.split()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def _content(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Weights, and metrics but for the times."""
    rows = (folder / "metrics.csv").read_text().split()
    return load_arrays(folder / "model.safetensors")[0], [row.rpartition(",")[0] for row in rows]


def _assert_same(one: Path, other: Path) -> None:
    (weights, rows), (others, other_rows) = _content(one), _content(other)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert rows == other_rows


def _wait_for_row(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE
    metrics = folder / "metrics.csv"
    while not metrics.exists() or f"\n{step}," not in metrics.read_text():
        if time.monotonic() > end or process.poll() is not None:
            process.kill()
            pytest.fail(f"no row of step {step}: {process.communicate()}")
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("torchrun") / "whole"
    process = _torchrun(f"{OPTIONS} --max-steps 400 --out {folder}")
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert out.count("test accuracy") == 1 and out.count("digits: ") == 1
    return folder


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    options = "--precision float32 --batch-size 50 --hidden-dims 32,16 --eval-every 1 "
    options += "--max-steps 50 --lr 0.05 --momentum 0.9 --eval-splits validation,test"
    process = _torchrun(f"{options} --out {tmp_path / 'two'}")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert train_mlp_pytorch([*options.split(), "--quiet", "--out", str(tmp_path / "one")]) == 0
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 3 * 50 + 2
    for mine, other in zip(one, two, strict=True):
        assert (mine.step, mine.split) == (other.step, other.split)
        assert mine.loss == pytest.approx(other.loss, rel=1e-5), (mine, other)
        assert mine.accuracy == pytest.approx(other.accuracy, abs=0.01)  # a tie may fall otherwise
    assert one[-1].loss < 0.5 * one[0].loss
    weights, others = (_content(tmp_path / name)[0] for name in ("one", "two"))
    for name, array in weights.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_killed_process_is_replaced_and_nothing_is_lost(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    options = f"{OPTIONS} --max-steps 400 --out {folder}"
    process = _torchrun(options, restarts=2, launcher=TORCHRUN)
    _wait_for_row(folder, 120, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the processes")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert "going on from step" in out
    _assert_same(folder, whole)


def test_sigterm_stops_all_and_the_run_can_be_resumed(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    process = _torchrun(f"{OPTIONS} --max-steps 400 --out {folder}", launcher=TORCHRUN)
    _wait_for_row(folder, 80, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode != 0
    assert err.count("go on with: ") == 1, err
    assert not (folder / "model.safetensors").exists()
    process = _torchrun(f"--resume {folder}")
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert "going on from step" in out
    _assert_same(folder, whole)


def test_a_batch_that_cannot_be_divided(tmp_path: Path) -> None:
    process = _torchrun(f"--batch-size 7 --out {tmp_path / 'run'}")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode != 0
    assert err.count("error: ") == 1
    assert "--batch-size 7 cannot be divided among 2 processes; choose a multiple of 2" in err
    assert not (tmp_path / "run").exists()


def test_a_share_may_be_empty(tmp_path: Path) -> None:
    # 1,297 training images in batches of 1,296 for two processes: the second gets none of the last.
    options = "--validation-size 143 --batch-size 1296 --max-steps 3 --eval-every 1 --lr 0.01"
    options += " --precision float32 --augment flip"
    process = _torchrun(f"{options} --augment randaugment --out {tmp_path / 'augmented'}")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    process = _torchrun(f"{options.removesuffix(' --augment flip')} --out {tmp_path / 'two'}")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    alone = [*options.removesuffix(" --augment flip").split(), "--quiet", "--out"]
    assert train_mlp_pytorch([*alone, str(tmp_path / "one")]) == 0
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row.loss for row in two] == pytest.approx([row.loss for row in one], rel=1e-5)


def test_restarts_touch_only_what_their_own_launch_began(tmp_path: Path) -> None:
    mine = tmp_path / "config.json"
    mine.write_text("{}")
    process = _torchrun("", n=1, restarts=1, cwd=tmp_path)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode != 0 and "give --out FOLDER" in err
    assert mine.read_text() == "{}"
    # A finished run of another command is not gone on with, however often that is tried.
    old = tmp_path / "old"
    options = "--precision float32 --max-steps 5 --quiet --out"
    assert train_mlp_pytorch([*options.split(), str(old)]) == 0
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    process = _torchrun(f"--hidden-dims 7 --max-steps 9 --out {old}", n=1, restarts=1)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode != 0 and "exists and is not empty" in err
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_a_missed_target_leaves_a_whole_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _torchrun(f"{OPTIONS} --max-steps 5 --target-accuracy 1 --out {folder}")
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1 and "below --target-accuracy" in err
    assert out.count("test accuracy") == 1
    assert (folder / "model.safetensors").exists() and (folder / "first_layer.png").exists()
