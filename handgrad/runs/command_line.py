"""Settings as typed dataclasses, and the command line made from them.

A setting is declared once, as a dataclass field with its default and help text; the command line,
the presets, ``config.json`` and the checks all follow from that declaration.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from handgrad.console import Parser
from handgrad.data.augment import AUGMENTATIONS
from handgrad.data.dataset import DATASETS
from handgrad.data.preprocess import PREPROCESSING
from handgrad.data.sources import cifar10, mnist
from handgrad.errors import UserError

SettingsT = TypeVar("SettingsT", bound="TrainSettings")


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """Declare a setting: its default, its help text and the values it may take."""
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": tuple(choices),
            "above": above,
            "least": least,
            "below": below,
            "most": most,
        },
    )


@dataclass(frozen=True)
class TrainSettings:
    """What every training command can be told: data, optimisation, evaluation, output.

    A command that has no use for some of them, or for ``resume``, names them in ``not_offered``:
    its command line does not know them.
    """

    not_offered: ClassVar[frozenset[str]] = frozenset()

    dataset: str = setting(
        "digits",
        "what to learn; where only --data-dir is given, what is there",
        choices=list(DATASETS),
    )
    data_dir: str | None = setting(
        None, "folder to search for the data (default: $HANDGRAD_DATA_DIR or a per-user cache)"
    )
    validation_size: float = setting(
        0.1, "training images held out: a number, or a share below 1", least=0, most=10**9
    )
    validation_images: str = setting(
        "random", "which training images are held out", choices=("random", "last")
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
        10, "passes over the training images (default: 10; digits: 30)", least=1
    )
    max_steps: int | None = setting(None, "steps to train for, instead of --epochs", least=1)
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adamw"))
    lr: float = setting(
        0.1, "learning rate (also --learning_rate; default: 0.1, but 0.001 with Adam)", above=0
    )
    momentum: float = setting(0.0, "momentum of sgd", least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's variant of momentum")
    weight_decay: float = setting(
        0.0, "weight decay: an L2 penalty, but decoupled in adamw", least=0
    )
    schedule: str = setting(
        "constant", "course of the learning rate", choices=("constant", "step", "cosine")
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", least=0)
    step_size: int | None = setting(
        None, "steps between drops of the step schedule (default: a third of the run)", least=1
    )
    gamma: float = setting(0.1, "factor of each drop of the step schedule", above=0, most=1)

    eval_every: int | None = setting(
        None, "steps between evaluations (also --eval_freq; default: one epoch)", least=1
    )
    checkpoint_every: int | None = setting(
        None, "steps between checkpoints, beside those of the evaluations", least=1
    )
    eval_splits: tuple[str, ...] = setting(
        ("validation",), "splits evaluated on the way", choices=("validation", "test")
    )
    target_accuracy: float | None = setting(
        None, "exit with status 1 when the test accuracy stays below this", least=0, most=1
    )

    seed: int = setting(
        0, "seed of the validation split, the weights, the batches and the dropout masks", least=0
    )
    threads: int | None = setting(
        None, "threads for matrix products (default: all)", least=1, most=1024
    )
    out: str | None = setting(None, "folder of the run (default: runs/<name>-<time>)")
    detect_anomaly: bool = setting(False, "check every output and gradient of every layer; slower")
    quiet: bool = setting(False, "print the result only")
    live: bool = setting(False, "draw loss and accuracy in the terminal while training")
    report: bool = setting(False, "write report.html, a page about the run, when it is done")


@dataclass(frozen=True)
class MLPSettings(TrainSettings):
    """Settings of a multi-layer perceptron."""

    hidden_dims: tuple[int, ...] = setting(
        (128,),
        "widths of the hidden layers, none for logistic regression "
        "(also --dnn_hidden_units 100,100)",
        least=1,
    )
    activation: str = setting(
        "relu", "nonlinearity", choices=("relu", "leaky_relu", "elu", "sigmoid", "tanh")
    )
    neg_slope: float | None = setting(
        None, "slope below zero of leaky_relu (default: 0.01); implies that activation"
    )
    dropout: float = setting(0.0, "probability of dropping a hidden unit", least=0, below=1)
    input_dropout: float = setting(0.0, "probability of dropping an input", least=0, below=1)
    batch_norm: bool = setting(False, "normalise each hidden layer over the batch")
    weight_std: float | None = setting(
        None, "standard deviation of the initial weights (default: Kaiming's)", above=0
    )


@dataclass(frozen=True)
class NumpyMLPSettings(MLPSettings):
    """Settings of the NumPy multi-layer perceptron."""

    dtype: str = setting("float32", "precision", choices=("float32", "float64"))
    engine: str = setting(
        "modules",
        "hand-written backward passes, or the computation graph's",
        choices=("modules", "graph"),
    )


@dataclass(frozen=True)
class TorchSettings(TrainSettings):
    """Settings of everything that PyTorch computes."""

    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adam", "adamw"))
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = setting(
        "auto",
        "precision; auto takes bf16 autocast where a short measurement shows that it pays",
        choices=("auto", "float32", "bf16", "float64"),
    )
    augment: tuple[str, ...] = setting(
        (), "random changes of the training images", choices=[*AUGMENTATIONS, "randaugment"]
    )
    mixup: float = setting(
        0.0, "blend pairs of images, their shares from Beta(α, α) with this α", least=0
    )
    cutmix: float = setting(
        0.0, "paste a box of another image, its area from Beta(α, α) with this α", least=0
    )
    label_smoothing: float = setting(
        0.0, "share of the label given to all classes alike, in training", least=0, below=1
    )
    norm: str = setting(
        "builtin", "whose batch normalisation", choices=("builtin", "autograd", "manual")
    )
    compile: bool = setting(False, "compile the model with torch.compile")

    @property
    def dtype(self) -> str:
        """Type of the images that the loader yields."""
        return "float64" if self.precision == "float64" else "float32"


@dataclass(frozen=True)
class TorchMLPSettings(TorchSettings, MLPSettings):
    """Settings of the PyTorch multi-layer perceptron."""


@dataclass(frozen=True)
class ConvNetSettings(TorchSettings):
    """Settings of the convolutional networks."""

    model: str = setting(
        "vgg",
        "architecture",
        choices=("vgg", "preact-resnet", "small-vgg", "vu-convnet", "vu-mlp"),
    )


# Other spellings of the two courses; hyphens and underscores are interchangeable everywhere.
_ALIASES = {
    "--dnn-hidden-units": "--hidden-dims",
    "--learning-rate": "--lr",
    "--eval-freq": "--eval-every",
    "--use-batch-norm": "--batch-norm",
}
# Where a dataset needs another default: the digits are too few for ten passes to be enough.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {"digits": {"batch_size": 32, "epochs": 30}}
_ADAM_LR = 1e-3
_METAVARS = {"data_dir": "DIR", "out": "DIR", "modules": "FILE"}
_LARGEST = 10**9  # of whole numbers without a bound of their own
# What may still be said when a run is resumed; everything else is the run's own.
_RESUMABLE = {
    *("epochs", "max_steps", "data_dir", "threads", "target_accuracy"),
    *("quiet", "live", "report"),
}
# What decides neither the weights nor what is recorded on the way to them.
LOOKING = {"out", "quiet", "live", "report", "target_accuracy"}


@dataclass(frozen=True)
class Command(typing.Generic[SettingsT]):
    """A parsed command line.

    Attributes:
        settings: preset, defaults and options put together, and checked.
        resume: folder of the run to continue, or None. ``settings`` are then only defaults:
            the run's own count, changed by ``overrides``.
        overrides: the settings that were given explicitly.
        text: the command as typed.
        invocation: how the program was called, for a hint on how to call it again.
    """

    settings: SettingsT
    resume: Path | None
    overrides: dict[str, Any]
    text: str
    invocation: str


class _Parser(Parser):
    other_names = _ALIASES


def parse_command_line(
    kind: type[SettingsT],
    presets: Mapping[str, Mapping[str, Any]],
    description: str,
    prog: str,
    argv: Sequence[str] | None = None,
) -> Command[SettingsT]:
    """Turn a command line into settings.

    Defaults are overridden by the preset, and the preset by explicit options.

    Args:
        kind: the dataclass of settings.
        presets: named sets of values.
        description: for ``--help``.
        prog: the program's name.
        argv: arguments; ``sys.argv[1:]`` by default.

    Raises:
        UserError: an option or a value is not acceptable.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    parser = _make_parser(kind, presets, description, prog)
    explicit = vars(parser.parse_args([_canonical(token) for token in argv]))
    resume = explicit.pop("resume", None)
    preset = explicit.pop("preset", None)
    if preset is not None and preset not in presets:
        raise UserError(f"--preset {preset!r} is unknown{_nearest(preset, list(presets))}")
    if {"epochs", "max_steps"} <= explicit.keys():
        raise UserError("--epochs and --max-steps exclude each other; give one of them")
    values: dict[str, Any] = {**presets.get(preset or "", {}), **explicit}
    if "dataset" not in values and "data_dir" in values:
        values["dataset"] = _dataset_in(Path(values["data_dir"]))
    values = {**DATASET_DEFAULTS.get(values.get("dataset", "digits"), {}), **values}
    if values.get("optimizer") in ("adam", "adamw"):
        values.setdefault("lr", _ADAM_LR)
    if "epochs" in explicit:
        values["max_steps"] = None
    elif "max_steps" in values:
        values["epochs"] = None
    if values.get("neg_slope") is not None:
        values.setdefault("activation", "leaky_relu")
    check_settings(values, fields)
    if values.get("schedule") != "step" and (given := {"step_size", "gamma"} & explicit.keys()):
        option = sorted(given)[0].replace("_", "-")
        raise UserError(f"--{option} is for --schedule step")
    if resume is not None:
        given = explicit.keys() | ({"preset"} if preset is not None else set())
        if fixed := sorted(given - _RESUMABLE):
            raise UserError(
                f"--{fixed[0].replace('_', '-')} cannot be changed when a run is resumed; start a "
                f"new run, or leave it out"
            )
    return Command(
        settings=kind(**values),
        resume=None if resume is None else Path(resume),
        overrides=explicit,
        text=shlex.join([prog, *argv]),
        invocation=_invocation(prog),
    )


