"""Device and precision: what is there, and what pays."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from torch_models import device
from torch_models.mlp import MLP


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


@pytest.mark.parametrize(("bf16_seconds", "chosen"), [(0.5, "bf16"), (0.95, "float32")])
def test_precision_is_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, bf16_seconds: float, chosen: str
) -> None:
    seconds = itertools.cycle([1.0, bf16_seconds])
    monkeypatch.setattr(device, "_fastest", lambda *args: next(seconds))
    batch = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    precision, reason = device.choose_precision("auto", MLP(3, [4], 2), batch)
    assert precision == chosen
    assert f"{bf16_seconds:.2f}" in reason
    assert device.choose_precision("float64", MLP(3, [4], 2), batch)[0] == "float64"


def test_the_measurement_leaves_no_trace() -> None:
    model = MLP(3, [4], 2, dropout=0.5, norm=torch.nn.BatchNorm1d)
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batch = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    torch.set_rng_state(generator)
    device.choose_precision("auto", model, batch)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
