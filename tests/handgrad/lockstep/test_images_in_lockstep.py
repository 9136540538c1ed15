"""Convolutional networks in lockstep, and a user's layers of images in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handgrad.data import load_dataset
from handgrad.lockstep import command as compare_engines
from handgrad.lockstep.cause import _is_tie
from handgrad.lockstep.engines import ModulesEngine
from handgrad.lockstep.subject import CompareSettings, build_learner
from handgrad.lockstep.user_engine import UserEngine
from handgrad.user_code.blame import UserCodeError
from numpy_mlp.modules import MaxPool2dModule


@pytest.mark.parametrize(("model", "steps"), [("small-vgg", 4), ("preact-resnet", 2)])
def test_convolutional_networks_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, steps: int
) -> None:
    argv = f"--model {model} --steps {steps} --lr 0.01 --momentum 0.9 --batch-size 8"
    assert compare_engines.main([*argv.split(), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"digits: {model}, batches of 8" in said
    assert "graph agrees with modules" in said and "pytorch agrees with modules" in said
    report = json.loads((tmp_path / "engines.json").read_text())
    for name in ("graph", "pytorch"):
        distances = [s["parameter"] for s in report["engines"][name]["steps"]]
        assert len(distances) == steps and 0 < max(distances) < 1e-10


def test_a_convolutional_network_agrees_on_cifar10(real_data: Path, tmp_path: Path) -> None:
    argv = "--model vu-convnet --steps 10 --batch-size 4 --lr 0.01 --validation-size 49000"
    argv += f" --dataset cifar10 --data-dir {real_data} --out {tmp_path}"
    assert compare_engines.main(argv.split()) == 0
    report = json.loads((tmp_path / "engines.json").read_text())
    assert report["tolerance"] == 1e-10 and len(report["losses"]) == 10


class Conv2dModule:
    """As a student writes it: loops over the kernel, C order, no groups."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.params = {"weight": np.zeros((out_channels, in_channels, kernel_size, kernel_size))}
        if bias:
            self.params["bias"] = np.zeros(out_channels)
        self.grads: dict[str, np.ndarray] = {}

    def _seen(self, x: np.ndarray, i: int, j: int, y: np.ndarray) -> np.ndarray:
        rows, columns = y.shape[2:]
        seen: np.ndarray = x[:, :, i : i + rows : self.stride, j : j + columns : self.stride]
        return seen

    def forward(self, x: np.ndarray) -> np.ndarray:
        assert x.flags.c_contiguous
        p, k = self.padding, self.kernel_size
        self.x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        w = self.params["weight"]
        y = np.zeros((len(x), len(w), x.shape[2] + 2 * p - k + 1, x.shape[3] + 2 * p - k + 1))
        for i, j in np.ndindex(k, k):
            y += np.einsum("nchw,oc->nohw", self._seen(self.x, i, j, y), w[:, :, i, j])
        return y + self.params["bias"][:, None, None] if "bias" in self.params else y

    def backward(self, dout: np.ndarray) -> np.ndarray:
        w, k, p = self.params["weight"], self.kernel_size, self.padding
        dw, dx = np.zeros_like(w), np.zeros_like(self.x)
        for i, j in np.ndindex(k, k):
            seen = self._seen(self.x, i, j, dout)
            dw[:, :, i, j] = np.einsum("nohw,nchw->oc", dout, seen)
            self._seen(dx, i, j, dout)[...] += np.einsum("nohw,oc->nchw", dout, w[:, :, i, j])
        self.grads["weight"] = dw
        if "bias" in self.params:
            self.grads["bias"] = dout.sum(axis=(0, 2, 3))
        return dx[:, :, p:-p, p:-p] if p else dx