def _dataset_in(folder: Path) -> str:
    """Return the dataset whose files are below ``folder``: CIFAR-10, unless only MNIST is there."""
    return "mnist" if not cifar10.is_below(folder) and mnist.is_below(folder) else "cifar10"


def _invocation(prog: str) -> str:
    """Return what to type to run the program again: it may not be on the PATH."""
    called = Path(sys.argv[0])
    if called.name == f"{prog.replace('-', '_')}.py":
        return shlex.join([sys.executable, sys.argv[0]])
    return shlex.quote(sys.argv[0]) if called.name == prog else prog


def override(settings: SettingsT, overrides: Mapping[str, Any]) -> SettingsT:
    """Return ``settings`` of a run to be resumed, with the options given this time."""
    changes = dict(overrides)
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
    chosen = ["--dataset", settings.dataset, "--optimizer", settings.optimizer]
    usual = parse_command_line(kind, {}, "", "", chosen).settings
    found = {}
    for field in dataclasses.fields(kind):
        value, default = getattr(settings, field.name), getattr(usual, field.name)
        if field.name in ("dataset", "optimizer"):
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
    options: list[str] = []
    for name, value in changed.items():
        option = f"--{name.replace('_', '-')}"
        if name in LOOKING or value is None:
            continue
        if isinstance(value, bool):
            options.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, tuple):
            options += [option, *map(str, value)]
        else:
            options += [option, text_of(value)]
    return options


