"""The page about a run: well-formed, whole in itself, and true; in a browser where there is one."""

from __future__ import annotations

import base64
import html
import html.parser
import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handgrad import load_run
from handgrad.backends.command import train_mlp_numpy as main
from handgrad.data import load_dataset
from handgrad.data.dataset import Dataset, Split
from handgrad.pictures import charts
from handgrad.pictures.charts import thinned
from handgrad.pictures.page import Result, png, render
from handgrad.training.evaluation import surest_mistakes
from handgrad.training.metrics import Row, count_confusions

OPTIONS = "--max-steps 60 --eval-every 20 --hidden-dims 8 --report --threads 1 --quiet"
VOID = {"meta", "img", "br", "input"}
NASTY = ("<b>&\"cat'", "</script><script>alert(1)</script>", "ü 猫\x07")


class Page(html.parser.HTMLParser):
    """Reads a page, and complains of what browsers would forgive."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.open[-3:])

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def _assert_good(text: str) -> Page:
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    page = Page(text)
    by_tag: dict[str, list[dict[str, str | None]]] = {}
    for tag, attributes in page.tags:
        by_tag.setdefault(tag, []).append(attributes)
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value is not None and value.startswith("data:"), (tag, value)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not by_tag.keys() & {"link", "iframe", "object"}
    assert all(image["alt"] and image["width"] and image["height"] for image in by_tag["img"])
    assert all(head.get("scope") in ("row", "col") for head in by_tag["th"])
    assert len(by_tag["caption"]) == len(by_tag["table"])
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in by_tag["section"]} == set(ids)
    for picture in by_tag.get("svg", []):
        assert picture.get("role") == "img" or picture.get("aria-hidden")
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run & <co>"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
        assert main([*OPTIONS.split(), "--out", str(folder)]) == 0
    return folder


def test_the_page_of_a_run(run: Path) -> None:
    text = (run / "report.html").read_text()
    page = _assert_good(text)
    summary = json.loads((run / "summary.json").read_text())
    words = " ".join(page.text)
    for told in (
        f"test accuracy {summary['test_accuracy']:.4f}",
        f"{summary['test_loss']:.4f}",
        f"{summary['parameters']:,}",
        "hidden_dims",
        str(run),
        f"train-mlp-numpy {OPTIONS} --out",
        "train-mlp-numpy --max-steps 60 --eval-every 20 --threads 1 --hidden-dims 8",
        f"--resume '{run}' --epochs N",
    ):
        assert told in words, told
    assert len(text) < 600_000


def test_the_mistakes_are_the_networks(run: Path) -> None:
    trained = load_run(run)
    names = trained.class_names
    test = load_dataset("digits").test
    p = trained.predict_proba(test.images)
    predicted = p.argmax(axis=1)
    wrong = np.flatnonzero(predicted != test.labels)
    i = wrong[p[wrong].max(axis=1).argmax()]
    page = Page((run / "report.html").read_text())
    alts = [
        a["alt"] or "" for tag, a in page.tags if tag == "img" and "test image" in (a["alt"] or "")
    ]
    assert alts[0] == f"test image {i}: {names[test.labels[i]]}, taken for {names[predicted[i]]}"
    assert len(alts) == 24 and f" {p[i].max():.3f}" in page.text


def test_a_finished_run_gets_its_page_later(tmp_path: Path, run: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "copy")
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
        monkeypatch.setattr("numpy_mlp.learner.NumpyLearner.train_step", None)
        assert main(["--resume", str(folder), "--no-report", "--quiet"]) == 0
        assert not (folder / "report.html").exists()
        assert main(["--resume", str(folder), "--report", "--quiet"]) == 0
    after = (folder / "report.html").read_text()
    assert re.findall('data:image/png[^"]*', after) == re.findall('data:image/png[^"]*', before)
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def _result(**changes: Any) -> Result:
    rng = np.random.default_rng(0)
    shape, n, k = changes.pop("shape", (3, 32, 32)), changes.pop("n", 60), len(NASTY)
    images, labels = rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, k, n)
    split = Split(images, labels)
    p = rng.dirichlet(np.ones(k), n)
    predicted = changes.pop("predicted", p.argmax(axis=1))
    if isinstance(predicted, str):
        predicted = labels
    scores = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "images": 20}
    summary = {
        "test_accuracy": 0.5, "test_loss": 1.0, "best_validation_accuracy": None, "steps": 10,
        "weights_of_step": 10, "seconds": 3700.0, "images_per_second": 10.0, "parameters": 5,
        "peak_memory_bytes": None, "per_class": dict.fromkeys(NASTY, scores),
    }  # fmt: skip
    values: dict[str, Any] = {
        "folder": Path("runs/<&\"'>"),
        "settings": {
            "data_dir": "<&>",
            "dataset": "mnist",
            "batch_size": "128",
            "schedule": "step",
        },
        "defaults": {"data_dir": "none", "dataset": "digits"},
        "options": ["--dataset", "mnist"],
        "config": {"commands": ["train-mlp-numpy --out '</pre>&amp;'"], "processes": 2},
        "summary": summary,
        "rows": [
            Row(s, s / 5, n, 1 / (s + 1), 0.5, 0.1, 1.0)
            for s in range(9)
            for n in ("train", "test")
        ],
        "dataset": Dataset("<digits>", split, split, split, NASTY),
        "confusions": count_confusions(predicted, labels, k),
        "predicted": predicted,
        "mistakes": surest_mistakes(p[predicted != labels], predicted, labels),
        "first_layer": rng.standard_normal((100, int(np.prod(shape)))),
        "invocation": "train",
        **changes,
    }
    return Result(**values)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": (1, 28, 28)},
        {"predicted": "all right"},
        {"rows": []},
        {"rows": [Row(0, 0.0, "validation", 2.0, 0.0, 0.1, 0.1)]},
        {"rows": [Row(s, s / 9, "test", 1.0 / (s + 1), 1.0, 0.1, s) for s in range(20_000)]},
        {"config": {}},
        {"first_layer": np.zeros((4, 27))},
        {"first_layer": np.full((4, 27), np.nan)},
        {"first_layer": np.array([[np.inf] * 784, [1.0] * 784]), "shape": (1, 28, 28)},
        {"rows": [Row(s, 0.0, "test", (-1) ** s * 1e308, 0.5, 0.1, 1.0) for s in range(3)]},
    ],
    ids=[
        "colour",
        "grey",
        "no mistake",
        "no rows",
        "one row",
        "many rows",
        "no config",
        "3×3",
        "NaN",
        "infinite",
        "1e308",
    ],
)
def test_whatever_the_run_was_like(changes: dict[str, Any]) -> None:
    text = render(_result(**changes))
    page = _assert_good(text)
    assert len(text.encode()) < 600_000
    assert "<b>&\"cat'" in "".join(page.text) and "alert(1)" not in page.open
    assert text.count("<script>") == 1
    assert "\x07" not in text


def test_axes_are_named_and_can_be_switched() -> None:
    text = render(_result())
    page = _assert_good(text)
    radios = [a for tag, a in page.tags if tag == "input" and a.get("type") == "radio"]
    assert [(r["name"], r["value"], "checked" in r) for r in radios] == [
        ("scale of loss", "linear", False),
        ("scale of loss", "logarithmic", True),
        ("scale of accuracy", "linear", True),
        ("scale of accuracy", "logarithmic", False),
    ]
    views = [a["class"] for tag, a in page.tags if tag == "g"]
    assert views == ["linear other", "logarithmic", "linear", "logarithmic other"]
    for label in ("cross-entropy loss (nats)", "accuracy", "accuracy, logarithmic in the error"):
        assert f'class="axis">{label}</text>' in text
    assert text.count('class="axis">step</text>') == 2
    # A loss without a logarithm has one scale only, and no switch.
    rows = [Row(s, s, "test", -1.0 - s, 1.0, 0.1, 1.0) for s in range(3)]
    assert "scale of loss" not in render(_result(rows=rows))


def test_no_curve_lies_on_the_frame() -> None:
    rows = [Row(s, s, "test", float(s), s / 8, 0.1, 1.0) for s in range(9)]
    left, top, right, bottom = charts._AREA
    for path in re.findall(r'<path d="M([^"]*)" class="line test"', render(_result(rows=rows)))[1:]:
        for point in path.split("L"):
            x, y = map(float, point.split())
            assert left + 5 < x < right - 5 and top + 5 < y < bottom - 5


def test_the_head_names_network_and_date() -> None:
    settings = {"hidden_dims": "100 50", "activation": "relu", "batch_norm": "no", "schedule": "x"}
    text = render(_result(settings={**settings, "batch_size": "1"}, defaults={}))
    head = text[text.index("<header>") : text.index("</header>")]
    assert "MLP 3072–100–50–3, relu, 5 parameters" in head
    assert re.search(r"written \d{4}-\d\d-\d\d \d\d:\d\d", head)
    model = render(
        _result(settings={"model": "vgg", "schedule": "x", "batch_size": "1"}, defaults={})
    )
    assert "vgg, 5 parameters" in model


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_white_in_the_dark(channels: int) -> None:
    text = render(_result(shape=(channels, 8, 8)))
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"(background|border)[^;{}]*(#fff|white)", style)
    assert all(
        "--page: #fff" not in rule for rule in re.findall(r"dark\) \{(.*?)\n", style, re.DOTALL)
    )
    sheet = base64.b64decode(re.findall('data:image/png;base64,([^"]*)', text)[-1])
    opaque = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGBA"))[..., 3]
    assert (opaque[0] == 0).all() and (opaque[:, 0] == 0).all() and (opaque[1:9, 1:9] == 255).all()


def test_the_largest_page_is_small_enough() -> None:
    assert (
        len(render(_result(n=2000, first_layer=np.random.default_rng(1).normal(size=(500, 3072)))))
        < 600_000
    )


def _decode(content: bytes) -> tuple[tuple[int, ...], dict[bytes, bytes]]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        name, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", content, at + 8 + size) == (zlib.crc32(name + body),)
        chunks[name], at = body, at + 12 + size
    return struct.unpack(">IIBB", chunks[b"IHDR"][:10]), chunks


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)], ids=str)
def test_png_is_read_back(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    from matplotlib.image import imread

    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels))
    np.testing.assert_array_equal((imread(tmp_path / "a.png") * 255).round(), pixels)
    header, _ = _decode(png(pixels))
    assert header == (7, 5, 8, 2 if len(shape) == 3 else 0)


def test_png_with_a_palette(tmp_path: Path) -> None:
    from matplotlib.image import imread

    palette = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    (tmp_path / "a.png").write_bytes(png(np.array([[0, 1, 2]], np.uint8), palette))
    image = (imread(tmp_path / "a.png") * 255).round()
    assert image[0, :2].tolist() == [[255, 0, 0, 255], [0, 0, 255, 255]]
    assert image[0, 2, 3] == 0, "see-through"


def test_thinned_keeps_the_outline(rng: np.random.Generator) -> None:
    values = rng.standard_normal(10_000)
    values[[1234, 5678]] = 50, -50
    kept = thinned(values, 300)
    assert {0, 1234, 5678, 9999} <= set(kept.tolist()) and len(kept) <= 302
    assert (np.diff(kept) > 0).all()
    assert thinned(values[:5], 300).tolist() == [0, 1, 2, 3, 4]


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return WCAG's contrast ratio of two colours."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_can_be_told_apart(dark: bool) -> None:
    from handgrad.pictures import page as report

    sheets = re.findall(r":root \{(.*?)\}", render(_result()), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): ([^;]+);", sheets[dark]))

    def colour(name: str) -> tuple[float, ...]:
        value = colours[name]
        if not value.startswith("#"):
            return tuple(map(float, value.split()))
        digits = value[1:] if len(value) == 7 else "".join(2 * c for c in value[1:])
        return tuple(int(digits[i : i + 2], 16) for i in (0, 2, 4))

    page, panel = colour("page"), colour("panel")
    for ground in (page, panel):
        assert _contrast(colour("text"), ground) > 7 and _contrast(colour("soft"), ground) > 4.5
    for split in ("train", "validation", "test"):
        assert _contrast(colour(split), page) > 3
    for share in np.linspace(0, 1, 101):  # the confusion matrix
        cell = tuple(share * h + (1 - share) * p for h, p in zip(colour("heat"), page, strict=True))
        if dark:
            text = (0.0, 0.0, 0.0) if share >= report._LIGHT_CELL else colour("ink")
        else:
            text = (255.0, 255.0, 255.0) if share >= report._DARK_CELL else colour("ink")
        assert _contrast(text, cell) > 4.5, share


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# What a reader does: looks at the middle of the first chart, then moves the slider of the second.
READER = """<script>
addEventListener("load", () => {
  const [loss, accuracy] = document.querySelectorAll(".chart");
  const box = loss.querySelector("svg").getBoundingClientRect();
  const place = {clientX: box.left + 1, clientY: box.top + 9};
  loss.querySelector("svg").dispatchEvent(new PointerEvent("pointermove", place));
  const slider = accuracy.querySelector("[type=range]");
  slider.value = 1;
  slider.dispatchEvent(new Event("input"));
  const broken = [...document.images].filter((image) => !image.naturalWidth).length;
  const told = [loss, accuracy].map((chart) => chart.querySelector("output").textContent);
  const wide = document.documentElement.scrollWidth > innerWidth;
  const shown = () => [...accuracy.querySelectorAll("g")]
    .filter((view) => getComputedStyle(view).display !== "none").map((view) => view.classList[0]);
  const scales = [shown()];
  accuracy.querySelector("[value=logarithmic]").click();
  scales.push(shown());
  document.body.dataset.seen = JSON.stringify({broken, told, wide, scales, hidden: slider.hidden});
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("width", [500, 1200])
def test_in_a_browser(tmp_path: Path, run: Path, width: int) -> None:
    text = (run / "report.html").read_text()
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{READER}</body>"))
    result = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "CONSOLE" not in result.stderr, result.stderr
    found = re.search(r'data-seen="([^"]*)"', result.stdout)
    assert found, result.stdout[-500:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["broken"] == 0 and not seen["wide"] and not seen["hidden"]
    assert seen["scales"] == [["linear"], ["logarithmic"]]
    loss, accuracy = seen["told"]
    assert loss.startswith("step 0, epoch 0.00: validation 2.")
    assert accuracy.startswith("step 20, ") and ": train 0." in accuracy
