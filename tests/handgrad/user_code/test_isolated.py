"""What runs in a process of its own cannot hang, crash, outlive or overrun the command."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from handgrad.user_code import isolated
from handgrad.user_code.isolated import Ending, run_isolated

TARGETS = """
import ctypes, faulthandler, os, sys, threading, time
from pathlib import Path

def double(number, guard):
    print("out")
    print("err", file=sys.stderr)
    guard.tell("done", double=2 * number, typed=sys.stdin.read(), argv=sys.argv)

def spin(folder, guard):
    (Path(folder) / "pid").write_text(str(os.getpid()))
    guard.tell("begun")
    guard.running("spin of a top")
    while True:
        pass

def hang(folder, guard):
    guard.tell("begun")
    ctypes.PyDLL(None).pause()  # no thread of Python runs any more

def hide(argument, guard):
    guard.tell("begun")
    faulthandler.cancel_dump_traceback_later()
    time.sleep(60)

def late(seconds, guard):
    time.sleep(seconds)
    for number in range(3):
        guard.tell("more", number=number)
        time.sleep(seconds)

def leave(argument, guard):
    threading.Thread(target=time.sleep, args=(60,)).start()
    guard.tell("begun")

def shout(argument, guard):
    guard.tell("begun")
    while True:
        print("x" * 99, file=sys.stderr)
        time.sleep(1e-4)

def fail(argument, guard):
    guard.tell("begun")
    raise AssertionError("ours")

def fork(folder, guard):
    if (pid := os.fork()) == 0:
        time.sleep(60)
    (Path(folder) / "pid").write_text(str(pid))
    guard.tell("begun")
    ctypes.string_at(0)
"""


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of functions that can be run, known to both processes."""
    (tmp_path / "isolated_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "isolated_targets", raising=False)
    return importlib.import_module("isolated_targets")


def test_what_it_says_and_tells(targets: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    expected = [{"event": "done", "double": 6, "typed": "", "argv": ["-c"]}]
    assert run_isolated(targets.double, 3, 60.0) == Ending(expected)
    assert capfd.readouterr() == ("out\n", "err\n")
    ending = run_isolated(targets.double, 3, 60.0, quiet=True)
    assert (ending.events, ending.said) == (expected, "err\n")
    assert capfd.readouterr() == ("", "")


def test_the_time_counts_from_the_last_event_on(targets: ModuleType) -> None:
    ending = run_isolated(targets.late, 0.7, 1.5)
    assert [event["number"] for event in ending.events] == [0, 1, 2] and not ending.late


def test_where_it_was_when_its_time_was_over(targets: ModuleType, tmp_path: Path) -> None:
    ending = run_isolated(targets.spin, str(tmp_path), 0.5)
    assert ending.late and ending.events == [{"event": "begun"}]
    assert ending.running == "spin of a top"
    file, line, function = ending.place(tmp_path / "isolated_targets.py") or ("", "", "")
    text = TARGETS.splitlines()[int(line) - 1]
    assert Path(file).name == "isolated_targets.py" and function == "spin"
    assert text.strip() in ("while True:", "pass")


def test_a_hang_that_holds_the_interpreter_ends(targets: ModuleType, tmp_path: Path) -> None:
    ending = run_isolated(targets.hang, str(tmp_path), 0.5)
    assert ending.late and (ending.place(tmp_path) or [""])[-1] == "hang"


def test_a_hang_that_stopped_the_clock_ends(
    targets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_GRACE", 0.5)
    ending = run_isolated(targets.hide, None, 0.5)
    assert ending.late and ending.cause == "signal SIGKILL"


def test_a_thread_that_goes_on_is_left(targets: ModuleType) -> None:
    start = time.monotonic()
    assert run_isolated(targets.leave, None, 60.0).events == [{"event": "begun"}]
    assert time.monotonic() - start < 30


def test_endless_printing_fills_no_disk(
    targets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_MOST_SAID", 2_000)
    ending = run_isolated(targets.shout, None, 1.0, quiet=True)
    assert ending.late and len(ending.said) < 50_000


def test_an_error_of_ours_is_said(targets: ModuleType) -> None:
    ending = run_isolated(targets.fail, None, 60.0, quiet=True)
    assert ending.said.endswith("AssertionError: ours\n") and ending.cause == "exit status 1"


def test_what_it_has_started_ends_with_it(targets: ModuleType, tmp_path: Path) -> None:
    ending = run_isolated(targets.fork, str(tmp_path), 60.0)
    assert ending.cause == "signal SIGSEGV"
    assert (ending.place(tmp_path) or [""])[-1] == "fork"
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


SCRIPT = """
from isolated_targets import double
from handgrad.user_code.isolated import run_isolated
print("once")
print(run_isolated(double, 4, 60.0, quiet=True).events)
"""


@pytest.mark.parametrize("how", ["script", "-c", "-"])
def test_wherever_it_is_started(how: str, targets: ModuleType, tmp_path: Path) -> None:
    """No ``if __name__ == "__main__"`` is needed, and nothing in the current folder is ours."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "elsewhere" / "handgrad").mkdir(parents=True)
    for name in ("handgrad/__init__.py", "json.py", "pickle.py", "numpy_mlp.py"):
        (tmp_path / "elsewhere" / name).write_text("raise SystemExit('not ours')")
    argv = {"script": [str(tmp_path / "script.py")], "-c": ["-P", "-c", SCRIPT], "-": ["-P", "-"]}
    result = subprocess.run(
        [sys.executable, *argv[how]],
        input=SCRIPT,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "once\n[{'event': 'done', 'double': 8, 'typed': '', 'argv': ['-c']}]\n"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_the_command(end: signal.Signals, targets: ModuleType, tmp_path: Path) -> None:
    code = "from isolated_targets import spin; from handgrad.user_code.isolated import *\n"
    code += f"run_isolated(spin, {str(tmp_path)!r}, 300.0)"
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.send_signal(end)
    _, said = parent.communicate(timeout=30)
    assert parent.returncode == -end and said.count("Traceback") == (end == signal.SIGINT)
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_in_a_thread(targets: ModuleType) -> None:
    """As in a notebook, or a program with windows."""
    endings: list[Ending] = []
    thread = threading.Thread(
        target=lambda: endings.append(run_isolated(targets.double, 1, 60.0, quiet=True))
    )
    thread.start()
    thread.join(30)
    assert endings[0].events[0]["double"] == 2


def alive(pid: int) -> bool:
    """Say whether a process runs: one that has ended may wait to be asked about."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def until(what: Callable[[], Any]) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)
