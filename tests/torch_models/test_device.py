"""Device and precision: what is there, and what pays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torch_models import device


def test_the_processor_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"--device cuda is not there; this machine has cpu"):
        device.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose_device("auto").type == "cuda"


def test_every_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for rank in range(3):  # all fail alike, so that the first can say why
        with pytest.raises(ValueError, match="3 processes need a GPU each, this machine has 2"):
            device.choose_device("cuda", rank, 3)
    chosen = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert device.choose_device("auto", 1, 2).type == "cuda" and chosen == [1]
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    with pytest.raises(ValueError, match="MPS"):
        device.choose_device("mps", 0, 2)


@pytest.mark.parametrize(
    ("instructions", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_tile": True}, "bf16"), ({}, "float32")],
)
def test_precision_is_what_the_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], chosen: str
) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        there = instructions.get(name, False)
        monkeypatch.setattr(
            torch.cpu, f"_is_{name}_supported", lambda there=there: there, raising=False
        )
    cpu = torch.device("cpu")
    precision, reason = device.choose_precision("auto", cpu)
    assert precision == chosen and "processor" in reason
    assert device.choose_precision("float64", cpu) == ("float64", "as asked")
    assert device.choose_precision("bf16", cpu)[0] == "bf16"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert device.choose_precision("auto", cpu)[0] == "float32"
    assert device.choose_precision("auto", torch.device("mps"))[0] == "float32"


def test_a_release_that_does_not_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
    assert device.choose_precision("auto", torch.device("cpu"))[0] == "float32"


def test_no_clock_decides() -> None:
    source = Path(device.__file__).read_text(encoding="utf-8")
    assert "import time" not in source and "perf_counter" not in source
