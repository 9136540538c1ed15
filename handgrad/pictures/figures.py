"""How a figure gets its colours, and its file. No pyplot: no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context, rcdefaults
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from handgrad.files import write_atomically

# Okabe and Ito's palette, distinguishable without full colour vision; without its yellow, which
# cannot be seen on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, _, _ = PALETTE
SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
# The same figure is the same file, whenever it is written.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextmanager
def default_style() -> Iterator[None]:
    """Draw under Matplotlib's own settings, whatever the user's are: those may ask for LaTeX."""
    with rc_context():
        rcdefaults()
        yield


def save(path: Path, figure: Figure, dpi: int = 110) -> None:
    """Write ``figure`` to ``path``, whole or not at all: PNG, SVG or PDF, as its name ends."""
    kind = path.suffix[1:].lower()
    content = io.BytesIO()
    FigureCanvasAgg(figure)
    with rc_context({"svg.hashsalt": "handgrad"}):
        figure.savefig(content, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))
    write_atomically(path, content.getvalue())
