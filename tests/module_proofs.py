"""What every module of images is held to: differences, PyTorch, and the layouts of an array."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from numpy_mlp.gradient_check import eval_numerical_gradient_array
from numpy_mlp.modules import Module

Array = np.ndarray[Any, Any]

LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "channels-first": np.ascontiguousarray,
    "channels-last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "fortran": np.asfortranarray,
    "negative strides": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1],
    "every other": lambda x: np.repeat(np.repeat(x, 2, axis=1), 2, axis=3)[:, ::2, :, ::2],
}


def apart(rng: np.random.Generator, *shape: int) -> Array:
    """Values at least 0.01 from each other and from 0: no difference straddles a kink or a tie."""
    size = int(np.prod(shape))
    return rng.permutation(np.arange(size) - size // 2 + 0.5).reshape(shape) * (4 / max(size, 1))


def with_random_parameters(module: Module, seed: int = 1) -> Module:
    """Move the parameters: weights of 1 and biases of 0 hide who forgets them."""
    rng = np.random.default_rng(seed)
    for param in getattr(module, "params", {}).values():
        param += rng.uniform(-0.5, 0.5, param.shape).astype(param.dtype)
    return module


def run(module: Module, x: Array, dout: Array) -> dict[str, Array]:
    """Return y, dx and the parameters' gradients, by name; all copies."""
    y = module.forward(x).copy()
    dx = module.backward(dout).copy()
    return {"y": y, "dx": dx} | {k: g.copy() for k, g in getattr(module, "grads", {}).items()}


def assert_close(got: dict[str, Array], want: dict[str, Array], rtol: float) -> None:
    """Compare arrays by name, each relative to the largest entry of what is wanted."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].shape == array.shape, name
        scale = np.abs(array).max(initial=0) + 1e-30
        np.testing.assert_allclose(
            got[name] / scale, array / scale, atol=rtol, rtol=0, err_msg=name
        )


def assert_equal(got: dict[str, Array], want: dict[str, Array]) -> None:
    """Compare arrays by name, bit for bit."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def assert_gradients_are_differences(module: Module, x: Array, rng: np.random.Generator) -> None:
    """All gradients to 1e-9: differences at h and h/2 together have an error of O(h⁴)."""

    def forward(_: Array) -> Array:
        return copy.deepcopy(module).forward(x)

    dout = rng.standard_normal(forward(x).shape)
    got = run(copy.deepcopy(module), x, dout)
    del got["y"]
    want = {}
    for name, array in {"dx": x, **getattr(module, "params", {})}.items():
        wide, narrow = (
            eval_numerical_gradient_array(forward, array, dout, h) for h in (2e-3, 1e-3)
        )
        want[name] = (4 * narrow - wide) / 3
    assert_close(got, want, 1e-9)


def run_in_torch(twin: torch.nn.Module, module: Module, x: Array, dout: Array) -> dict[str, Array]:
    """Return what :func:`run` returns, by PyTorch, with the parameters of ``module``."""
    params = dict(twin.named_parameters())
    assert params.keys() == getattr(module, "params", {}).keys()
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(torch.from_numpy(module.params[name]))
    x_torch = torch.tensor(x, requires_grad=True)
    y = twin(x_torch)
    y.backward(torch.tensor(dout))
    grads = {"dx": x_torch.grad} | {name: param.grad for name, param in params.items()}
    assert all(grad is not None for grad in grads.values())
    return {"y": y.detach().numpy()} | {k: g.numpy() for k, g in grads.items() if g is not None}
