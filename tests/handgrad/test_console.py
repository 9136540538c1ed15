from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from handgrad.console import guarded
from handgrad.errors import DataError, DivergedError, UserError


def _raises(error: BaseException):  # type: ignore[no-untyped-def]
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("status", [0, 1, 130])
def test_status_is_passed_on(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: status) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--lr 0 is\n  wrong"), 2, "error: --lr 0 is wrong"),
        (DataError("file is damaged"), 2, "error: file is damaged"),
        (DataError("\x1b[31m\udcff is damaged"), 2, "error: �[31m� is damaged"),
        (DivergedError("the loss"), 2, "error: the loss"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: No space left on device; what was written before is kept",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "some/file"),
            2,
            "error: some/file: Permission denied; what was written before is kept",
        ),
        (OSError("strange"), 2, "error: strange; what was written before is kept"),
        (
            MemoryError("Unable to allocate 9 GiB"),
            2,
            "error: out of memory (Unable to allocate 9 GiB); give it more, or try a smaller "
            "--batch-size or network",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the last checkpoint, if there is one, is whole"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(_raises(error)) == status
    assert capsys.readouterr() == ("", f"{line}\n")


@pytest.mark.parametrize("error", [ValueError("bug"), KeyError("bug"), AssertionError("bug")])
def test_mistakes_of_the_program_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(_raises(error))


def test_closed_streams_take_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert guarded(lambda: print("猫") or 0) == 0
    assert guarded(_raises(UserError("wrong"))) == 2
    assert sys.stdout is None and sys.stderr is None


def test_what_is_for_a_closed_stderr_is_not_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert guarded(_raises(UserError("wrong"))) == 2
    assert capsys.readouterr().out == ""


def test_closed_pipe_ends_quietly() -> None:
    code = (
        "import sys; from handgrad.console import guarded\n"
        "def main():\n    while True: print('line')\n"
        "sys.exit(guarded(main))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
