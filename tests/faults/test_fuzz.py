"""A sample of the campaign in fuzz.py, proof of what it would notice, and single hostile files."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import campaign
import numpy as np
import pytest
from fuzz_targets import archive

from handgrad.data import BatchLoader, Split
from handgrad.data.preprocess import Preprocessing
from handgrad.data.sources import cifar10
from handgrad.data.sources.idx import parse_idx
from handgrad.errors import DataError
from handgrad.training.checkpoint import Checkpoint, load_arrays
from handgrad.training.loop import Loop
from numpy_mlp import MLP
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.optim import SGD

FAULTS = Path(__file__).parent


def start(*arguments: str, results: Path, code: str = "") -> subprocess.Popen[str]:
    """Begin a campaign; ``code`` comes before it in the same process."""
    call = f"import sys, fuzz\n{code}\nsys.exit(fuzz.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", call, *arguments, "--jobs", "2", "--results", str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=campaign.environment() | {"PYTHONPATH": f"{campaign.ROOT}:{FAULTS}"},
    )


def inputs(results: Path) -> int:
    lines = map(json.loads, results.read_text().splitlines()) if results.exists() else ()
    return sum(line.get("inputs", 0) for line in lines)


def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    """The campaign is killed itself on the way, and goes on."""
    results = tmp_path / "fuzz.jsonl"
    arguments = ("--count", "2000", "--engines", "hypothesis", "random")
    process = start(*arguments, results=results)
    while not inputs(results):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = results.read_text()
    process = start(*arguments, results=results)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "FOUND" not in output
    assert results.read_text().startswith(before)
    assert 1990 <= inputs(results) < 2200


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
def test_led_by_the_code(tmp_path: Path) -> None:
    process = start("--count", "500", "--engines", "atheris", results=tmp_path / "fuzz.jsonl")
    output, _ = process.communicate()
    assert process.returncode == 0, output


def test_planted_faults_are_reported_and_can_be_seen_again(tmp_path: Path) -> None:
    code = """if True:
        import itertools, os, subprocess, tempfile, time
        from handgrad.errors import DataError
        def refuse(data): raise DataError("this file is damaged")
        def quiet(data): raise DataError("no")
        def look_up(data): return {}[data]
        def execute(data):
            try: subprocess.run(["true"])
            except Exception: pass
        def write(data): open("/tmp/planted", "w")
        def take(data): return len(bytes(1 << 30))
        def swell(data): return len(bytearray(20 << 20))
        def hang(data):
            for _ in itertools.count(): pass
        def die(data): os.abort()
        def lie(data): return None
        fuzz.SECONDS, fuzz.MEASURED = 0.5, 2
        fuzz.Fuzzing.begin = lambda self: None
        plants = (refuse, quiet, look_up, execute, write, take, swell, hang, die, lie)
        fuzz.fuzz_targets.targets = lambda folder, runs: {
            plant.__name__: fuzz.Target(plant, [b"seed"], lambda found: found is not None, 1)
            for plant in plants
        }
    """
    results = tmp_path / "fuzz.jsonl"
    process = start("--count", "40", "--engines", "random", results=results, code=code)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    for name, expected in {
        "quiet": "nothing said but 'no'",
        "look_up": "KeyError",
        "execute": "a file made us call subprocess.Popen",
        "write": "a file made us write: open /tmp/planted",
        "take": "MemoryError",
        "swell": "20 MiB for",
        "hang": "more than 0.5 s of the processor",
        "die": "it died: -6",
        "lie": "not whole",
    }.items():
        found = [line for line in output.splitlines() if line.startswith(f"FOUND: {name}, ")]
        assert any(expected in line for line in found), (name, output)
    assert "FOUND: refuse" not in output
    again = output.partition("FOUND: look_up")[2].partition("--again ")[2].split()[0]
    process = start("--again", again, results=results, code=code)
    output, _ = process.communicate()
    assert process.returncode == 1 and "KeyError" in output


def test_a_pickle_that_runs_a_command() -> None:
    class Command:
        def __reduce__(self) -> Any:
            return os.system, ("echo ran",)

    hostile = pickle.dumps({b"data": Command(), b"labels": [1]}, protocol=2)
    with pytest.raises(DataError, match="refused"):
        cifar10._parse_batch(io.BytesIO(hostile), "batch")


def test_an_archive_with_paths_and_links_out_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / cifar10.ARCHIVE
    # A path out of the folder is only a name to us: nothing is ever written.
    path.write_bytes(gzip.compress(archive(prefix="../../../tmp/"), 1))
    assert cifar10._assemble(cifar10._read_archive(path))[0].shape == (5, 3, 32, 32)
    path.write_bytes(gzip.compress(archive(link="data_batch_2"), 1))
    with pytest.raises(DataError, match="does not contain data_batch_2"):
        list(cifar10._read_archive(path))
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


def test_an_idx_header_that_claims_the_world() -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="announces"):
        parse_idx(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(100), "file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


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


@pytest.mark.parametrize(
    "state",
    [
        {"state": -1, "inc": 1},  # OverflowError, of NumPy's own
        {"state": 1 << 128, "inc": 1},
        {"state": "1", "inc": 1},
        {"inc": 1},
        [],
    ],
    ids=str,
)
def test_a_generator_with_the_state_of_none(tmp_path: Path, state: Any) -> None:
    loop = _loop(tmp_path)
    assert loop.run()
    checkpoint = Checkpoint.load(loop.checkpoint_path)
    text = json.loads(checkpoint.learner_text)
    text["generators"][0]["state"] = state
    checkpoint.learner_text = json.dumps(text)
    with pytest.raises(DataError, match="does not fit this run"):
        loop.resume(checkpoint)


def test_a_generator_of_pytorch_with_the_state_of_none(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch_models.learner import TorchLearner
    from torch_models.mlp import MLP as TorchMLP

    model = TorchMLP(4, (3,), 2).double()
    loop = _loop(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loop.learner = TorchLearner(model, optimizer, torch.device("cpu"))
    before = torch.get_rng_state()
    assert loop.run()
    checkpoint = Checkpoint.load(loop.checkpoint_path)
    (name,) = [name for name in checkpoint.learner if name.startswith("generator.")]
    saved = checkpoint.learner[name]
    for damaged in (saved[:, :9], np.full_like(saved, 255), saved[0, 0], saved.astype(np.float32)):
        checkpoint.learner = {**checkpoint.learner, name: damaged}
        with pytest.raises(DataError, match="does not fit this run"):
            loop.resume(checkpoint)
    torch.set_rng_state(before)


def test_nothing_else_reads_pickles() -> None:
    root = Path(__file__).parents[2]
    for package in ("numpy_mlp", "custom_modules", "torch_models", "handgrad"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text()
            assert "torch.load" not in text or "weights_only=True" in text, path
            assert "allow_pickle=True" not in text, path
            if path.name != "restricted_pickle.py":
                assert "import pickle" not in text and "from pickle" not in text, path
