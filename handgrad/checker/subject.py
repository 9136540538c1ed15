"""What can be checked: anything with a forward and a backward pass, seen alike.

A :class:`Subject` has variables, by name, in float64: its inputs and its parameters. A
:class:`Session` is one fresh copy of it: ``forward`` at given variables, then ``backward`` with a
given upstream gradient. Every evaluation of a numerical gradient begins a session of its own, so
that random masks repeat and nothing that a pass leaves behind reaches the next.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numpy_mlp.autograd.core import Context, Op

Array = NDArray[Any]
Variables = Mapping[str, Array]
Steps = tuple[tuple[str, Any], ...]  # attributes and items that lead from a module to another


class ContractError(Exception):
    """A forward or backward pass broke a rule that has nothing to do with its arithmetic.

    Attributes:
        kind: which rule, as a diagnosis is called.
        variable: what it concerns, where that is known.
    """

    def __init__(self, kind: str, message: str, variable: str = "") -> None:
        super().__init__(message)
        self.kind, self.variable = kind, variable


class Session:
    """One copy of a subject, in use: ``forward``, then ``backward``.

    Attributes:
        modified: what the passes wrote to that was not theirs: (kind of mistake, a sentence).
    """

    def __init__(self) -> None:
        self.modified: list[tuple[str, str]] = []

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return the outputs at ``variables``."""
        raise NotImplementedError

    def backward(self, douts: tuple[Array, ...]) -> dict[str, Array | None]:
        """Return the gradient of each variable, given that of each output."""
        raise NotImplementedError

    def _watch(
        self, kind: str, who: str, given: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        for name, array in given.items():
            if not np.array_equal(np.asarray(array), before[name], equal_nan=True):
                self.modified.append((kind, f"{who} modified {name} in place"))


@dataclass
class Subject:
    """Something to be checked, at a point.

    Attributes:
        name: of the class.
        kind: ``module``, ``loss``, ``op``, ``torch function``, ...
        variables: where it is checked; inputs first.
        inputs: which of the variables are inputs.
        start: begins a session.
        settings: constructor arguments and constants, for the report and for naming factors.
        batch_axis: whether the first axis of the inputs is the batch.
        columns: whether the last one is.
        upstream: False for a loss whose ``backward`` takes none.
        layout: what kind of inputs these are.
        optional: variables that may have no gradient.
        is_network: made of other modules: it may keep the gradient of its input to itself.
        ungraded: what looks like a parameter and has no gradient.
        notes: what is left unchecked.
        layers: names of the classes that it is made of.
        elsewhere: makes the same with other sizes, or None.
    """

    name: str
    kind: str
    variables: dict[str, Array]
    inputs: tuple[str, ...]
    start: Callable[[], Session]
    settings: dict[str, Any] = field(default_factory=dict)
    batch_axis: bool = True
    columns: bool = False
    upstream: bool = True
    layout: str = ""
    optional: frozenset[str] = frozenset()
    is_network: bool = False
    ungraded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    elsewhere: Callable[[], Subject | None] = lambda: None

    def evaluate(self, variables: Variables, warm: Variables | None = None) -> tuple[Array, ...]:
        """Return the outputs of a new session; after a pass at ``warm``, where that is given."""
        return self._begun(warm).forward(variables)

    def differentiate(
        self, variables: Variables, douts: tuple[Array, ...], warm: Variables | None = None
    ) -> tuple[dict[str, Array | None], Session]:
        """Return what ``backward`` gives in a new session, and the session."""
        session = self._begun(warm)
        session.forward(variables)
        return session.backward(douts), session

    def _begun(self, warm: Variables | None) -> Session:
        session = self.start()
        if warm is not None:
            rng = np.random.default_rng(99)
            outputs = session.forward(warm)
            session.backward(tuple(rng.standard_normal(out.shape) for out in outputs))
        return session


_generators: list[tuple[Any, Any]] = []  # those that the user's files hold, and their states
_unseeded = [0]  # generators made without a seed since the last reseed()


def hold_generators(namespaces: Sequence[Mapping[str, Any]]) -> None:
    """Remember the state of every generator in modules and classes, for :func:`reseed`."""
    for namespace in namespaces:
        for value in namespace.values():
            if isinstance(value, np.random.Generator):
                _generators.append((value.bit_generator, copy.deepcopy(value.bit_generator.state)))


def seed_unseeded_generators() -> None:
    """Make ``np.random.default_rng()`` give what it gave before, in the order of the calls."""
    original = np.random.default_rng

    def default_rng(seed: Any = None) -> np.random.Generator:
        if seed is None:
            _unseeded[0] += 1
            seed = 1000 + _unseeded[0]
        return original(seed)

    np.random.default_rng = default_rng


def reseed() -> None:
    """Put every generator where it was: what a forward pass draws, it draws again."""
    np.random.seed(7)  # noqa: NPY002 (a student's code may use it)
    random.seed(7)
    _unseeded[0] = 0
    for generator, state in _generators:
        generator.state = copy.deepcopy(state)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(7)


def as_outputs(result: Any, who: str) -> tuple[Array, ...]:
    """Return what a forward pass returned as a tuple of arrays."""
    items = result if isinstance(result, tuple | list) else (result,)
    for item in items:
        if item is None:
            raise ContractError("returns-nothing", f"{who} returned None; an array is expected")
        if not isinstance(item, np.ndarray | np.generic | float | int):
            raise ContractError(
                "returns-nothing", f"{who} returned {type(item).__name__}; an array is expected"
            )
    return tuple(np.array(item) for item in items)


# --- modules of the courses: forward(x), backward(dout), params, grads ---------------------------


# What the gradient of W is called, as an attribute or a key, but for case and underscores.
_GRADIENT_OF = (
    "d{}", "g{}", "grad{}", "gradient{}", "delta{}", "nabla{}", "dld{}", "djd{}", "dlossd{}",
    "{}grad", "{}grads", "{}gradient", "{}gradients",
)  # fmt: skip
_SYNONYMS = ({"w", "weight", "weights"}, {"b", "bias", "biases"})
_GRADIENTS = ("grads", "gradients", "grad", "gradient")  # what holds them
_STATE = ("cache", "ctx", "context", "saved", "tape")  # what forward hands on to backward


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", "")


def gradient_name(key: Any, names: Iterable[Any]) -> Any:
    """Return the one of ``names`` that the gradient of ``key`` has, or None."""
    synonyms = next((words for words in _SYNONYMS if _plain(key) in words), {_plain(key)})
    wanted = {form.format(word) for form in _GRADIENT_OF for word in synonyms}
    found = [name for name in names if _plain(name) in wanted]
    # Where there are both a W and a w, case decides.
    return max(found, key=lambda name: str(key).strip("_") in str(name), default=None)


def _gradient_in(grads: Mapping[Any, Any], key: Any) -> Any:
    """Return the gradient of ``key`` in a dictionary of gradients, or None."""
    return grads.get(key if key in grads else gradient_name(key, grads))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module, or of a module in it.

    Attributes:
        name: as it is shown.
        path: what leads to the module, or to the object of a value and a gradient.
        holder: ``params`` or another dictionary or list; empty for an attribute of the module.
        key: in the holder.
    """

    name: str
    path: Steps
    holder: str
    key: Any

    def owner(self, module: Any) -> Any:
        """Return the module that has it."""
        for kind, step in self.path:
            module = getattr(module, step) if kind == "attribute" else module[step]
        return module

    def value(self, module: Any) -> Array:
        """Return its value in ``module``."""
        owner = self.owner(module)
        value = getattr(owner, self.holder)[self.key] if self.holder else getattr(owner, self.key)
        return np.asarray(value)

    def set(self, module: Any, value: Array) -> None:
        """Give it a value in ``module``."""
        owner = self.owner(module)
        held = getattr(owner, self.holder)[self.key] if self.holder else getattr(owner, self.key)
        if isinstance(held, np.ndarray) and held.dtype == np.float64 and held.flags.writeable:
            held[...] = value  # another attribute may be the same array
        elif self.holder:
            getattr(owner, self.holder)[self.key] = value.copy() if value.ndim else float(value)
        else:
            setattr(owner, self.key, value.copy())

    def gradient(self, module: Any) -> Any:
        """Return the gradient that ``backward`` has left for it in ``module``, or None."""
        owner = self.owner(module)
        held = [getattr(owner, name, None) for name in _GRADIENTS]
        if not is_module(owner):  # an object of a value and its gradient
            return next((one for one in held if isinstance(one, np.ndarray | float)), None)
        for grads in held if self.holder in ("", "params") or isinstance(self.key, str) else ():
            if isinstance(grads, list | tuple) and isinstance(self.key, int):
                return grads[self.key] if self.key < len(grads) else None
            if isinstance(grads, dict):
                return _gradient_in(grads, self.key)
        names = [name for name in dir(owner) if not callable(getattr(owner, name, None))]
        name = gradient_name(self.holder or self.key, names)
        gradient = None if name is None else getattr(owner, name)
        if not self.holder or gradient is None:
            return gradient
        with contextlib.suppress(LookupError, TypeError):
            return gradient[self.key]
        return None


def _attributes(thing: Any) -> dict[str, Any]:
    """Return the attributes of an object, with those of ``__slots__``."""
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    found = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
    return found | getattr(thing, "__dict__", {})


def is_module(thing: Any) -> bool:
    """Say whether something has a forward and a backward pass."""
    return callable(getattr(thing, "forward", None)) and callable(getattr(thing, "backward", None))


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _owners(thing: Any, path: Steps, seen: set[int]) -> Iterator[tuple[Steps, Any]]:
    """Yield a module and the modules, and objects of a value and a gradient, that it holds."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    yield path, thing
    for attribute, value in _attributes(thing).items() if is_module(thing) else ():
        inner: list[tuple[Steps, Any]] = [((("attribute", attribute),), value)]
        if isinstance(value, list | tuple | dict):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inner = [((("attribute", attribute), ("item", key)), item) for key, item in items]
        for steps, one in inner:
            if is_module(one) or (
                not isinstance(one, type)
                and any(name in _attributes(one) for name in _GRADIENTS)
                and any(map(_is_float, _attributes(one).values()))
            ):
                yield from _owners(one, (*path, *steps), seen)


def _name(path: Steps, key: Any) -> str:
    return ".".join([*(str(step) for _, step in path), str(key)])


def find_parameters(module: Any) -> list[Parameter]:
    """Return the entries of ``params`` of a module and of the modules that it holds."""
    found: list[Parameter] = []
    seen: set[int] = set()
    for path, owner in _owners(module, (), set()):
        params = getattr(owner, "params", None)
        entries: list[tuple[Any, Any]] = []
        if isinstance(params, dict):
            entries = list(params.items())
        elif isinstance(params, list):
            entries = list(enumerate(params))
        for key, value in entries:
            # A network whose params are those of its layers has each of them once.
            if isinstance(value, float) or (_is_float(value) and id(value) not in seen):
                seen.add(id(value))
                found.append(Parameter(_name(path, key), path, "params", key))
    return found


def loose_arrays(module: Any) -> list[Parameter]:
    """Return the arrays of floats that are attributes: of a module, or of what it holds."""
    known = {id(p.value(module)) for p in find_parameters(module)}
    found: list[Parameter] = []
    for path, owner in _owners(module, (), set()):
        attributes = _attributes(owner)
        for name, value in attributes.items():
            if name.startswith("running") or name in ("params", *_GRADIENTS):
                continue
            if any(gradient_name(other, [name]) for other in attributes if other != name):
                continue
            entries: list[tuple[str, Any, Any]] = [("", name, value)]
            if isinstance(value, list | dict) and value:  # one for each layer of a network
                items = value.items() if isinstance(value, dict) else enumerate(value)
                entries = [(name, key, item) for key, item in items]
                if not all(_is_float(item) for _, _, item in entries):
                    continue
            for holder, key, item in entries:
                if _is_float(item) and item.size and id(item) not in known:
                    known.add(id(item))
                    steps = (*path, ("attribute", holder)) if holder else path
                    found.append(Parameter(_name(steps, key), path, holder, key))
    return found


# What a backward pass that updates its parameters asks for.
RATES = frozenset({"learning_rate", "lr", "eta", "step_size"})


class ModuleSession(Session):
    """A module of the courses: state in the object, gradients of parameters in ``grads``."""

    def __init__(
        self,
        template: Any,
        again: Callable[[], Any],
        parameters: list[Parameter],
        inputs: tuple[str, ...],
    ) -> None:
        super().__init__()
        try:
            self.module = copy.deepcopy(template)
        except Exception:  # a lock, an open file or a generator cannot be copied
            reseed()
            self.module = again()
        self.parameters, self.inputs = parameters, inputs
        self.name = type(template).__name__
        words = list(inspect.signature(self.module.backward).parameters.values())
        self.hands_on = len(words) > 1 and words[1].name.lower() in _STATE
        self.state: Any = None
        # At a rate of 0 nothing is updated.
        self.rates = {p.name: 0.0 for p in words if p.name in RATES and p.default is p.empty}
        self.takes_upstream = any(p.name not in RATES for p in words)

    def _params(self) -> dict[str, Array]:
        return {p.name: p.value(self.module) for p in self.parameters}

    def _arguments(self) -> tuple[Any, ...]:
        return tuple(self.given.values())

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return ``module.forward(x)``, at the parameters given."""
        for parameter in self.parameters:
            parameter.set(self.module, variables[parameter.name])
        self.given = {name: variables[name].copy() for name in self.inputs}
        reseed()
        # Where it can be called, as in PyTorch, the call may remember what backward needs.
        call = self.module if callable(self.module) else self.module.forward
        result = call(*self._arguments())
        if self.hands_on:
            result, self.state = result
        if result is None:  # the other convention: what comes out is left in the object
            result = getattr(self.module, "output", None)
        outputs = as_outputs(result, f"{self.name}.forward")
        self._watch("input-modified", "forward", self.given, variables)
        before = {p.name: variables[p.name] for p in self.parameters}
        self._watch("parameter-modified", "forward", self._params(), before)
        return outputs

    def backward(self, douts: tuple[Array, ...]) -> dict[str, Array | None]:
        """Return what ``module.backward(dout)`` returns and leaves in ``grads``."""
        upstream = {f"dout{i}" if i else "dout": dout.copy() for i, dout in enumerate(douts)}
        params = {name: array.copy() for name, array in self._params().items()}
        given = {name: array.copy() for name, array in self.given.items()}
        for name in ("zero_grad", "zero_grads"):  # gradients that add up do so on purpose then
            with contextlib.suppress(AttributeError, TypeError):
                getattr(self.module, name)()
        for owner in [p.owner(self.module) for p in self.parameters]:
            grad = getattr(owner, "grad", None)
            if isinstance(grad, np.ndarray) and not is_module(owner):
                grad[...] = 0  # gradients in objects add up, and an optimizer sets them back
        result = self._call(tuple(upstream.values()))
        self._watch(
            "upstream-modified", "backward", upstream, dict(zip(upstream, douts, strict=True))
        )
        self._watch("parameter-modified", "backward", self._params(), params)
        self._watch("input-modified", "backward", self.given, given)
        if result is None and len(self.inputs) == 1:
            result = getattr(self.module, "dinputs", None)
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        if len(self.inputs) == 1 < len(results):
            (shape,) = (x.shape for x in self.given.values())
            if np.shape(results[0]) != shape == np.shape(results[-1]):
                results = (results[-1], *results[:-1])  # those of the parameters come first
        gradients: dict[str, Array | None] = {}
        for i, name in enumerate(self.inputs):
            gradient = results[i] if i < len(results) else None
            if isinstance(gradient, dict):
                gradient = _gradient_in(gradient, name)
            gradients[name] = None if gradient is None else np.array(gradient)
        for parameter in self.parameters:
            gradient = parameter.gradient(self.module)
            for returned in results:
                if gradient is None and isinstance(returned, dict):
                    gradient = _gradient_in(returned, parameter.key)
            gradients[parameter.name] = None if gradient is None else np.array(gradient)
        lists = [getattr(self.module, name, None) for name in _GRADIENTS]
        for listed in (results[len(self.inputs) :], *lists):
            if isinstance(listed, list | tuple):
                gradients |= self._in_order(listed, gradients)
        return gradients

    def _in_order(self, listed: Sequence[Any], known: dict[str, Array | None]) -> dict[str, Array]:
        """Return what is listed for the parameters whose gradients are not known by a name."""
        unknown = [p for p in self.parameters if known[p.name] is None]
        pairs = list(zip(unknown, listed, strict=False))
        if len(listed) != len(unknown) or any(
            gradient is None or np.size(gradient) != p.value(self.module).size
            for p, gradient in pairs
        ):
            return {}
        return {p.name: np.array(gradient) for p, gradient in pairs}

    def is_loss(self, variables: Variables) -> bool:
        """Say whether forward gives one number, and backward takes no upstream gradient for it."""
        return not self.takes_upstream and all(out.size == 1 for out in self.forward(variables))

    def _call(self, douts: tuple[Array, ...]) -> Any:
        if not self.takes_upstream and all(dout.size == 1 for dout in douts):
            douts = ()
        return self.module.backward(*douts, *([self.state] * self.hands_on), **self.rates)


class LossSession(ModuleSession):
    """A loss of the courses, ``forward(x, y)`` and ``backward(x, y)``, or another of its kind.

    Attributes:
        target: its other argument.
        target_first: whether that is the first one.
        takes: arguments of backward.
    """

    target: Array
    target_first: bool = False
    takes: int = 2

    def _arguments(self) -> tuple[Any, ...]:
        (x,) = self.given.values()
        return (self.target.copy(), x) if self.target_first else (x, self.target.copy())

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return the loss; one of each sample, where backward takes an upstream gradient."""
        outputs = super().forward(variables)
        if self.takes != 1 and any(out.size != 1 for out in outputs):
            raise ContractError("no-input", "forward is expected to return one number, the loss")
        return outputs

    def _call(self, douts: tuple[Array, ...]) -> Any:
        if self.takes >= 2:
            return self.module.backward(*self._arguments())
        given = [float(dout) if dout.ndim == 0 else dout for dout in douts[: self.takes]]
        return self.module.backward(*given)


# --- ops of the graph engine: static forward(context, ...), backward(context, ...) --------------


class OpSession(Session):
    """An op: two static methods and a context between them."""

    def __init__(self, op: Any, inputs: tuple[str, ...], constants: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.inputs, self.constants = op, inputs, constants

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return ``op.forward`` of the inputs."""
        self.context = Context((True,) * len(self.inputs))
        self.given = {name: variables[name].copy() for name in self.inputs}
        reseed()
        result = self.op.forward(self.context, *self.given.values(), **self.constants)
        outputs = as_outputs(result, f"{self.op.__name__}.forward")
        self._watch("input-modified", "forward", self.given, variables)
        return outputs

    def backward(self, douts: tuple[Array, ...]) -> dict[str, Array | None]:
        """Return ``op.backward`` of the upstream gradients, one for each input."""
        upstream = {f"go{i}" if i else "go": dout.copy() for i, dout in enumerate(douts)}
        before = {name: array.copy() for name, array in self.given.items()}
        result = self.op.backward(self.context, *upstream.values())
        self._watch(
            "upstream-modified", "backward", upstream, dict(zip(upstream, douts, strict=True))
        )
        self._watch("input-modified", "backward", self.given, before)
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        if len(results) != len(self.inputs):
            raise ContractError(
                "no-gradient",
                f"backward returned {len(results)} gradients for {len(self.inputs)} inputs",
            )
        gradients: dict[str, Array | None] = {}
        ours = isinstance(self.op, type) and issubclass(self.op, Op)
        for name, gradient in zip(self.inputs, results, strict=True):
            array = None if gradient is None else np.array(gradient)
            if ours and array is not None:  # the engine sums what was broadcast
                array = _summed_to(array, self.given[name].shape)
            gradients[name] = array
        return gradients


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


# --- PyTorch ------------------------------------------------------------------------------------


class TorchSession(Session):
    """A ``torch.autograd.Function``, or an ``nn.Module`` that autograd goes back through."""

    def __init__(
        self,
        call: Callable[..., Any],
        inputs: tuple[str, ...],
        constants: Mapping[str, Any],
        module: Any = None,
    ) -> None:
        super().__init__()
        self.call, self.inputs, self.constants = call, inputs, constants
        self.module = copy.deepcopy(module)
        self.only: str | None = None  # the one input that wants a gradient; None for all

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

    def backward(self, douts: tuple[Array, ...]) -> dict[str, Array | None]:
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
        for (_, d), old in zip(wanted, before, strict=True):
            if not torch.equal(d, old):
                self.modified.append(
                    ("upstream-modified", "backward modified grad_output in place")
                )
        return {
            name: None if g is None else g.detach().numpy().copy()
            for name, g in zip(asked, gradients, strict=True)
        }
