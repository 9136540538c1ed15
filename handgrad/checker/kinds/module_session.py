"""A module of the courses in use: state in the object, gradients in ``grads`` or elsewhere."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from handgrad.checker.guesses import Made
from handgrad.checker.subject import Array, ArraySession, Gradients, Variables
from handgrad.user_code.parameters import GRADIENTS, Parameter, gradient_in, is_module
from handgrad.user_code.randomness import reseed

_STATE = ("cache", "ctx", "context", "saved", "tape")  # what forward hands on to backward
# What a backward pass that updates its parameters asks for.
RATES = frozenset({"learning_rate", "lr", "eta", "step_size"})


class ModuleSession(ArraySession):
    """``forward(x)`` and ``backward(dout)`` of a copy of a module."""

    def __init__(self, made: Made, parameters: list[Parameter], inputs: tuple[str, ...]) -> None:
        super().__init__(type(made.template).__name__, inputs)
        try:
            self.module = copy.deepcopy(made.template)
        except Exception:  # a lock, an open file or a generator cannot be copied
            reseed()
            self.module = made.again()
        self.parameters = parameters
        words = list(inspect.signature(self.module.backward).parameters.values())
        self.hands_on = len(words) > 1 and words[1].name.lower() in _STATE
        self.state: Any = None
        # At a rate of 0 nothing is updated.
        self.rates = {p.name: 0.0 for p in words if p.name in RATES and p.default is p.empty}
        self.takes_upstream = any(p.name not in RATES for p in words)

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return ``module.forward(x)``, at the parameters given."""
        for parameter in self.parameters:
            parameter.set(self.module, variables[parameter.name])
        return super().forward(variables)

    def is_loss(self, variables: Variables) -> bool:
        """Say whether forward gives one number, and backward takes no upstream gradient for it."""
        return not self.takes_upstream and all(out.size == 1 for out in self.forward(variables))

    def _parameters(self) -> dict[str, Array]:
        return {p.name: p.value(self.module) for p in self.parameters}

    def _arguments(self) -> tuple[Any, ...]:
        return tuple(self.given.values())

    def _forward(self) -> Any:
        # Where it can be called, as in PyTorch, the call may remember what backward needs.
        call = self.module if callable(self.module) else self.module.forward
        result = call(*self._arguments())
        if self.hands_on:
            result, self.state = result
        if result is None:  # the other convention: what comes out is left in the object
            result = getattr(self.module, "output", None)
        return result

    def _backward(self, *douts: Array) -> Any:
        for name in ("zero_grad", "zero_grads"):  # gradients that add up do so on purpose then
            with contextlib.suppress(AttributeError, TypeError):
                getattr(self.module, name)()
        for owner in [p.owner(self.module) for p in self.parameters]:
            grad = getattr(owner, "grad", None)
            if isinstance(grad, np.ndarray) and not is_module(owner):
                grad[...] = 0  # gradients in objects add up, and an optimizer sets them back
        return self._call(*douts)

    def _call(self, *douts: Array) -> Any:
        if not self.takes_upstream and all(dout.size == 1 for dout in douts):
            douts = ()
        return self.module.backward(*douts, *([self.state] * self.hands_on), **self.rates)

    def _gradients(self, result: Any) -> Gradients:
        """Return what ``module.backward(dout)`` returned and left in ``grads``."""
        if result is None and len(self.inputs) == 1:
            result = getattr(self.module, "dinputs", None)
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        if len(self.inputs) == 1 < len(results):
            (shape,) = (x.shape for x in self.given.values())
            if np.shape(results[0]) != shape == np.shape(results[-1]):
                results = (results[-1], *results[:-1])  # those of the parameters come first
        found: dict[str, Any] = {}
        for i, name in enumerate(self.inputs):
            gradient = results[i] if i < len(results) else None
            found[name] = gradient_in(gradient, name) if isinstance(gradient, dict) else gradient
        for parameter in self.parameters:
            gradient = parameter.gradient(self.module)
            for returned in results:
                if gradient is None and isinstance(returned, dict):
                    gradient = gradient_in(returned, parameter.key)
            found[parameter.name] = gradient
        gradients = {name: None if g is None else np.array(g) for name, g in found.items()}
        lists = [getattr(self.module, name, None) for name in GRADIENTS]
        for listed in (results[len(self.inputs) :], *lists):
            if isinstance(listed, list | tuple):
                gradients |= self._in_order(listed, gradients)
        return gradients

    def _in_order(self, listed: Sequence[Any], known: Gradients) -> dict[str, Array]:
        """Return what is listed for the parameters whose gradients are not known by a name."""
        unknown = [p for p in self.parameters if known[p.name] is None]
        pairs = list(zip(unknown, listed, strict=False))
        if len(listed) != len(unknown) or any(
            gradient is None or np.size(gradient) != p.value(self.module).size
            for p, gradient in pairs
        ):
            return {}
        return {p.name: np.array(gradient) for p, gradient in pairs}
