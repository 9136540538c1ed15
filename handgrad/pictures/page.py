"""A run as one page: ``report.html``, which needs no other file and no network."""

from __future__ import annotations

import base64
import io
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handgrad.data.dataset import Dataset
from handgrad.files import write_atomically
from handgrad.pictures.charts import MOST_POINTS, Line, chart, some
from handgrad.pictures.curves import QUANTITIES, SPLITS, curves_of
from handgrad.pictures.plots import first_layer_sheet
from handgrad.training.evaluation import Mistakes
from handgrad.training.metrics import Row

_MISTAKES = 24  # shown
_UNITS = 36  # of the first layer, shown
_TABLE_ROWS = 100  # of metrics.csv, shown
# The ends of Matplotlib's RdBu, with white between them.
_BLUE, _WHITE, _RED = (33, 102, 172), (247, 247, 247), (178, 24, 43)
# Shares of a row from which a cell of the confusion matrix is too dark (light page) or too light
# (dark page) for the page's own colour of text.
_DARK_CELL, _LIGHT_CELL = 0.77, 0.585


@dataclass(frozen=True)
class Result:
    """What a page tells of.

    Attributes:
        folder: of the run.
        settings: of the run, by name, as typed.
        defaults: as typed, of those settings that have another value and decide the result.
        options: of a command that trains the same run again.
        config: what is in ``config.json``.
        summary: what is in ``summary.json``.
        rows: those of ``metrics.csv``.
        dataset: whose test images are shown.
        confusions: counts M[target, predicted] on the test images, (K, K).
        predicted: classes of the test images, (N,).
        mistakes: where they are wrong.
        first_layer: weights that look at the input, (n_filters, C·h·w).
        invocation: what to type to run the program again.
    """

    folder: Path
    settings: Mapping[str, str]
    defaults: Mapping[str, str]
    options: Sequence[str]
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    dataset: Dataset
    confusions: NDArray[np.int64]
    predicted: NDArray[Any]
    mistakes: Mistakes
    first_layer: NDArray[Any]
    invocation: str


def write_report(path: Path, result: Result) -> None:
    """Write the page about ``result`` to ``path``."""
    write_atomically(path, render(result).encode("utf-8", "replace"))


def _clean(value: object) -> Any:
    """Replace what HTML does not allow even escaped: control characters."""
    if hasattr(value, "__html__"):  # escaped already
        return value
    return "".join(c if c in "\n\t" or c.isprintable() or ord(c) > 159 else "�" for c in str(value))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("handgrad.pictures", ""),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    finalize=_clean,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(result: Result) -> str:
    """Return the page about ``result``, HTML in one file, 600 kB at most for 32×32 images."""
    config, counts = result.config, result.confusions
    blas = [" ".join(str(part) for part in pool.values()) for pool in config.get("blas") or []]
    return render_template(
        "page.html.j2",
        result=result,
        network=_network(result),
        duration=_duration(result.summary["seconds"]),
        curves=_curves(result) if result.rows else None,
        shares=counts / np.maximum(1, counts.sum(axis=1, keepdims=True)),
        dark_cell=_DARK_CELL,
        light_cell=_LIGHT_CELL,
        classes=_classes(result),
        most_mistakes=_MISTAKES,
        picture=_picture,
        first_layer=_first_layer(result),
        changed=[(name, result.settings[name], usual) for name, usual in result.defaults.items()],
        unchanged=[item for item in result.settings.items() if item[0] not in result.defaults],
        **_commands(result),
        blas="; ".join(blas) or "–",
    )


def render_template(name: str, **values: Any) -> str:
    """Return the page that a template of this package makes of ``values``, dated."""
    written = time.strftime("%Y-%m-%d %H:%M")
    return _TEMPLATES.get_template(name).render(written=written, **values)


def _network(result: Result) -> str:
    """Return what was trained, in a line."""
    settings = result.settings
    if "hidden_dims" not in settings:
        return settings.get("model", "network")
    hidden = [] if settings["hidden_dims"] == "none" else settings["hidden_dims"].split()
    ends = str(math.prod(result.dataset.image_shape)), str(len(result.dataset.class_names))
    batch_norm = ", batch norm" if settings["batch_norm"] == "yes" else ""
    return f"MLP {'–'.join([ends[0], *hidden, ends[1]])}, {settings['activation']}{batch_norm}"


