"""Muon in PyTorch, the rule of :class:`numpy_mlp.muon.Muon`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for filters, Nesterov's momentum for all other parameters.

    The formulas are in :class:`numpy_mlp.muon.Muon`. Every parameter group has the learning rate
    of the filters as its ``lr``; parameters of other than four axes follow it in proportion.

    Args:
        params: parameters, or groups of them, which may have any of the other arguments.
        lr: learning rate of the filters, at its highest.
        momentum: share of the filters' buffer that survives a step, in [0, 1).
        rest_lr: learning rate of the parameters that are no filters, when the filters' is ``lr``.
        rest_momentum: of those.
        weight_decay: share by which those shrink in a step, when the filters' rate is ``lr``.
        steps: of the iteration in :func:`orthogonalize`.

    Raises:
        ValueError: a value is out of range.

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.6,
        rest_lr: float = 0.1,
        rest_momentum: float = 0.85,
        weight_decay: float = 0.0,
        steps: int = 3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "rest_lr": rest_lr, "steps": steps}
        defaults |= {"rest_momentum": rest_momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for name in ("momentum", "rest_momentum"):
                if not 0 <= group[name] < 1:
                    raise ValueError(f"{name} must be in [0, 1), got {group[name]!r}")
            for name in ("lr", "rest_lr", "weight_decay"):
                if not 0 <= group[name] < math.inf:
                    raise ValueError(f"{name} must be >= 0 and finite, got {group[name]!r}")
            group["top_lr"] = group["lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter from its gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum_buffer"]
        momentum = group["momentum" if param.dim() == 4 else "rest_momentum"]
        buffer.mul_(momentum).add_(grad)
        direction = grad + momentum * buffer
        if param.dim() == 4:
            param.mul_(math.sqrt(len(param)) / torch.linalg.vector_norm(param))
            matrix = orthogonalize(direction.reshape(len(param), -1), group["steps"])
            param.sub_(group["lr"] * matrix.reshape(param.shape))
            return
        share = group["lr"] / group["top_lr"] if group["top_lr"] else 0.0
        param.mul_(1 - share * group["weight_decay"])
        param.sub_(share * group["rest_lr"] * direction)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return U S Vᵀ for a matrix U diag(σ) Vᵀ, where S is near 1 instead of σ.

    As :func:`numpy_mlp.muon.orthogonalize`, where the iteration is derived.

    Args:
        matrix: (M, N), not changed.
        steps: of the iteration.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if len(matrix) > matrix.shape[1]:
        return orthogonalize(matrix.T, steps).T
    x = matrix / (torch.linalg.vector_norm(matrix) + 1e-7)
    gram = x @ x.T
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(steps):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal().add_(a)
        product = factor @ product
        gram = factor @ gram @ factor
    result: Tensor = product @ x
    return result
