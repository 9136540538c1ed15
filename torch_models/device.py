"""Where to compute, and in which precision: chosen once, said in one line."""

from __future__ import annotations

import torch

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


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Return the precision to use, ``float32``, ``bf16`` or ``float64``, and why.

    ``auto`` asks what the device can do, and measures nothing: the same program on the same machine
    chooses the same, whatever else the machine is doing. It takes bf16 autocast where there are
    instructions for it; without them it is many times slower.

    Args:
        name: one of :data:`PRECISIONS`.
        device: where the network is.
    """
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_it = device.type == "cpu" and _processor_has_bf16()
    if has_it:
        return "bf16", f"this {_KINDS[device.type]} has instructions for it"
    return "float32", f"no instructions for bf16 are known of this {_KINDS[device.type]}"


_KINDS = {"cpu": "processor", "cuda": "GPU", "mps": "GPU"}


def _processor_has_bf16() -> bool:
    """Say whether PyTorch's oneDNN has instructions for bf16 here: AVX-512 BF16 or AMX."""
    # Of x86 only; a release that does not tell is taken to have none.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    told = [getattr(torch.cpu, name, lambda: False)() for name in asked]
    return bool(torch.backends.mkldnn.is_available()) and any(told)  # type: ignore[no-untyped-call]


def is_out_of_memory(error: Exception) -> bool:
    """Say whether PyTorch failed for want of memory, however the device calls it."""
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )
