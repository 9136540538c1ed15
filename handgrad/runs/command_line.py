"""The command line of a training, made from the declaration of its settings."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handgrad.console import Parser
from handgrad.data.sources import cifar10, mnist
from handgrad.data.sources.inventory import inventory
from handgrad.errors import UserError
from handgrad.files import user_path
from handgrad.runs.declare import nearest, option_of, unpack_type
from handgrad.runs.settings import Preset, SettingsT, TrainSettings

# Other spellings of the two courses; hyphens and underscores are interchangeable everywhere.
_ALIASES = {
    "--dnn-hidden-units": "--hidden-dims",
    "--learning-rate": "--lr",
    "--eval-freq": "--eval-every",
    "--use-batch-norm": "--batch-norm",
}
_GROUPS = ("data", "network", "optimisation", "evaluation", "output")
_METAVARS = {"data_dir": "DIR", "out": "DIR", "modules": "FILE"}  # of settings that are paths
# What may still be said when a run is resumed; everything else is the run's own.
_RESUMABLE = {
    *("epochs", "max_steps", "schedule_steps", "data_dir", "threads", "target_accuracy"),
    *("quiet", "live", "report", "tta"),
}


@dataclass(frozen=True)
class Command(typing.Generic[SettingsT]):
    """What a training was told.

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

    def go_on(self, folder: Path) -> str:
        """Return what goes on with the run in ``folder``."""
        return f"{self.invocation} --resume {shlex.quote(str(folder.absolute()))}"

    def spelled(self, text: str) -> str:
        """Return ``text`` with options as they are called where this was said."""
        return text


class _Parser(Parser):
    other_names = _ALIASES


