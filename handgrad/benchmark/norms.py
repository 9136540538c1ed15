"""Batch normalisation, forward and backward: PyTorch's, ours, and autograd's."""

from __future__ import annotations

import argparse

from handgrad.benchmark.report import Report, interleave
from handgrad.console import requires_torch


def norm(arguments: argparse.Namespace) -> Report:
    """Time batch normalisation, forward and backward: PyTorch's, ours, and autograd's."""
    requires_torch()
    import torch
    from torch import nn

    from custom_modules import CustomBatchNormAutograd, CustomBatchNormManualModule

    torch.set_num_threads(arguments.threads)
    report = Report("norm", {}, ("built-in",))
    for shape, builtin, share in (
        ((128, 64, 32, 32), nn.BatchNorm2d, 1),
        ((256, 512), nn.BatchNorm1d, 20),
    ):
        x = torch.randn(shape, requires_grad=True)
        dout = torch.randn(shape)
        modules: dict[str, nn.Module] = {
            "built-in": builtin(shape[1]),
            "manual": CustomBatchNormManualModule(shape[1]),
            "autograd": CustomBatchNormAutograd(shape[1]),
        }

        def call(
            module: nn.Module, x: torch.Tensor = x, dout: torch.Tensor = dout
        ) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(module(x), (x, *module.parameters()), dout)

        calls = {name: (lambda m=module, c=call: c(m)) for name, module in modules.items()}
        timings = interleave(calls, share * arguments.repeats)
        report.seconds[" × ".join(map(str, shape))] = timings
    return report
