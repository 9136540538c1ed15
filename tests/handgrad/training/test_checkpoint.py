from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad.errors import DataError
from handgrad.training.checkpoint import Checkpoint, load_arrays, save_arrays


def _checkpoint(value: float = 1.5) -> Checkpoint:
    return Checkpoint(
        weights={"layers.0.weight": np.full((2, 3), value, np.float32)},
        learner={"step_count": np.array(7), "0.momentum": np.arange(6.0).reshape(2, 3)},
        learner_text='{"generators": []}',
        best={"layers.0.weight": np.full((2, 3), -value, np.float32)},
        progress={"step": 7, "loss_sum": 0.1 + 0.2, "best_accuracy": None, "best_loss": np.inf},
    )


def _assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_arrays_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    image = rng.normal(size=(4, 5))
    arrays = {
        "0-d": np.array(3),
        "0-d float": np.array(0.25, np.float32),
        "empty": np.zeros((0, 3)),
        "one": np.ones(1, np.uint8),
        "transposed": image.T,
        "every other": image[:, ::2],
        "column-major": np.asfortranarray(image),
        "extreme": np.array([np.nan, np.inf, -0.0, 5e-324]),
        "whole": np.array([2**63 - 1, -(2**63)]),
    }
    save_arrays(tmp_path / "file", arrays, {"text": "ünï\ncode", "empty": ""})
    found, texts = load_arrays(tmp_path / "file")
    _assert_same(found, arrays)
    assert np.signbit(found["extreme"][2])
    assert texts == {"text": "ünï\ncode", "empty": ""}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    saved = _checkpoint()
    saved.save(path)
    found = Checkpoint.load(path)
    for group in ("weights", "learner", "best"):
        _assert_same(getattr(found, group), getattr(saved, group))
    assert found.learner_text == saved.learner_text
    assert found.progress == saved.progress


def test_without_best_weights(tmp_path: Path) -> None:
    saved = _checkpoint()
    saved.best = {}
    saved.save(tmp_path / "file")
    assert Checkpoint.load(tmp_path / "file").best == {}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "checkpoint.safetensors"
    _checkpoint().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"checkpoint.safetensors is truncated"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [b"hello", bytes(1000), b"\xff" * 1000, pickle.dumps({"weights": [1]}), b"\x02" + bytes(7)],
    ids=["text", "zeros", "ones", "pickle", "short header"],
)
def test_foreign_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoint.safetensors is "):
        Checkpoint.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Checkpoint.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("weights/a", {}, "not a checkpoint"),
        ("weights/a", {"format": "handgrad-model-1"}, "handgrad-model-1"),
        ("a", {"format": "handgrad-checkpoint-2"}, "unexpected array 'a'"),
        ("weights/a", {"format": "handgrad-checkpoint-2"}, "damaged"),
        (
            "weights/a",
            {"format": "handgrad-checkpoint-2", "learner": "", "progress": "{"},
            "damaged",
        ),
    ],
)
def test_safetensors_file_that_is_no_checkpoint(
    tmp_path: Path, name: str, texts: dict[str, str], message: str
) -> None:
    save_arrays(tmp_path / "file", {name: np.zeros(2)}, texts)
    with pytest.raises(DataError, match=message):
        Checkpoint.load(tmp_path / "file")


def test_full_disk_keeps_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    _checkpoint(1.0).save(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _checkpoint(2.0).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert Checkpoint.load(path).weights["layers.0.weight"][0, 0] == 1.0
