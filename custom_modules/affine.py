"""What the normalisation layers share: the parameters, and the checks of their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn


class AffineModule(nn.Module):
    """Owner of ``gamma`` (ones) and ``beta`` (zeros), one entry for each of ``n_neurons`` channels.

    Args:
        n_neurons: number of channels C.
        eps: added to the variance.

    Attributes:
        gamma, beta: (C,). PyTorch's own layers call them ``weight`` and ``bias``; those names read
            the same parameters here. A state dict uses ``gamma`` and ``beta``.
    """

    def __init__(self, n_neurons: int, eps: float = 1e-5) -> None:
        super().__init__()
        if n_neurons != int(n_neurons) or n_neurons < 1:
            raise ValueError(f"n_neurons must be a positive integer, got {n_neurons!r}")
        self.n_neurons, self.eps = int(n_neurons), eps
        self.gamma = nn.Parameter(torch.ones(self.n_neurons))
        self.beta = nn.Parameter(torch.zeros(self.n_neurons))

    @property
    def weight(self) -> nn.Parameter:
        """``gamma`` under PyTorch's name."""
        return self.gamma

    @property
    def bias(self) -> nn.Parameter:
        """``beta`` under PyTorch's name."""
        return self.beta

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted, as TorchScript knows neither its checks "
            f"nor a backward pass in Python; use torch.export.export or torch.jit.trace instead of "
            f"torch.jit.script"
        )

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"{self.n_neurons}, eps={self.eps}"


def formula_wanted() -> bool:
    """Say whether others than autograd differentiate, or record, what is computed now.

    torch.func's transforms (vmap, grad, ...) take a function apart themselves, and torch.export and
    torch.jit.trace keep its operations: none of them can use a backward pass in Python.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or transformed() or _is_exporting()


def transformed() -> bool:
    """Say whether one of torch.func's transforms is at work."""
    return bool(torch._C._are_functorch_transforms_active())


# Releases before 2.7 do not say.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def check_input(layer: str, x: Tensor, n_neurons: int) -> None:
    """Raise an error that says what ``layer`` expected of ``x``, unless it got that."""
    if not x.is_floating_point():
        raise TypeError(f"{layer}: expected a floating-point input, got {x.dtype}")
    if x.ndim not in (2, 4) or x.shape[1] != n_neurons:
        raise ValueError(
            f"{layer}: expected an input of shape (N, {n_neurons}) or (N, {n_neurons}, H, W), "
            f"got {tuple(x.shape)}"
        )


def channels(layer: str, gamma: Tensor, beta: Tensor) -> int:
    """Return C, the length of both parameters; an error unless they are vectors of one length."""
    if gamma.ndim != 1 or gamma.shape != beta.shape:
        raise ValueError(
            f"{layer}: expected gamma and beta of one shape (C,), got {tuple(gamma.shape)} and "
            f"{tuple(beta.shape)}"
        )
    return len(gamma)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Return float32 for the half precisions, else the dtype of ``x``.

    The sums run in this dtype under autocast too, where the inputs may be bfloat16 and the
    parameters are float32; the output has the dtype of the input, as PyTorch's layers have it.
    """
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
