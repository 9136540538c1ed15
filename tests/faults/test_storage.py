"""A disk that is full, read-only or gone while a run trains: one line, status 3, nothing lost."""

from __future__ import annotations

import builtins
import errno
import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handgrad.backends.command import train_convnet, train_mlp_numpy, train_mlp_pytorch
from handgrad.runs import run
from handgrad.training.checkpoint import Checkpoint, load_arrays
from handgrad.training.loop import Loop

ROOT = Path(__file__).parents[2]
DEADLINE = 180.0  # seconds that a process may take, on a machine with much else to do
OPTIONS = ["--max-steps", "6", "--eval-every", "3", "--checkpoint-every", "2", "--quiet"]
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "numpy": (train_mlp_numpy, []),
    "graph": (train_mlp_numpy, ["--engine", "graph"]),
    "pytorch": (train_mlp_pytorch, ["--precision", "float32"]),
    "convnet": (train_convnet, ["--precision", "float32", "--batch-size", "4"]),
}


class Trouble:
    """Make the n-th operation that writes, and all after it, fail.

    An operation is the opening of a file for writing, or the flush of one to disk.
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, n: int, code: int) -> None:
        self.left, self.code, self.folder = n, code, folder
        self.open, self.fsync = io.open, os.fsync
        patch.setattr(io, "open", self._open)
        patch.setattr(builtins, "open", self._open)
        patch.setattr(os, "fsync", self._fsync)

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))

    def _open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if (
            not isinstance(file, int)
            and set(mode) & set("wax+")
            and (str(file).startswith(str(self.folder)))
        ):
            self._spend()
        return self.open(file, mode, *args, **kwargs)

    def _fsync(self, descriptor: int) -> None:
        self._spend()
        self.fsync(descriptor)


def _weights(folder: Path) -> dict[str, Any]:
    arrays, _ = load_arrays(folder / "model.safetensors")
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_write_may_fail(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, options = COMMANDS[name]
    argv = [*OPTIONS, *options]
    if name != "pytorch":  # pictures take time, and are written like everything else
        monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    wanted = _weights(tmp_path / "whole")
    capsys.readouterr()
    failures = resumed = 0
    # PyTorch's commands share all of it with NumPy's; theirs is a sample.
    for n in range(0, 80, {"numpy": 1, "convnet": 13}.get(name, 7)):
        folder = tmp_path / f"run{n}"
        code = (errno.ENOSPC, errno.EROFS, errno.EIO)[n % 3]
        with monkeypatch.context() as patch:
            Trouble(patch, folder, n, code)
            status = main([*argv, "--out", str(folder)])
        out, err = capsys.readouterr()
        if status == 0:
            break
        failures += 1
        assert status == 3, (n, err)
        assert err.startswith("error: cannot write ") and err.count("\n") == 1, err
        assert os.strerror(code) in err and "Traceback" not in out + err
        if not (folder / "checkpoint.safetensors").exists():
            assert not folder.exists() and "there is no checkpoint yet" in err
            continue
        step = Checkpoint.load(folder / "checkpoint.safetensors").progress["step"]
        assert step in (0, 2, 3, 4, 6) and f"the checkpoint of step {step} is whole" in err
        assert f"--resume {folder}" in err
        assert main(["--resume", str(folder)]) == 0, n
        capsys.readouterr()
        assert _weights(folder) == wanted
        resumed += 1
        shutil.rmtree(folder)
    assert failures > (30 if name == "numpy" else 2) and resumed >= failures // 2


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_disappears(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, options = COMMANDS[name]
    folder, step = tmp_path / "run", Loop._step

    def vanishing(self: Loop, *args: Any) -> None:
        step(self, *args)
        if self.progress.step == 3:
            shutil.rmtree(folder)

    monkeypatch.setattr(Loop, "_step", vanishing)
    assert main([*OPTIONS, *options, "--out", str(folder)]) == 3
    err = capsys.readouterr().err
    assert err == f"error: the run folder {folder} has disappeared while training\n"
    assert not folder.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if result.returncode:
        pytest.skip(f"may not mount a small file system here: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run train-mlp-numpy, without the pictures, which take longer than the training."""
    code = "import sys; from handgrad.runs import result; result.draw_pictures = lambda *a: None; "
    code += "from handgrad.backends.command import train_mlp_numpy as main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "run"
    (small_disk / "other").write_bytes(bytes(120_000))
    # A checkpoint is some 80 kB: there is room for one and half of the next.
    result = _command(
        *["--max-steps", "40", "--eval-every", "10", "--momentum", "0.9", "--out"], str(folder)
    )
    assert result.returncode == 3, result.stderr
    assert "No space left on device" in result.stderr and result.stderr.count("\n") == 1
    assert "is whole" in result.stderr
    (small_disk / "other").unlink()
    shutil.copytree(folder, tmp_path / "run")
    assert _command("--resume", str(tmp_path / "run")).returncode == 0
    whole = tmp_path / "whole"
    result = _command(
        *["--max-steps", "40", "--eval-every", "10", "--momentum", "0.9", "--out"], str(whole)
    )
    assert result.returncode == 0
    assert _weights(tmp_path / "run") == _weights(whole)


