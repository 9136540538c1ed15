"""The curves of a run, drawn in the terminal while it trains."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from handgrad.pictures.curves import (
    QUANTITIES,
    SPLITS,
    Scale,
    Values,
    curves_of,
    linear_scale,
    scale_of,
)
from handgrad.training.metrics import Row

_COLOURS = {"train": "38;5;32", "validation": "38;5;172", "test": "38;5;36"}
_MARKS = {"train": ".", "validation": "o", "test": "+"}
# Of 256 colours there is one of nearly equal contrast on black and on white; without any colour,
# curves differ in their dots: dots drawn and dots left out.
_DASHES = {"train": (1, 0), "validation": (3, 3), "test": (1, 2)}
_SHORT = {"train": "trn", "validation": "val", "test": "tst"}
# The bits of a braille character: rows of dots from the top, left and right.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BLANK_BRAILLE = 0x2800

_SECONDS = 0.25  # between pictures, at least
_SHARE = 0.02  # of the time that drawing may take
_LEAST_LINES = 3
_MOST_LINES = 14  # of a panel
_SIDE_BY_SIDE = 64  # columns from which both panels stand in a row
_PRINTED = (80, 14)  # columns and lines of a picture that is printed once


@dataclass(frozen=True)
class Style:
    """What a terminal can show.

    Attributes:
        unicode: braille dots; ASCII otherwise.
        colour: SGR escape sequences for colours.
    """

    unicode: bool
    colour: bool


def draw(rows: Sequence[Row], columns: int, lines: int, style: Style) -> list[str]:
    """Return loss and accuracy over steps as lines of text.

    Args:
        rows: of ``metrics.csv``, and perhaps one more of the training since.
        columns: room for each line; none is longer.
        lines: room for the picture; it may take less. Too little gives no lines at all.
        style: what the terminal can show.
    """
    if lines < _LEAST_LINES or columns < 16 or not rows:
        return []
    if columns >= _SIDE_BY_SIDE:
        width = (columns - 2) // 2
        left, right = (_panel(rows, q, width, min(lines, _MOST_LINES), style) for q in QUANTITIES)
        return [f"{a}  {b}" for a, b in zip(left, right, strict=True)]
    if lines >= 2 * 6:
        height = min(lines // 2, _MOST_LINES)
        return [line for q in QUANTITIES for line in _panel(rows, q, columns, height, style)]
    return _panel(rows, "loss", columns, min(lines, _MOST_LINES), style)


def _panel(rows: Sequence[Row], quantity: str, width: int, height: int, style: Style) -> list[str]:
    """Return ``height`` lines of ``width`` columns: a title, the curves and, if it fits, steps."""
    curves = curves_of(rows, quantity)
    if not curves:
        return [" " * width] * height
    scale = scale_of(quantity, np.concatenate([y for _, y in curves.values()]))
    last_step = max(row.step for row in rows)
    across = linear_scale(np.array([0.0, last_step or 1.0]))
    has_axis = height >= 5
    n_lines = height - 1 - has_axis
    labels = _labels(scale, n_lines)
    gutter = max(map(len, labels.values())) + 2 if labels and width >= 30 else 0
    n_columns = width - gutter
    cells = _cells(curves, across, scale, n_columns, n_lines, style)
    bar = "│" if style.unicode else "|"
    lines = [_title(quantity, curves, width, style)]
    for i, line in enumerate(cells):
        axis = f"{labels.get(i, ''):>{gutter - 2}} {bar}" if gutter else ""
        lines.append(axis + line)
    if has_axis:
        end = f"step {last_step}"
        lines.append(" " * gutter + "0" + end.rjust(n_columns - 1))
    return lines


def _title(
    quantity: str, curves: dict[str, tuple[Values, Values]], width: int, style: Style
) -> str:
    """Return the quantity and its latest values, with as much of the names as there is room for."""
    full, nothing = {split: split for split in SPLITS}, dict.fromkeys(SPLITS, "")
    for names, gap in ((full, "  "), (_SHORT, "  "), (nothing, "  "), (nothing, " ")):
        parts = []
        for split, (_, y) in curves.items():
            sample = "" if style.colour else _sample(split, style)
            parts.append((split, " ".join(filter(None, (sample, names[split], _number(y[-1]))))))
        length = len(quantity) + sum(len(gap + part) for _, part in parts)
        if length <= width:
            break
    else:
        return quantity.ljust(width)
    painted = "".join(gap + _paint(part, split, style) for split, part in parts)
    return quantity + painted + " " * (width - length)


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-4 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"


def _sample(split: str, style: Style) -> str:
    if not style.unicode:
        return _MARKS[split]
    drawn, left_out = _DASHES[split]
    dots = [i % (drawn + left_out) < drawn for i in range(6)]
    return "".join(
        chr(_BLANK_BRAILLE + 0x04 * dots[i] + 0x20 * dots[i + 1]) for i in range(0, 6, 2)
    )


def _paint(text: str, split: str, style: Style) -> str:
    return f"\x1b[{_COLOURS[split]}m{text}\x1b[0m" if split and style.colour else text


def _labels(scale: Scale, n_lines: int) -> dict[int, str]:
    """Return the marks of the vertical axis by line, counted from the top, with air in between."""
    found: dict[int, str] = {}
    for tick in reversed(scale.ticks):
        line = round(float(1 - scale.place(tick)) * (n_lines - 1))
        if 0 <= line < n_lines and not {line - 1, line, line + 1} & found.keys():
            found[line] = f"{tick:g}"
    return found


def _cells(
    curves: dict[str, tuple[Values, Values]],
    across: Scale,
    up: Scale,
    n_columns: int,
    n_lines: int,
    style: Style,
) -> list[str]:
    """Return the curves as lines of characters; the later of two curves covers the other."""
    wide, high = (2 * n_columns, 4 * n_lines) if style.unicode else (n_columns, n_lines)
    owners = np.full((n_lines, n_columns), "", dtype=object)
    characters = np.full((n_lines, n_columns), " ", dtype=object)
    codes = np.zeros((n_lines, n_columns), dtype=np.int64)
    for split, (x, y) in curves.items():
        dots = _line(across.place(x), up.place(y), wide, high)
        if style.unicode:
            if not style.colour:
                drawn, left_out = _DASHES[split]
                dots &= np.add.outer(np.arange(high), np.arange(wide)) % (drawn + left_out) < drawn
            bits = dots.reshape(n_lines, 4, n_columns, 2).transpose(0, 2, 1, 3) * _DOTS
            code = bits.sum(axis=(2, 3))
            codes |= code
            dots = code > 0
            characters[dots] = [chr(_BLANK_BRAILLE + code) for code in codes[dots]]
        else:
            characters[dots] = _MARKS[split]
        owners[dots] = split
    return [
        "".join(
            _paint("".join(character for character, _ in cells), split, style)
            for split, cells in itertools.groupby(zip(*line, strict=True), lambda cell: cell[1])
        )
        for line in zip(characters, owners, strict=True)
    ]


def _line(x: Values, y: Values, wide: int, high: int) -> NDArray[np.bool_]:
    """Return the dots (high, wide), from the top, of the line through points in the unit square."""
    dots = np.zeros((high, wide), dtype=np.bool_)
    first, last = (round(float(end) * (wide - 1)) for end in (x[0], x[-1]))
    places = np.arange(first, last + 1)
    heights = np.interp(places / (wide - 1), x, y)
    levels = np.clip(np.rint((1 - heights) * (high - 1)), 0, high - 1).astype(np.int64)
    # Half of the way to the neighbours' levels, so that steep parts hang together.
    before = levels + ((np.concatenate((levels[:1], levels[:-1])) - levels) / 2).astype(np.int64)
    after = levels + ((np.concatenate((levels[1:], levels[-1:])) - levels) / 2).astype(np.int64)
    tops, bottoms = (end((before, levels, after)) for end in (np.minimum.reduce, np.maximum.reduce))
    for place, top, bottom in zip(places, tops, bottoms, strict=True):
        dots[top : bottom + 1, place] = True
    return dots


class LivePlot:
    """Draws the rows of a run in place, between what is printed and the progress bar.

    A context manager: within it, lines that anybody prints appear above the picture. Where the
    terminal cannot draw in place, or there is none, the last picture is printed once, at the end.
    Nothing is changed that would have to be restored: however the process ends, the terminal is in
    order. What goes wrong with a picture does not end the run: the plot ends, and says so.

    Args:
        bar: the progress bar, on standard error.
        rows: of ``metrics.csv``; grows as the run goes on.
    """

    def __init__(self, bar: tqdm[Any], rows: Sequence[Row]) -> None:
        self._bar, self._rows = bar, rows
        self._out, self._err = sys.stdout, sys.stderr
        self._in_place = self._failed = False
        self._style = Style(unicode=False, colour=False)
        self._picture: list[str] = []
        self._size = (0, 0)  # of the terminal that the picture is for
        self._drawn = 0  # lines of the picture above the cursor
        self._next = 0.0  # when the next picture is due
        self._redirected = contextlib.ExitStack()
        try:
            self._in_place = not bar.disable and _can_draw_in_place()
            self._style = _style(self._err if self._in_place else self._out, self._in_place)
        except Exception as error:
            self._end(error)

    def __enter__(self) -> LivePlot:
        if self._in_place:
            self._bar.dynamic_ncols = False  # too wide a bar wraps when Ctrl-C is echoed behind it
            for redirect, stream in (
                (contextlib.redirect_stdout, self._out),
                (contextlib.redirect_stderr, self._err),
            ):
                lines = self._redirected.enter_context(contextlib.closing(_Lines(stream, self)))
                self._redirected.enter_context(redirect(cast(Any, lines)))
            self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._redirected.close()
        if self._in_place:
            self._next = 0
            self.update(bar=False)
        elif error is None and not self._failed:
            try:
                picture = draw(self._rows, *_PRINTED, self._style)
            except Exception as reason:
                self._end(reason)
            else:
                print("".join(f"{line.rstrip()}\n" for line in picture), end="")

    def update(self, since: Row | None = None, *, bar: bool = True) -> None:
        """Draw the rows anew, unless that was done a moment ago.

        Args:
            since: the training since the last row, as a row.
            bar: whether the progress bar goes on below.
        """
        start = time.perf_counter()
        if not self._in_place or start < self._next:
            return
        try:
            erased = self._erased()
            if self._size != self._size_now():
                self._size = self._size_now()
                # It remembers how long a line to overwrite with spaces: one that would be wrapped.
                self._bar.sp = self._bar.status_printer(self._bar.fp)
            columns, lines = self._size
            rows = [*self._rows, since] if since else self._rows
            self._picture = draw(rows, columns - 1, lines - 2, self._style)
            self._write(erased + self._painted(), bar)
        except Exception as error:
            self._end(error)
        took = time.perf_counter() - start
        self._next = start + max(_SECONDS, took / _SHARE)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Take the picture off the screen while something is printed."""
        if self._in_place:
            try:
                self._err.write(self._erased())
                self._err.flush()
            except (OSError, ValueError) as error:
                self._end(error)
        yield
        if self._in_place:
            try:
                self._write(self._painted(), bar=True)
            except (OSError, ValueError) as error:
                self._end(error)

    def _size_now(self) -> tuple[int, int]:
        columns, lines = os.get_terminal_size(self._err.fileno())
        return (columns, lines) if columns and lines else (80, 24)

    def _erased(self) -> str:
        """Return what takes picture and bar off the screen."""
        size, drawn = self._size_now(), self._drawn
        self._drawn = 0
        if drawn and size != self._size:
            # Lines may have been wrapped or cut; nobody knows where the picture is.
            return "\x1b[H\x1b[2J"
        return f"\r\x1b[{drawn}A\x1b[J" if drawn else "\r\x1b[J"

    def _painted(self) -> str:
        if self._size_now() != self._size:  # lines that do not fit would be wrapped
            self._picture, self._next = [], 0
        self._drawn = len(self._picture)
        return "".join(f"{line}\n" for line in self._picture)

    def _write(self, text: str, bar: bool) -> None:
        self._err.write(text)
        self._err.flush()
        if bar:
            self._bar.ncols = max(1, self._size[0] - 4)
            self._bar.refresh()

    def _end(self, error: Exception) -> None:
        self._in_place, self._failed = False, True
        # Standard error may be closed, or None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._err.write(f"\nthe live plot has ended: {error or type(error).__name__}\n")


class _Lines:
    """A stream that prints whole lines, above the picture."""

    def __init__(self, stream: Any, plot: LivePlot) -> None:
        self._stream, self._plot, self._begun = stream, plot, ""

    def write(self, text: str) -> int:
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            with self._plot.set_aside():
                self._stream.write(whole + newline)
                self._stream.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def close(self) -> None:
        if self._begun:
            self.write("\n")

    def flush(self) -> None:
        """Do nothing: half a line waits for its other half."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _can_draw_in_place() -> bool:
    if os.environ.get("TERM", "") in ("", "dumb") and os.name != "nt":
        return False
    if os.name == "nt" and "WT_SESSION" not in os.environ:  # older consoles show escapes as text
        return False
    try:
        os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    # What goes through a pipe (| tee) may appear in the terminal at any moment, and anywhere.
    return sys.stdout.isatty()


def _style(stream: Any, in_place: bool) -> Style:
    try:
        "⠿│".encode(getattr(stream, "encoding", None) or "ascii")
        can_encode = True
    except (UnicodeEncodeError, LookupError):
        can_encode = False
    return Style(unicode=can_encode, colour=in_place and not os.environ.get("NO_COLOR"))
