"""What every training can be told, whatever it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from handgrad.data.augment import AUGMENTATIONS
from handgrad.data.dataset import DATASETS, VALIDATION_IMAGES
from handgrad.data.preprocess import PREPROCESSING
from handgrad.errors import UserError
from handgrad.runs.declare import check_bounds, check_types, option_of, setting, text_of
from handgrad.seeding import LARGEST_SEED

SettingsT = TypeVar("SettingsT", bound="TrainSettings")

# Where a dataset needs another default: the digits are too few for ten passes to be enough.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {"digits": {"batch_size": 32, "epochs": 30}}
_ADAM_LR = 1e-3
MUON_LR, _MUON_MOMENTUM = 0.12, 0.6
# What decides neither the weights nor what is recorded on the way to them.
LOOKING = {"out", "quiet", "live", "report", "target_accuracy"}
# What is for one terminal: a run that is resumed has it only when it is asked for again.
DISPLAY = {"quiet", "live"}


def _by_group(**names: str) -> dict[str, str]:
    return {name: group for group, together in names.items() for name in together.split()}


@dataclass(frozen=True)
class Preset:
    """Named settings: a course's own, or the best that were found on a validation split.

    Attributes:
        options: as one would type them.
        about: what it is, in a line.
        reached: its test accuracy in ``docs/results.md``.
    """

    options: str
    about: str
    reached: str


@dataclass(frozen=True)
class TrainSettings:
    """What every training command can be told: data, optimisation, evaluation, output.

    A command that has no use for some of them, or for ``resume``, names them in ``not_offered``:
    its command line does not know them.
    """

    not_offered: ClassVar[frozenset[str]] = frozenset()
    # Under which heading of --help; what is not named is the network's own.
    groups: ClassVar[Mapping[str, str]] = _by_group(
        data="dataset data_dir validation_size validation_images preprocess augment",
        optimisation="batch_size epochs max_steps optimizer lr momentum nesterov weight_decay "
        "weight_decay_of label_smoothing clip_grad_norm ema schedule schedule_steps "
        "warmup_steps step_size gamma seed threads",
        evaluation="eval_every eval_splits tta target_accuracy detect_anomaly",
        output="out checkpoint_every quiet live report",
    )

    dataset: str = setting(
        "digits",
        "what to learn; where only --data-dir is given, what is there",
        choices=list(DATASETS),
    )
    data_dir: str | None = setting(
        None,
        "folder to search for the data (default: $HANDGRAD_DATA_DIR or a per-user cache)",
    )
    validation_size: float = setting(
        0.1,
        "training images held out: a number, or a share below 1",
        least=0,
        most=10**9,
    )
    validation_images: str = setting(
        "random",
        "which training images are held out",
        choices=VALIDATION_IMAGES,
    )
    preprocess: str = setting(
        "standardize",
        "per-channel standardisation, or raw pixels minus the mean image",
        choices=PREPROCESSING,
    )
    augment: tuple[str, ...] = setting(
        (), "random changes of the training images", choices=list(AUGMENTATIONS)
    )

    batch_size: int = setting(128, "images a step (default: 128; digits: 32)", least=1)
    epochs: int | None = setting(
        10,
        "passes over the training images (default: 10; digits: 30)",
        least=1,
    )
    max_steps: int | None = setting(None, "steps to train for, instead of --epochs", least=1)
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adam", "adamw"))
    lr: float = setting(
        0.1,
        "learning rate (also --learning_rate; default: 0.1, but 0.001 with Adam, 0.12 with Muon)",
        above=0,
    )
    momentum: float = setting(
        0.0, "momentum of sgd (default: 0), or of muon's filters (default: 0.6)", least=0, below=1
    )
    nesterov: bool = setting(False, "Nesterov's variant of momentum")
    weight_decay: float = setting(
        0.0, "weight decay: an L2 penalty, but decoupled in adamw", least=0
    )
    weight_decay_of: str = setting(
        "all",
        "what weight decay is for; matrices, filters among them, leaves out biases and norms",
        choices=("all", "matrices"),
    )
    label_smoothing: float = setting(
        0.0, "share of the label given to all classes alike, in training", least=0, below=1
    )
    clip_grad_norm: float | None = setting(
        None, "largest norm of all gradients together; longer ones are shortened to it", above=0
    )
    ema: float = setting(
        0.0,
        "decay of a moving average of the weights, which is then what is evaluated and saved "
        "(0.999, say; default: none)",
        least=0,
        below=1,
    )
    schedule: str = setting(
        "constant",
        "course of the learning rate",
        choices=("constant", "step", "cosine", "linear"),
    )
    schedule_steps: int | None = setting(
        None,
        "steps that the schedule spans; after them the rate stays (default: all of the run)",
        least=1,
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", least=0)
    step_size: int | None = setting(
        None,
        "steps between drops of the step schedule (default: a third of the schedule)",
        least=1,
    )
    gamma: float = setting(0.1, "factor of each drop of the step schedule", above=0, most=1)

    eval_every: int | None = setting(
        None,
        "steps between evaluations (also --eval_freq; default: one epoch)",
        least=1,
    )
    checkpoint_every: int | None = setting(
        None,
        "steps between checkpoints, beside those of the evaluations",
        least=1,
    )
    eval_splits: tuple[str, ...] = setting(
        ("validation",),
        "splits evaluated on the way",
        choices=("validation", "test"),
    )
    tta: bool = setting(
        False,
        "test-time augmentation: at the end, also average the probabilities of shifted test "
        "images, and of mirrored ones where training mirrors",
    )
    target_accuracy: float | None = setting(
        None,
        "exit with status 1 when the test accuracy (with --tta, that of the averages) stays below "
        "this",
        least=0,
        most=1,
    )

    seed: int = setting(
        0,
        "seed of the validation split, the weights, the batches and the dropout masks",
        least=0,
        most=LARGEST_SEED,
    )
    threads: int | None = setting(
        None,
        "threads for matrix products (default: all); the same bits need the same number",
        least=1,
        most=1024,
    )
    out: str | None = setting(None, "folder of the run (default: runs/<name>-<time>)")
    detect_anomaly: bool = setting(False, "check every output and gradient of every layer; slower")
    quiet: bool = setting(False, "print the result only")
    live: bool = setting(False, "draw loss and accuracy in the terminal while training")
    report: bool = setting(False, "write report.html, a page about the run, when it is done")

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``values`` with the defaults that follow from some of them."""
        values = {**DATASET_DEFAULTS.get(values.get("dataset", "digits"), {}), **values}
        if values.get("optimizer") in ("adam", "adamw"):
            values.setdefault("lr", _ADAM_LR)
        if values.get("optimizer") == "muon":
            values = {"lr": MUON_LR, "momentum": _MUON_MOMENTUM, **values}
        return values

    def check(self) -> None:
        """Check what must hold between settings; a subclass adds its own.

        Raises:
            UserError: two of them do not go together.
        """
        size = self.validation_size
        if size >= 1 and size != int(size):
            raise UserError(
                f"--validation-size {size:g} must be a whole number, or a share below 1"
            )
        if self.optimizer in ("adam", "adamw") and (self.momentum or self.nesterov):
            raise UserError(
                "--momentum and --nesterov are for --optimizer sgd; for adam, give --momentum 0 "
                "--no-nesterov"
            )
        if self.optimizer == "muon" and self.nesterov:
            raise UserError("--nesterov is for --optimizer sgd; muon has it always")
        if self.nesterov and not self.momentum:
            raise UserError("--nesterov needs a --momentum above 0")

    @property
    def end(self) -> str:
        """When training ends, as it was given: ``--epochs 10``."""
        return f"--epochs {self.epochs}" if self.epochs else f"--max-steps {self.max_steps}"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps."""
        return self.max_steps or (self.epochs or 1) * steps_per_epoch

    def place(self, step: int, steps_per_epoch: int) -> str:
        """Return where ``step`` is: in epochs as well, if these were given."""
        epoch = f" (epoch {step / steps_per_epoch:.2f} of {self.epochs})" if self.epochs else ""
        return f"step {step} of {self.total_steps(steps_per_epoch)}{epoch}"

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings with ``values``, and defaults for the others.

        Raises:
            UserError: one of them is not acceptable.
        """
        check_bounds(cls, values)
        settings = cls(**values)
        settings.check()
        return settings


