"""The page of results: tables from the runs that are finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handgrad.backends.torch_settings import TorchSettings
from handgrad.reproduction.rows import Experiment, Section
from handgrad.reproduction.runs import Result

Results = Mapping[str, Mapping[int, Result]]  # experiment -> seed -> what it gave

_INTRO = """\
# The results of the course reports, again

Every row is a command that anyone can run; the accuracies are means over the seeds, in brackets the
lowest and the highest. `DATA` is the folder with the data, `S` takes the place of each seed.
Times are means of one run: of the training loop with its evaluations, of the whole command by the
clock, and of the processor, all cores together, which other work on the machine touches least."""


def write_page(
    sections: Sequence[Section],
    results: Results,
    seeds: Callable[[Experiment], Sequence[int]],
    pictures: str,
    quick: bool,
) -> str:
    """Return the page as Markdown.

    Args:
        sections: what to show, whether it was run or not.
        results: of the finished runs.
        seeds: of an experiment, those that were asked for or are there.
        pictures: folder of the pictures, relative to the page.
        quick: the trainings were shortened.
    """
    finished = [result for runs in results.values() for result in runs.values()]
    command = "reproduce --quick --data-dir DATA" if quick else "reproduce --data-dir DATA"
    parts = [_INTRO, f"Written by `{command}`{_ran_on(finished)}"]
    if quick:
        parts.append(
            "**Shortened trainings**, of some seconds each: they show that every command works, "
            "and their accuracies say nothing."
        )
    parts += _about_data(finished)
    if any(results.values()):
        parts.append(f"![Reported accuracies and ours]({pictures}/overview.png)")
    for section in sections:
        parts += [f"## {section.title}", section.about]
        parts.append(_table(section, results, seeds, quick))
        parts += [section.notes] if section.notes else []
        parts += [
            f"![{experiment.name}: loss and accuracy]({pictures}/{experiment.name}.png)"
            for experiment in section.experiments
            if experiment.figure and results.get(experiment.name)
        ]
    return "\n\n".join(parts) + "\n"


def mean_and_spread(values: Sequence[float]) -> str:
    """Return ``mean (lowest–highest)``, or the one number there is."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ({min(values):.4f}–{max(values):.4f})"


def duration(seconds: float) -> str:
    """Return seconds below two minutes, minutes above."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _table(
    section: Section,
    results: Results,
    seeds: Callable[[Experiment], Sequence[int]],
    quick: bool,
) -> str:
    validated = any(
        result.validation is not None
        for experiment in section.experiments
        for result in results.get(experiment.name, {}).values()
    )
    heads = ["row", "command", "reported"] + ["validation"] * validated
    heads += ["test", "seeds", "training", "clock", "processor"]
    lines = [heads, ["---"] * len(heads)]
    for experiment in section.experiments:
        runs = results.get(experiment.name, {})
        wanted = seeds(experiment)
        seed = f"{wanted[0]}" if len(wanted) == 1 else "S"
        shortened = f" {experiment.quick}" if quick else ""
        cells = [
            f"`{experiment.name}`" + (", shortened" if quick else ""),
            f"`{experiment.command}{shortened} --data-dir DATA --seed {seed}`",
            experiment.said,
        ]
        done = [runs[seed] for seed in wanted if seed in runs]
        if done:
            validations = [run.validation for run in done if run.validation is not None]
            if validated:
                cells.append(mean_and_spread(validations) if validations else "–")
            cells.append(mean_and_spread([run.test for run in done]))
            ran = ", ".join(str(seed) for seed in wanted if seed in runs)
            cells.append(ran if len(done) == len(wanted) else f"{ran} of {len(wanted)}")
            cells += _times(done)
        else:
            cells += ["not run", *[""] * (len(heads) - 4)]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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


def _ran_on(finished: Sequence[Result]) -> str:
    """Return on what the runs ran, as they recorded it, and when."""
    if not finished:
        return "; nothing has been run yet."

    def distinct(values: Sequence[Any]) -> str:
        return " and ".join(dict.fromkeys(str(value) for value in values if value))

    configs = [result.config for result in finished]
    versions = [config.get("versions", {}) for config in configs]
    blas = [
        f"{pool.get('name')} {pool.get('version')} for {pool.get('core')} on {pool.get('threads')} "
        "threads"
        for config in configs
        for pool in config.get("blas", [])[:1]
    ]
    facts = [
        distinct([f"{config.get('processor')}, {config.get('cores')} cores" for config in configs]),
        f"Python {distinct([version.get('python') for version in versions])}",
        f"NumPy {distinct([version.get('numpy') for version in versions])}"
        + (f" with {distinct(blas)}" if blas else ""),
    ]
    if torch := distinct([version.get("torch") for version in versions]):
        settings = [r.settings for r in finished if isinstance(r.settings, TorchSettings)]
        precisions = sorted({s.precision for s in settings})
        facts.append(f"PyTorch {torch}, in {' or '.join(precisions)} as the command measured")
    dates = sorted({result.cost.date for result in finished if result.cost})
    when = f" on {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    return f"{when}: {'; '.join(facts)}."


def _about_data(finished: Sequence[Result]) -> list[str]:
    kinds = {result.cost.official_data for result in finished if result.cost} - {None}
    if not kinds:
        return []
    if kinds == {True}:
        return ["CIFAR-10 is the official files, by their checksums."]
    which = "Some runs had CIFAR-10 files that" if True in kinds else "The CIFAR-10 files"
    return [
        f"{which} are not the official ones: their MD5 checksums differ. The pixels of such a copy "
        "may differ a little, as after storage in JPEG, and so may the accuracies; those of the "
        "official files remain to be seen."
    ]
