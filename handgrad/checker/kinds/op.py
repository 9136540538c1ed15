"""Ops of a graph engine: static ``forward(context, ...)`` and ``backward(context, ...)``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from handgrad.checker.candidates import Candidate, FunctionKind
from handgrad.checker.guesses import NAMES, parameters_of, required
from handgrad.checker.probe import Probe
from handgrad.checker.subject import Array, ArraySession, ContractError, Gradients
from numpy_mlp.autograd.core import Context, Op


class OpSession(ArraySession):
    """An op in use: two static methods and a context between them."""

    upstream = "go"

    def __init__(self, op: Any, inputs: tuple[str, ...], values: dict[str, Any]) -> None:
        super().__init__(op.__name__, inputs)
        self.op, self.constants = op, values

    def _forward(self) -> Any:
        self.context = Context((True,) * len(self.inputs))
        return self.op.forward(self.context, *self.given.values(), **self.constants)

    def _backward(self, *douts: Array) -> Any:
        return self.op.backward(self.context, *douts)

    def _gradients(self, result: Any) -> Gradients:
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        if len(results) != len(self.inputs):
            text = f"backward returned {len(results)} gradients for {len(self.inputs)} inputs"
            raise ContractError("no-gradient", text)
        gradients: Gradients = {}
        for name, gradient in zip(self.inputs, results, strict=True):
            array = None if gradient is None else np.array(gradient)
            if is_ours(self.op) and array is not None:  # the engine sums what was broadcast
                array = _summed_to(array, self.given[name].shape)
            gradients[name] = array
        return gradients


def is_ours(op: Any) -> bool:
    """Say whether an op is one of our engine's."""
    return isinstance(op, type) and issubclass(op, Op)


def _summed_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    extra = gradient.ndim - len(shape)
    if extra < 0 or any(
        n not in (1, g) for n, g in zip(shape, gradient.shape[extra:], strict=True)
    ):
        return gradient
    stretched = [
        i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1
    ]
    result: Array = gradient.sum(axis=(*range(extra), *stretched)).reshape(shape)
    return result


class OpKind(FunctionKind):
    """An op of the engine."""

    name = "op"

    def __init__(self, probe: Probe) -> None:
        super().__init__(probe)
        parameters = parameters_of(probe.cls.forward, 1)
        many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        names = [p.name for p in required(parameters) if p.name.lower() not in NAMES["index"]]
        self.names = [*names, "a", "b"] if many else names
        self.others = [
            p for p in parameters if p.name not in self.names and p.kind is not p.VAR_POSITIONAL
        ]

    def candidates(self) -> Iterator[Candidate]:
        """Yield inputs of several shapes; of two, some that are broadcast."""
        op, repeats = self.probe.cls, any(p.name == "repeats" for p in self.others)
        for layout, shapes, x, values in self.tried(self.names, self.others, 80, repeats):
            start = functools.partial(OpSession, op, tuple(self.names), values)
            yield Candidate(layout, x, start, constants=values)
            if is_ours(op) and len(shapes) == 2 and shapes[0] != shapes[1]:
                yield Candidate(layout, x, start, another=True, constants=values)