def text_of(value: Any) -> str:
    """Return a setting as one would type it."""
    if isinstance(value, tuple):
        return " ".join(map(text_of, value)) or "none"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def settings_from_dict(kind: type[SettingsT], values: Any, where: str) -> SettingsT:
    """Return settings read back from a ``config.json``.

    Raises:
        UserError: a name or a value is not one this version knows.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no settings")
    if unknown := sorted(values.keys() - fields.keys()):
        raise UserError(f"{where} has a setting {unknown[0]!r} that this version does not know")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        element, is_tuple, optional = _unpack_type(hints[name])
        items = value if is_tuple and isinstance(value, tuple) else (value,)
        if value is None and optional:
            continue
        if isinstance(value, tuple) != is_tuple or not all(_is_a(item, element) for item in items):
            raise UserError(f"{where}: {name} is {value!r}, expected {element.__name__}")
    check_settings(values, fields)
    return kind(**values)


def _is_a(value: Any, kind: type) -> bool:
    """Say whether a value from JSON is of a setting's type; 1 is a float, but True is not 1."""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def check_settings(values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]]) -> None:
    """Check values against their declarations.

    Raises:
        UserError: one is out of range or not among the choices.
    """
    for name, value in values.items():
        if value is None:
            continue
        option, declared = f"--{name.replace('_', '-')}", fields[name].metadata
        for item in value if isinstance(value, tuple) else (value,):
            if declared["choices"] and item not in declared["choices"]:
                raise UserError(
                    f"{option} {item!r} is unknown{_nearest(str(item), declared['choices'])}"
                )
            if isinstance(item, str | bool):
                continue
            above, least, below = declared["above"], declared["least"], declared["below"]
            most = declared["most"]
            if most is None and isinstance(item, int) and below is None:
                most = _LARGEST
            bounds = [f"above {above:g}"] if above is not None else []
            bounds += [f"at least {least:g}"] if least is not None else []
            bounds += [f"below {below:g}"] if below is not None else []
            bounds += [f"at most {most:g}"] if most is not None else []
            if (
                (isinstance(item, float) and not math.isfinite(item))
                or (above is not None and not item > above)
                or (least is not None and not item >= least)
                or (below is not None and not item < below)
                or (most is not None and not item <= most)
            ):
                expected = " and ".join(bounds) or "a finite number"
                raise UserError(f"{option} {item} is out of range; expected {expected}")
    size = values.get("validation_size")
    if size is not None and size >= 1 and size != int(size):
        raise UserError(f"--validation-size {size:g} must be a whole number, or a share below 1")
    if values.get("optimizer") in ("adam", "adamw") and (
        values.get("momentum") or values.get("nesterov")
    ):
        raise UserError(
            "--momentum and --nesterov are for --optimizer sgd; for adam, give --momentum 0 "
            "--no-nesterov"
        )
    activation = values.get("activation", "leaky_relu")
    if values.get("neg_slope") is not None and activation != "leaky_relu":
        raise UserError(f"--neg-slope is for --activation leaky_relu, not {activation}")
    norm = values.get("norm", "builtin")
    if norm != "builtin" and "batch_norm" in fields and not values.get("batch_norm"):
        raise UserError(f"--norm {norm} is for a network with --batch-norm")
    if norm != "builtin" and values.get("model") == "vu-mlp":
        raise UserError(f"--norm {norm}: vu-mlp has no normalisation")
    if values.get("nesterov") and not values.get("momentum"):
        raise UserError("--nesterov needs a --momentum above 0")