def test_a_disk_that_becomes_read_only(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    folder = small_disk / "run"
    process = _endless_run("train_mlp_numpy", folder)
    end = time.monotonic() + DEADLINE
    while subprocess.run(
        ["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, check=False
    ).returncode:  # busy while a file is open for writing
        assert time.monotonic() < end
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3, err
    assert "Read-only file system" in err and err.count("\n") == 1
    assert Checkpoint.load(folder / "checkpoint.safetensors").progress["step"] % 20 == 0


def _endless(script: str, folder: Path) -> list[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py")]
    return [*command, "--max-steps", "10000000", "--eval-every", "20", "--out", str(folder)]


def _endless_run(script: str, folder: Path) -> subprocess.Popen[str]:
    """Begin a run that would not end, and wait for its first checkpoint."""
    process = subprocess.Popen(
        [*_endless(script, folder), "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + DEADLINE
    while not (folder / "checkpoint.safetensors").exists():
        if time.monotonic() > end or process.poll() is not None:
            process.kill()
            pytest.fail(f"no checkpoint: {process.communicate()}")
        time.sleep(0.01)
    return process


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """Have processes begin with SIGHUP at its default, which whoever runs the tests may ignore."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(
    ("script", "number", "status"),
    [
        ("train_mlp_numpy", signal.SIGINT, 130),
        ("train_mlp_numpy", signal.SIGTERM, 143),
        ("train_mlp_pytorch", signal.SIGINT, 130),
        ("train_mlp_pytorch", signal.SIGTERM, 143),
        ("train_convnet", signal.SIGTERM, 143),
        ("train_mlp_numpy", signal.SIGHUP, 129),
        ("train_mlp_pytorch", signal.SIGHUP, 129),
        ("train_convnet", signal.SIGHUP, 129),
    ],
)
@pytest.mark.usefixtures("hangup_ends")
def test_signals_save_and_end_with_the_usual_status(
    script: str, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = _endless_run(script, folder)
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == status, err
    step = Checkpoint.load(folder / "checkpoint.safetensors").progress["step"]
    assert f"stopped after step {step} of 10000000; go on with: " in err
    assert err.count("\n") == 1


def test_nohup_trains_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = _endless_run("train_mlp_numpy", folder)
    finally:
        signal.signal(signal.SIGHUP, previous)
    checkpoint = folder / "checkpoint.safetensors"
    process.send_signal(signal.SIGHUP)
    written, end = checkpoint.stat().st_mtime_ns, time.monotonic() + DEADLINE
    while checkpoint.stat().st_mtime_ns == written:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143, err


@pytest.mark.parametrize("options", [[], ["--live"]], ids=["bar", "live"])
@pytest.mark.usefixtures("hangup_ends")
def test_a_terminal_that_is_closed_stops_the_run_at_a_checkpoint(
    options: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    argv = [*_endless("train_mlp_numpy", folder), "--threads", "1", *options]
    child, terminal = pty.fork()
    if not child:
        os.environ["TERM"] = "xterm"
        os.execv(argv[0], argv)
    end = time.monotonic() + DEADLINE
    checkpoint = folder / "checkpoint.safetensors"
    while not checkpoint.exists() or not Checkpoint.load(checkpoint).progress["step"]:
        assert time.monotonic() < end
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 2**16)
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 128 + signal.SIGHUP
    step = Checkpoint.load(checkpoint).progress["step"]
    again = _command("--resume", str(folder), "--max-steps", str(step))
    assert again.returncode == 0, again.stderr


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _endless_run("train_mlp_numpy", folder)
    try:
        second = _command("--resume", str(folder))
        assert second.returncode == 2
        assert f"another process is training in {folder}" in second.stderr
        assert second.stderr.count("\n") == 1
        assert _command("--out", str(folder)).returncode == 2  # not empty, to begin with
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
    # The lock ends with the process.
    step = Checkpoint.load(folder / "checkpoint.safetensors").progress["step"]
    result = _command("--resume", str(folder), "--max-steps", str(step))
    assert result.returncode == 0, result.stderr


def test_two_runs_that_begin_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken, make = tmp_path / "run", run.make_folder

    def late(settings: Any, name: str) -> Path:
        folder = make(settings, name)
        (folder / "config.json").write_text("another's")  # between our look and our lock
        return folder

    monkeypatch.setattr(run, "make_folder", late)
    assert train_mlp_numpy(["--max-steps", "2", "--out", str(taken)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (taken / "config.json").read_text() == "another's"


def test_two_runs_on_the_same_data(tmp_path: Path, real_data: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "train_mlp_numpy.py"), "--dataset", "mnist"]
    command += ["--hidden-dims", "8", "--max-steps", "5", "--quiet", "--data-dir", str(real_data)]
    runs = [
        subprocess.Popen([*command, "--out", str(tmp_path / name)], stdout=subprocess.DEVNULL)
        for name in ("one", "two")
    ]
    assert [run.wait(timeout=DEADLINE) for run in runs] == [0, 0]
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")
