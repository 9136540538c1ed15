"""A user's layers and loss, called with care: what every layer promises is checked each time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from handgrad.lockstep.engines import Array
from handgrad.user_code.blame import UserCodeError, blame
from numpy_mlp.modules import (
    Conv2dModule,
    FlattenModule,
    GlobalAvgPoolModule,
    LinearModule,
    MaxPool2dModule,
)
from numpy_mlp.modules.module import Module, is_parametric


class Watch:
    """Copies of the arrays of one pass, to notice when one is changed by who should only read it.

    Attributes:
        running: what of the user's is being called, for those who want to know from outside.
    """

    def __init__(self, path: Path, running: Callable[[str], None]) -> None:
        self.path, self.running = path.absolute(), running
        self._seen: list[tuple[str, Array, Array]] = []

    def begin(self, **arrays: Array) -> None:
        """Begin a new pass."""
        self._seen = []
        for name, array in arrays.items():
            self.add(f"the {name}", array)

    def add(self, name: str, array: Array) -> None:
        """Keep a copy of ``array``, under the first name it gets."""
        if not any(array is seen for _, seen, _ in self._seen):
            self._seen.append((name, array, array.copy()))

    def call(self, what: str, function: Callable[..., Any], *arguments: Array) -> Any:
        """Return ``function(*arguments)``, the user's."""
        self.running(what)
        result = blame(what, self.path, lambda: function(*arguments))
        self.running("")
        for name, array, before in self._seen:
            if not np.array_equal(array, before, equal_nan=True):
                if any(array is argument for argument in arguments):
                    name = f"its argument ({name})"
                raise UserCodeError(f"{what} changes {name} in place; work on a copy")
        return result

    def returned(self, what: str, result: Any, shape: tuple[int, ...]) -> Array:
        """Return what a pass has returned, an array of ``shape``, and keep a copy of it."""
        array = _floats(f"{what} returns", result)
        if array.shape != shape:
            raise UserCodeError(f"{what} returns shape {array.shape}, expected {shape}")
        self.add(f"what {what} returned", array)
        return array


class WatchedLayer:
    """A user's layer of the chain.

    Args:
        layer: forward, backward, perhaps params and grads.
        name: ``layers.0 (LinearModule)``.
        ours: the layer that it stands in for.
        watch: of the pass.
        transposed: the user's weight is (in, out).
        first: nobody reads what its backward returns.
    """

    def __init__(
        self, layer: Any, name: str, ours: Module, watch: Watch, transposed: bool, *, first: bool
    ) -> None:
        self.layer, self.name, self.watch = layer, name, watch
        self.transposed, self.first = transposed, first
        if is_parametric(ours):
            self.params = ours.params
        self.frozen, self._output_shape = ours.frozen, functools.partial(_output_shape, ours)
        self._shape: tuple[int, ...] = ()

    def lend(self) -> None:
        """Give the layer our parameters, in its own shapes, and in its own arrays if they fit."""
        theirs = self._dictionary("params")
        for key, param in self.params.items():
            value, own = self._turned(key, param), theirs.get(key)
            what = f"{self.name}: params[{key!r}]"
            if not isinstance(own, np.ndarray):
                raise UserCodeError(
                    f"{what} is {_kind(own)} after its construction; expected an array "
                    f"{value.shape}"
                )
            if not _fits(own.shape, value.shape):
                raise UserCodeError(f"{what} has shape {own.shape}, expected {value.shape}")
            value = value.reshape(own.shape)
            if own.dtype == value.dtype and own.flags.writeable:
                own[...] = value  # the layer may hold it under another name, too
                continue
            for name, other in getattr(self.layer, "__dict__", {}).items():
                if isinstance(other, np.ndarray) and np.may_share_memory(other, own):
                    raise UserCodeError(
                        f"{self.name}: self.{name} is params[{key!r}] under another name, an "
                        f"array of {own.dtype} that cannot take our weights of {value.dtype}; "
                        f"make it of {value.dtype}, or read params[{key!r}] each time"
                    )
            theirs[key] = value.copy()

    def forward(self, x: Array) -> Array:
        """Return the layer's output."""
        x = np.ascontiguousarray(x)  # of our layers, images are channels-last in memory
        self._shape, what = x.shape, f"forward of {self.name}"
        self.watch.add(f"the input of {self.name}", x)
        output = self.watch.call(what, self.layer.forward, x)
        return self.watch.returned(what, output, self._output_shape(x.shape))

    def backward(self, dout: Array) -> Array | None:
        """Return ∂L/∂x, of the shape of x; the first layer's may be None."""
        what, dout = f"backward of {self.name}", np.ascontiguousarray(dout)
        self.watch.add(f"the gradient of the output of {self.name}", dout)
        dx = self.watch.call(what, self.layer.backward, dout)
        if dx is not None or not self.first:
            dx = self.watch.returned(what, dx, self._shape)
        for key, param in getattr(self, "params", {}).items():
            own = np.ravel(self._dictionary("params")[key])
            if not np.array_equal(own, self._turned(key, param).ravel(), equal_nan=True):
                raise UserCodeError(
                    f"forward or backward of {self.name} changes params[{key!r}]; only the "
                    f"update after them may"
                )
        return dx  # type: ignore[no-any-return]

    @property
    def grads(self) -> dict[str, Array]:
        """The layer's gradients, in our shapes."""
        if not hasattr(self, "params"):
            return {}
        theirs, grads = self._dictionary("grads"), {}
        for key in self.params.keys() - self.frozen:
            param = self.params[key]
            value, expected = theirs.get(key), self._turned(key, param).shape
            if value is None:
                raise UserCodeError(
                    f"backward of {self.name} leaves no gradient in grads[{key!r}]; expected an "
                    f"array {expected}"
                )
            what = f"backward of {self.name} puts into grads[{key!r}]"
            value = _floats(what, value)
            if not _fits(value.shape, expected):
                raise UserCodeError(f"{what} an array of shape {value.shape}, expected {expected}")
            grads[key] = self._turned(key, value).reshape(param.shape)
        return grads

    def _dictionary(self, name: str) -> dict[str, Array]:
        value = getattr(self.layer, name, None)
        if not isinstance(value, dict):
            raise UserCodeError(
                f"{self.name}: {name} is {_kind(value)}, expected a dictionary with "
                f"{' and '.join(self.params)}"
            )
        return value

    def _turned(self, key: str, array: Array) -> Array:
        """Return an array of ours as theirs, or one of theirs as ours."""
        return array.T if self.transposed and key == "weight" else array