def _make_parser(
    kind: type[TrainSettings],
    presets: Mapping[str, Mapping[str, Any]],
    description: str,
    prog: str,
) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog="Underscores work as well as hyphens: --batch_size is --batch-size.",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"start from the settings of: {', '.join(presets)}"
    )
    if "resume" not in kind.not_offered:
        parser.add_argument(
            "--resume",
            metavar="DIR",
            help="go on with the run in this folder; --epochs or --max-steps extend it",
        )
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in kind.not_offered:
            continue
        option = f"--{field.name.replace('_', '-')}"
        element, is_tuple, _ = _unpack_type(hints[field.name])
        choices = field.metadata["choices"]
        help_text = field.metadata["help"]
        if choices:
            help_text += f": {', '.join(choices)}"
        default = field.default
        if isinstance(default, tuple):
            default = " ".join(map(str, default)) or "none"
        if default is not None and "default:" not in help_text:
            help_text += f" (default: {default})"
        help_text = help_text.replace("%", "%%")
        if element is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=help_text)
        elif is_tuple:
            parser.add_argument(
                option,
                action=_ListAction,
                nargs="*",
                const=element,
                metavar=_metavar(element),
                help=help_text,
            )
        else:
            metavar = _METAVARS.get(field.name, _metavar(element))
            parser.add_argument(option, type=_converter(element), metavar=metavar, help=help_text)
    return parser


class _ListAction(argparse.Action):
    """Accept ``256 128`` and ``256,128`` alike; ``const`` is the elements' type."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        items = [item for token in values for item in token.split(",") if item.strip()]
        try:
            setattr(namespace, self.dest, tuple(self.const(item) for item in items))
        except ValueError:
            parser.error(f"{option_string}: {','.join(values)!r} is not a list of whole numbers")


def _converter(element: type) -> Any:
    def convert(text: str) -> Any:
        try:
            return element(text)
        except ValueError:
            kind = "a whole number" if element is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind}") from None

    return convert


def _metavar(element: type) -> str:
    return {int: "N", float: "X", str: "NAME"}[element]


def _unpack_type(hint: Any) -> tuple[Any, bool, bool]:
    """Return the element type of ``hint``, whether it is a tuple, and whether None is allowed."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True, optional
    return hint, False, optional


def _canonical(token: str) -> str:
    """Return an option with hyphens, under its own name; other tokens unchanged."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    name = name.replace("_", "-")
    return _ALIASES.get(name, name) + equals + value


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of: {', '.join(known)}"
