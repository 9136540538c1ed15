"""A run as one page: ``report.html``, which needs no other file and no network."""

from __future__ import annotations

import base64
import io
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handgrad.data.dataset import Dataset
from handgrad.files import write_atomically
from handgrad.pictures.curves import QUANTITIES, SPLITS, curve, linear_scale, scale_of
from handgrad.pictures.plots import first_layer_sheet
from handgrad.runs.declare import text_of
from handgrad.runs.settings import LOOKING, TrainSettings, changed_settings, options_for
from handgrad.training.metrics import Row

_MISTAKES = 24  # shown
_UNITS = 64  # of the first layer, shown
_POINTS = 300  # of a curve, drawn
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
        settings: of the run.
        config: what is in ``config.json``.
        summary: what is in ``summary.json``.
        rows: those of ``metrics.csv``.
        dataset: whose test images are shown.
        confusions: counts M[target, predicted] on the test images, (K, K).
        predicted: classes of the test images, (N,).
        probabilities: of the classes, for each test image, (N, K).
        first_layer: weights that look at the input, (n_filters, C·h·w).
        invocation: what to type to run the program again.
    """

    folder: Path
    settings: TrainSettings
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    dataset: Dataset
    confusions: NDArray[np.int64]
    predicted: NDArray[Any]
    probabilities: NDArray[Any]
    first_layer: NDArray[Any]
    invocation: str


def write_report(path: Path, result: Result) -> None:
    """Write the page about ``result`` to ``path``."""
    write_atomically(path, render(result).encode("utf-8", "replace"))


def render(result: Result) -> str:
    """Return the page about ``result``, HTML in one file, 600 kB at most for 32×32 images."""
    summary = result.summary
    title = f"{result.dataset.name}: test accuracy {summary['test_accuracy']:.4f}"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += "script-src 'unsafe-inline'"
    viewport = "width=device-width, initial-scale=1"
    head = _h(
        "head",
        _h("meta", charset="utf-8"),
        _h("meta", name="viewport", content=viewport),
        _h("meta", name="color-scheme", content="light dark"),
        _h("meta", {"http-equiv": "Content-Security-Policy"}, content=policy),
        _h("title", f"{title} – {result.folder.name or result.folder}"),
        _h("style", _STYLE),
    )
    written = time.strftime("%Y-%m-%d %H:%M")
    parts = [
        _h("header", _h("h1", title), _h("p", _h("code", str(result.folder.absolute())))),
        _numbers(result),
        _curves(result),
        _confusion_matrix(result),
        _per_class(result),
        _mistakes(result),
        _first_layer(result),
        _settings(result),
        _commands(result),
        _machine(result),
        _h("footer", _h("p", f"Written {written} by handgrad. Everything is in this file.")),
    ]
    page = _h("html", head, _h("body", _h("main", *parts), _h("script", _SCRIPT)), lang="en")
    return f"<!DOCTYPE html>\n{ET.tostring(page, encoding='unicode', method='html')}\n"


def most_confident_mistakes(
    probabilities: NDArray[Any], predicted: NDArray[Any], labels: NDArray[Any]
) -> NDArray[np.int64]:
    """Return the indices of the wrong predictions, the most confident first; of equals the first.

    Args:
        probabilities: (N, K).
        predicted: classes, (N,).
        labels: true classes, (N,).
    """
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")]


def png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """Return a picture as a PNG file.

    Args:
        pixels: (H, W) grey, (H, W, 3) colour, or (H, W) places in the palette.
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


Content = ET.Element | str | None


def _h(tag: str, *content: Content | Mapping[str, str], **attributes: object) -> ET.Element:
    """Return an element. Texts are escaped when it is written.

    Args:
        tag: its name.
        content: elements and texts; None is left out; a mapping has further attributes.
        attributes: ``class_`` is ``class``, ``data_x`` is ``data-x``; None is left out.
    """
    element = ET.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            element.set(name.rstrip("_").replace("_", "-"), _clean(str(value)))
    last: ET.Element | None = None
    for item in content:
        if isinstance(item, str):
            if last is None:
                element.text = (element.text or "") + _clean(item)
            else:
                last.tail = (last.tail or "") + _clean(item)
        elif isinstance(item, ET.Element):
            element.append(item)
            last = item
        elif item is not None:
            for name, value in item.items():
                element.set(name, value)
    return element


