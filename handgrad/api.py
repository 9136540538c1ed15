"""The package from Python: train, and take up what was trained."""

from __future__ import annotations

import json
import os
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.backends.mlp_numpy import MLPSettings, check_widths
from handgrad.backends.registry import NETWORKS, Network
from handgrad.console import streams
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import DataError, UserError
from handgrad.files import read_json, user_path
from handgrad.runs.command_line import Command, check_resumable, compose
from handgrad.runs.declare import check_types, nearest, option_of, unpack_type
from handgrad.runs.folder import CONFIG, MODEL
from handgrad.runs.record import read_run
from handgrad.runs.run import Run
from handgrad.runs.settings import as_options, options_for, settings_from_dict
from handgrad.runs.trained import TrainedRun
from handgrad.training.checkpoint import Arrays, check_finite, load_arrays
from handgrad.training.metrics import Row
from handgrad.training.observers import Observer

# What is raised where a file of weights holds other things than are looked for.
_MISFITS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def train(
    network: str,
    *,
    preset: str | None = None,
    resume: str | Path | None = None,
    observers: Observer | Iterable[Observer] = (),
    **settings: Any,
) -> TrainedRun:
    """Train a network and return the finished run.

    What the commands do, with the options as arguments: ``train("mlp-numpy", dataset="mnist",
    hidden_dims=(256, 128), epochs=5)`` is ``train-mlp-numpy --dataset mnist --hidden-dims 256 128
    --epochs 5``, with the same numbers and the same folder.

    Args:
        network: ``mlp-numpy``, ``convnet-numpy``, ``mlp-pytorch`` or ``convnet``.
        preset: named settings to start from, as ``--preset``.
        resume: folder of a run to go on with, as ``--resume``.
        observers: told of every step and evaluation.
        settings: as the options of the command; ``train-mlp-numpy --help`` lists them.

    Raises:
        UserError: a setting is unknown or not acceptable, the data are missing or damaged, or the
            loss is not finite any more.
        StoppedError: Ctrl-C (in a notebook, the stop button), SIGTERM or SIGHUP while it trained,
            in the main thread; the run is saved, and can be resumed.
    """
    if not isinstance(network, str) or network not in NETWORKS:
        raise UserError(f"network {network!r} is unknown{nearest(str(network), list(NETWORKS))}")
    observers = [observers] if isinstance(observers, Observer) else list(observers)
    if wrong := [one for one in observers if not isinstance(one, Observer)]:  # not after an hour
        raise UserError(
            f"observers holds {wrong[0]!r}; expected objects made from handgrad.Observer"
        )
    row = NETWORKS[network]
    try:
        command = _command(row, preset, resume, settings)
        backend = row.backend()
        with streams(), backend.session():
            run = Run(command, backend, observers)
            run.complete()
    except UserError as error:
        raise type(error)(_as_arguments(str(error), row)) from None
    return load_run(run.folder, network)


def _as_arguments(text: str, network: Network) -> str:
    """Return an error's text with settings as they are called here, not on the command line."""
    names = ["preset", "resume", *(field.name for field in fields(network.settings))]
    spelled = {option_of(name): name for name in names}
    spelled |= {f"--no-{option[2:]}": f"{name}=False" for option, name in spelled.items()}
    return re.sub(r"--[a-z-]+", lambda match: spelled.get(match[0], match[0]), text)


def _command(
    network: Network, preset: str | None, resume: str | Path | None, settings: Mapping[str, Any]
) -> Command[Any]:
    kind = network.settings
    given = {name: _plain(kind, name, value) for name, value in settings.items()}
    for name in ("epochs", "max_steps"):  # None is no end: the other one, or the default, counts
        if given.get(name, 0) is None:
            del given[name]
    check_types(kind, given, "")
    if given.get("target_accuracy") is not None:
        raise UserError(
            "target_accuracy decides the exit status of a command; look at "
            'run.summary["test_accuracy"] instead'
        )
    preset = None if preset is None else str(preset)
    whole = compose(kind, network.presets, preset, given, resumes=resume is not None)
    options = options_for(whole)
    if resume is not None:
        resume = user_path(resume)
        check_resumable(given.keys() | ({"preset"} if preset is not None else set()))
        options = ["--resume", str(resume), *as_options(given)]
    text = shlex.join([network.command, *options])
    return _Call(whole, resume, given, text, network.command)


class _Call(Command[Any]):
    """What :func:`train` was told."""

    def go_on(self, folder: Path) -> str:
        """Return the call that goes on with the run in ``folder``."""
        network = self.invocation.removeprefix("train-")
        return f"handgrad.train({network!r}, resume={str(folder.absolute())!r})"

    def spelled(self, text: str) -> str:
        """Return ``text`` with options as arguments."""
        return _as_arguments(text, NETWORKS[self.invocation.removeprefix("train-")])


