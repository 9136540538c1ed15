"""The networks: shapes, structure, and the same numbers as their NumPy twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import numpy_mlp
import torch_models
from custom_modules import CustomBatchNormAutograd, CustomBatchNormManualModule
from torch_models.convnet import ConvNet, PreActResNet, SmallVGG
from torch_models.mlp import MLP
from torch_models.registry import MODELS
from torch_models.vu_mnist import VUMLP, VUConvNet


def test_the_package_exports_its_networks() -> None:
    from torch_models.learner import TorchLearner

    for name in torch_models.__all__:
        assert getattr(torch_models, name) is not None
    exported = {kind for kind in vars(torch_models).values() if isinstance(kind, type)}
    assert {MLP, ConvNet, PreActResNet, SmallVGG, VUConvNet, VUMLP, TorchLearner} <= exported
    assert torch_models.MODELS is MODELS


OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "elu"},
    {"activation": "tanh", "dropout": 0.3},
    {"activation": "sigmoid", "batch_norm": True},
    {"neg_slope": 0.1, "dropout": 0.2, "batch_norm": True},
    {"input_dropout": 0.2},
]


def _twin(options: dict[str, Any], n_hidden: list[int]) -> MLP:
    options = dict(options)
    norm = nn.BatchNorm1d if options.pop("batch_norm", False) else None
    return MLP(12, n_hidden, 4, norm=norm, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("n_hidden", [[], [6, 5]], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_weights_move_between_numpy_and_pytorch(
    tmp_path: Path,
    options: dict[str, Any],
    n_hidden: list[int],
    dtype: str,
    tolerance: float,
    rng: np.random.Generator,
) -> None:
    ours = numpy_mlp.MLP(12, n_hidden, 4, dtype=dtype, rng=rng, **options)
    x = rng.standard_normal((8, 3, 2, 2)).astype(dtype)
    ours(x.reshape(8, -1))  # running statistics other than the initial ones
    ours.eval()
    save_file(ours.state_dict(), tmp_path / "model.safetensors")
    theirs = _twin(options, n_hidden).to(getattr(torch, dtype)).eval()
    state = load_file(tmp_path / "model.safetensors")
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x)).numpy()
    expected = ours.logits(x.reshape(8, -1))
    np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)
    # And back again.
    again = numpy_mlp.MLP(12, n_hidden, 4, dtype=dtype, **options)
    again.load_state_dict({name: t.numpy() for name, t in theirs.state_dict().items()})
    again.eval()
    np.testing.assert_array_equal(again.logits(x.reshape(8, -1)), expected)


def test_initialisation_is_the_numpy_networks() -> None:
    model = MLP(400, [300], 200)
    assert model.layers[0].weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert model.layers[2].weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not model.layers[2].bias.any()
    small = MLP(400, [300], 200, weight_std=1e-4)
    assert small.layers[0].weight.std().item() == pytest.approx(1e-4, rel=0.02)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="swish"):
        MLP(3, [4], 2, activation="swish")


@pytest.mark.parametrize("sizes", [(0, [4], 2), (3, [0], 2), (3, [4], 0), (3, [4.0], 2)], ids=str)
def test_sizes_that_are_none(sizes: Any) -> None:
    for kind in (MLP, numpy_mlp.MLP):
        with pytest.raises(ValueError, match=r"must be (a )?positive integer"):
            kind(*sizes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_fits_every_dataset(name: str, shape: tuple[int, int, int]) -> None:
    if name == "fast" and shape[1] < 26:
        with pytest.raises(ValueError, match="at least 26×26, got 8×8"):
            MODELS[name](shape, 10, nn.BatchNorm2d)
        return
    model = MODELS[name](shape, 10, nn.BatchNorm2d).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, 10)


def _layers(model: nn.Module) -> list[str]:
    names = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.stride == (1, 1)
            size = module.kernel_size[0]
            assert module.padding == ((size - 1) // 2,) * 2
            names.append(f"conv{size}-{module.out_channels}")
        elif isinstance(module, nn.MaxPool2d):
            names.append("pool")
        elif isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.Linear):
            names.append(type(module).__name__.lower())
    return names


def test_the_vgg_is_the_assignments() -> None:
    expected = []
    for widths in ([64], [128], [256, 256], [512, 512], [512, 512]):
        for width in widths:
            expected += [f"conv3-{width}", "batchnorm2d", "relu"]
        expected.append("pool")
    model = ConvNet(3, 10)
    assert _layers(model) == [*expected, "linear"]
    pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
    assert {(p.kernel_size, p.stride, p.padding) for p in pools} == {(3, 2, 1)}


def test_the_residual_network_is_pre_activated() -> None:
    layers = _layers(PreActResNet(3, 10))
    assert layers[:5] == ["conv3-64", "batchnorm2d", "relu", "conv3-64", "conv1-128"]
    assert layers[-3:] == ["batchnorm2d", "relu", "linear"]
    assert layers.count("pool") == 5
    assert sum(layer.startswith("conv3") for layer in layers) == 1 + 8


def test_the_small_vgg() -> None:
    expected = []
    for width in (32, 64, 128):
        expected += [f"conv3-{width}", "batchnorm2d", "relu"] * 2 + ["pool"]
    model = SmallVGG(1, 10, 28)
    assert _layers(model) == [*expected, "linear"]
    assert model.classifier[1].in_features == 128 * 3 * 3


def test_vu_networks_end_in_log_softmax() -> None:
    x = torch.randn(5, 1, 28, 28)
    for model in (VUMLP(), VUConvNet()):
        out = model.eval()(x)
        np.testing.assert_allclose(out.exp().sum(1).detach().numpy(), 1, rtol=1e-5)
        target = torch.tensor([0, 1, 2, 3, 4])
        nll = nn.functional.nll_loss(out, target)
        assert nn.functional.cross_entropy(out, target).item() == pytest.approx(
            nll.item(), rel=1e-5
        )
    assert VUConvNet().classifier[0].in_features == 1152
    assert [m.p for m in VUMLP().modules() if isinstance(m, nn.Dropout)] == [0.3] * 3


@pytest.mark.parametrize("norm", [CustomBatchNormAutograd, CustomBatchNormManualModule])
def test_our_normalisation_is_a_real_part(norm: Any) -> None:
    torch.manual_seed(0)
    builtin = ConvNet(1, 10).double()
    ours = ConvNet(1, 10, norm=lambda c: norm(c, track_running_stats=True)).double()
    state = builtin.state_dict()
    names = zip(ours.state_dict(), state, strict=True)
    ours.load_state_dict({mine: state[theirs] for mine, theirs in names})
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    outs = [model(x) for model in (builtin, ours)]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-9, atol=1e-9)
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(builtin.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-8)