def _clean(text: str) -> str:
    """Replace what HTML does not allow even escaped: control characters."""
    return "".join(c if c in "\n\t" or c.isprintable() or ord(c) > 159 else "�" for c in text)


def _section(name: str, heading: str, *content: Content) -> ET.Element:
    return _h("section", _h("h2", heading, id=name), *content, aria_labelledby=name)


def _table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 0
) -> ET.Element:
    """Return a table whose first column heads its rows; the last ``numeric`` ones are numbers.

    Without ``columns`` it has no head of its own.
    """
    n_columns = max(len(row) for row in (columns, *rows))
    styles = [None if i < n_columns - numeric else "number" for i in range(n_columns)]
    heads = [_h("th", c, scope="col", class_=s) for c, s in zip(columns, styles, strict=False)]
    body = (
        _h(
            "tr",
            _h("th", row[0], scope="row", class_=styles[0]),
            *(_h("td", cell, class_=s) for cell, s in zip(row[1:], styles[1:], strict=True)),
        )
        for row in rows
    )
    head = _h("thead", _h("tr", *heads)) if heads else None
    kind = None if numeric else "texts"
    table = _h("table", _h("caption", caption), head, _h("tbody", *body), class_=kind)
    return _scrollable(table, caption)


def _scrollable(table: ET.Element, name: str) -> ET.Element:
    return _h("div", table, class_="wide", tabindex=0, role="region", aria_label=name)


def _picture(content: bytes, alt: str, width: int, height: int) -> ET.Element:
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    return _h("img", src=source, alt=alt, width=width, height=height)