def _plain(kind: type, name: str, value: Any) -> Any:
    """Return a setting in the type in which it is kept; one that does not fit as it is."""
    known = [field.name for field in fields(kind)]
    if name not in known:
        raise UserError(f"{name} is no setting{nearest(name, known)}")
    element, is_tuple, _ = unpack_type(typing.get_type_hints(kind)[name])
    value = _scalar(value)
    if is_tuple and isinstance(value, str | int):  # one of what may be several
        value = (value,)
    if is_tuple and isinstance(value, Iterable):
        return tuple(map(_scalar, value))
    return float(value) if element is float and type(value) is int else value


def _scalar(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value  # NumPy's, PyTorch's


def load_run(folder: str | Path, network: str | None = None) -> TrainedRun:
    """Return the finished run in ``folder``: its network, its settings and its history.

    Args:
        folder: of a run of any of the training commands.
        network: which of them it is; by default what the folder says. A multi-layer perceptron
            that PyTorch has trained runs in NumPy as well: ``mlp-numpy``.

    Raises:
        DataError: the run is not finished, or a file in it is damaged.
    """
    folder = user_path(folder).absolute()
    path = folder / MODEL
    if not path.exists():
        state = "holds no finished run" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {state}: there is no {MODEL}")
    weights, texts = load_arrays(path)
    check_finite(weights, path)
    try:
        about = json.loads(texts["model"])
        image_shape, class_names = _images_of(about)
        preprocessing = _preprocessing_of(texts, weights, image_shape)
        found = NETWORKS[_network_of(about)]
    except _MISFITS as error:
        raise DataError(f"{path} is not a run of handgrad: {error}") from None
    if network not in (None, found.name) and (network, found.name) != ("mlp-numpy", "mlp-pytorch"):
        raise DataError(f"{path} is a run of {found.name}, not of {network}")
    backend = NETWORKS[network or found.name].backend()
    try:
        settings = settings_from_dict(found.settings, about, "its text")
        if isinstance(settings, MLPSettings):
            check_widths(settings.hidden_dims, image_shape, len(class_names), weights)
        model = backend.load(settings, image_shape, class_names, weights)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    rows: Sequence[Row] = ()
    summary: Mapping[str, Any] = {}
    if (config := folder / CONFIG).exists():
        try:
            saved = read_json(config).get("settings")
            settings = settings_from_dict(found.settings, saved, str(config))
        except UserError as error:
            raise DataError(str(error)) from None
        record = read_run(folder)
        rows, summary = record.rows, record.summary or {}
    return TrainedRun(
        folder,
        model,
        preprocessing,
        image_shape,
        class_names,
        settings,
        list(rows),
        dict(summary),
        backend,
    )


def _images_of(about: dict[str, Any]) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Take the shape of the images and the names of the classes out of a network's settings."""
    shape, names = tuple(about.pop("image_shape")), tuple(about.pop("class_names"))
    # No dataset has larger images, and a network is as large as they are.
    if not (
        len(shape) == 3 and all(type(n) is int and 0 < n <= 64 for n in shape) and shape[0] < 5
    ):
        raise ValueError(f"its images are of shape {shape}")
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its classes are {names}")
    return shape, names


def _preprocessing_of(
    texts: Mapping[str, str], weights: Arrays, image_shape: tuple[int, ...]
) -> Preprocessing:
    """Return the preprocessing that a file of weights describes, in the type of the weights."""
    fitted = json.loads(texts["preprocessing"])
    mean, scale = (np.array(fitted[name], np.float64) for name in ("mean", "scale"))
    if np.broadcast_shapes(mean.shape, scale.shape, image_shape) != image_shape:
        raise ValueError(f"its preprocessing is not for images of {image_shape}")
    if not (np.isfinite(mean).all() and np.isfinite(scale).all()):
        raise ValueError("its preprocessing is not finite")
    dtype = next((array.dtype for array in weights.values() if array.dtype.kind == "f"), None)
    if dtype is None:
        raise ValueError("it holds no weights")
    with np.errstate(over="raise"):
        return Preprocessing(mean, scale, dtype)


def _network_of(about: Mapping[str, Any]) -> str:
    """Return the network whose own settings a file of weights names."""
    known = {
        "widths": "convnet-numpy",
        "model": "convnet",
        "engine": "mlp-numpy",
        "device": "mlp-pytorch",
    }
    for setting, name in known.items():
        if setting in about:
            return name
    raise ValueError("it names no network")
