"""PyTorch: a ``torch.autograd.Function``, and an ``nn.Module`` that autograd goes back through."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from handgrad.checker.candidates import (
    Candidate,
    FunctionKind,
    ModuleKind,
    NoInputError,
    Start,
)
from handgrad.checker.guesses import NAMES, NUMBERS, make, parameters_of
from handgrad.checker.probe import Probe, Shapes
from handgrad.checker.subject import Array, ContractError, Gradients, Session, Subject, Variables
from handgrad.user_code.randomness import reseed


class TorchSession(Session):
    """A function, or a copy of a module, in use."""

    def __init__(self, call: Callable[..., Any], inputs: tuple[str, ...], module: Any = None):
        super().__init__()
        self.call, self.inputs, self.module = call, inputs, copy.deepcopy(module)

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return the outputs at ``variables``, all of which want a gradient."""
        import torch

        reseed()
        self.tensors = {
            name: torch.tensor(variables[name], requires_grad=self.only in (None, name))
            for name in self.inputs
        }
        call = self.call
        if self.module is not None:
            call = self.module
            for name, parameter in self.module.named_parameters():
                if name not in variables:
                    continue
                with torch.no_grad():
                    parameter.copy_(torch.tensor(variables[name]))
                self.tensors[name] = parameter
        # A clone has a history, as an input in a network does: writing to it is not an error there.
        given = [self.tensors[name].clone() for name in self.inputs]
        result = call(*given)
        results = result if isinstance(result, tuple | list) else (result,)
        self.outputs = [out for out in results if isinstance(out, torch.Tensor)]
        if not self.outputs:
            raise ContractError("returns-nothing", "forward returned no tensor")
        for name, tensor in zip(self.inputs, given, strict=True):
            # What comes out again was declared to be written to; running statistics are, too.
            if any(out is tensor for out in self.outputs) or name.startswith("running"):
                continue
            if not np.array_equal(tensor.detach().numpy(), variables[name], equal_nan=True):
                self.modified.append(("input-modified", f"forward modified {name} in place"))
        return tuple(out.detach().numpy().copy() for out in self.outputs)

    def backward(self, douts: tuple[Array, ...]) -> Gradients:
        """Return what autograd gets from the function's backward."""
        import torch

        wanted = [(out, torch.tensor(d)) for out, d in zip(self.outputs, douts, strict=True)]
        wanted = [(out, d.to(out.dtype)) for out, d in wanted if out.requires_grad]
        if not wanted:
            raise ContractError("no-gradient", "the output does not depend on any input")
        before = [d.clone() for _, d in wanted]
        asked = {name: tensor for name, tensor in self.tensors.items() if tensor.requires_grad}
        gradients = torch.autograd.grad(
            [out for out, _ in wanted],
            list(asked.values()),
            [d for _, d in wanted],
            allow_unused=True,
        )
        if not all(torch.equal(d, old) for (_, d), old in zip(wanted, before, strict=True)):
            text = "backward modified grad_output in place"
            self.modified.append(("upstream-modified", text))
        return {
            name: None if g is None else g.detach().numpy().copy()
            for name, g in zip(asked, gradients, strict=True)
        }


