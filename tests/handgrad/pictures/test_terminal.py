"""The plot in the terminal: what it draws, and what it leaves behind, in a pseudo-terminal."""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from handgrad.pictures.terminal import LivePlot, Style, draw
from handgrad.training.metrics import Row, read_metrics

if os.name != "posix":
    pytest.skip("pseudo-terminals are POSIX's", allow_module_level=True)

import fcntl
import pty
import struct
import termios

ROOT = Path(__file__).parents[3]
PLAIN, ASCII = Style(unicode=True, colour=False), Style(unicode=False, colour=False)
COLOUR = Style(unicode=True, colour=True)
DEADLINE = 180.0  # seconds that a child may take, on a machine with much else to do
RUN = "--max-steps 60 --eval-every 20 --hidden-dims 8 --threads 1"


def _row(step: int, split: str, loss: float, accuracy: float) -> Row:
    return Row(step, step / 10, split, loss, accuracy, 0.1, 1.0)


ROWS = [
    _row(10 * i, split, 2 / (i + 1), 0.9 - 0.8 / (i + 1) + offset)
    for i in range(12)
    for split, offset in (("train", 0.01), ("validation", 0), ("test", -0.01))
]


def _text(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


@pytest.mark.parametrize("style", [PLAIN, ASCII, COLOUR], ids=["plain", "ascii", "colour"])
@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS], ids=len)
def test_a_picture_never_takes_more_than_its_room(rows: list[Row], style: Style) -> None:
    sizes = (1, 15, 16, 19, 29, 30, 63, 64, 79, 200), (-1, 0, 2, 3, 4, 5, 11, 12, 22, 60)
    for columns, lines in itertools.product(*sizes):
        picture = _text(draw(rows, columns, lines, style))
        assert len(picture) <= max(0, lines)
        assert all(len(line) <= columns for line in picture)
        if rows and columns >= 16 and lines >= 3:
            assert picture[0].startswith("loss")


def test_a_falling_line_in_characters() -> None:
    rows = [_row(0, "validation", 1.0, 0.1), _row(10, "validation", 0.3, 0.1)]
    picture = draw(rows, 20, 6, ASCII)
    assert picture == [
        "loss  o val 0.3000  ",
        "oooo                ",
        "    oooooo          ",
        "          oooooo    ",
        "                oooo",
        "0            step 10",
    ]


def test_curves_differ_without_colour_and_have_none_then() -> None:
    for style in (PLAIN, ASCII):
        assert "\x1b" not in "".join(draw(ROWS, 80, 14, style))
    title = draw(ROWS, 130, 14, PLAIN)[0]
    samples = re.findall(r"(\S+) (?:train|validation|test) ", title)
    assert len(set(samples)) == 3
    assert "".join(draw(ROWS, 80, 14, ASCII)).isascii()
    assert {"\x1b[38;5;32m", "\x1b[38;5;172m"} <= set(
        re.findall(r"\x1b\[38[0-9;]*m", "".join(draw(ROWS, 80, 14, COLOUR)))
    )


def test_values_that_are_not_finite_do_not_matter() -> None:
    picture = draw([*ROWS, _row(130, "test", float("nan"), 0.5)], 80, 14, ASCII)
    assert picture and "nan" not in "".join(picture)


