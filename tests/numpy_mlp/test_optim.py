"""Optimizers against torch.optim, schedules against torch.optim.lr_scheduler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from numpy_mlp.optim import (
    SGD,
    AdamW,
    Optimizer,
    clip_grad_norm,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    step_schedule,
)

SHAPES = [(3, 5), (5,), (2, 3)]
CASES: list[tuple[Callable[..., Optimizer], Any, dict[str, Any]]] = [
    (SGD, torch.optim.SGD, {"lr": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    (partial(AdamW, decoupled=False), torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
    (AdamW, torch.optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.5}),
]


def _gradient(params: list[np.ndarray]) -> list[np.ndarray]:
    """Of a bumpy function, so that 100 steps do not simply converge."""
    return [np.sin(3 * p) + p**3 - 0.1 for p in params]


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES, ids=str)
def test_a_hundred_steps_equal_pytorchs(
    ours: Callable[..., Optimizer], theirs: Any, options: dict[str, Any], rng: np.random.Generator
) -> None:
    params = [rng.standard_normal(shape) for shape in SHAPES]
    twins = [torch.tensor(p, requires_grad=True) for p in params]
    optimizer, reference = ours(params, **options), theirs(twins, **options)
    for step in range(100):
        lr = options["lr"] * (1 - step / 200)  # a schedule sets lr between steps
        optimizer.lr = reference.param_groups[0]["lr"] = lr
        grads = _gradient(params)
        kept = [g.copy() for g in grads]
        for twin, grad in zip(twins, _gradient([t.detach().numpy() for t in twins]), strict=True):
            twin.grad = torch.from_numpy(grad)
        optimizer.step(grads)
        reference.step()
        for grad, before in zip(grads, kept, strict=True):
            np.testing.assert_array_equal(grad, before)
    for p, twin in zip(params, twins, strict=True):
        np.testing.assert_allclose(p, twin.detach().numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES, ids=str)
def test_state_goes_on_bit_for_bit(
    ours: Callable[..., Optimizer], theirs: Any, options: dict[str, Any], rng: np.random.Generator
) -> None:
    params = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    optimizer = ours(params, **options)
    for _ in range(3):
        optimizer.step(_gradient(params))
    copies = [p.copy() for p in params]
    other = ours(copies, **options)
    other.load_state_dict({name: a.copy() for name, a in optimizer.state_dict().items()})
    for _ in range(3):
        optimizer.step(_gradient(params))
        other.step(_gradient(copies))
    for p, q in zip(params, copies, strict=True):
        assert p.dtype == np.float32
        np.testing.assert_array_equal(p, q)


def test_foreign_state_is_refused() -> None:
    sgd, adamw = SGD([np.ones(3)], 0.1, momentum=0.9), AdamW([np.ones(3)])
    with pytest.raises(ValueError, match="exp_avg"):
        adamw.load_state_dict(sgd.state_dict())
    with pytest.raises(ValueError, match="momentum_buffer"):
        SGD([np.ones(3)], 0.1).load_state_dict(sgd.state_dict())


def test_updates_are_in_place() -> None:
    p = np.ones((2, 3))
    SGD([p], lr=0.5).step([np.full((2, 3), 2.0)])
    np.testing.assert_array_equal(p, 0.0)


def test_shapes_must_agree() -> None:
    optimizer = SGD([np.ones((2, 3))], 0.1)
    with pytest.raises(AssertionError, match=r"\(2, 3\), gradient \(3, 2\)"):
        optimizer.step([np.ones((3, 2))])
    with pytest.raises(AssertionError, match="2 gradients for 1"):
        optimizer.step([np.ones((2, 3))] * 2)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (SGD, {"lr": -1.0}, "learning rate"),
        (SGD, {"lr": float("nan")}, "learning rate"),
        (SGD, {"lr": 0.1, "momentum": 1.0}, "momentum"),
        (SGD, {"lr": 0.1, "nesterov": True}, "nesterov"),
        (SGD, {"lr": 0.1, "weight_decay": -0.1}, "weight_decay"),
        (AdamW, {"betas": (1.0, 0.9)}, "betas"),
        (AdamW, {"eps": -1.0}, "eps"),
        (AdamW, {"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_values_are_named(make: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make([np.ones(3)], **options)


@pytest.mark.parametrize("kind", [SGD, partial(AdamW, decoupled=False), AdamW])
def test_weight_decay_of_some(kind: Callable[..., Optimizer], rng: np.random.Generator) -> None:
    params = [rng.standard_normal(shape) for shape in SHAPES]
    alone = [p.copy() for p in params]
    grads = [rng.standard_normal(shape) for shape in SHAPES]
    decays = [0.1, 0.0, 0.3]
    kind(params, 0.1, weight_decay=decays).step(grads)
    for p, grad, decay, found in zip(alone, grads, decays, params, strict=True):
        kind([p], 0.1, weight_decay=decay).step([grad])
        np.testing.assert_array_equal(p, found)


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_is_pytorchs(max_norm: float, dtype: Any, rng: np.random.Generator) -> None:
    grads = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    twins = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for twin, grad in zip(twins, grads, strict=True):
        twin.data = twin.data.to(getattr(torch, np.dtype(dtype).name))
        twin.grad = torch.from_numpy(grad.copy())
    norm = clip_grad_norm(grads, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(twins, max_norm)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert norm == pytest.approx(expected.item(), rel=tolerance)
    for twin, grad in zip(twins, grads, strict=True):
        assert grad.dtype == dtype
        np.testing.assert_allclose(grad, twin.grad, rtol=tolerance)


def _torch_rates(make: Callable[[Any], Any], lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_step_schedule_equals_pytorchs() -> None:
    expected = _torch_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.3), 0.4, 30)
    schedule = step_schedule(0.4, step_size=7, gamma=0.3)
    np.testing.assert_allclose([schedule(t) for t in range(30)], expected, rtol=1e-12)


def test_cosine_schedule_equals_pytorchs() -> None:
    make = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.01)  # noqa: E731
    schedule = cosine_schedule(0.4, total_steps=30, min_lr=0.01)
    np.testing.assert_allclose(
        [schedule(t) for t in range(30)], _torch_rates(make, 0.4, 30), rtol=1e-10
    )
    assert schedule(30) == schedule(31) == pytest.approx(0.01)


def test_linear_schedule_equals_pytorchs() -> None:
    make = lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, 30)  # noqa: E731
    schedule = linear_schedule(0.4, total_steps=30)
    np.testing.assert_allclose(
        [schedule(t) for t in range(30)], _torch_rates(make, 0.4, 30), rtol=1e-10
    )
    assert schedule(30) == schedule(31) == 0


@pytest.mark.parametrize(
    "schedule",
    [
        linear_schedule(0.4, total_steps=4 + 10**9, warmup_steps=4),
        constant_schedule(0.4, warmup_steps=4),
        step_schedule(0.4, step_size=100, warmup_steps=4),
        cosine_schedule(0.4, total_steps=40, warmup_steps=4),
    ],
)
def test_warm_up_rises_linearly_to_the_full_rate(schedule: Callable[[int], float]) -> None:
    np.testing.assert_allclose([schedule(t) for t in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4])


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="step_size"):
        step_schedule(0.1, step_size=0)
    with pytest.raises(ValueError, match="exceeds"):
        cosine_schedule(0.1, total_steps=3, warmup_steps=4)
    with pytest.raises(ValueError, match="exceeds"):
        linear_schedule(0.1, total_steps=3, warmup_steps=4)
    with pytest.raises(ValueError, match="warmup_steps"):
        constant_schedule(0.1, warmup_steps=-1)
