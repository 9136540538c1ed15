"""Every file that is read, damaged in every way that comes to mind.

What comes out is a ValueError with something to say, or a result that is whole: never another
exception, a crash, a hang, a command that runs, a file that appears, or memory out of proportion.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import struct
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handgrad.backends.mlp_numpy import NumpyMLPSettings
from handgrad.data import BatchLoader, Split
from handgrad.data.preprocess import Preprocessing
from handgrad.data.sources import cifar10
from handgrad.data.sources.idx import parse_idx
from handgrad.errors import DataError, UserError
from handgrad.runs.folder import read_config
from handgrad.runs.settings import settings_from_dict
from handgrad.training.checkpoint import Checkpoint, load_arrays
from handgrad.training.loop import Loop
from handgrad.training.metrics import MetricsFile, Row, read_metrics
from numpy_mlp import MLP
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.optim import SGD

# Inputs of each kind. docs/reliability.md gives their sum.
INPUTS = {
    "cifar pickle": 3000,
    "cifar tar": 1200,
    "idx": 2500,
    "checkpoint": 1800,
    "config": 1500,
    "metrics": 1500,
    "config, hypothesis": 500,
    "idx, hypothesis": 500,
}
SECONDS = 5.0  # of the processor, for one input, at most


def test_there_are_enough() -> None:
    assert sum(INPUTS.values()) >= 10_000


def damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of ``seeds``, damaged in one to three ways."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        # Headers are short and matter most: half of the damage is near the beginning.
        at = min(at, rng.randrange(64)) if rng.random() < 0.5 else at
        length = rng.choice((1, 2, 4, 8, rng.randint(1, 300)))
        kind = rng.randrange(8)
        if kind == 0 and data:
            at %= len(data)
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif kind == 6:
            form, value = rng.choice(
                (("<I", 2**32 - 1), (">I", 2**31), ("<Q", 2**62), (">Q", 2**40))
            )
            number = struct.pack(form, value)
            data[at : at + len(number)] = number
        else:
            word = rng.choice(
                (b"", b"\x00" * 8, b"\xff" * 8, b"nan", b"-1", b"1e999", b"{[", b"\n")
            )
            data[at : at + len(word)] = word
    return bytes(data)


@contextlib.contextmanager
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail when a command is run."""

    def ran(*args: Any, **kwargs: Any) -> None:
        pytest.fail(f"a file made us run {args}")

    with monkeypatch.context() as patch:
        for owner, name in (
            (os, "system"),
            (os, "popen"),
            (os, "execv"),
            (os, "remove"),
            (subprocess, "Popen"),
        ):
            patch.setattr(owner, name, ran)
        yield


def attack(
    name: str,
    seeds: list[bytes],
    read: Callable[[bytes], Any],
    whole: Callable[[Any], bool],
    *,
    factor: int = 30,
) -> int:
    """Feed the damaged seeds to ``read``; return how many were read all the same.

    Args:
        name: in :data:`INPUTS`.
        seeds: whole files; each must be readable.
        read: raises a ValueError for what it cannot use.
        whole: says whether what was read is a result to go on with.
        factor: how many times an input's length may be allocated, beyond a fixed 4 MiB.
    """
    for seed in seeds:
        assert whole(read(seed))
    survived = 0
    for number in range(INPUTS[name]):
        data = damaged(random.Random(f"{name} {number}"), seeds)
        measured = number % 10 == 0
        if measured:
            tracemalloc.start()
        start = time.process_time()
        try:
            result = read(data)
        except ValueError as error:
            assert len(str(error)) > 10, error
        else:
            survived += 1
            assert whole(result), (name, number)
        finally:
            if measured:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                assert peak < factor * len(data) + (4 << 20), (name, number, peak)
        assert time.process_time() - start < SECONDS, (name, number)
    assert survived < INPUTS[name], "the damage is not seen at all"
    return survived


def batch(n: int, rng: np.random.Generator, protocol: int = 2) -> bytes:
    images = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
    labels = list(np.arange(n)) if protocol == 5 else list(range(n))
    content = {b"data": images, b"labels": labels, b"filenames": [b"a.png"] * n}
    return pickle.dumps(content, protocol=protocol)


def test_cifar_pickles(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    class Command:
        def __reduce__(self) -> Any:
            return os.system, ("echo ran",)

    def whole(result: Any) -> bool:
        images, labels = result
        return bool(
            images.shape == (len(labels), 3072)
            and images.dtype == np.uint8
            and ((labels >= 0) & (labels < 10)).all()
        )

    def read(data: bytes) -> Any:
        return cifar10._parse_batch(io.BytesIO(data), "batch")

    hostile = pickle.dumps({b"data": Command(), b"labels": [1]}, protocol=2)
    with nothing_runs(monkeypatch):
        with pytest.raises(DataError, match="refused"):
            read(hostile)
        seeds = [batch(n, rng, protocol) for n in (1, 2) for protocol in (0, 2, 4, 5)]
        attack("cifar pickle", seeds, read, whole)


def test_cifar_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    def archive(link: str = "", prefix: str = "cifar-10-batches-py/") -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in cifar10._BATCHES:
                content = batch(1, rng)
                member = tarfile.TarInfo(prefix + name)
                member.size = len(content)
                if name == link:
                    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
                tar.addfile(member, io.BytesIO(content))
        return file.getvalue()

    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / cifar10.ARCHIVE

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return cifar10._assemble(cifar10._read_archive(path))

    def whole(result: Any) -> bool:
        return bool(result[0].shape == (5, 3, 32, 32) and result[2].shape == (1, 3, 32, 32))

    def packed(data: bytes) -> bytes:
        return gzip.compress(data, 1)

    # A path out of the folder is only a name to us: nothing is ever written.
    assert whole(read(packed(archive(prefix="../../../tmp/"))))
    with pytest.raises(DataError, match="does not contain data_batch_2"):
        read(packed(archive(link="data_batch_2")))
    seeds = [archive()]
    with nothing_runs(monkeypatch):
        attack(
            "cifar tar",
            seeds,
            # Damage inside the archive, and damage of its compressed form.
            lambda data: (
                read(data if len(data) % 3 == 0 else packed(data))
                if data != seeds[0]
                else read(packed(data))
            ),
            whole,
            factor=60,
        )
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_an_archive_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "_ARCHIVE_LIMIT", 1 << 20)
    path = tmp_path / cifar10.ARCHIVE
    path.write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        list(cifar10._read_archive(path))


