"""Every command line that the README and the pages show is run, on small data and for few steps."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from data_files import write_cifar, write_mnist

from handgrad import plot_runs
from handgrad.backends.command import (
    train_convnet,
    train_convnet_numpy,
    train_mlp_numpy,
    train_mlp_pytorch,
)
from handgrad.benchmark import command as benchmark
from handgrad.benchmark import convnets, steps, workers
from handgrad.benchmark import whole_commands as runs
from handgrad.checker import command as check_gradients
from handgrad.environment import HOLDS
from handgrad.lockstep import command as compare_engines
from handgrad.reproduction import command as reproduce

PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
_SHORT = ["--max-steps", "2", "--eval-every", "2", "--validation-size", "20", "--threads", "1"]
_SHORT += ["--warmup-steps", "0"]


def shown_commands() -> dict[str, str]:
    """Return every line of the shell blocks of the pages, and the page it stands on."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if command := " ".join(line.partition("  #")[0].split()):
                    found.setdefault(command, page)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a run, and the files that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    write_cifar(folder / "DATA" / "cifar-10-batches-py", 60)
    write_mnist(folder / "DATA" / "MNIST" / "raw", 300)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (square,) = re.findall(r"```python\n(class SquareModule:.*?)```", readme, flags=re.S)
    (folder / "square.py").write_text(square, encoding="utf-8")
    shutil.copy(ROOT / "tests/handgrad/checker/planted_mistakes.py", folder)
    (folder / "modules.py").write_text(
        "from numpy_mlp.modules import ELUModule as Ours\nclass ELUModule(Ours):\n    pass\n"
    )
    for name, options in (("A", []), ("B", ["--lr", "0.2"])):
        argv = ["--max-steps", "4", "--eval-every", "2", "--quiet", *options]
        assert train_mlp_numpy([*argv, "--out", str(folder / "runs" / name)]) == 0
    return folder


def _train(main: Callable[[list[str]], int], *extra: str) -> Callable[[list[str], Path], int]:
    def run(argv: list[str], out: Path) -> int:
        if "--help" in argv:
            with pytest.raises(SystemExit) as ended:
                main(argv)
            return int(ended.value.code or 0)
        if "--epochs" in argv:
            del argv[argv.index("--epochs") : argv.index("--epochs") + 2]
        short = [] if "--resume" in argv else [*_SHORT, *extra, "--out", str(out)]
        return main([*argv, *short, "--quiet"])

    return run


def _check(argv: list[str], out: Path) -> int:
    status = check_gradients.main(argv)
    return status - 1 if argv == ["square.py"] else status  # which is wrong, and is found to be


def _compare(argv: list[str], out: Path) -> int:
    return compare_engines.main([*argv, "--steps", "3", "--batch-size", "20", "--out", str(out)])


def _reproduce(argv: list[str], out: Path) -> int:
    if "--list" in argv:
        return reproduce.main(argv)
    argv += [] if "--quick" in argv else ["--quick"]
    argv += [] if "--only" in argv else ["--only", "numpy-mlp"]
    return reproduce.main([*argv, "--runs", str(out), "--out", str(out)])


def _plot(argv: list[str], out: Path) -> int:
    return plot_runs.main([*argv, "--out", str(out.with_suffix(".png"))])


def _benchmark(argv: list[str], out: Path) -> int:
    return benchmark.main([*argv, "--repeats", "1", "--threads", "1", "--out", str(out)])


