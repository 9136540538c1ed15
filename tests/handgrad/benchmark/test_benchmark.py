"""The benchmark: what it writes is what it measured. Nothing here asserts a time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from handgrad.benchmark import command as benchmark
from handgrad.benchmark import contenders, convnets, report, steps, workers
from handgrad.environment import HOLDS
from numpy_mlp.convnet import CONVNETS
from numpy_mlp.cost import training_operations
from numpy_mlp.parallel import get_num_threads, set_num_threads

SMALL = {"sizes": (12, 7, 3), "batch_size": 4, "lr": 0.01, "momentum": 0.9}


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Contenders set the number of threads of what is their own process, and here is ours."""
    import torch
    from threadpoolctl import threadpool_limits

    threads, ours = torch.get_num_threads(), get_num_threads()
    with threadpool_limits():
        yield
    torch.set_num_threads(threads)
    set_num_threads(ours)


def test_calls_take_turns() -> None:
    order: list[str] = []
    timings = report.interleave({n: (lambda n=n: order.append(n)) for n in "abc"}, repeats=3)
    assert "".join(order) == "abc" + "abcbcacab"
    assert timings.keys() == set("abc")
    assert all(t.lower <= t.median <= t.upper for t in timings.values())


def test_the_report_has_table_numbers_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = report.Timing
    results = {"w": {"ours": timing(2.0, 1.0, 3.0), "a": timing(5.0, 4.0, 6.0)}}
    results["w"]["b"] = timing(4.0, 4.0, 4.0)
    found = report.Report("norm", results, ("a", "b"), ["a line"], {"fact": 1})
    monkeypatch.setitem(benchmark._COMMANDS, "norm", lambda arguments: found)
    assert benchmark.main(["norm", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "0.50" in out and "5000.000 ms" in out and "a line" in out
    assert "1.00 is a or b, whichever is faster" in out
    content = json.loads((tmp_path / "norm.json").read_text())
    assert content["ratios"]["w"] == {"ours": 0.5, "a": 1.25, "b": 1.0}
    assert "processor" in content and content["fact"] == 1
    assert imread(tmp_path / "norm.png")[..., :3].std() > 0.01


@pytest.mark.parametrize("value", ["0", "-3", "2.5", "many"])
def test_a_count_that_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["norm", "--repeats", value]) == 2
    message = capsys.readouterr().err
    assert "--repeats" in message and value in message and message.count("\n") == 1


def test_every_subject_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    out = capsys.readouterr().out
    told = " ".join(out.split())  # a line of the table may be broken
    for name, function in benchmark._COMMANDS.items():
        assert f"  {name} " in out and function.__doc__ and function.__doc__ in told


def test_whole_commands_need_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HANDGRAD_DATA_DIR", raising=False)
    assert benchmark.main(["run"]) == 2
    assert "give --data-dir" in capsys.readouterr().err
    assert benchmark.main(["run", "--data-dir", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "cat.png").touch()
    assert benchmark.main(["loader", "--data-dir", str(tmp_path)]) == 2
    assert "holds 1 picture; this measures a run on CIFAR-10" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"], "nothing is downloaded"


@pytest.mark.parametrize("name", ["ours", "graph", "textbook", "sklearn", "eager", "bf16"])
def test_a_contender_goes_through_all_batches(
    name: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    x, y = rng.standard_normal((32, 12), dtype=np.float32), rng.integers(0, 3, 32)
    monkeypatch.setattr(contenders, "_data", lambda workload: (x, y))
    step = contenders.CONTENDERS[name](SMALL, 1)
    for _ in range(9):
        step()
    batches = contenders._in_turn(SMALL)
    seen = [next(batches) for _ in range(9)]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in seen[:8]]), x)
    np.testing.assert_array_equal(seen[8][1], y[:4])


def test_a_worker_answers_and_ends() -> None:
    with workers.Race(threads=1) as race:
        worker = race.enter("it", "ours", SMALL)
        seconds = worker.run(3)
        assert len(seconds) == 3 and all(s > 0 for s in seconds)
        assert worker.about["core"]
        assert race.run(2, 0.001)["it"].median > 0
    assert worker._process.returncode == 0


