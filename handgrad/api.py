"""The package from Python: train, and take up what was trained."""

from __future__ import annotations

import json
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.backends.registry import NETWORKS, Network
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import DataError, UserError
from handgrad.files import read_json
from handgrad.runs.command_line import Command, check_resumable, compose
from handgrad.runs.declare import check_types, nearest, unpack_type
from handgrad.runs.folder import CONFIG, METRICS, MODEL, SUMMARY
from handgrad.runs.run import Run
from handgrad.runs.settings import options_for, settings_from_dict
from handgrad.runs.trained import TrainedRun
from handgrad.training.checkpoint import load_arrays
from handgrad.training.metrics import read_metrics
from handgrad.training.observers import Observer


def train(
    network: str,
    *,
    preset: str | None = None,
    resume: str | Path | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> TrainedRun:
    """Train a network and return the finished run.

    What the commands do, with the options as arguments: ``train("mlp-numpy", dataset="mnist",
    hidden_dims=(256, 128), epochs=5)`` is ``train-mlp-numpy --dataset mnist --hidden-dims 256 128
    --epochs 5``, with the same numbers and the same folder.

    Args:
        network: ``mlp-numpy``, ``mlp-pytorch`` or ``convnet``.
        preset: named settings to start from, as ``--preset``.
        resume: folder of a run to go on with, as ``--resume``.
        observers: told of every step and evaluation.
        settings: as the options of the command; ``train-mlp-numpy --help`` lists them.

    Raises:
        UserError: a setting is unknown or not acceptable, the data are missing or damaged, or the
            loss is not finite any more.
        StoppedError: Ctrl-C (in a notebook, the stop button) or SIGTERM; the run is saved, and
            can be resumed.
    """
    if network not in NETWORKS:
        raise UserError(f"network {network!r} is unknown{nearest(str(network), list(NETWORKS))}")
    row = NETWORKS[network]
    try:
        command = _command(row, preset, resume, settings)
    except UserError as error:  # a setting is called otherwise here than on the command line
        names = {f"--{f.name.replace('_', '-')}": f.name for f in fields(row.settings)}
        text = re.sub(r"--[a-z-]+", lambda m: names.get(m[0], m[0]), str(error))
        raise UserError(text) from None
    backend = row.backend()
    with backend.session():
        run = Run(command, backend, observers)
        run.complete()
    return load_run(run.folder, network)


def _command(
    network: Network, preset: str | None, resume: str | Path | None, settings: Mapping[str, Any]
) -> Command[Any]:
    kind = network.settings
    given = {name: _plain(kind, name, value) for name, value in settings.items()}
    check_types(kind, given, "")
    whole = compose(kind, network.presets, preset, given)
    if resume is not None:
        check_resumable(given.keys() | ({"preset"} if preset is not None else set()))
    options = ["--resume", str(resume)] if resume is not None else options_for(whole)
    text = shlex.join([network.command, *options])
    return _Call(whole, None if resume is None else Path(resume), given, text, network.command)


class _Call(Command[Any]):
    """What :func:`train` was told."""

    def go_on(self, folder: Path) -> str:
        """Return the call that goes on with the run in ``folder``."""
        network = self.invocation.removeprefix("train-")
        return f"handgrad.train({network!r}, resume={str(folder.absolute())!r})"


def _plain(kind: type, name: str, value: Any) -> Any:
    """Return a setting in the type in which it is kept; one that does not fit as it is."""
    known = [field.name for field in fields(kind)]
    if name not in known:
        raise UserError(f"{name} is no setting{nearest(name, known)}")
    _, is_tuple, _ = unpack_type(typing.get_type_hints(kind)[name])
    if is_tuple and isinstance(value, str | int):  # one of what may be several
        value = (value,)
    if is_tuple and isinstance(value, Iterable):
        return tuple(map(_scalar, value))
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def load_run(folder: str | Path, network: str | None = None) -> TrainedRun:
    """Return the finished run in ``folder``: its network, its settings and its history.

    Args:
        folder: of a run of any of the training commands.
        network: which of them it is; by default what the folder says. A multi-layer perceptron
            that PyTorch has trained runs in NumPy as well: ``mlp-numpy``.

    Raises:
        DataError: the run is not finished, or a file in it is damaged.
    """
    folder = Path(folder)
    path = folder / MODEL
    if not path.exists():
        state = "holds no finished run" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {state}: there is no {MODEL}")
    weights, texts = load_arrays(path)
    try:
        about, fitted = json.loads(texts["model"]), json.loads(texts["preprocessing"])
        image_shape, class_names = tuple(about.pop("image_shape")), tuple(about.pop("class_names"))
        mean, scale = np.array(fitted["mean"]), np.array(fitted["scale"])
        row = NETWORKS[_network_of(about, network)]
        own = {field.name for field in fields(row.settings)}
        settings = settings_from_dict(
            row.settings, {k: v for k, v in about.items() if k in own}, str(path)
        )
        backend = row.backend()
        model = backend.load(settings, image_shape, class_names, weights)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a run of handgrad: {error}") from None
    config = folder / CONFIG
    if config.exists():
        saved = {k: v for k, v in read_json(config).get("settings", {}).items() if k in own}
        settings = settings_from_dict(row.settings, saved, str(config))
    dtype = next(array.dtype for array in weights.values() if array.dtype.kind == "f")
    history, summary = folder / METRICS, folder / SUMMARY
    return TrainedRun(
        folder,
        model,
        Preprocessing(mean, scale, dtype),
        image_shape,
        class_names,
        settings,
        read_metrics(history) if history.exists() else [],
        read_json(summary) if summary.exists() else {},
        backend,
    )


def _network_of(about: Mapping[str, Any], asked: str | None) -> str:
    """Return the network whose own settings a file of weights names, or the one asked for."""
    known = {"model": "convnet", "engine": "mlp-numpy", "device": "mlp-pytorch"}
    found = next((name for setting, name in known.items() if setting in about), "unknown")
    if asked in (None, found) or (asked, found) == ("mlp-numpy", "mlp-pytorch"):
        return asked or found
    raise ValueError(f"its network is {found}, not {asked}")
