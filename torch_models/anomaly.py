"""Find the module where a number is first not finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_models.device import is_out_of_memory


def watch(model: nn.Module) -> list[Any]:
    """Check what every module of ``model`` returns in training, and the gradients it passes on.

    The first value that is not finite raises FloatingPointError with the module's name: a part's
    before that of the module it is part of.

    Returns:
        Handles whose ``remove()`` ends it.
    """

    def check_output(what: str, module: nn.Module, args: Any, output: Any) -> None:
        if module.training:
            check_finite(output, what)

    def watch_input(what: str, module: nn.Module, args: Any) -> None:
        for x in args:
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(partial(check_finite, what=what))  # type: ignore[no-untyped-call]

    handles: list[Any] = []
    for name, module in model.named_modules():
        full_name = f"{name} ({type(module).__name__})" if name else "the network"
        hook = partial(check_output, f"the output of {full_name}")
        handles.append(module.register_forward_hook(hook))
        if next(module.children(), None) is None:
            hook = partial(watch_input, f"the gradient that reaches the input of {full_name}")
            handles.append(module.register_forward_pre_hook(hook))
    return handles


def explain(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """Return where the first value that is not finite appears in ``forward()``; None if nowhere."""
    # A gradient that was not finite has spoilt its parameter and those of the layers before it.
    for name, parameter in reversed(list(model.named_parameters())):
        if not parameter.isfinite().all():
            return f"{name}, in the update of the step before, became not finite"
    handles = watch(model)
    try:
        with torch.no_grad():
            forward()
    except FloatingPointError as error:
        return str(error)
    except Exception as error:  # memory may be short: then nobody knows
        if not is_out_of_memory(error):
            raise
    finally:
        for handle in handles:
            handle.remove()
    return None


def check_finite(value: Any, what: str) -> None:
    """Look at a tensor, or at those in a tuple, a list or a dictionary."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            check_finite(item, what)
    elif isinstance(value, Tensor) and not (finite := value.isfinite()).all():
        raise FloatingPointError(f"{what} became {value[~finite][0].item()}")
