"""What the PyTorch networks have in common: device, precision, normalisation, optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from custom_modules import CustomBatchNormAutograd, CustomBatchNormManualModule
from handgrad.backends.common import build_schedule, decays, muon_rates
from handgrad.backends.torch_settings import TorchSettings
from handgrad.console import requires_torchvision
from handgrad.data import BatchLoader, Dataset
from handgrad.data.augment import Augmentation, compose
from handgrad.errors import StoppedError, UserError
from handgrad.runs.backend import Backend
from handgrad.seeding import generator
from handgrad.training.learner import Loader
from numpy_mlp.optim import Schedule
from torch_models.device import choose_device, choose_precision
from torch_models.device_loader import DeviceLoader
from torch_models.distributed import LostProcessError, ProcessTeam, launched_by_torchrun
from torch_models.learner import TorchLearner
from torch_models.muon import Muon

TorchSettingsT = TypeVar("TorchSettingsT", bound=TorchSettings)


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


def begin_as(model: nn.Module, params: Mapping[str, NDArray[Any]]) -> None:
    """Give ``model`` the initial weights of its NumPy twin, by name."""
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):  # normalisation begins as 1 and 0 in both
                for key, parameter in layer.named_parameters(prefix=name):
                    parameter.copy_(torch.from_numpy(params[key]))


class TorchBackend(Backend[TorchSettingsT]):
    """PyTorch, on a device.

    Args:
        name: first part of the default run folder's name.
        build_model: makes the network from settings, image shape (C, H, W) and number of classes.
        make_model: makes it with its initial weights, on the host, from settings, dataset and
            number of processes.
        images: whether the network looks at images, which then are kept channels-last.
    """

    def __init__(
        self,
        name: str,
        build_model: Callable[[TorchSettingsT, tuple[int, ...], int], nn.Module],
        make_model: Callable[[TorchSettingsT, Dataset, int], nn.Module],
        *,
        images: bool,
    ) -> None:
        self.name, self.images = name, images
        self._build_model, self._make_model = build_model, make_model
        self._processes: ProcessTeam | None = None

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Join the processes that ``torchrun`` started together with this one, if it did."""
        if not launched_by_torchrun():
            # Of a program that goes on: the number of threads, and the processor's generator.
            threads, state = torch.get_num_threads(), torch.get_rng_state()
            try:
                yield
            finally:
                torch.set_num_threads(threads)
                torch.set_rng_state(state)
            return
        self.team = self._processes = team = ProcessTeam()
        try:
            yield
        except LostProcessError:
            raise UserError(
                "another process ended; the last checkpoint, if there is one, is whole: torchrun "
                "goes on from it by itself with --max-restarts N and the command's --out FOLDER"
            ) from None
        except (UserError, StoppedError):
            team.leave()
            raise
        team.leave()

    def resolve(self, settings: TorchSettingsT, dataset: Dataset) -> TorchSettingsT:
        """Choose device and precision, where they are to be chosen, and say so."""
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        team = self._processes
        try:
            place = (0, 1) if team is None else (team.local_rank, team.local_size)
            device = choose_device(settings.device, *place)
        except ValueError as error:
            raise UserError(str(error)) from None
        precision, reason = settings.precision, ""
        if precision == "auto":
            precision, reason = choose_precision("auto", device)
            precision, _, reason = self.team.agree_on(f"{precision}: {reason}").partition(": ")
        if not settings.quiet:
            print(f"device {device}, precision {precision}" + (f" ({reason})" if reason else ""))
        return dataclasses.replace(settings, device=device.type, precision=precision)

    def build(self, settings: TorchSettingsT, dataset: Dataset) -> TorchLearner:
        """Return the network and its optimizer, on the device."""
        device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        model = self._make_model(settings, dataset, self.team.size)
        if settings.precision == "float64":
            model = model.double()
        model = model.to(device)
        if self.images:
            model = model.to(memory_format=torch.channels_last)
        if self.team.rank:  # the same weights in all processes, but not the masks
            seed = generator(settings.seed, "process", self.team.rank).integers(2**63)
            torch.manual_seed(int(seed))
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
            channels_last=self.images,
            compiled=settings.compile,
            label_smoothing=settings.label_smoothing,
            clip_grad_norm=settings.clip_grad_norm,
            ema=settings.ema,
            mix=mix,
            team=self._processes,
            detect_anomaly=settings.detect_anomaly,
        )

    def schedule(self, settings: TorchSettingsT, total_steps: int) -> Schedule:
        """Return the learning rate of each step."""
        return build_schedule(settings, total_steps)

    def threads(self, settings: TorchSettingsT) -> int | None:
        """Return how many threads compute; None where a GPU does."""
        return torch.get_num_threads() if settings.device == "cpu" else None

    def adapt(self, settings: TorchSettingsT, loader: BatchLoader) -> Loader:
        """Return a loader on the GPU, if that is where training is."""
        augment = settings.augment if loader.augmentation is not None else ()
        if settings.device != "cuda" or "randaugment" in augment:  # which works on the host
            return loader
        return DeviceLoader(loader, torch.device(settings.device), augment)

    def augmentation(self, settings: TorchSettingsT) -> Augmentation | None:
        """Return what changes the training images; torchvision's RandAugment among it."""
        if "randaugment" not in settings.augment:
            return compose(settings.augment)
        requires_torchvision()
        from torch_models.transforms import randaugment

        return compose(settings.augment, {"randaugment": randaugment})

    def load(
        self,
        settings: TorchSettingsT,
        image_shape: tuple[int, ...],
        class_names: tuple[str, ...],
        weights: Mapping[str, NDArray[Any]],
    ) -> nn.Module:
        """Return the trained network, on the host, in the type of its weights."""
        with torch.random.fork_rng(devices=[]):  # initial weights, which nobody will see, are drawn
            model = self._build_model(settings, image_shape, len(class_names))
        dtype = next(a.dtype for a in weights.values() if a.dtype.kind == "f")
        model = model.to(getattr(torch, dtype.name))
        try:
            model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return model.eval()

    def probabilities(self, model: nn.Module, inputs: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return the probabilities of the classes."""
        with torch.no_grad():
            result: NDArray[Any] = model(torch.from_numpy(inputs)).softmax(dim=1).numpy()
        return result


def _optimizer(settings: TorchSettings, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    lr, weight_decay = settings.lr, settings.weight_decay
    trained = [p for p in model.parameters() if p.requires_grad]
    shapes = [tuple(p.shape) for p in trained]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if settings.optimizer == "muon" or settings.weight_decay_of != "all":
        pairs = zip(trained, decays(settings, shapes), strict=True)
        groups = [{"params": [p], "weight_decay": decay} for p, decay in pairs]
    if settings.optimizer == "muon":
        for group, rate in zip(groups, muon_rates(settings, shapes), strict=True):
            group["rest_lr"] = rate
        return Muon(groups, lr, momentum=settings.momentum)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr,
            momentum=settings.momentum,
            weight_decay=weight_decay,
            nesterov=settings.nesterov,
            fused=fused,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr, weight_decay=weight_decay, fused=fused)