class Screen:
    """A terminal, as far as the plot and the progress bar use one; anything else is an error."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.cells = columns, [[" "] * columns for _ in range(lines)]
        self.x = self.y = 0

    def feed(self, text: str) -> Screen:
        for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b|.|\n", text, re.DOTALL):
            if token.startswith("\x1b"):
                self._control(token)
            elif token == "\r":
                self.x = 0
            elif token == "\n":
                self._down()
            else:
                assert token.isprintable(), repr(token)
                if self.x == self.columns:
                    self.x = 0
                    self._down()
                self.cells[self.y][self.x] = token
                self.x += 1
        return self

    def _down(self) -> None:
        if self.y + 1 < len(self.cells):
            self.y += 1
        else:
            self.cells = [*self.cells[1:], [" "] * self.columns]

    def _control(self, token: str) -> None:
        if token == "\x1b[J":
            rest = [[" "] * self.columns for _ in self.cells[self.y + 1 :]]
            self.cells[self.y][self.x :] = [" "] * (self.columns - self.x)
            self.cells[self.y + 1 :] = rest
        elif token == "\x1b[2J":
            self.cells = [[" "] * self.columns for _ in self.cells]
        elif token == "\x1b[H":
            self.x = self.y = 0
        elif token[-1] == "A":
            self.y = max(0, self.y - int(token[2:-1]))
        else:
            assert token[-1] == "m", repr(token)

    def __str__(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.cells).rstrip()


def _in_terminal(
    command: list[str], columns: int = 80, lines: int = 24, answer: Any = None, **environment: str
) -> tuple[int, str]:
    """Run ``command`` in a terminal of its own; return its status and what it wrote.

    ``answer(text so far, terminal)`` may type or change something. What is typed is not echoed,
    and discards nothing that is yet to be read: where that happens depends on the moment.
    """
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    modes[3] = modes[3] & ~termios.ECHO | termios.NOFLSH
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        start_new_session=True,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")},
            "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8",
            **environment,
        },
    )  # fmt: skip
    os.close(slave)
    written, deadline = bytearray(), time.monotonic() + DEADLINE
    try:
        # A child that writes without end always has something to read: time decides, not select.
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([master], [], [], left)[0]:
                continue
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux's way to say that the terminal has no other end any more
                part = b""
            if not part:
                status = process.wait(timeout=max(0.1, deadline - time.monotonic()))
                return status, written.decode()
            written += part
            if answer is not None:
                answer(written.decode(errors="replace"), master)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()
        os.close(master)
    last = bytes(written[-4000:])
    pytest.fail(f"no end after {DEADLINE} s; {len(written)} bytes, the last: {last!r}")


def _apart(
    command: list[str], before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``command``, by a shell that does ``before`` first, without a terminal."""
    command = ["sh", "-c", f'{before} exec "$@"', "sh", *command]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"no end after {DEADLINE} s: {error.stdout!r} {error.stderr!r}")


@pytest.mark.parametrize("code", ["while True: print('on and on')", "input()"])
def test_a_child_without_end_is_ended(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(sys.modules[__name__], "DEADLINE", 0.5)
    with pytest.raises(pytest.fail.Exception, match="no end after"):
        _in_terminal([sys.executable, "-c", code])


def _train(folder: Path, options: str = f"--live {RUN}", before: str = "") -> list[str]:
    code = (
        "import sys, handgrad.runs.run, handgrad.runs.result, handgrad.pictures.terminal\n"
        "from handgrad.backends.command import train_mlp_numpy as main\n"
        # Pictures take longer than the run.
        "handgrad.runs.result.draw_pictures = lambda *args: None\n"
        f"{before}\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", code, *options.split(), "--out", str(folder)]


def _metrics(folder: Path) -> list[str]:
    return [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().split()]


def test_a_run_is_drawn_in_place_and_not_disturbed(tmp_path: Path) -> None:
    status, written = _in_terminal(_train(tmp_path / "live"))
    assert status == 0
    assert "\x1b[38;5;32m" in written and "\x1b[?" not in written, "no mode that stays"
    screen = str(Screen(80, 40).feed(written))
    assert screen.count("loss  ") == 1 and screen.count("step 60 ") == 1, screen
    assert screen.index("step 60/60") < screen.index("\nloss") < screen.index("\ntest accuracy")
    assert "%|" not in screen, "no progress bar is left"
    quiet = _train(tmp_path / "quiet", f"{RUN} --quiet")
    assert _apart(quiet).returncode == 0
    model, same = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("live", "quiet"))
    assert model == same
    assert _metrics(tmp_path / "live") == _metrics(tmp_path / "quiet")


@pytest.mark.parametrize(("columns", "lines"), [(20, 5), (10, 2)])
def test_a_tiny_terminal(tmp_path: Path, columns: int, lines: int) -> None:
    status, written = _in_terminal(_train(tmp_path / "run"), columns, lines)
    assert status == 0
    screen = str(Screen(columns, 200).feed(written))
    assert "".join(screen.split()).endswith(f"runfolder:{tmp_path / 'run'}"), screen
    assert len(re.findall(r"\nloss \d", screen)) == (columns == 20), screen


