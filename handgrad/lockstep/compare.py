"""One comparison, as its settings ask for it: the engines that take part, and what is printed."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from handgrad.backends.common import build_schedule
from handgrad.console import guarded, requires_torch
from handgrad.data import BatchLoader, Dataset, load_dataset
from handgrad.data.augment import compose
from handgrad.data.preprocess import fit_preprocessing
from handgrad.errors import UserError
from handgrad.lockstep import report
from handgrad.lockstep.cause import find_cause
from handgrad.lockstep.comparison import Comparison, Contestant
from handgrad.lockstep.engines import Array, Engine, GraphEngine, MakeEngine, ModulesEngine
from handgrad.lockstep.subject import CompareSettings, build_learner, build_network
from handgrad.lockstep.user_engine import UserEngine, load_classes, parts_the_loss
from handgrad.runs.folder import data_folder
from handgrad.runs.settings import settings_from_dict
from handgrad.user_code.blame import UserCodeError
from handgrad.user_code.isolated import Guard
from numpy_mlp.anomaly import name_of
from numpy_mlp.modules import CrossEntropyModule

_YOURS = "yours"
_TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


def compare(settings: CompareSettings, guard: Guard | None = None) -> int:
    """Compare the engines, print and write what comes of it, and return an exit status.

    Args:
        settings: of the comparison.
        guard: of the process of its own in which a user's layers are compared.
    """
    with threadpool_limits(settings.threads):
        dataset = load_dataset(
            settings.dataset,
            data_folder(settings),
            validation_size=settings.validation_size,
            validation_images=settings.validation_images,
            seed=settings.seed,
        )
        comparison = _prepare(settings, dataset, guard)
        print(
            f"{dataset.name}: {_network(settings, dataset)}, batches of {settings.batch_size} of "
            f"{len(dataset.train):,} images, {settings.optimizer}, learning rate "
            f"{settings.lr:g}, {settings.dtype}"
        )
        row = report.begin_table(comparison, settings.steps)
        start = time.perf_counter()
        schedule = build_schedule(settings, settings.steps)
        with np.errstate(all="ignore"):
            comparison.run(_batches(settings, dataset), settings.steps, schedule, row)
            for contestant in comparison.contestants:
                contestant.cause = find_cause(comparison, contestant)
        comparison.seconds = time.perf_counter() - start
    for contestant in comparison.contestants:
        print(report.verdict(comparison, contestant))
    report.write(settings.folder, comparison, settings)
    written = settings.folder / "engines.json"
    print(f"{comparison.seconds:.1f} s; written to {written} and .png")
    return 0 if comparison.agrees else 1


def _network(settings: CompareSettings, dataset: Dataset) -> str:
    """Return what the network is called: its name, or the widths and the activation of an MLP."""
    if settings.model != "mlp":
        return settings.model
    widths = [int(np.prod(dataset.image_shape)), *settings.hidden_dims, dataset.n_classes]
    return f"{'-'.join(map(str, widths))}, {settings.activation}"


def compare_isolated(values: dict[str, Any], guard: Guard) -> None:
    """Compare in a process of its own, as settings say, and tell ``guard`` the exit status."""
    settings = settings_from_dict(CompareSettings, values, "the settings")
    guard.tell("ended", status=guarded(blaming(lambda: compare(settings, guard))))


def blaming(call: Callable[[], int]) -> Callable[[], int]:
    """Return ``call``, which says what the user's code did wrong and returns 1 where it does.

    Ctrl-C leaves no checkpoint behind, of which ``guarded`` would speak.
    """

    def main() -> int:
        try:
            return call()
        except UserCodeError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return main


def _prepare(settings: CompareSettings, dataset: Dataset, guard: Guard | None) -> Comparison:
    """Return the comparison of the engines that were asked for."""
    makers = _makers(settings, dataset)
    model = build_network(settings, dataset)
    names = [name_of(*named) for named in zip(model.names, model.layers, strict=True)]
    names.append("the loss (CrossEntropyModule)")
    classes: dict[str, type] = {}
    if guard is not None and (path := settings.users) is not None:
        guard.tell("started")
        guard.running("the import")
        classes = _users_classes(path, [*map(type, model.modules()), CrossEntropyModule])
        guard.running("")
        running = guard.running
        makers[_YOURS] = lambda: UserEngine(
            build_learner(settings, dataset), classes, path, running
        )
    if len(makers) < 2:
        raise UserError(f"--engines {' '.join(makers)}: there is nothing to compare it with")
    reference, *others = makers
    contestants = [Contestant(name, makers[name], makers[name]()) for name in others]
    if classes:
        contestants[-1].classes = classes
        if parts_the_loss(classes):
            contestants[-1].make_parted = lambda: ModulesEngine(
                build_learner(settings, dataset), parted=True
            )
    return Comparison(
        reference,
        makers[reference],
        contestants,
        names,
        settings.tolerance or _TOLERANCE[settings.dtype],
        float(np.finfo(settings.dtype).eps),
    )


def _makers(settings: CompareSettings, dataset: Dataset) -> dict[str, MakeEngine]:
    """Return what makes each engine that was asked for and is there."""

    def graph() -> Engine:
        return GraphEngine(build_learner(dataclasses.replace(settings, engine="graph"), dataset))

    makers: dict[str, MakeEngine] = {
        "modules": lambda: ModulesEngine(build_learner(settings, dataset)),
        "graph": graph,
    }
    if "pytorch" in settings.engines:
        try:
            requires_torch()
        except UserError as error:
            print(f"pytorch is left out: {error}")
        else:
            from handgrad.lockstep.torch_engine import make_torch_engine

            makers["pytorch"] = lambda: make_torch_engine(
                settings, dataset, build_network(settings, dataset)
            )
    return {name: makers[name] for name in settings.engines if name in makers}


def _users_classes(path: Path, ours: Sequence[type]) -> dict[str, type]:
    """Import the user's layers, and say which of them this network has."""
    classes = load_classes(path)
    used = [name for name in classes if any(name == kind.__name__ for kind in ours)]
    if not used:
        raise UserError(
            f"--modules {path} has {', '.join(classes)}, none of which this network has; "
            f"choose another --activation or --model"
        )
    print(f"from {path}: {', '.join(used)}")
    return classes


def _batches(settings: CompareSettings, dataset: Dataset) -> Iterator[tuple[Array, Array]]:
    preprocessing = fit_preprocessing(settings.preprocess, dataset.train.images, settings.dtype)
    loader = BatchLoader(
        dataset.train,
        settings.batch_size,
        preprocessing,
        shuffle=True,
        augmentation=compose(settings.augment),
        seed=settings.seed,
    )
    while True:
        for images, labels in loader:
            flat = settings.model == "mlp"
            yield images.reshape(len(images), -1) if flat else images, labels