class TorchFunction(FunctionKind):
    """A function.

    An argument for which ``backward`` returns None is no variable, if a plain number will do for
    it, or if its name says so.
    """

    name = "torch function"

    def __init__(self, probe: Probe) -> None:
        super().__init__(probe)
        own_context = any(
            "setup_context" in k.__dict__
            for k in probe.cls.__mro__
            if not k.__module__.startswith("torch")
        )
        parameters = parameters_of(probe.cls.forward, 0 if own_context else 1)
        if probe.given.args:
            raise NoInputError("--init of a function needs names, as in --init 'scale=2.0'")
        self.parameters = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
        self.names = [p.name for p in self.parameters]
        self.settled = [p.name for p in parameters if self._is_constant(p)]
        unsettled = [p for p in self.parameters if p.name not in self.settled]
        self.optional = [p.name for p in unsettled if p.default is None]
        # Those that may as well be numbers as tensors.
        self.maybe = [p.name for p in unsettled[1:] if p.name.lower() not in NAMES["matrix"]]

    def candidates(self) -> Iterator[Candidate]:
        """Yield tensors for all that may be some, then numbers for those that need not be."""
        choices = [(), *((name,) for name in reversed(self.maybe)), tuple(self.maybe)]
        for numbers in dict.fromkeys(choices):
            yield from self._with_numbers(numbers, strict=True)
        # At last, whatever runs: its backward may be what is wrong.
        yield from self._with_numbers((), strict=False)

    def _with_numbers(self, numbers: tuple[str, ...], *, strict: bool) -> Iterator[Candidate]:
        names = [name for name in self.names if name not in (*self.settled, *numbers)]
        others = [p for p in self.parameters if p.name not in names]
        base: Shapes = ()
        for layout, shapes, x, values in self.tried(names, others, 60):
            start = self._start(names, values)
            if strict and not self._gradients_exist(start, x):
                continue
            candidate = Candidate(f"{numbers} {layout}", x, start, constants=values)
            yield candidate
            if any(isinstance(value, np.ndarray) for value in values.values()):
                continue  # labels, one for each sample
            if len(shapes[0]) == 4 and (not base or shapes[1:] == base[1:]):
                yield dataclasses.replace(candidate, another=True)
            base = base or shapes

    def _start(self, names: list[str], values: dict[str, Any]) -> Start:
        def call(*tensors: Any) -> Any:
            import torch

            given = {
                k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
                for k, v in values.items()
            } | dict(zip(names, tensors, strict=True))
            return self.probe.cls.apply(*(given.get(name) for name in self.names))

        return lambda: TorchSession(call, tuple(names))

    def _gradients_exist(self, start: Start, x: dict[str, Array]) -> bool:
        """Say whether backward runs, with a gradient for each tensor that may be a number."""
        try:
            session = start()
            outputs = session.forward(x)
            gradients = session.backward(tuple(np.ones(out.shape) for out in outputs))
        except Exception:
            return False
        known = NAMES["untrained"] | NAMES["target"] | (NAMES["vector"] - {"scale", "shift"})
        asked = [n for n in self.maybe if n in gradients and n.lower() not in known]
        return all(gradients[name] is not None for name in asked)

    def _is_constant(self, parameter: inspect.Parameter) -> bool:
        key = parameter.name.lower()
        if parameter.name in self.probe.given.kwargs or parameter.kind is parameter.KEYWORD_ONLY:
            return True
        if parameter.default is None and key in NAMES["vector"] - NAMES["untrained"]:
            return False  # a bias may be there
        if parameter.default is not parameter.empty:
            return True
        annotation = str(parameter.annotation)
        plain = any(kind in annotation for kind in ("int", "float", "bool", "str", "Sequence"))
        words = NAMES["index"] | NAMES["one"] | NAMES["kernel"] | NAMES["mode"] | {*NUMBERS}
        is_word = key in words - NAMES["vector"] - NAMES["matrix"]
        return (plain and "Tensor" not in annotation) or is_word

    def subject(self, candidate: Candidate) -> Subject:
        """Return the function at tensors and constants."""
        subject = super().subject(candidate)
        subject.optional = frozenset(
            n for n in subject.inputs if n.lower() in NAMES["untrained"] | NAMES["target"]
        )
        return subject


class TorchModule(ModuleKind):
    """A module, whose backward pass autograd puts together from its functions'."""

    name = "torch module"

    def __init__(self, probe: Probe) -> None:
        super().__init__(probe, make(probe))
        self.module = self.made.template.double()
        self.module.train()

    def start(self) -> TorchSession:
        """Begin a session."""
        return TorchSession(self.module, tuple(self.names), self.module)

    def own(self) -> dict[str, Array]:
        """Return the parameters; of an object not those that the caller has frozen."""
        return {
            name: p.detach().numpy()
            for name, p in self.module.named_parameters()
            if p.requires_grad or self.probe.given.instance is None
        }

    def candidates(self) -> Iterator[Candidate]:
        """Yield what other modules are tried on; images beside others, too."""
        for candidate in super().candidates():
            yield candidate
            is_first = candidate.layout.startswith("0 ")
            if candidate.variables[self.names[0]].ndim == 4 and not is_first:
                yield dataclasses.replace(candidate, another=True)
