"""Train one network on several engines in lockstep, and name the first layer that differs.

The hand-written modules, the computation graph and PyTorch begin with the same weights and see the
same batches; after each step the losses and all parameters are compared. --modules puts a user's
modules beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from handgrad.backends.mlp_numpy import PRESETS, NumpyMLPSettings, build_learner, build_mlp
from handgrad.console import guarded, requires_torch
from handgrad.data import BatchLoader, Dataset, load_dataset
from handgrad.data.augment import compose
from handgrad.data.preprocess import fit_preprocessing
from handgrad.errors import UserError
from handgrad.lockstep import report
from handgrad.lockstep.comparison import Comparison, Contestant
from handgrad.lockstep.engines import Array, Engine, GraphEngine, MakeEngine, ModulesEngine
from handgrad.lockstep.user_engine import UserEngine, load_classes, parts_the_loss
from handgrad.runs.backend import build_schedule
from handgrad.runs.command_line import parse_command_line
from handgrad.runs.declare import setting
from handgrad.runs.folder import data_folder
from handgrad.user_code.blame import UserCodeError
from handgrad.user_code.isolated import Guard, run_guarded
from numpy_mlp.anomaly import name_of

_ENGINES = ("modules", "graph", "pytorch")
_YOURS = "yours"
_TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
# Masks of dropout are drawn from generators of each engine's own.
_PRESETS = {n: preset for n, preset in PRESETS.items() if "--dropout" not in preset.options}


@dataclass(frozen=True)
class CompareSettings(NumpyMLPSettings):
    """Settings of the comparison."""

    not_offered: ClassVar[frozenset[str]] = frozenset(
        {"epochs", "max_steps", "eval_every", "checkpoint_every", "eval_splits", "engine"}
        | {"target_accuracy", "detect_anomaly", "quiet", "dropout", "input_dropout", "resume"}
        | {"live", "report"}
    )
    dtype: str = setting("float64", "precision", choices=("float32", "float64"))
    steps: int = setting(100, "steps in lockstep", least=1)
    engines: tuple[str, ...] = setting(
        _ENGINES, "which; the first is what the others are compared with", choices=_ENGINES
    )
    modules: str | None = setting(
        None, "a Python file with layers of your own, which take the place of ours by their names"
    )
    tolerance: float | None = setting(
        None, "largest absolute difference (default: 1e-10; float32: 1e-4)", above=0
    )
    time_limit: float = setting(
        300.0, "seconds for the comparison, with --modules", above=0, most=10**6
    )
    out: str | None = setting("runs/compare-engines", "folder for engines.json and engines.png")


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
            yield images.reshape(len(images), -1), labels


def _makers(settings: CompareSettings, dataset: Dataset) -> dict[str, MakeEngine]:
    """Return what makes each engine that was asked for and is there."""

    def numpy(kind: Callable[[Any], Engine], engine: str) -> MakeEngine:
        mine = dataclasses.replace(settings, engine=engine)
        return lambda: kind(build_learner(mine, dataset))

    makers: dict[str, MakeEngine] = {}
    for name in dict.fromkeys(settings.engines):
        if name == "pytorch":
            try:
                requires_torch()
            except UserError as error:
                print(f"pytorch is left out: {error}")
                continue
            import torch

            from handgrad.lockstep.torch_engine import make_torch_engine

            if settings.threads is not None:
                torch.set_num_threads(settings.threads)
            makers[name] = functools.partial(make_torch_engine, settings, dataset)
        else:
            makers[name] = numpy(ModulesEngine if name == "modules" else GraphEngine, name)
    return makers


def _compare(settings: CompareSettings, guard: Guard | None) -> int:
    dataset = load_dataset(
        settings.dataset,
        data_folder(settings),
        validation_size=settings.validation_size,
        validation_images=settings.validation_images,
        seed=settings.seed,
    )
    makers = _makers(settings, dataset)
    model = build_mlp(settings, dataset.image_shape, dataset.n_classes, settings.dtype)
    names = [name_of(i, layer) for i, layer in enumerate(model.layers)]
    names.append("the loss (CrossEntropyModule)")
    classes: dict[str, type] = {}
    if settings.modules is not None:
        path = Path(settings.modules).expanduser()
        if guard is not None:
            guard.start()
        classes = load_classes(path)
        used = [name for name in classes if any(f"({name})" in layer for layer in names)]
        if not used:
            raise UserError(
                f"--modules {path} has {', '.join(classes)}, none of which this network has; "
                f"choose another --activation"
            )
        print(f"from {path}: {', '.join(used)}")
        running = guard.running if guard is not None else lambda what: None
        makers[_YOURS] = lambda: UserEngine(
            build_learner(settings, dataset), classes, path, running
        )
    if len(makers) < 2:
        raise UserError(f"--engines {' '.join(makers)}: there is nothing to compare it with")
    reference, *others = makers

    def make_parted() -> Engine:
        return ModulesEngine(build_learner(settings, dataset), parted=True)

    comparison = Comparison(
        reference,
        makers[reference],
        [
            Contestant(name, makers[name], makers[name]())
            if name != _YOURS
            else Contestant(
                name,
                makers[name],
                makers[name](),
                classes,
                make_parted if parts_the_loss(classes) else None,
            )
            for name in others
        ],
        names,
        settings.tolerance or _TOLERANCE[settings.dtype],
        float(np.finfo(settings.dtype).eps),
    )
    widths = [int(np.prod(dataset.image_shape)), *settings.hidden_dims, dataset.n_classes]
    print(
        f"{dataset.name}: {'-'.join(map(str, widths))}, {settings.activation}, batches of "
        f"{settings.batch_size} of {len(dataset.train):,} images, {settings.optimizer}, learning "
        f"rate {settings.lr:g}, {settings.dtype}"
    )
    table = report.Table(comparison, settings.steps)
    table.head()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        comparison.run(
            _batches(settings, dataset),
            settings.steps,
            build_schedule(settings, settings.steps),
            table.row,
        )
    for contestant in comparison.contestants:
        print(report.verdict(comparison, contestant))
    out = _out(settings)
    report.write(out, comparison, settings)
    print(f"{comparison.seconds:.1f} s; written to {out / 'engines.json'} and .png")
    return 0 if comparison.agrees else 1


def _out(settings: CompareSettings) -> Path:
    return Path(settings.out or "runs/compare-engines")


def _limited(settings: CompareSettings, guard: Guard | None = None) -> int:
    with threadpool_limits(settings.threads):
        return _compare(settings, guard)


def _blaming(call: Callable[[], int]) -> Callable[[], int]:
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


def _in_child(settings: CompareSettings, guard: Guard) -> int:
    return guarded(_blaming(lambda: _limited(settings, guard)))


def _main(argv: Sequence[str] | None) -> int:
    command = parse_command_line(CompareSettings, _PRESETS, __doc__ or "", "compare-engines", argv)
    settings = command.settings
    report.check_out(_out(settings))
    if settings.modules is None:
        return _limited(settings)
    if "modules" not in settings.engines:
        raise UserError("--modules is compared with our modules: add modules to --engines")
    path = Path(settings.modules).expanduser()
    if not path.exists():
        raise UserError(f"--modules {path} does not exist; give a Python file")
    first = ("modules", *(name for name in settings.engines if name != "modules"))
    settings = dataclasses.replace(settings, engines=first)
    return run_guarded(_in_child, settings, path, settings.time_limit)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 where all agree, 1 where one differs."""
    return guarded(_blaming(lambda: _main(argv)))


if __name__ == "__main__":
    sys.exit(main())
