"""What the PyTorch commands have in common: device, precision, normalisation, optimizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from custom_modules import CustomBatchNormAutograd, CustomBatchNormManualModule
from scripts.common import build_schedule
from torch_models.device import choose_device, choose_precision
from torch_models.device_loader import DeviceLoader
from torch_models.learner import TorchLearner
from training.config import TorchSettings
from training.data import BatchLoader, Dataset
from training.errors import UserError
from training.loop import Loader
from training.run import Backend

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


def torch_backend(
    name: str, make_model: MakeModel[SettingsT], *, images: bool
) -> Backend[SettingsT]:
    """Return the backend of a PyTorch command.

    Args:
        name: first part of the default run folder's name.
        make_model: makes the network on the host.
        images: whether the network looks at images, which then are kept channels-last.
    """

    def resolve(settings: SettingsT, dataset: Dataset) -> SettingsT:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        try:
            device = choose_device(settings.device)
        except ValueError as error:
            raise UserError(str(error)) from None
        precision, reason = settings.precision, "as asked"
        if precision == "auto":
            learner = _learner(settings, dataset, make_model, device, images)
            shape = (min(settings.batch_size, 256), *dataset.image_shape)
            batch = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
            precision, reason = choose_precision("auto", learner.model, learner.to_device(*batch))
        if not settings.quiet:
            print(f"device {device}, precision {precision} ({reason})")
        return dataclasses.replace(settings, device=device.type, precision=precision)

    def build(settings: SettingsT, dataset: Dataset) -> TorchLearner:
        return _learner(settings, dataset, make_model, torch.device(settings.device), images)

    def adapt(settings: SettingsT, loader: BatchLoader) -> Loader:
        if settings.device != "cuda" or loader.augmentation is not None:
            return loader
        return DeviceLoader(loader, torch.device(settings.device))

    return Backend(name, build, build_schedule, resolve, adapt)


def _learner(
    settings: SettingsT,
    dataset: Dataset,
    make_model: MakeModel[SettingsT],
    device: torch.device,
    images: bool,
) -> TorchLearner:
    torch.manual_seed(settings.seed)
    model = make_model(settings, dataset)
    if settings.precision == "float64":
        model = model.double()
    model = model.to(device)
    if images:
        model = model.to(memory_format=torch.channels_last)
    return TorchLearner(
        model,
        _optimizer(settings, model, fused=device.type in ("cpu", "cuda")),
        device,
        autocast_dtype=torch.bfloat16 if settings.precision == "bf16" else None,
        channels_last=images,
        compiled=settings.compile,
    )


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
