"""Where students keep parameters and their gradients: ``params``, attributes, objects, layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_Steps = tuple[tuple[str, Any], ...]  # attributes and items that lead from a module to another

# What the gradient of W is called, as an attribute or a key, but for case and underscores.
_GRADIENT_OF = (
    "d{}", "g{}", "grad{}", "gradient{}", "delta{}", "nabla{}", "dld{}", "djd{}", "dlossd{}",
    "{}grad", "{}grads", "{}gradient", "{}gradients",
)  # fmt: skip
_SYNONYMS = ({"w", "weight", "weights"}, {"b", "bias", "biases"})
GRADIENTS = ("grads", "gradients", "grad", "gradient")  # what holds them


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", "")


def _gradient_name(key: Any, names: Iterable[Any]) -> Any:
    """Return the one of ``names`` that the gradient of ``key`` has, or None."""
    synonyms = next((words for words in _SYNONYMS if _plain(key) in words), {_plain(key)})
    wanted = {form.format(word) for form in _GRADIENT_OF for word in synonyms}
    found = [name for name in names if _plain(name) in wanted]
    # Where there are both a W and a w, case decides.
    return max(found, key=lambda name: str(key).strip("_") in str(name), default=None)


def gradient_in(grads: Mapping[Any, Any], key: Any) -> Any:
    """Return the gradient of ``key`` in a dictionary of gradients, or None."""
    return grads.get(key if key in grads else _gradient_name(key, grads))


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
    path: _Steps
    holder: str
    key: Any

    def owner(self, module: Any) -> Any:
        """Return the module that has it."""
        for kind, step in self.path:
            module = getattr(module, step) if kind == "attribute" else module[step]
        return module

    def _held(self, owner: Any) -> Any:
        return getattr(owner, self.holder)[self.key] if self.holder else getattr(owner, self.key)

    def value(self, module: Any) -> Array:
        """Return its value in ``module``."""
        return np.asarray(self._held(self.owner(module)))

    def set(self, module: Any, value: Array) -> None:
        """Give it a value in ``module``."""
        owner = self.owner(module)
        held = self._held(owner)
        if isinstance(held, np.ndarray) and held.dtype == np.float64 and held.flags.writeable:
            held[...] = value  # another attribute may be the same array
        elif self.holder:
            getattr(owner, self.holder)[self.key] = value.copy() if value.ndim else float(value)
        else:
            setattr(owner, self.key, value.copy())

    def gradient(self, module: Any) -> Any:
        """Return the gradient that ``backward`` has left for it in ``module``, or None."""
        owner = self.owner(module)
        held = [getattr(owner, name, None) for name in GRADIENTS]
        if not is_module(owner):  # an object of a value and its gradient
            return next((one for one in held if isinstance(one, np.ndarray | float)), None)
        for grads in held if self.holder in ("", "params") or isinstance(self.key, str) else ():
            if isinstance(grads, list | tuple) and isinstance(self.key, int):
                return grads[self.key] if self.key < len(grads) else None
            if isinstance(grads, dict):
                return gradient_in(grads, self.key)
        names = [name for name in dir(owner) if not callable(getattr(owner, name, None))]
        name = _gradient_name(self.holder or self.key, names)
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


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items() if isinstance(value, dict) else enumerate(value))


def owners(thing: Any, path: _Steps = (), seen: set[int] | None = None) -> Iterator[Any]:
    """Yield a module and the modules, and objects of a value and a gradient, that it holds.

    Each comes as the path that leads to it, and itself.
    """
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    yield path, thing
    for attribute, value in _attributes(thing).items() if is_module(thing) else ():
        inner: list[tuple[_Steps, Any]] = [((("attribute", attribute),), value)]
        if isinstance(value, list | tuple | dict):
            items = _items(value)
            inner = [((("attribute", attribute), ("item", key)), item) for key, item in items]
        for steps, one in inner:
            if is_module(one) or (
                not isinstance(one, type)
                and any(name in _attributes(one) for name in GRADIENTS)
                and any(map(_is_float, _attributes(one).values()))
            ):
                yield from owners(one, (*path, *steps), seen)


def _name(path: _Steps, key: Any) -> str:
    return ".".join([*(str(step) for _, step in path), str(key)])


def find_parameters(module: Any) -> list[Parameter]:
    """Return the entries of ``params`` of a module and of the modules that it holds."""
    found: list[Parameter] = []
    seen: set[int] = set()
    for path, owner in owners(module):
        params = getattr(owner, "params", None)
        for key, value in _items(params) if isinstance(params, dict | list) else ():
            # A network whose params are those of its layers has each of them once.
            if isinstance(value, float) or (_is_float(value) and id(value) not in seen):
                seen.add(id(value))
                found.append(Parameter(_name(path, key), path, "params", key))
    return found


def loose_arrays(module: Any) -> list[Parameter]:
    """Return the arrays of floats that are attributes: of a module, or of what it holds."""
    known = {id(p.value(module)) for p in find_parameters(module)}
    found: list[Parameter] = []
    for path, owner in owners(module):
        attributes = _attributes(owner)
        for name, value in attributes.items():
            if name.startswith("running") or name in ("params", *GRADIENTS):
                continue
            if any(_gradient_name(other, [name]) for other in attributes if other != name):
                continue
            entries: list[tuple[str, Any, Any]] = [("", name, value)]
            if isinstance(value, list | dict) and value:  # one for each layer of a network
                entries = [(name, key, item) for key, item in _items(value)]
                if not all(_is_float(item) for _, _, item in entries):
                    continue
            for holder, key, item in entries:
                if _is_float(item) and item.size and id(item) not in known:
                    known.add(id(item))
                    steps = (*path, ("attribute", holder)) if holder else path
                    found.append(Parameter(_name(steps, key), path, holder, key))
    return found