def _numbers(result: Result) -> ET.Element:
    summary, labels = result.summary, result.dataset.test.labels
    right = int((result.predicted == labels).sum())
    best = summary["best_validation_accuracy"]
    kept = "no validation split" if best is None else f"at step {summary['weights_of_step']:,}"
    memory = summary["peak_memory_bytes"]
    facts = [
        ("test accuracy", f"{summary['test_accuracy']:.4f}", f"{right:,} of {len(labels):,} right"),
        ("test loss", f"{summary['test_loss']:.4f}", "cross-entropy, nats"),
        ("best validation accuracy", "–" if best is None else f"{best:.4f}", kept),
        ("time", _duration(summary["seconds"]), "training loop, evaluation included"),
        ("speed", f"{summary['images_per_second']:,.0f}", "training images a second"),
        ("steps", f"{summary['steps']:,}", f"of {result.settings.batch_size:,} images"),
        ("parameters", f"{summary['parameters']:,}", ""),
        ("memory", f"{memory / 2**20:,.0f} MiB" if memory else "–", "at its peak"),
    ]
    tiles = (
        _h("div", _h("dt", name), _h("dd", _h("b", value), _h("small", note)))
        for name, value, note in facts
    )
    return _section("result", "Result", _h("dl", *tiles, class_="facts"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _curves(result: Result) -> ET.Element:
    rows = result.rows
    if not rows:
        return _section("curves", "Curves", _h("p", "There was no evaluation on the way."))
    names = [split for split in SPLITS if any(row.split == split for row in rows)]
    legend = _h(
        "ul",
        *(
            _h(
                "li",
                _swatch(name),
                " train, mean of each interval" if name == "train" else f" {name}",
            )
            for name in names
        ),
        class_="legend",
    )
    every = -(-len(rows) // _TABLE_ROWS)
    steps = sorted({row.step for row in rows})
    kept = {*steps[:: max(1, every)], steps[-1]}
    cells = [
        (
            f"{row.step:,}", f"{row.epoch:.2f}", row.split, f"{row.loss:.4f}",
            f"{row.accuracy:.4f}", f"{row.learning_rate:g}", f"{row.seconds:.1f}",
        )
        for row in rows if row.step in kept
    ]  # fmt: skip
    caption = "The values of the curves"
    if len(kept) < len(steps):
        caption += f": {len(kept)} of {len(steps)} evaluations; metrics.csv has all"
    columns = ("step", "epoch", "split", "loss", "accuracy", "learning rate", "seconds")
    return _section(
        "curves",
        "Curves",
        legend,
        _h("div", *(_chart(result, quantity) for quantity in QUANTITIES), class_="charts"),
        _h("details", _h("summary", "Table of the values"), _table(caption, columns, cells, 4)),
    )


def _swatch(split: str) -> ET.Element:
    line = _h("path", {"d": "M0 5H28"}, class_=f"line {split}")
    return _h("svg", line, {"viewBox": "0 0 28 10"}, width=28, height=10, aria_hidden="true")


_LEFT, _TOP, _RIGHT, _BOTTOM = 48, 10, 458, 264  # of the area of curves, in 480 × 300


def _chart(result: Result, quantity: str) -> ET.Element:
    """Return curves with their axes, and what the page's script needs to tell single values."""
    rows = result.rows
    curves = {split: curve(rows, split, quantity) for split in SPLITS}
    curves = {split: points for split, points in curves.items() if len(points[0])}
    values = np.concatenate([y for _, y in curves.values()]) if curves else np.zeros(1)
    up = scale_of(quantity, values)
    across = linear_scale(np.array([0.0, max(row.step for row in rows) or 1.0]))

    def column(x: Any) -> Any:
        return np.round(_LEFT + across.place(x) * (_RIGHT - _LEFT), 1)

    def line(y: Any) -> Any:
        return np.round(_BOTTOM - up.place(y) * (_BOTTOM - _TOP), 1)

    drawn = []
    for tick in across.ticks:
        drawn += list(_tick(f"M{column(tick)} {_TOP}V{_BOTTOM}", f"{tick:g}", column(tick), 280))
    for tick in up.ticks:
        height = float(line(tick))
        drawn += list(
            _tick(f"M{_LEFT} {height}H{_RIGHT}", f"{tick:g}", _LEFT - 6, height + 4, "end")
        )
    drawn.append(_h("text", "step", x=_RIGHT, y=297, text_anchor="end", class_="axis"))
    best = result.summary["weights_of_step"]
    if best and best < result.summary["steps"]:
        mark = {"d": f"M{column(best)} {_TOP}V{_BOTTOM}"}
        drawn.append(_h("path", _h("title", f"weights kept: step {best}"), mark, class_="kept"))
    for split, (x, y) in curves.items():
        keep = thinned(y, _POINTS)
        points = zip(column(x[keep]), line(y[keep]), strict=True)
        path = "M" + "L".join(f"{a:g} {b:g}" for a, b in points)
        # A single point has no length, but its round cap can be seen.
        drawn.append(
            _h("path", {"d": path + ("h0" if len(keep) == 1 else "")}, class_=f"line {split}")
        )
    drawn.append(_h("path", {"d": f"M0 {_TOP}V{_BOTTOM}"}, class_="rule", visibility="hidden"))
    ends = [f"{split} from {y[0]:.4f} to {y[-1]:.4f}" for split, (_, y) in curves.items()]
    label = f"{quantity} over steps: {'; '.join(ends)}"
    stops = _stops(rows, quantity)
    places = [[float(column(step)), text] for step, text in stops]
    return _h(
        "figure",
        _h("figcaption", quantity),
        _h("svg", *drawn, {"viewBox": "0 0 480 300"}, role="img", aria_label=label),
        _h("input", type="range", min=0, max=max(0, len(stops) - 1), value=len(stops) - 1,
           aria_label=f"evaluation whose {quantity} is told", hidden="hidden"),
        _h("output", stops[-1][1]),
        class_="chart",
        data_stops=json.dumps(places, separators=(",", ":"), ensure_ascii=False),
    )  # fmt: skip


def _tick(path: str, text: str, x: float, y: float, anchor: str = "middle") -> Iterator[ET.Element]:
    yield _h("path", {"d": path}, class_="grid")
    yield _h("text", text, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, class_="axis")


def _stops(rows: Sequence[Row], quantity: str) -> list[tuple[int, str]]:
    """Return steps at which there were evaluations, not too many, and what to say of each."""
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    steps = list(by_step)
    kept = steps[:: -(-len(steps) // _POINTS)]
    if kept[-1] != steps[-1]:
        kept.append(steps[-1])
    found = []
    for step in kept:
        told = ", ".join(f"{row.split} {getattr(row, quantity):.4f}" for row in by_step[step])
        found.append((step, f"step {step:,}, epoch {by_step[step][0].epoch:.2f}: {told}"))
    return found


def thinned(values: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Return the indices of at most about ``most`` values that keep the outline of a curve.

    Of each of ``most / 2`` stretches those are the lowest and the highest, beside the first and
    last of all.
    """
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), most // 2):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    return np.array(sorted(kept))


def _confusion_matrix(result: Result) -> ET.Element:
    names, counts = result.dataset.class_names, result.confusions
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    shades = np.sqrt(share)  # the root brings out the few mistakes of a good network
    heads = [_h("th", _h("span", name), scope="col") for name in names]
    long_names = max(map(len, names)) > 3
    body = []
    for true, name in enumerate(names):
        cells = []
        for predicted, count in enumerate(counts[true].tolist()):
            shade = float(shades[true, predicted])
            kind = (
                "dark light" if shade >= _DARK_CELL else "light" if shade >= _LIGHT_CELL else None
            )
            text = f"{name} taken for {names[predicted]}: {count}, {share[true, predicted]:.1%}"
            style = f"--share:{shade:.3f}" if count else None
            cells.append(
                _h("td", str(count), style=style, title=text, class_=kind if count else "none")
            )
        body.append(_h("tr", _h("th", name, scope="row"), *cells))
    caption = (
        "Numbers of test images: a row is a true class, a column a predicted one; shaded by the "
        "share of the row"
    )
    table = _h(
        "table",
        _h("caption", caption),
        _h("thead", _h("tr", _h("td", "true ↓ predicted →"), *heads)),
        _h("tbody", *body),
        class_="confusion turned" if long_names else "confusion",
    )
    return _section("confusions", "Confusion matrix", _scrollable(table, "Confusion matrix"))


def _per_class(result: Result) -> ET.Element:
    names = result.dataset.class_names
    wrong = result.confusions - np.diag(np.diag(result.confusions))
    rows = []
    for i, name in enumerate(names):
        scores = result.summary["per_class"][name]
        most = int(wrong[i].argmax())
        taken_for = f"{names[most]} ({wrong[i, most]})" if wrong[i, most] else "–"
        rows.append(
            (
                name, taken_for, f"{scores['images']:,}", f"{scores['precision']:.4f}",
                f"{scores['recall']:.4f}", f"{scores['f1']:.4f}",
            )
        )  # fmt: skip
    columns = ("class", "most often taken for", "images", "precision", "recall", "F1")
    caption = "Precision, recall and F1 of each class on the test images"
    return _section("classes", "Classes", _table(caption, columns, rows, 4))


def _mistakes(result: Result) -> ET.Element:
    test, names = result.dataset.test, result.dataset.class_names
    order = most_confident_mistakes(result.probabilities, result.predicted, test.labels)
    if not len(order):
        return _section("mistakes", "Mistakes", _h("p", "No test image is classified wrongly."))
    shown = []
    for i in order[:_MISTAKES].tolist():
        predicted, true = int(result.predicted[i]), int(test.labels[i])
        sure = float(result.probabilities[i, predicted])
        alt = f"test image {i}: {names[true]}, taken for {names[predicted]}"
        pixels = np.ascontiguousarray(test.images[i].transpose(1, 2, 0).squeeze())
        height, width = pixels.shape[:2]
        caption = _h(
            "figcaption",
            _h("b", names[predicted]), f" {sure:.3f}", _h("br"),
            f"is {names[true]} {float(result.probabilities[i, true]):.3f}", _h("br"),
            _h("small", f"test image {i}"),
        )  # fmt: skip
        picture = _picture(png(pixels), alt, width, height)
        shown.append(_h("li", _h("figure", picture, caption)))
    which = f"The {len(shown)} of {len(order):,} mistakes of which the network is surest"
    if len(shown) == len(order):
        which = f"The {len(order)} test images classified wrongly, the surest mistake first"
    text = f"{which}: the predicted class and its probability, then the true one and its."
    return _section("mistakes", "Mistakes", _h("p", text), _h("ul", *shown, class_="images"))


def _first_layer(result: Result) -> ET.Element:
    weight = result.first_layer
    sheet, n_shown = first_layer_sheet(weight, result.dataset.image_shape, _UNITS)
    if sheet.shape[0] == 3:
        content = png(
            np.ascontiguousarray((sheet * 255).round().astype(np.uint8).transpose(1, 2, 0))
        )
        zero = "red, green and blue are the weights of those channels; grey is zero"
    else:
        places = np.where(np.isnan(sheet[0]), 255, np.nan_to_num(sheet[0]) * 254)
        content = png(places.round().astype(np.uint8), _diverging(255))
        zero = "blue is negative, white zero, red positive"
    which = f"The {n_shown} units of largest norm of {len(weight)}" if n_shown < len(weight) else (
        f"All {len(weight)} units"
    )  # fmt: skip
    text = f"{which}, each on its own scale: {zero}."
    height, width = sheet.shape[1:]
    picture = _picture(content, f"Weights of the first layer as images. {text}", width, height)
    return _section("weights", "First layer", _h("p", text), _h("p", picture, class_="sheet"))


def _diverging(n: int) -> NDArray[np.uint8]:
    """Return ``n`` colours from blue over white to red, (n, 3)."""
    ends = np.array([_BLUE, _WHITE, _RED], dtype=np.float64)
    places = np.linspace(0, 2, n)
    channels = [np.interp(places, [0, 1, 2], ends[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _settings(result: Result) -> ET.Element:
    changed = {n: v for n, v in changed_settings(result.settings).items() if n not in LOOKING}
    rest = [(n, text_of(v)) for n, v in asdict(result.settings).items() if n not in changed]
    content: Content = _h("p", "Every setting that decides the result has its default.")
    if changed:
        rows = [(name, *map(text_of, values)) for name, values in changed.items()]
        content = _table("What differs from the defaults", ("setting", "value", "default"), rows)
    others = f"The other {len(rest)} settings"
    folded = _h("details", _h("summary", others), _table(others, ("setting", "value"), rest))
    return _section("settings", "Settings", content, folded)


def _commands(result: Result) -> ET.Element:
    folder = shlex.quote(str(result.folder.absolute()))
    typed = [str(command) for command in result.config.get("commands", [])]
    program = typed[0].split()[0] if typed and typed[0].split() else ""
    again = shlex.join([program, *options_for(result.settings)])
    extended = any(" --epochs" in c or " --max" in c for c in typed if " --resume" in c)
    note = None
    if extended and result.settings.schedule != "constant":
        note = _h(
            "p", "The run was extended on the way: its learning rates were others until then."
        )
    processes = result.config.get("processes", 1)
    team = None
    if isinstance(processes, int) and processes > 1:
        text = f"{processes} processes trained together; start these commands with "
        team = _h("p", text, _h("code", f"torchrun --standalone --nproc-per-node {processes}"), ".")
    return _section(
        "commands",
        "Commands",
        _h("h3", "As typed"),
        *(_h("pre", _h("code", command)) for command in typed),
        _h("h3", "The same run again, all settings in one command"),
        _h("pre", _h("code", again)),
        note,
        _h("h3", "Go on with it"),
        _h("pre", _h("code", f"{result.invocation} --resume {folder} --epochs N")),
        team,
    )


def _machine(result: Result) -> ET.Element:
    config = result.config
    versions = config.get("versions") or {}
    blas = [" ".join(str(part) for part in pool.values()) for pool in config.get("blas") or []]
    rows = [
        ("processor", str(config.get("processor"))),
        ("cores", str(config.get("cores"))),
        ("system", str(config.get("platform"))),
        ("BLAS: name, version, kernels, threads", "; ".join(blas) or "–"),
        ("processes", str(config.get("processes", 1))),
        ("data", f"{result.dataset.name} {config.get('data', '')}"),
        *((name, str(version)) for name, version in versions.items()),
    ]
    return _section("machine", "Machine and versions", _table("What it ran on", (), rows))


_STYLE = """
:root { --page: #fff; --text: #1a1d21; --soft: #5a6069; --line: #d5d9de; --panel: #f5f6f8;
  --train: #0072b2; --validation: #b86e00; --test: #00805b; --heat: 8 81 156; --ink: #000; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171a; --text: #e6e8ea; --soft: #a0a7af; --line: #3a4047; --panel: #1d2125;
    --train: #56b4e9; --validation: #e69f00; --test: #2fc79a; --heat: 120 190 255; --ink: #fff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 0.3rem; }
header p, footer, small, caption, summary { color: var(--soft); }
header p { margin: 0.2rem 0 0; }
code { font: 0.9em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: 0.6rem 0.8rem; border-radius: 4px; margin: 0.3rem 0;
  white-space: pre-wrap; }
summary { cursor: pointer; padding: 0.3rem 0; }
.facts { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0.6rem;
  margin: 0; }
.facts div { background: var(--panel); border-radius: 4px; padding: 0.5rem 0.8rem; }
.facts dt { font-size: 0.85rem; color: var(--soft); }
.facts dd { margin: 0; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts small { font-size: 0.8rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0;
  margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 1rem; }
figure { margin: 0; }
.chart figcaption { font-weight: 600; }
.chart svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
.chart input { width: 100%; margin: 0; accent-color: var(--soft); }
.chart output { display: block; min-height: 1.5em; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.train { stroke: var(--train); }
.validation { stroke: var(--validation); stroke-dasharray: 7 4; }
.test { stroke: var(--test); stroke-dasharray: 1 4; stroke-width: 2.5; }
.grid { stroke: var(--line); fill: none; }
.kept { stroke: var(--soft); stroke-dasharray: 2 3; fill: none; }
.rule { stroke: var(--text); fill: none; }
.axis { fill: var(--soft); font: 13px system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
caption { text-align: left; font-size: 0.9rem; padding-bottom: 0.3rem; }
th, td { padding: 0.2rem 0.7rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 500; }
.texts td { overflow-wrap: anywhere; }
thead th { color: var(--soft); vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
.confusion td, .confusion thead th { text-align: center; padding: 0.25rem 0.4rem; border: 0;
  min-width: 2.2rem; }
.confusion thead td { font-size: 0.8rem; color: var(--soft); vertical-align: bottom; }
.confusion tbody th { border: 0; text-align: right; white-space: nowrap; }
.confusion tbody td { background: rgb(var(--heat) / var(--share, 0)); color: var(--ink); }
.confusion tbody .none { color: var(--soft); }
.confusion tbody .dark { color: #fff; }
.turned thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 0.8rem;
  list-style: none; padding: 0; margin: 0.5rem 0; }
.images figcaption { font-size: 0.85rem; line-height: 1.35; }
.images small { font-size: 0.75rem; }
img { image-rendering: pixelated; }
.images img { width: 96px; height: auto; display: block; border: 1px solid var(--line); }
.sheet img { width: min(100%, 560px); height: auto; }
:focus-visible { outline: 2px solid var(--train); outline-offset: 2px; }
@media screen and (prefers-color-scheme: dark) {
  .confusion tbody .light { color: #000; } }
@media (max-width: 520px) {
  th, td { padding: 0.2rem 0.25rem; } table { font-size: 0.8rem; }
  .confusion { font-size: 0.72rem; }
  .confusion td, .confusion thead th { padding: 0.2rem 0.1rem; min-width: 1.5rem; }
  .confusion thead td { font-size: inherit; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  .images { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); } }
@media print {
  main { max-width: none; padding: 0; } .chart input, .chart output { display: none; }
  figure, tr, li, .facts div, pre { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; } td, .facts div { print-color-adjust: exact; } }
"""

# Tells the values of the evaluation that the pointer, or the slider below a chart, is at; unfolds
# everything for printing.
_SCRIPT = """
for (const chart of document.querySelectorAll(".chart")) {
  const stops = JSON.parse(chart.dataset.stops), svg = chart.querySelector("svg");
  const rule = chart.querySelector(".rule"), output = chart.querySelector("output");
  const slider = chart.querySelector("input");
  const show = (i) => {
    rule.setAttribute("transform", `translate(${stops[i][0]})`);
    rule.setAttribute("visibility", "visible");
    output.textContent = slider.ariaValueText = stops[i][1];
    slider.value = i;
  };
  slider.hidden = stops.length < 2;
  slider.addEventListener("input", () => show(Number(slider.value)));
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * 480 / box.width;
    let best = 0;
    stops.forEach((stop, i) => {
      if (Math.abs(stop[0] - x) < Math.abs(stops[best][0] - x)) best = i;
    });
    show(best);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
}
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => { for (const part of folded) part.open = false; });
"""