def test_without_colour_and_without_unicode(tmp_path: Path) -> None:
    environment = {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii:replace"}
    status, written = _in_terminal(_train(tmp_path / "run"), **environment)
    assert status == 0 and written.isascii() and not re.search(r"\x1b\[[0-9;]*m", written)
    assert "o val " in str(Screen(80, 40).feed(written))


def test_ctrl_c_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    pressed = []

    def press(text: str, terminal: int) -> None:
        if re.search(r"step +300/", text) and not pressed:
            pressed.append(os.write(terminal, b"\x03"))

    options = "--live --max-steps 2000000 --eval-every 100 --hidden-dims 8 --threads 1"
    status, written = _in_terminal(_train(tmp_path / "run", options), answer=press)
    assert status == 128 + signal.SIGINT
    bars = [found.end() for found in re.finditer(r"%\|[^\r\n]*(?=\r\x1b\[)", written)]
    assert bars
    for end in bars:  # where a terminal may have echoed it
        screen = str(Screen(80, 24).feed(f"{written[:end]}^C{written[end:]}"))
        assert screen.count("loss  ") == 1, screen
        assert "%|" not in screen and "^C" not in screen, screen
    assert screen.index("\nloss") < screen.index("stopped after step")
    assert len(read_metrics(tmp_path / "run" / "metrics.csv")) >= 5


def test_a_run_that_fails_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    status, written = _in_terminal(_train(tmp_path / "run", f"--live {RUN} --lr 1e38"))
    assert status == 2
    screen = str(Screen(80, 24).feed(written))
    assert screen.count("\nloss") == 1 and "%|" not in screen, screen
    assert screen.index("\nloss") < screen.index("\nerror: ")


def test_other_output_stands_above_and_a_new_size_begins_anew(tmp_path: Path) -> None:
    code = """
import os, sys, time, warnings
from tqdm import tqdm
from handgrad.pictures.terminal import LivePlot
from handgrad.training.metrics import Row
rows = [Row(i, i / 2, "test", 1 / (i + 1), 0.5, 0.1, 1.0) for i in range(5)]
with tqdm(total=9, leave=False) as bar, LivePlot(bar, rows) as plot:
    print("half a ", end="")
    print("line", file=sys.stdout)
    warnings.warn("careful")
    sys.stdout.writelines(["three ", "parts", chr(10)])
    print("ready", file=sys.stderr)
    while os.get_terminal_size().columns == 80:
        time.sleep(0.01)
    plot._next = 0
    plot.update()
    print("no newline", end="")
print("end")
"""
    sizes = []

    def resize(text: str, terminal: int) -> None:
        if re.search(r"ready\r\n.*0/9 \[", text, re.DOTALL) and not sizes:
            sizes.append(len(text))
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 50, 0, 0))

    status, written = _in_terminal([sys.executable, "-c", code], answer=resize)
    assert status == 0, written
    before = str(Screen(80, 24).feed(written[: sizes[0]]))
    for line in ("half a line", "careful", "three parts", "ready"):
        assert line in before and before.count("loss  ") <= 1
    after = str(Screen(50, 40).feed(written[written.index("\x1b[H\x1b[2J") :]))
    assert after.count("loss  ") == 1, after
    assert after.index("no newline") < after.index("loss  ") < after.index("\nend")


def test_a_picture_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    failing = "def draw(*args): raise ValueError('no ink')\nhandgrad.pictures.terminal.draw = draw"
    status, written = _in_terminal(_train(tmp_path / "run", before=failing))
    assert status == 0, written
    assert written.count("the live plot has ended: no ink") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_terminal_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    failing = (
        "def ask(*args): raise AttributeError('no ink')\nhandgrad.pictures.terminal._style = ask"
    )
    status, written = _in_terminal(_train(tmp_path / "run", before=failing))
    assert status == 0, written
    assert written.count("the live plot has ended: no ink") == 1
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("options", [f"--live {RUN}", RUN], ids=["live", "plain"])
def test_closed_streams_do_not_disturb_a_run(tmp_path: Path, closed: str, options: str) -> None:
    result = _apart(_train(tmp_path / "run", options), before=f"exec {closed};")
    assert result.returncode == 0, result
    assert result.stderr == ""
    assert ("test accuracy" in result.stdout) == (closed == "2>&-")
    assert (tmp_path / "run" / "summary.json").exists()


def test_without_streams_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with LivePlot(tqdm(disable=True), ROWS) as plot:
        plot.update()


def test_where_nothing_can_be_drawn_in_place_the_last_picture_is_printed(tmp_path: Path) -> None:
    result = _apart(_train(tmp_path / "run"))
    assert result.returncode == 0 and result.stderr == "" and "\x1b" not in result.stdout
    assert result.stdout.count("loss  ⠤⠤⠤ trn ") == 1


def test_quiet_wins(tmp_path: Path) -> None:
    _, written = _in_terminal(_train(tmp_path / "run", f"--live --quiet {RUN}"))
    assert written.startswith("test accuracy") and "\x1b" not in written
