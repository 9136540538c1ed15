"""What the PyTorch commands have in common: device, precision, normalisation, optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from custom_modules import CustomBatchNormAutograd, CustomBatchNormManualModule
from handgrad.backends.common import build_schedule
from handgrad.console import requires_torchvision
from handgrad.data import BatchLoader, Dataset
from handgrad.data.augment import Augmentation, compose
from handgrad.data.preprocess import Preprocessing
from handgrad.errors import DataError, UserError
from handgrad.runs.command_line import TorchSettings, settings_from_dict
from handgrad.runs.run import Backend
from handgrad.seeding import generator
from handgrad.training.checkpoint import load_arrays
from handgrad.training.loop import Loader
from handgrad.training.team import Alone
from torch_models.device import choose_device, choose_precision
from torch_models.device_loader import DeviceLoader
from torch_models.distributed import LostProcessError, ProcessTeam, launched_by_torchrun
from torch_models.learner import TorchLearner, is_out_of_memory

SettingsT = TypeVar("SettingsT", bound=TorchSettings)
MakeModel = Callable[[SettingsT, Dataset], nn.Module]


def norm_layer(name: str, dimensions: int) -> Callable[[int], nn.Module]:
    """Return what makes a batch normalisation of C channels: the built-in one, or one of ours.

    Args:
        name: ``builtin``, ``autograd`` or ``manual``; all keep running statistics.
        dimensions: 1 for inputs (N, C), 2 for (N, C, H, W).
    """
    if name == "builtin":
        return nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
    ours = {"autograd": CustomBatchNormAutograd, "manual": CustomBatchNormManualModule}[name]
    return functools.partial(ours, track_running_stats=True)


@contextlib.contextmanager
def torch_team() -> Iterator[ProcessTeam | None]:
    """Join the processes that ``torchrun`` started together with this one, if it did."""
    if not launched_by_torchrun():
        yield None
        return
    team = ProcessTeam()
    try:
        yield team
    except LostProcessError:
        raise UserError(
            "another process ended; the last checkpoint, if there is one, is whole: torchrun goes "
            "on from it by itself with --max-restarts N and the command's --out FOLDER"
        ) from None
    except UserError:
        team.leave()
        raise
    team.leave()


def torch_backend(
    name: str,
    make_model: MakeModel[SettingsT],
    *,
    images: bool,
    team: ProcessTeam | None = None,
) -> Backend[SettingsT]:
    """Return the backend of a PyTorch command.

    Args:
        name: first part of the default run folder's name.
        make_model: makes the network on the host.
        images: whether the network looks at images, which then are kept channels-last.
        team: the processes that train together, if there are several.
    """

    def make_learner(settings: SettingsT, dataset: Dataset, device: torch.device) -> TorchLearner:
        torch.manual_seed(settings.seed)
        model = make_model(settings, dataset)
        if settings.precision == "float64":
            model = model.double()
        model = model.to(device)
        if images:
            model = model.to(memory_format=torch.channels_last)
        if team is not None and team.rank:  # the same weights in all processes, but not the masks
            torch.manual_seed(int(generator(settings.seed, "process", team.rank).integers(2**63)))
        mix = None
        if settings.mixup or settings.cutmix:
            requires_torchvision()
            from torch_models.transforms import make_mix

            mix = make_mix(settings.mixup, settings.cutmix, dataset.n_classes)
        return TorchLearner(
            model,
            _optimizer(settings, model, fused=device.type in ("cpu", "cuda")),
            device,
            autocast_dtype=torch.bfloat16 if settings.precision == "bf16" else None,
            channels_last=images,
            compiled=settings.compile,
            label_smoothing=settings.label_smoothing,
            mix=mix,
            team=team,
            detect_anomaly=settings.detect_anomaly,
        )

    def measure(settings: SettingsT, dataset: Dataset, device: torch.device) -> tuple[str, str]:
        learner = make_learner(settings, dataset, device)
        for size in (256, 64, 16):  # where memory is short, a small batch tells as well
            shape = (min(settings.batch_size, size), *dataset.image_shape)
            batch = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
            try:
                return choose_precision("auto", learner.model, learner.to_device(*batch))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        return "float32", "too little memory to measure bf16"

    def resolve(settings: SettingsT, dataset: Dataset) -> SettingsT:
        if settings.compile and settings.detect_anomaly:
            raise UserError(
                "--detect-anomaly looks at one module after another: leave out --compile"
            )
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        try:
            place = (0, 1) if team is None else (team.local_rank, team.local_size)
            device = choose_device(settings.device, *place)
        except ValueError as error:
            raise UserError(str(error)) from None
        precision, reason = settings.precision, ""
        if precision == "auto":
            if team is None or team.rank == 0:
                precision, reason = measure(settings, dataset, device)
            if team is not None:
                precision, _, reason = team.agree_on(f"{precision}: {reason}").partition(": ")
        if not settings.quiet:
            print(f"device {device}, precision {precision}" + (f" ({reason})" if reason else ""))
        return dataclasses.replace(settings, device=device.type, precision=precision)

    def build(settings: SettingsT, dataset: Dataset) -> TorchLearner:
        return make_learner(settings, dataset, torch.device(settings.device))

    def adapt(settings: SettingsT, loader: BatchLoader) -> Loader:
        augment = settings.augment if loader.augmentation is not None else ()
        if settings.device != "cuda" or "randaugment" in augment:  # which works on the host
            return loader
        return DeviceLoader(loader, torch.device(settings.device), augment)

    def augmentation(settings: SettingsT) -> Augmentation | None:
        if "randaugment" not in settings.augment:
            return compose(settings.augment)
        requires_torchvision()
        from torch_models.transforms import randaugment

        return compose(settings.augment, {"randaugment": randaugment})

    return Backend(
        name, build, build_schedule, resolve, adapt, augmentation, Alone() if team is None else team
    )


def load_torch_run(
    folder: Path,
    kind: type[SettingsT],
    build: Callable[[SettingsT, tuple[int, ...], int], nn.Module],
) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """Return the trained network of a run, in evaluation mode on the host.

    Args:
        folder: of a finished run.
        kind: the settings of its command.
        build: makes the network from settings, image shape (C, H, W) and number of classes.

    Returns:
        The network; what turns pixels into its inputs; the class names.

    Raises:
        DataError: ``model.safetensors`` is missing, damaged or another command's.
    """
    path = folder / "model.safetensors"
    weights, texts = load_arrays(path)
    try:
        about, fitted = json.loads(texts["model"]), json.loads(texts["preprocessing"])
        shape, names = tuple(about.pop("image_shape")), tuple(about.pop("class_names"))
        model = build(settings_from_dict(kind, about, str(path)), shape, len(names))
        dtype = next(a.dtype for a in weights.values() if a.dtype.kind == "f")
        model = model.to(getattr(torch, dtype.name))
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
        mean, scale = np.array(fitted["mean"]), np.array(fitted["scale"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is not a run of this command: {error}") from None
    return model.eval(), Preprocessing(mean, scale, dtype), names


def _optimizer(settings: TorchSettings, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    lr, weight_decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr,
            momentum=settings.momentum,
            weight_decay=weight_decay,
            nesterov=settings.nesterov,
            fused=fused,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr, weight_decay=weight_decay, fused=fused)