class BatchNorm2dModule:
    """As a student writes it, parameters of shape (1, C, 1, 1)."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        self.eps = eps
        shape = (1, num_features, 1, 1)
        self.params = {"weight": np.ones(shape), "bias": np.zeros(shape)}
        self.grads: dict[str, np.ndarray] = {}

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.inv_std = 1 / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + self.eps)
        self.x_hat = (x - x.mean(axis=(0, 2, 3), keepdims=True)) * self.inv_std
        y: np.ndarray = self.params["weight"] * self.x_hat + self.params["bias"]
        return y

    def backward(self, dout: np.ndarray) -> np.ndarray:
        over: Any = {"axis": (0, 2, 3), "keepdims": True}
        self.grads = {"weight": (dout * self.x_hat).sum(**over), "bias": dout.sum(**over)}
        along = self.x_hat * (dout * self.x_hat).mean(**over)
        dx: np.ndarray = dout - dout.mean(**over) - along
        return self.inv_std * self.params["weight"] * dx


class _WrongConv2d(Conv2dModule):
    def backward(self, dout: np.ndarray) -> np.ndarray:
        dx = super().backward(dout)
        self.grads["weight"] = self.grads["weight"][:, :, ::-1]
        return dx


class _WithoutBias(Conv2dModule):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)


def _traces(model: str, classes: dict[str, type], tmp_path: Path) -> tuple[Any, Any]:
    settings = CompareSettings.checked({"model": model, "batch_size": 4})
    dataset = load_dataset("digits")
    x, labels = dataset.train.images[:4] / 16.0, dataset.train.labels[:4]
    engine = UserEngine(build_learner(settings, dataset), classes, tmp_path / "modules.py")
    reference = ModulesEngine(build_learner(settings, dataset))
    reference.step(x, labels, 0.1)
    engine.step(x, labels, 0.1)
    after = reference.weights()
    for name, value in engine.weights().items():
        np.testing.assert_allclose(value, after[name], rtol=1e-9, atol=1e-11)
    assert not any("running" in name for name in engine.weights())
    return reference.trace(x, labels), engine.trace(x, labels)


def test_a_users_layers_of_images(tmp_path: Path) -> None:
    """In a chain, and inside of residual blocks."""
    classes = {"Conv2dModule": Conv2dModule, "BatchNorm2dModule": BatchNorm2dModule}
    for model in ("small-vgg", "preact-resnet"):
        expected, found = _traces(model, classes, tmp_path)
        assert expected.keys() == found.keys()
        for place, value in expected.items():
            scale = np.abs(value).max() + 1e-3
            np.testing.assert_allclose(found[place], value, rtol=0, atol=1e-9 * scale)


def test_a_users_wrong_convolution_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        _traces("small-vgg", {"Conv2dModule": _WrongConv2d}, tmp_path)
    with pytest.raises(UserCodeError, match="needs bias=False, which it does not take"):
        _traces("small-vgg", {"Conv2dModule": _WithoutBias}, tmp_path)


def test_the_command_names_a_users_wrong_pooling(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "modules.py"
    path.write_text(
        "import numpy_mlp.modules as ours\n\n\nclass MaxPool2dModule:\n"
        "    def __init__(self, kernel_size, stride=None, padding=0):\n"
        "        self.ours = ours.MaxPool2dModule(kernel_size, stride, padding)\n\n"
        "    def forward(self, x):\n        self.x = x\n        return self.ours.forward(x)\n\n"
        "    def backward(self, dout):\n        dx = self.ours.backward(dout)\n"
        "        dx[:, :, 1::2, 1::2] = 0\n        return dx\n"
    )
    argv = f"--model small-vgg --steps 2 --engines modules --modules {path} --out {tmp_path}"
    assert compare_engines.main([*argv.split(), "--batch-size", "8"]) == 1
    said = capfd.readouterr()
    finding = json.loads((tmp_path / "engines.json").read_text())["engines"]["yours"]["finding"]
    assert finding["kind"] == "layer", said.out + said.err
    assert "(MaxPool2dModule)" in said.out and "your modules.py, line 12" in said.out


def test_ties_of_max_pooling_are_no_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 4))
    x[1, 2, 0, :2] = 5.0, 5.0 + 1e-15
    pool, dout = MaxPool2dModule(2), rng.standard_normal((2, 3, 2, 2))
    pool.forward(x)
    expected = pool.backward(dout)
    pool.forward(np.round(x, 12))
    found = pool.backward(dout)
    assert _is_tie(expected, found, x, (1, 2, 0, 0), 1e-12)
    assert not _is_tie(expected, 0.5 * found, x, (1, 2, 0, 0), 1e-12)  # the sum differs
    found[1, 2, 0, :2] = expected[1, 2, 0, :2]
    found[0, 0, :2, :2] = found[0, 0, :2, :2][::-1]
    at = tuple(np.unravel_index(np.abs(expected - found).argmax(), x.shape))
    assert not _is_tie(expected, found, x, at, 1e-12)  # no equal values