def png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """Return a picture as a PNG file.

    Args:
        pixels: (H, W) grey, (H, W, 3) colour, with how opaque it is (H, W, 4), or (H, W) places in
            the palette.
        palette: up to 256 colours, (n, 3). Where it has fewer, the place after them is see-through.
    """
    image, content = Image.fromarray(pixels), io.BytesIO()
    options: dict[str, int] = {}
    if palette is not None:
        image.putpalette(palette.tobytes() + bytes(3))
        if len(palette) < 256:
            options["transparency"] = len(palette)
    image.save(content, "PNG", optimize=True, **options)
    return content.getvalue()


def _picture(
    image: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None
) -> tuple[str, int, int]:
    """Return the PNG of an image (C, H, W), in base 64, its width and its height."""
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0).squeeze())
    return base64.b64encode(png(pixels, palette)).decode(), *image.shape[:0:-1]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _curves(result: Result) -> dict[str, Any]:
    rows = result.rows
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    kept = set(some(sorted(by_step), -(-len(rows) // _TABLE_ROWS)))
    caption = "The values of the curves"
    if len(kept) < len(by_step):
        caption += f": {len(kept)} of {len(by_step)} evaluations; metrics.csv has all"
    cells = [
        (
            f"{row.step:,}", f"{row.epoch:.2f}", row.split, f"{row.loss:.4f}",
            f"{row.accuracy:.4f}", f"{row.learning_rate:g}", f"{row.seconds:.1f}",
        )
        for row in rows if row.step in kept
    ]  # fmt: skip
    return {
        "legend": [
            (split, f"{split}, mean of each interval" if split == "train" else split)
            for split in SPLITS
            if any(row.split == split for row in rows)
        ],
        "charts": [_chart(result, quantity, by_step) for quantity in QUANTITIES],
        "caption": caption,
        "rows": cells,
    }


def _chart(result: Result, quantity: str, by_step: Mapping[int, Sequence[Row]]) -> dict[str, Any]:
    """Return curves with their axes, and what the page's script needs to tell single values."""
    curves = curves_of(result.rows, quantity)
    stops = []
    for step in some(list(by_step), -(-len(by_step) // MOST_POINTS)):
        told = ", ".join(f"{row.split} {getattr(row, quantity):.4f}" for row in by_step[step])
        stops.append((step, f"step {step:,}, epoch {by_step[step][0].epoch:.2f}: {told}"))
    best = result.summary["weights_of_step"]
    drawn = chart(
        quantity,
        [Line(split, x, y) for split, (x, y) in curves.items()],
        stops,
        kept=best if best and best < result.summary["steps"] else None,
    )
    ends = (f"{split} from {y[0]:.4f} to {y[-1]:.4f}" for split, (_, y) in curves.items())
    return {**drawn, "ends": "; ".join(ends)}


def _classes(result: Result) -> list[tuple[str, ...]]:
    names = result.dataset.class_names
    wrong = result.confusions - np.diag(np.diag(result.confusions))
    rows = []
    for name, counts in zip(names, wrong, strict=True):
        scores, most = result.summary["per_class"][name], int(counts.argmax())
        taken_for = f"{names[most]} ({counts[most]})" if counts[most] else "–"
        measures = (f"{scores[measure]:.4f}" for measure in ("precision", "recall", "f1"))
        rows.append((name, taken_for, f"{scores['images']:,}", *measures))
    return rows


def _first_layer(result: Result) -> tuple[tuple[str, int, int], str]:
    """Return a picture of the units of largest norm, see-through between them, and a sentence."""
    sheet = first_layer_sheet(result.first_layer, result.dataset.image_shape, _UNITS)
    shown, told = sheet.brightness(), "; ".join(sheet.told()).capitalize()
    if len(shown) == 3:
        shown = np.concatenate([shown, ~np.isnan(shown[:1])])
        return _picture((np.nan_to_num(shown) * 255).round().astype(np.uint8)), told
    places = np.where(np.isnan(shown), 255, np.nan_to_num(shown) * 254)
    return _picture(places.round().astype(np.uint8), _diverging(255)), told


def _diverging(n: int) -> NDArray[np.uint8]:
    """Return ``n`` colours from blue over white to red, (n, 3)."""
    ends = np.array([_BLUE, _WHITE, _RED], dtype=np.float64)
    places = np.linspace(0, 2, n)
    channels = [np.interp(places, [0, 1, 2], ends[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _commands(result: Result) -> dict[str, Any]:
    typed = [str(command) for command in result.config.get("commands", [])]
    program = typed[0].split()[:1] if typed else []
    later = [c for c in typed if " --resume" in c and " --schedule" not in c]
    extended = any(" --epochs" in c or " --max" in c for c in later)
    return {
        "typed": typed,
        "again": shlex.join([*(program or [""]), *result.options]),
        "was_extended": extended and result.settings["schedule"] != "constant",
        "quoted_folder": shlex.quote(str(result.folder.absolute())),
    }
