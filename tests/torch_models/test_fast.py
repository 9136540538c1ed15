"""The fast network and Muon against their NumPy twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from custom_modules import CustomBatchNormManualModule
from numpy_mlp import convnet
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.muon import Muon as NumpyMuon
from torch_models import muon
from torch_models.fast import FastConvNet
from torch_models.learner import TorchLearner

WIDTHS = (8, 12, 16)


def _twins(shape: tuple[int, int, int] = (3, 32, 32)) -> tuple[convnet.ConvNet, FastConvNet]:
    rng = np.random.default_rng(0)
    ours = convnet.fast(shape, 10, widths=WIDTHS, rng=rng)
    filters = convnet.whitening_filters(rng.standard_normal((50, *shape)))
    ours.params["features.0.weight"][...] = filters
    theirs = FastConvNet(shape[0], 10, shape[1], widths=WIDTHS).double()
    state = {name: torch.from_numpy(array.copy()) for name, array in ours.state_dict().items()}
    theirs.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 26, 26), (2, 50, 50)], ids=str)
def test_names_numbers_and_what_is_trained_are_the_twins(shape: tuple[int, int, int]) -> None:
    ours, theirs = _twins(shape)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    trained = [name for name, p in theirs.named_parameters() if p.requires_grad]
    assert list(ours.trained_parameters()) == trained
    assert "features.0.weight" not in trained and "features.2.2.weight" not in trained
    x = np.random.default_rng(1).standard_normal((4, *shape))
    for training in (True, False):  # the first moves the running statistics
        ours.train(training)
        theirs.train(training)
        logits = theirs(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ours.logits(x), logits, rtol=1e-9, atol=1e-9)
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(theirs.state_dict()[name].numpy(), array, atol=1e-12)


def test_it_begins_as_the_identity_with_a_small_head() -> None:
    torch.manual_seed(0)
    theirs = FastConvNet(3, 10, 32)
    x = torch.randn(2, 24, 5, 5)
    conv = theirs.features[2][0]
    out = conv(x)
    torch.testing.assert_close(out[:, :24], x)
    assert out.shape[1] == 64 and out[:, 24:].std() > 0.1
    assert theirs.classifier.weight.std().item() == pytest.approx(1 / 256, rel=0.1)


def test_our_normalisation_learns_its_bias_alone_too() -> None:
    model = FastConvNet(
        3, 10, 32, norm=lambda n: CustomBatchNormManualModule(n, track_running_stats=True)
    )
    norm = model.features[2][2]
    assert isinstance(norm, CustomBatchNormManualModule)
    assert (norm.momentum, norm.gamma.requires_grad, norm.beta.requires_grad) == (0.4, False, True)


def _optimizers(
    ours: list[np.ndarray], theirs: list[nn.Parameter], **options: Any
) -> tuple[NumpyMuon, muon.Muon]:
    rates = [0.05 + 0.1 * i for i in range(len(ours))]
    groups = [{"params": [p], "rest_lr": rate} for p, rate in zip(theirs, rates, strict=True)]
    return NumpyMuon(ours, 0.2, rest_lr=rates, **options), muon.Muon(groups, 0.2, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"momentum": 0.9, "rest_momentum": 0.5, "steps": 5}],
    ids=str,
)
def test_muon_is_numpys(options: dict[str, Any], rng: np.random.Generator) -> None:
    shapes = [(6, 4, 3, 3), (40, 2, 3, 3), (5, 7), (9,)]  # filters both wide and tall
    ours = [rng.standard_normal(shape) for shape in shapes]
    theirs = [nn.Parameter(torch.from_numpy(p.copy())) for p in ours]
    one, other = _optimizers(ours, theirs, **options)
    for step in range(8):
        one.lr = 0.2 * (1 - step / 8)
        for group in other.param_groups:
            group["lr"] = one.lr
        grads = [rng.standard_normal(shape) for shape in shapes]
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = torch.from_numpy(grad)
        one.step(grads)
        other.step()
        for mine, p in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), mine, rtol=1e-10, atol=1e-10)


def test_muon_goes_on_from_its_state(rng: np.random.Generator) -> None:
    start = torch.from_numpy(rng.standard_normal((6, 4, 3, 3)))
    grads = [torch.from_numpy(rng.standard_normal((6, 4, 3, 3))) for _ in range(4)]

    def train(parameter: nn.Parameter, optimizer: muon.Muon, some: list[torch.Tensor]) -> None:
        for grad in some:
            parameter.grad = grad
            optimizer.step()

    whole = nn.Parameter(start.clone())
    train(whole, muon.Muon([whole], 0.1), grads)
    part = nn.Parameter(start.clone())
    optimizer = muon.Muon([part], 0.1)
    train(part, optimizer, grads[:2])
    again = nn.Parameter(part.detach().clone())
    resumed = muon.Muon([again], 0.1)
    resumed.load_state_dict(optimizer.state_dict())
    train(again, resumed, grads[2:])
    assert torch.equal(again, whole)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum"),
        ({"lr": 0.1, "rest_momentum": -0.1}, "rest_momentum"),
        ({"lr": 0.1, "rest_lr": float("inf")}, "rest_lr"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must be"):
        muon.Muon([nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize("channels_last", [False, True])
def test_ten_steps_have_the_losses_of_the_twin(
    channels_last: bool, rng: np.random.Generator
) -> None:
    ours, theirs = _twins()
    if channels_last:
        theirs = theirs.to(memory_format=torch.channels_last)
    params = [p for p in theirs.parameters() if p.requires_grad]
    one, other = _optimizers(list(ours.trained_parameters().values()), params, weight_decay=0.01)
    learners = (
        NumpyLearner(ours, one, label_smoothing=0.2),
        TorchLearner(
            theirs, other, torch.device("cpu"), channels_last=channels_last, label_smoothing=0.2
        ),
    )
    losses = []
    for step in range(10):
        x, y = rng.standard_normal((20, 3, 32, 32)), rng.integers(0, 10, 20)
        (loss, correct), (expected, count) = (
            learner.train_step(x, y, 0.2 * (1 - step / 10)) for learner in learners
        )
        assert loss == pytest.approx(expected, rel=1e-9) and correct == count
        losses.append(loss)
    assert len(set(losses)) == 10
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(theirs.state_dict()[name].numpy(), array, rtol=1e-7, atol=1e-9)
