"""Times, and how they are told: a table, a JSON file and a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.environment import describe_environment
from handgrad.files import write_atomically


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the quartiles that show the spread."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Timing:
        """Return what ``seconds``, one for each call, come to."""
        return cls(*(float(q) for q in np.quantile(list(seconds), (0.5, 0.25, 0.75))))


@dataclass
class Report:
    """What a subject of the benchmark found.

    Attributes:
        name: of the subject.
        seconds: workload -> contender -> its time.
        reference: the contenders that are 1.00; where there are several, the fastest of them.
        lines: said below the table.
        facts: further numbers, for the JSON file.
        markdown: tables for a page, written to a file of their own if there are any.
    """

    name: str
    seconds: dict[str, dict[str, Timing]]
    reference: tuple[str, ...]
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""

    def ratios(self, workload: str) -> dict[str, float]:
        """Return the median of each contender, relative to the reference's."""
        timings = self.seconds[workload]
        known = [timings[name].median for name in self.reference if name in timings]
        one = min(known) if known else next(iter(timings.values())).median
        return {name: timing.median / one for name, timing in timings.items()}

    def print(self) -> None:
        """Print the table and the lines."""
        names = [name for timings in self.seconds.values() for name in timings]
        left, middle = max(map(len, self.seconds)), max(map(len, names))
        print(f"{'workload':<{left}}  {'':<{middle}} {'median':>11} {'quartiles':>24} {'ratio':>6}")
        for workload, timings in self.seconds.items():
            ratios = self.ratios(workload)
            for name, t in timings.items():
                print(
                    f"{workload:<{left}}  {name:<{middle}} {1e3 * t.median:>8.3f} ms "
                    f"{1e3 * t.lower:>9.3f} to {1e3 * t.upper:>9.3f} ms {ratios[name]:>5.2f}"
                )
        faster = ", whichever is faster" if len(self.reference) > 1 else ""
        print(f"1.00 is {' or '.join(self.reference)}{faster}")
        for line in self.lines:
            print(line)

    def write(self, out: Path) -> None:
        """Write ``<name>.json`` and ``<name>.png`` into the folder ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "benchmark": self.name,
            "seconds": {w: {c: vars(t) for c, t in ts.items()} for w, ts in self.seconds.items()},
            "ratios": {workload: self.ratios(workload) for workload in self.seconds},
            **self.facts,
            **describe_environment(),
        }
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(out / f"{self.name}.json", text.encode())
        if self.markdown:
            write_atomically(out / f"{self.name}.md", self.markdown.encode())
        from handgrad.pictures.figures import default_style  # Matplotlib takes a while to import

        with default_style():
            self._draw(out / f"{self.name}.png")

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        from handgrad.pictures.figures import BLUE, save

        heights = [len(timings) for timings in self.seconds.values()]
        figure = Figure(figsize=(8, 0.9 * len(heights) + 0.28 * sum(heights)), layout="constrained")
        rows = figure.subplots(len(heights), squeeze=False, height_ratios=heights).ravel()
        for axes, (workload, timings) in zip(rows, self.seconds.items(), strict=True):
            medians = np.array([1e3 * t.median for t in timings.values()])
            spread = [[t.median - t.lower, t.upper - t.median] for t in timings.values()]
            colors = ["#999999" if name in self.reference else BLUE for name in timings]
            bars = axes.barh(
                list(timings), medians, xerr=1e3 * np.array(spread).T, color=colors, ecolor="black"
            )
            axes.bar_label(bars, [f" {r:.2f}" for r in self.ratios(workload).values()], fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.tick_params(labelsize=8)
            axes.set_title(workload, fontsize=10, loc="left")
        rows[-1].set_xlabel(
            "milliseconds, median and quartiles; the number is the ratio to the reference (grey)",
            fontsize=8,
        )
        save(path, figure)


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Return the time of each call, all of them in turn ``repeats`` times, in a turning order.

    A machine that slows down, slows all of them down; and none is always measured right after
    the same other one, whose leftovers in the caches and idle threads it would find.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for names in turns(list(calls), repeats):
        for name in names:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(values) for name, values in seconds.items()}


def turns(names: list[str], rounds: int) -> Iterable[list[str]]:
    """Yield the order of each round: every name once, another one first each time."""
    for number in range(rounds):
        turn = number % len(names)
        yield names[turn:] + names[:turn]