def idx(shape: tuple[int, ...]) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape)
    return header + bytes(range(np.prod(shape)))


def test_idx() -> None:
    plain = [idx((3, 4, 5)), idx((7,)), idx((2, 3))]
    seeds = [*plain, *(gzip.compress(data) for data in plain)]
    attack("idx", seeds, lambda data: parse_idx(data, "file"), lambda a: a.dtype == np.uint8)


def test_an_idx_header_that_claims_the_world() -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="announces"):
        parse_idx(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(100), "file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=INPUTS["idx, hypothesis"], deadline=None)
@given(st.integers(0, 6), st.lists(st.integers(0, 2**32 - 1), max_size=5), st.binary(max_size=200))
def test_idx_headers(dims: int, sizes: list[int], rest: bytes) -> None:
    data = bytes([0, 0, 8, dims]) + b"".join(struct.pack(">I", n) for n in sizes) + rest
    with contextlib.suppress(DataError):
        array = parse_idx(data, "file")
        assert array.nbytes == len(data) - 4 - 4 * dims


def _loop(folder: Path) -> Loop:
    model = MLP(4, (3,), 2, rng=np.random.default_rng(0), dropout=0.2)
    split = Split(np.zeros((6, 1, 2, 2), np.uint8), np.zeros(6, np.int64))
    plain = Preprocessing(np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.float64)
    return Loop(
        learner=NumpyLearner(model, SGD(list(model.params.values()), 0.1, momentum=0.9)),
        train_loader=BatchLoader(split, 2, plain),
        eval_loaders={"validation": BatchLoader(split, 2, plain)},
        schedule=lambda step: 0.1,
        total_steps=4,
        eval_every=2,
        checkpoint_path=folder / "checkpoint.safetensors",
    )


def test_checkpoints(tmp_path: Path) -> None:
    loop = _loop(tmp_path)
    assert loop.run()
    path = loop.checkpoint_path
    seed = path.read_bytes()
    wanted = {name: array.copy() for name, array in loop.learner.weights().items()}
    fresh = _loop(tmp_path)

    def read(data: bytes) -> Loop:
        path.write_bytes(data)
        fresh.resume(Checkpoint.load(path))
        return fresh

    def whole(result: Loop) -> bool:
        # What was not noticed must have changed nothing.
        return result.progress.step == 4 and all(
            np.array_equal(array, wanted[name]) for name, array in result.learner.weights().items()
        )

    attack("checkpoint", [seed], read, whole, factor=60)


def test_every_bit_of_a_checkpoint_is_looked_at(tmp_path: Path) -> None:
    loop = _loop(tmp_path)
    assert loop.run()
    path = loop.checkpoint_path
    arrays, texts = load_arrays(path)
    seed = path.read_bytes()
    for number in range(300):
        rng = random.Random(number)
        data = bytearray(seed)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            found, found_texts = load_arrays(path)
            # A name of an array within the header, say a space that became a tab.
            assert found_texts == texts and found.keys() == arrays.keys()
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_configs(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = {
        "commands": ["a"],
        "settings": {"lr": 0.1, "hidden_dims": [3, 4], "dataset": "mnist"},
    }
    seeds = [json.dumps(content, indent=2).encode(), json.dumps(content).encode()]

    def read(data: bytes) -> NumpyMLPSettings:
        path.write_bytes(data)
        return settings_from_dict(NumpyMLPSettings, read_config(tmp_path).get("settings"), "config")

    def whole(result: NumpyMLPSettings) -> bool:
        sizes = result.hidden_dims
        return 0 < result.lr < float("inf") and all(type(n) is int and n > 0 for n in sizes)

    attack("config", seeds, read, whole, factor=200)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
names = st.sampled_from([*NumpyMLPSettings.__dataclass_fields__, "unknown"])


@settings(
    max_examples=INPUTS["config, hypothesis"],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(anything | st.dictionaries(names, anything, max_size=4))
def test_settings_of_any_kind(values: Any) -> None:
    with contextlib.suppress(UserError):
        found = settings_from_dict(NumpyMLPSettings, values, "config.json")
        assert settings_from_dict(NumpyMLPSettings, vars(found), "config.json") == found


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.create()
    for step in range(4):
        file.append(Row(step, step / 3, "validation", 0.5, 0.25, 0.1, 1.5))

    def read(data: bytes) -> list[Row]:
        path.write_bytes(data)
        return read_metrics(path)

    attack(
        "metrics",
        [path.read_bytes()],
        read,
        lambda rows: all(type(row.step) is int and type(row.loss) is float for row in rows),
        factor=200,
    )


def test_nothing_else_reads_pickles() -> None:
    root = Path(__file__).parents[2]
    for package in ("numpy_mlp", "custom_modules", "torch_models", "handgrad"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text()
            assert "torch.load" not in text or "weights_only=True" in text, path
            assert "allow_pickle=True" not in text, path
            if path.name != "restricted_pickle.py":
                assert "import pickle" not in text and "from pickle" not in text, path