class WatchedLoss:
    """The loss at the end of the chain, which gets its targets as it wants them."""

    def __init__(self, loss: Any, name: str, one_hot: bool, watch: Watch) -> None:
        self.loss, self.name, self.one_hot, self.watch = loss, name, one_hot, watch

    def forward(self, x: Array, labels: Array) -> float:
        """Return the mean loss."""
        what = f"forward of {self.name}"
        self.watch.add(f"the input of {self.name}", x)
        loss = self.watch.call(what, self.loss.forward, x, self._targets(x, labels))
        if np.size(loss) != 1 or not isinstance(loss, int | float | np.number | np.ndarray):
            raise UserCodeError(f"{what} returns {_kind(loss)}, expected a number")
        return float(np.reshape(loss, ()))

    def backward(self, x: Array, labels: Array) -> Array:
        """Return ∂L/∂x, (N, C)."""
        what = f"backward of {self.name}"
        dx = self.watch.call(what, self.loss.backward, x, self._targets(x, labels))
        return self.watch.returned(what, dx, x.shape)

    def _targets(self, x: Array, labels: Array) -> Array:
        targets = encode(labels, x.shape[1], x.dtype) if self.one_hot else labels
        self.watch.add("targets", targets)
        return targets


def encode(labels: Array, n_classes: int, dtype: Any) -> Array:
    """Return one-hot rows (N, C) for labels (N,)."""
    rows: Array = np.eye(n_classes, dtype=dtype)[labels]
    return rows


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Say whether a user's array is what we expect: a vector (D,) may be (1, D) or (1, D, 1, 1)."""
    if len(expected) == 1:
        return [n for n in shape if n != 1] == [n for n in expected if n != 1]
    return shape == expected


def _output_shape(ours: Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that our layer makes of one."""
    n, *rest = shape
    if isinstance(ours, LinearModule):
        return n, ours.out_features
    if isinstance(ours, FlattenModule):
        return n, math.prod(rest)
    if isinstance(ours, GlobalAvgPoolModule):
        return n, rest[0], 1, 1
    if isinstance(ours, Conv2dModule | MaxPool2dModule):
        channels = ours.out_channels if isinstance(ours, Conv2dModule) else rest[0]
        return n, channels, *ours.window.output_size(*rest[1:])
    return shape


def _floats(what: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise UserCodeError(f"{what} {_kind(value)}, expected an array of floating point")
    return value


def _kind(value: Any) -> str:
    """Return what a value is, for an error."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"