def override(settings: SettingsT, overrides: Mapping[str, Any]) -> SettingsT:
    """Return ``settings`` of a run to be resumed, with the options given this time."""
    kind = type(settings)
    changes = {name: getattr(kind, name) for name in DISPLAY} | dict(overrides)
    if "max_steps" in changes:
        changes["epochs"] = None
    elif "epochs" in changes:
        changes["max_steps"] = None
    return dataclasses.replace(settings, **changes)


def changed_settings(settings: TrainSettings) -> dict[str, tuple[Any, Any]]:
    """Return the settings that are not the defaults of their dataset and optimizer.

    Returns:
        By name, in the order of their declaration: the value and the default.
    """
    kind = type(settings)
    chosen = {"dataset": settings.dataset, "optimizer": settings.optimizer}
    usual = kind(**kind.implied(chosen))
    found = {}
    for field in dataclasses.fields(kind):
        value, default = getattr(settings, field.name), getattr(usual, field.name)
        if field.name in chosen:
            default = field.default
        if value != default:
            found[field.name] = (value, default)
    return found


def options_for(settings: TrainSettings) -> list[str]:
    """Return the options of a command line that gives ``settings``.

    Left out are the folder of the run, and what is only about looking at it.
    """
    changed = {name: value for name, (value, _) in changed_settings(settings).items()}
    if settings.data_dir is not None:  # without a dataset, the folder would choose one
        changed["dataset"] = settings.dataset
    return as_options({name: value for name, value in changed.items() if name not in LOOKING})


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Return the options of a command line that give ``values``."""
    options: list[str] = []
    for name, value in values.items():
        option = option_of(name)
        if value is None:
            continue
        if isinstance(value, bool):
            options.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, tuple):
            options += [option, *map(str, value)]
        else:
            options += [option, text_of(value)]
    return options


def settings_from_dict(kind: type[SettingsT], values: Any, where: str) -> SettingsT:
    """Return settings read back from a ``config.json``.

    Raises:
        UserError: a name or a value is not one this version knows.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no settings")
    if unknown := sorted(values.keys() - names):
        raise UserError(f"{where} has a setting {unknown[0]!r} that this version does not know")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    check_types(kind, values, f"{where}: ")
    return kind.checked(values)
