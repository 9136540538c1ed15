"""The page of results: tables from the runs that are finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from handgrad.reproduction.rows import Experiment, Section
from handgrad.reproduction.runs import Result

Results = Mapping[str, Mapping[int, Result]]  # experiment -> seed -> what it gave

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("handgrad.reproduction", ""),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_page(
    sections: Sequence[Section],
    results: Results,
    seeds: Mapping[str, Sequence[int]],
    pictures: str,
    quick: bool,
) -> str:
    """Return the page as Markdown.

    Args:
        sections: what to show, whether it was run or not.
        results: of the finished runs.
        seeds: of each experiment, those that were asked for or are there.
        pictures: folder of the pictures, relative to the page.
        quick: the trainings were shortened.
    """
    finished = [result for runs in results.values() for result in runs.values()]
    dates = sorted({result.cost.date for result in finished if result.cost})
    official = {result.cost.official_data for result in finished if result.cost} - {None}
    rows = [
        [_row(e, results.get(e.name, {}), seeds[e.name]) for e in section.experiments]
        for section in sections
    ]
    return _TEMPLATES.get_template("results.md.j2").render(
        sections=zip(sections, rows, strict=True),
        pictures=pictures,
        quick=quick,
        finished=finished,
        dates=list(dict.fromkeys((*dates[:1], *dates[-1:]))),
        official=list(official),
        **_machines(finished),
    )


def mean_and_spread(values: Sequence[float]) -> str:
    """Return ``mean (lowest–highest)``, or the one number there is."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ({min(values):.4f}–{max(values):.4f})"


def duration(seconds: float) -> str:
    """Return seconds below two minutes, minutes above."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _row(
    experiment: Experiment, runs: Mapping[int, Result], wanted: Sequence[int]
) -> dict[str, Any]:
    """Return what a row's cells say; ``seeds`` is empty where it was not run."""
    ran = [seed for seed in wanted if seed in runs]
    done = [runs[seed] for seed in ran]
    validations = [run.validation for run in done if run.validation is not None]
    seeds = ", ".join(map(str, ran))
    return {
        "experiment": experiment,
        "has_figure": experiment.figure and runs,
        "seed": wanted[0] if len(wanted) == 1 else "S",
        "seeds": seeds if len(ran) in (0, len(wanted)) else f"{seeds} of {len(wanted)}",
        "validation": mean_and_spread(validations) if validations else "",
        "test": _test(done) if done else "",
        "times": _times(done) if done else (),
    }


def _test(done: Sequence[Result]) -> str:
    """Return the test accuracy, and that with test-time augmentation where it was asked for."""
    with_tta = [run.summary["test_accuracy_tta"] for run in done if run.settings.tta]
    test = mean_and_spread([run.test for run in done])
    return f"{test}; {mean_and_spread(with_tta)}" if len(with_tta) == len(done) else test


def _times(done: Sequence[Result]) -> list[str]:
    def mean(values: Sequence[float]) -> str:
        return duration(sum(values) / len(values))

    costs = [run.cost for run in done if run.cost is not None]
    # A command that was killed together with its parent took time that nobody measured.
    least = "≥ " if any(cost.ended < cost.begun for cost in costs) else ""
    cpu = [cost.cpu_seconds for cost in costs if cost.cpu_seconds is not None]
    return [
        mean([run.summary["seconds"] for run in done]),
        least + mean([cost.wall_seconds for cost in costs]) if len(costs) == len(done) else "–",
        least + mean(cpu) if len(cpu) == len(done) else "–",
    ]


def _machines(finished: Sequence[Result]) -> dict[str, Any]:
    """Return on what the runs ran, as they recorded it."""

    def distinct(values: Iterable[Any]) -> str:
        return " and ".join(dict.fromkeys(str(value) for value in values if value))

    configs = [result.config for result in finished]
    versions = [config.get("versions", {}) for config in configs]
    return {
        "processors": distinct(f"{c.get('processor')}, {c.get('cores')} cores" for c in configs),
        "pythons": distinct(version.get("python") for version in versions),
        "numpys": distinct(version.get("numpy") for version in versions),
        "torches": distinct(version.get("torch") for version in versions),
        "precisions": sorted({getattr(r.settings, "precision", "") for r in finished} - {""}),
        "blas": distinct(
            f"{pool.get('name')} {pool.get('version')} for {pool.get('core')} on "
            f"{pool.get('threads')} threads"
            for config in configs
            for pool in config.get("blas", [])[:1]
        ),
    }
