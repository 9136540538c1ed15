from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import handgrad
from handgrad import console
from handgrad.backends.command import train_convnet, train_mlp_numpy, train_mlp_pytorch
from handgrad.benchmark.command import main as benchmark
from handgrad.checker.command import main as check_gradients
from handgrad.console import Parser, guarded
from handgrad.errors import DataError, DivergedError, UserError
from handgrad.lockstep.command import main as compare_engines
from handgrad.plot_runs import main as plot_runs
from handgrad.reproduction.command import main as reproduce


def _raises(error: BaseException):  # type: ignore[no-untyped-def]
    def main() -> int:
        raise error

    return main


def test_the_home_folder_is_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser(prog="program")
    parser.add_argument("--out", type=Path)
    parser.add_argument("runs", nargs="*", type=Path)
    arguments = parser.parse_args(["--out=~/x", "~", "y"])
    assert (arguments.out, arguments.runs) == (tmp_path / "x", [tmp_path, Path("y")])
    with pytest.raises(UserError, match=r"^--out: ~no-such-user: there is no home folder for"):
        parser.parse_args(["--out", "~no-such-user"])


@pytest.mark.parametrize(
    ("main", "argv", "told"),
    [
        (plot_runs, ["~/a"], "{home}/a does not exist"),
        (plot_runs, [".", "--out", "~/a.txt"], "--out {home}/a.txt: expected a name"),
        (check_gradients, ["~/a.py:Layer"], "{home}/a.py does not exist"),
        (benchmark, ["loader", "--data-dir", "~/a"], "--data-dir {home}/a does not exist"),
        (reproduce, ["--data-dir", "~/a"], "--data-dir {home}/a is not a folder"),
        (reproduce, ["--runs", "~/file"], "--runs {home}/file is a file"),
        (reproduce, ["--out", "~/file"], "--out {home}/file is a file"),
        (compare_engines, ["--out", "~/file"], "{home}/file"),
        (compare_engines, ["--modules", "~/a.py"], "--modules {home}/a.py does not exist"),
        (train_mlp_numpy, ["--out", "~/file"], "--out {home}/file is a file"),
        (train_mlp_numpy, ["--data-dir", "~/file"], "--data-dir {home}/file is a file"),
        (train_mlp_pytorch, ["--resume", "~/a"], "--resume {home}/a: no run there"),
        (train_convnet, ["--resume=~/a"], "--resume {home}/a: no run there"),
    ],
)
def test_it_is_found_by_every_command(
    main: Callable[[Sequence[str]], int],
    argv: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert told.format(home=tmp_path) in said, said


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


@pytest.mark.parametrize("encoding", ["ascii", "cp1251", "cp437", "latin-1", "utf-8"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_stream_cannot_encode_is_spelled_out(
    encoding: str, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    mine = io.TextIOWrapper(written, encoding, errors="strict", newline="")
    monkeypatch.setattr(sys, stream, mine)
    text = "8×8, 1–2 → Δ ± ≥ 猫 \udcff"
    assert guarded(lambda: print(text, file=getattr(sys, stream)) or 0) == 0
    plain = {"×": "x", "–": "-", "→": "->", "Δ": "d", "±": "+-", "≥": ">=", "猫": r"\u732b"}
    expected = b""
    for character in f"{text}\n":
        try:
            expected += character.encode(encoding)
        except UnicodeEncodeError:
            expected += b"\xff" if character == "\udcff" else plain[character].encode()
    mine.flush()
    assert written.getvalue() == expected
    assert mine.errors == "strict", "of a program that goes on"


def test_all_that_is_printed_has_a_spelling_in_ascii() -> None:
    package, missing = Path(handgrad.__file__).parent, set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                missing |= {c for c in str(node.value) if ord(c) > 127 and c.isprintable()}
    assert missing - set(console._STANDS_FOR) <= set("⠿─│")  # drawn where they can be encoded


_COMMANDS = [
    ["train-mlp-numpy", "--max-steps", "2", "--live", "--out", "run"],
    ["train-mlp-pytorch", "--help"],
    ["compare-engines", "--steps", "2", "--engines", "modules", "graph", "--out", "compared"],
    ["check-gradients", "layer.py"],
    ["reproduce", "--list"],
]


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("stream", ["ascii", "C"])
def test_commands_in_the_locales_of_others(command: list[str], stream: str, tmp_path: Path) -> None:
    (tmp_path / "layer.py").write_text(
        "class Twice:\n"
        "    def forward(self, x):\n        print('×')\n        return 2 * x\n"
        "    def backward(self, dout):\n        print('Δ →')\n        return 2 * dout\n",
        encoding="utf-8",
    )
    locale = {"PYTHONUTF8": "0", "LC_ALL": "C"} if stream == "C" else {"PYTHONIOENCODING": stream}
    result = subprocess.run(
        [sys.executable, "-m", "handgrad", *command],
        cwd=tmp_path,
        env={**os.environ, **locale},
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    said = (result.stdout + result.stderr).decode("ascii")
    assert "Traceback" not in said and said.count("?") == 0