def _in_a_process(argv: list[str], out: Path) -> int:
    """Other programs, as they are called."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, check=False, cwd=ROOT, env=environment).returncode


def _make(argv: list[str], out: Path) -> int:
    """``make`` with this interpreter for an environment that is installed already."""
    out.mkdir()
    (out / "bin").mkdir()
    python = out / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    for stamp in (".installed-base", ".installed-test"):
        (out / stamp).touch()
    options = [f"VENV={out}", f"ARGS=--max-steps 2 --quiet --out {out}/run"]
    if argv[1:] != ["train"]:
        options.append("--dry-run")  # the tests run the tests? they install, or would not end
    return _in_a_process([*argv, *options], out)


def _torchrun(argv: list[str], out: Path) -> int:
    del argv[argv.index("--out") : argv.index("--out") + 2]
    extra = ["--batch-size", "4", "--max-steps", "2", "--eval-every", "2", "--out", str(out)]
    program = [sys.executable, "-m", "torch.distributed.run"]
    return _in_a_process([*program, *argv, *extra, "--quiet", "--precision", "float32"], out)


# The first words of a command -> what runs the rest.
RUNNERS: dict[str, Callable[[list[str], Path], int]] = {
    "train-mlp-numpy": _train(train_mlp_numpy),
    "train-mlp-pytorch": _train(train_mlp_pytorch, "--precision", "float32"),
    "train-convnet-numpy": _train(train_convnet_numpy, "--batch-size", "8"),
    "train-convnet": _train(train_convnet, "--precision", "float32", "--batch-size", "8"),
    "check-gradients": _check,
    "compare-engines": _compare,
    "handgrad reproduce": _reproduce,
    "plot-runs": _plot,
    "handgrad benchmark": _benchmark,
    "torchrun": _torchrun,
}
WHOLE: dict[str, Callable[[list[str], Path], int]] = {
    "make train": _make,
    "make test": _make,
    "make test-min": _make,
    "make audit": _make,
}
# Run by tests of their own, for as short a time as they can be.
ELSEWHERE = {
    "python tests/faults/kill_and_resume.py": (
        "tests/faults/test_kill_and_resume.py",
        "kill_and_resume",
    ),
    "python tests/handgrad/checker/random_shapes.py": (
        "tests/handgrad/checker/test_check_gradients.py",
        "random_shapes",
    ),
    "handgrad benchmark step": (
        "tests/handgrad/benchmark/test_benchmark.py",
        "steps.step(",
    ),
}
# Installation, which needs the network, and the tests themselves.
NOT_RUN = {
    "git clone https://github.com/handgrad/handgrad.git && cd handgrad",
    "python3 -m venv .venv",
    ".venv/bin/python -m pip install -e .",
    "source .venv/bin/activate",
    'python -m pip install -e ".[torch,dev]"',
    "python -m pytest",
    "python -m pytest tests/faults",
}


def _short_and_once(
    run_command: Callable[[list[str], int], str],
) -> Callable[[list[str], int], str]:
    said: dict[str, str] = {}

    def call(command: list[str], threads: int) -> str:
        key = " ".join(command)
        if key not in said:
            said[key] = run_command([*command, "--max-steps", "2"], threads)
        return said[key]

    return call


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    """Make the benchmarks small: this is about the commands, not about what they measure."""
    small = {"sizes": (6, 5, 4), "batch_size": 4, "lr": 0.01, "momentum": 0.9}
    monkeypatch.setattr(steps, "WORKLOADS", {"B small": small})
    monkeypatch.setattr(steps, "_RACE", tuple(r for r in steps._RACE if r[1] in ("eager", "ours")))
    monkeypatch.setattr(steps, "_SGEMM_SIZES", (64,))
    monkeypatch.setattr(steps, "_COPIED_BYTES", 1 << 16)
    monkeypatch.setattr(convnets, "_NETWORKS", (("fast", 2),))
    monkeypatch.setattr(convnets, "_VGG_BATCHES", (2,))
    monkeypatch.setattr(workers, "_SETTLE", 0.0)
    monkeypatch.setattr(runs, "_PRESET", ("--preset", "uva-2018", "--max-steps", "2"))
    monkeypatch.setattr(runs, "_BATCH_SIZES", (32,))
    monkeypatch.setattr(runs, "_run_command", _short_and_once(runs._run_command))
    for name in HOLDS:
        monkeypatch.delenv(name, raising=False)


def _runner(command: str) -> tuple[Callable[[list[str], Path], int], list[str]] | None:
    words = shlex.split(command)
    if command in WHOLE:
        return WHOLE[command], words
    for count in (2, 1):
        if run := RUNNERS.get(" ".join(words[:count])):
            return run, words[count:]
    return None


@pytest.mark.parametrize(
    "command", [c for c in shown_commands() if c not in {*NOT_RUN, *ELSEWHERE}]
)
def test_a_command_as_shown(
    command: str,
    place: Path,
    small: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = _runner(command)
    assert found is not None, f"{shown_commands()[command]} shows a command nobody runs: {command}"
    run, argv = found
    monkeypatch.chdir(place)
    argv = [re.sub(r"^DATA$", str(place / "DATA"), word) for word in argv]
    argv = [re.sub(r"^(FOLDER|RUN)$", "runs/A", word) for word in argv]
    monkeypatch.syspath_prepend(str(ROOT))  # some of the targets are packages of ours
    assert run(argv, tmp_path / "out") == 0
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_not_run_is_shown() -> None:
    assert shown_commands().keys() >= ELSEWHERE.keys()
    for test, what in ELSEWHERE.values():
        assert what in (ROOT / test).read_text(encoding="utf-8"), test
    assert shown_commands().keys() >= NOT_RUN - {"python -m pytest tests/faults"}
    assert len(shown_commands()) >= 40
