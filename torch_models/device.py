"""Where to compute, and in which precision: chosen once, said in one line."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bf16", "float64")


def choose_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA, else MPS, else the processor.

    Args:
        name: one of :data:`DEVICES`.
        local_rank: number of this process on this machine, which is that of its GPU.
        local_size: number of processes on this machine.

    Raises:
        ValueError: it is not there, or not for every process.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind = name
    if not there.get(kind, False):
        have = ", ".join(kind for kind, present in there.items() if present)
        raise ValueError(f"--device {name} is not there; this machine has {have}")
    if local_size > 1 and kind == "mps":
        raise ValueError("several processes cannot share MPS; give --device cpu")
    if local_size > 1 and kind == "cuda":
        if local_size > (n := torch.cuda.device_count()):
            raise ValueError(
                f"{local_size} processes need a GPU each, this machine has {n}; start fewer "
                f"processes, or give --device cpu"
            )
        torch.cuda.set_device(local_rank)
    return torch.device(name)


def choose_precision(
    name: str,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    repeats: int = 3,
) -> tuple[str, str]:
    """Return the precision to use, ``float32``, ``bf16`` or ``float64``, and why.

    ``auto`` runs a few forward and backward passes of a copy of ``model`` in float32 and under
    bf16 autocast, and takes bf16 where it is at least a tenth faster: on processors without bf16
    instructions it is many times slower.

    Args:
        name: one of :data:`PRECISIONS`.
        model: the network, on its device; left as it is.
        batch: inputs and labels of a typical step, on that device.
        repeats: passes of each kind; the fastest counts.
    """
    if name != "auto":
        return name, "as asked"
    device = batch[0].device
    if device.type == "mps":
        return "float32", "bf16 autocast is not measured on MPS"
    generator = torch.get_rng_state()
    twin = copy.deepcopy(model).train()
    seconds = {}
    for kind in ("float32", "bf16"):
        enabled = kind == "bf16"

        def step(enabled: bool = enabled) -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
                logits = twin(batch[0])
            nn.functional.cross_entropy(logits.float(), batch[1]).backward()  # type: ignore[no-untyped-call]

        seconds[kind] = _fastest(step, device, repeats)
    torch.set_rng_state(generator)
    ratio = seconds["bf16"] / seconds["float32"]
    chosen = "bf16" if ratio < 0.9 else "float32"
    return chosen, f"a step under bf16 autocast takes {ratio:.2f} of one in float32 here"


def _fastest(step: Callable[[], None], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(1 + repeats):  # the first one sets things up
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