def parse_command_line(
    kind: type[SettingsT],
    presets: Mapping[str, Preset],
    description: str,
    prog: str,
    argv: Sequence[str] | None = None,
) -> Command[SettingsT]:
    """Turn a command line into settings.

    Args:
        kind: the dataclass of settings.
        presets: by name.
        description: for ``--help``.
        prog: the program's name.
        argv: arguments; ``sys.argv[1:]`` by default.

    Raises:
        UserError: an option or a value is not acceptable.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser(kind, presets, description, prog, kind.not_offered)
    explicit = vars(parser.parse_args([_canonical(token) for token in argv]))
    resume = explicit.pop("resume", None)
    preset = explicit.pop("preset", None)
    settings = compose(kind, presets, preset, explicit, resumes=resume is not None)
    if resume is not None:
        check_resumable(explicit.keys() | ({"preset"} if preset is not None else set()))
    return Command(
        settings=settings,
        resume=resume,
        overrides=explicit,
        text=shlex.join([prog, *argv]),
        invocation=_invocation(prog),
    )


def compose(
    kind: type[SettingsT],
    presets: Mapping[str, Preset],
    preset: str | None,
    explicit: Mapping[str, Any],
    *,
    resumes: bool = False,
) -> SettingsT:
    """Return settings: defaults, overridden by a preset, overridden by what is said explicitly.

    Where a run is resumed, which dataset it has is not for ``--data-dir`` to say.

    Raises:
        UserError: one of them is not acceptable.
    """
    if preset is not None and preset not in presets:
        raise UserError(f"--preset {preset!r} is unknown{nearest(preset, list(presets))}")
    if {"epochs", "max_steps"} <= explicit.keys():
        raise UserError("--epochs and --max-steps exclude each other; give one of them")
    explicit = {
        name: str(user_path(value)) if name in _METAVARS and value is not None else value
        for name, value in explicit.items()
    }
    values = dict(explicit)
    if preset is not None:
        options = presets[preset].options.split()
        values = {
            **vars(_make_parser(kind, {}, "", "", frozenset()).parse_args(options)),
            **explicit,
        }
    if "dataset" not in values and values.get("data_dir") is not None and not resumes:
        values["dataset"] = _dataset_in(Path(values["data_dir"]))
    values = kind.implied(values)
    if "epochs" in explicit:
        values["max_steps"] = None
    elif "max_steps" in values:
        values["epochs"] = None
    settings = kind.checked(values)
    if settings.schedule != "step" and (given := {"step_size", "gamma"} & explicit.keys()):
        raise UserError(f"{option_of(min(given))} is for --schedule step")
    return settings


def _dataset_in(folder: Path) -> str:
    """Return the dataset whose files are below ``folder``, CIFAR-10 rather than MNIST.

    Raises:
        UserError: neither is there. What is not named is not downloaded.
    """
    if cifar10.is_below(folder) or not folder.is_dir():  # which is said where the data are loaded
        return "cifar10"
    if mnist.is_below(folder):
        return "mnist"
    raise UserError(
        f"--data-dir {folder} holds {inventory(folder)}; expected the files of CIFAR-10 or MNIST: "
        f"give the folder that has them, or --dataset cifar10 or mnist to download them there"
    )


def check_resumable(given: typing.AbstractSet[str]) -> None:
    """Raise UserError where something is given that a run to be resumed has settled."""
    if fixed := sorted(given - _RESUMABLE):
        raise UserError(
            f"{option_of(fixed[0])} cannot be changed when a run is resumed; start a new run, or "
            f"leave it out"
        )


def _invocation(prog: str) -> str:
    """Return what to type to run the program again: it may not be on the PATH."""
    called = Path(sys.argv[0])
    if called.name == f"{prog.replace('-', '_')}.py":
        return shlex.join([sys.executable, sys.argv[0]])
    if called.name == "handgrad":
        return shlex.join([sys.argv[0], prog])
    if called.name == "__main__.py":
        return shlex.join([sys.executable, "-m", "handgrad", prog])
    return shlex.quote(sys.argv[0]) if called.name == prog else prog


def _make_parser(
    kind: type[TrainSettings],
    presets: Mapping[str, Preset],
    description: str,
    prog: str,
    not_offered: frozenset[str],
) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog=_about_presets(presets)
        + "Underscores work as well as hyphens: --batch_size is --batch-size.",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"start from the settings of: {', '.join(presets)}"
    )
    if "resume" not in not_offered:
        parser.add_argument(
            "--resume",
            type=Path,
            metavar="DIR",
            help="go on with the run in this folder, bit for bit if --threads is what it was; "
            "--epochs or --max-steps extend it",
        )
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name not in not_offered:
            group = groups[kind.groups.get(field.name, "network")]
            group.add_argument(option_of(field.name), **_argument(field, hints[field.name]))
    return parser


def _about_presets(presets: Mapping[str, Preset]) -> str:
    """Return a line about each preset, with its test accuracy."""
    if not presets:
        return ""
    width = max(map(len, presets))
    lines = [
        f"  {name:<{width}}  {preset.about}: {preset.reached}" for name, preset in presets.items()
    ]
    return "\n".join(["presets, and the test accuracy they reached:", *lines]) + "\n\n"


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Return what ``add_argument`` is told of a setting."""
    element, is_tuple, _ = unpack_type(hint)
    help_text, choices = field.metadata["help"], field.metadata["choices"]
    if choices:
        help_text += f": {', '.join(choices)}"
    default = field.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default)) or "none"
    if default is not None and "default:" not in help_text:
        help_text += f" (default: {default})"
    found: dict[str, Any] = {"help": help_text.replace("%", "%%")}
    metavar = _METAVARS.get(field.name, {int: "N", float: "X", str: "NAME"}.get(element))
    if element is bool:
        return {**found, "action": argparse.BooleanOptionalAction}
    if is_tuple:
        return {**found, "action": _ListAction, "nargs": "*", "const": element, "metavar": metavar}
    return {**found, "type": _converter(element), "metavar": metavar}


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


def _canonical(token: str) -> str:
    """Return an option with hyphens, under its own name; other tokens unchanged."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    name = name.replace("_", "-")
    return _ALIASES.get(name, name) + equals + value