def test_a_worker_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sklearn.py").write_text("raise ImportError('no scikit-learn here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match="no scikit-learn here"):
        workers.Worker("sklearn", SMALL, 1)


def test_openblas_is_held_or_not_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOLDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    with workers.Race(threads=1) as race:
        own, held = (
            race.enter(str(own_choice), "matmul", {"n": 8}, own_choice).about
            for own_choice in (True, False)
        )
    if held["blas"] == "openblas" and held["core"]:
        assert held["core"].lower() == "haswell"
    assert steps._choices() == ("", ", held")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert steps._choices() == ("",) and own["threads"] == 1


def test_step_compares_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in HOLDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(steps, "WORKLOADS", {"W small": {**SMALL}})
    monkeypatch.setattr(steps, "_RACE", tuple(r for r in steps._RACE if r[1] != "compiled"))
    monkeypatch.setattr(workers, "_SETTLE", 0.0)
    monkeypatch.setattr(steps, "_SGEMM_SIZES", (64,))
    monkeypatch.setattr(steps, "_COPIED_BYTES", 1 << 16)
    found = steps.step(argparse.Namespace(threads=1, repeats=1))
    assert found.seconds["W small"].keys() == {
        "PyTorch eager",
        "PyTorch bf16",
        "ours",
        "scikit-learn",
        "textbook, float64",
    }
    assert found.facts["limits"]["sgemm"] > 0 and found.facts["geometric_mean"] > 0
    assert any("sgemm reaches" in line for line in found.lines)


def test_flops_count_what_a_step_multiplies() -> None:
    # Forward 5·3 and 3·2, weights the same, the gradient of the input of the second layer only.
    assert steps.flops({"sizes": (5, 3, 2), "batch_size": 7}) == 2 * 7 * (2 * 15 + 3 * 6)


@pytest.mark.parametrize("model", ["fast", "vgg"])
def test_what_layers_cost_is_what_the_network_costs(model: str) -> None:
    costs = convnets.layer_costs(model, batch_size=3)
    total = 3 * training_operations(CONVNETS[model]((3, 32, 32), 10), (3, 32, 32))
    assert sum(sum(cost.operations) for cost in costs) == total
    first, second = costs[:2]
    outputs = 3 * 4 * (24 * 31 * 31 if model == "fast" else 64 * 32 * 32)
    images = 3 * 4 * 3 * 32 * 32
    assert first.n_bytes == (images + outputs, outputs)  # no gradient of the images
    assert second.n_bytes == (2 * outputs, 2 * outputs)


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("model", ["fast", "vgg"])
def test_contenders_train_the_same_network(model: str, update: bool) -> None:
    workload = {"model": model, "batch_size": 2, "update": update}
    for name in ("numpy_convnet", "torch_convnet"):
        contenders.CONTENDERS[name](workload, 1)()
    forward_and_back = contenders.CONTENDERS["numpy_layers"](workload, 1)()
    assert isinstance(forward_and_back, list)
    assert len(forward_and_back) == 2 * len(convnets.layer_costs(model, 2))


def test_convnets_are_told_layer_by_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in HOLDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(convnets, "_NETWORKS", (("fast", 2),))
    monkeypatch.setattr(convnets, "_VGG_BATCHES", ())
    monkeypatch.setattr(workers, "_SETTLE", 0.0)
    monkeypatch.setattr(steps, "_SGEMM_SIZES", (64,))
    monkeypatch.setattr(steps, "_COPIED_BYTES", 1 << 16)
    found = convnets.convnet(argparse.Namespace(threads=1, repeats=1))
    assert len(found.seconds) == 2
    for timings in found.seconds.values():
        assert timings.keys() == {"PyTorch float32", "NumPy"}
    assert all(peak > 0 for peak in found.facts["peak_memory_bytes"].values())
    found.write(tmp_path)
    rows = (tmp_path / "convnet.md").read_text(encoding="utf-8").splitlines()
    assert any(row.startswith("| features.2.0 | Conv2d 24→64 |") for row in rows)
    assert len({row.count("|") for row in rows if row.startswith("| ") and "feat" in row}) == 1
