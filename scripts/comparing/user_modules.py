"""A user's modules in place of ours: found by name, called with care, blamed with a line number.

They are expected as the University of Amsterdam's course has them: ``forward(x)`` and
``backward(dout)``, ``params`` and ``grads`` with ``weight`` (out, in) and ``bias`` (out,), and a
loss ``forward(x, y)``, ``backward(x, y)``.
"""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from numpy_mlp import modules as ours
from numpy_mlp.anomaly import name_of
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules.module import is_parametric
from scripts.comparing.engines import Array, Place, Trace, walk
from scripts.user_code import import_files
from training.errors import UserError

REPLACEABLE = (
    "LinearModule",
    "ReLUModule",
    "LeakyReLUModule",
    "ELUModule",
    "SigmoidModule",
    "TanhModule",
    "SoftMaxModule",
    "CrossEntropyModule",
)
"""Names of the classes that a user's file may bring."""


class UserCodeError(Exception):
    """The user's code raised an error, or broke what every layer promises; one line says where."""


def load_classes(path: Path) -> dict[str, type]:
    """Import a user's file, or a folder of them, and return its layers and loss by name.

    Raises:
        UserError: there is none of :data:`REPLACEABLE` in it, or one of them twice.
        UserCodeError: it cannot be imported.
    """
    modules: list[ModuleType] = blame("the import", path.absolute(), lambda: import_files(path))
    classes: dict[str, type] = {}
    others: list[str] = []
    for module in modules:
        for name, value in vars(module).items():
            if not inspect.isclass(value) or value.__module__.startswith("numpy_mlp."):
                continue
            if name not in REPLACEABLE:
                others += [name] if value.__module__ == module.__name__ else []
            elif classes.setdefault(name, value) is not value:
                raise UserError(f"--modules {path} has two classes {name}; give one file")
    if not classes:
        found = f"only {', '.join(others[:5])}" if others else "no class"
        raise UserError(
            f"--modules {path} has {found}; expected one or more of {', '.join(REPLACEABLE)}"
        )
    return classes


def where_defined(kind: type, method: str) -> str | None:
    """Return ``modules.py, line 12`` for a method of a user's class, where it can be told."""
    code = getattr(getattr(kind, method, None), "__code__", None)
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}" if code else None


def blame(what: str, path: Path, call: Callable[[], Any]) -> Any:
    """Return ``call()``, whose errors are those of the user's code in ``path``.

    Raises:
        UserCodeError: names file, line, function, ``what`` was called, and the error.
    """
    try:
        return call()
    except (UserError, UserCodeError):
        raise
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        if isinstance(error, SyntaxError) and error.filename:
            file, line, function = error.filename, error.lineno, "<module>"
        else:
            frames = [
                (frame.filename, frame.lineno, frame.name)
                for frame in traceback.extract_tb(error.__traceback__)
                if is_theirs(frame.filename, path)
            ]
            if not frames:  # the call itself failed: its arguments are not those expected
                raise UserCodeError(f"your {path.name}, {what}: {text}") from error
            file, line, function = frames[-1]
        code = linecache.getline(file, line or 0).strip()
        raise UserCodeError(
            f"{locate(file, line, function, what)}: {text}" + (f"   <- {code}" if code else "")
        ) from error


def locate(file: str, line: object, function: str, what: str) -> str:
    """Return ``your modules.py, line 12, in helper (backward of layers.0 (LinearModule))``."""
    within = what if function in ("<module>", what.partition(" ")[0]) else f"{function} ({what})"
    return f"your {Path(file).name}, line {line}, in {within}"


def is_theirs(file: str, path: Path) -> bool:
    """Say whether a file belongs to the user's code in ``path``: is it, or lies beside it."""
    root = path if path.is_dir() else path.parent
    installed = any(part in ("site-packages", "dist-packages") for part in Path(file).parts)
    return Path(file).is_relative_to(root) and not installed and not _is_ours(file)


def _is_ours(file: str) -> bool:
    project = Path(__file__).resolve().parents[2]
    return any(Path(file).is_relative_to(project / p) for p in ("numpy_mlp", "scripts", "training"))


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


class WatchedLayer:
    """A layer of the chain: the user's, or ours between the user's.

    Args:
        layer: forward, backward, perhaps params and grads.
        name: ``layers.0 (LinearModule)``.
        model: our parameters of this layer; empty where it has none.
        transposed: the user's weight is (in, out).
        watch: of the pass.
    """

    def __init__(
        self,
        layer: Any,
        name: str,
        params: Mapping[str, Array],
        transposed: bool,
        watch: Watch,
        *,
        first: bool,
    ) -> None:
        self.layer, self.name, self.transposed = layer, name, transposed
        self.watch, self.first = watch, first
        if params:
            self.params = params
        self._shape: tuple[int, ...] = ()

    def lend(self) -> None:
        """Give the layer our parameters, in its own shapes, and in its own arrays if they fit."""
        theirs = self._dictionary("params")
        for key, param in self.params.items():
            value = self._theirs(key, param)
            own = theirs.get(key)
            if not isinstance(own, np.ndarray):
                raise UserCodeError(
                    f"{self.name}: params[{key!r}] is {_kind(own)} after its construction; "
                    f"expected an array {value.shape}"
                )
            if _squeezed(own.shape, key) != _squeezed(value.shape, key):
                raise UserCodeError(
                    f"{self.name}: params[{key!r}] has shape {own.shape}, expected {value.shape}"
                )
            value = value.reshape(own.shape)
            if own.dtype == value.dtype and own.flags.writeable:
                own[...] = value  # the layer may hold it under another name, too
            else:
                theirs[key] = value.copy()

    def forward(self, x: Array) -> Array:
        """Return the layer's output, (N, D)."""
        n_out = len(self.params["weight"]) if hasattr(self, "params") else x.shape[1]
        self._shape = x.shape
        return self._checked("forward", x, (len(x), n_out))

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x, of the shape of x."""
        dx = self._checked("backward", dout, self._shape)
        if hasattr(self, "params"):
            theirs = self._dictionary("params")
            for key, param in self.params.items():
                mine = self._theirs(key, param).ravel()
                if not np.array_equal(np.ravel(theirs[key]), mine, equal_nan=True):
                    raise UserCodeError(
                        f"forward or backward of {self.name} changes params[{key!r}]; only the "
                        f"update after them may"
                    )
        return dx

    @property
    def grads(self) -> dict[str, Array]:
        """The layer's gradients, in our shapes."""
        theirs, grads = self._dictionary("grads"), {}
        for key, param in self.params.items():
            value, expected = theirs.get(key), self._theirs(key, param).shape
            if value is None:
                raise UserCodeError(
                    f"backward of {self.name} leaves no gradient in grads[{key!r}]; expected an "
                    f"array {expected}"
                )
            what = f"backward of {self.name} puts into grads[{key!r}]"
            self._check_array(value, what)
            if _squeezed(value.shape, key) != _squeezed(expected, key):
                raise UserCodeError(f"{what} an array of shape {value.shape}, expected {expected}")
            value = value.T if self.transposed and key == "weight" else value
            grads[key] = value.reshape(param.shape)
        return grads

    def _dictionary(self, name: str) -> dict[str, Array]:
        value = getattr(self.layer, name, None)
        if not isinstance(value, dict):
            raise UserCodeError(
                f"{self.name}: {name} is {_kind(value)}, expected a dictionary with "
                f"{' and '.join(self.params)}"
            )
        return value

    def _theirs(self, key: str, param: Array) -> Array:
        return param.T if self.transposed and key == "weight" else param

    def _checked(self, method: str, argument: Array, shape: tuple[int, ...]) -> Array:
        what = f"{method} of {self.name}"
        if method == "forward":
            self.watch.add(f"the input of {self.name}", argument)
        result = self.watch.call(what, getattr(self.layer, method), argument)
        if result is None and self.first and method == "backward":
            return np.zeros(shape, argument.dtype)  # which nobody reads
        self._check_array(result, f"{what} returns")
        if result.shape != shape:
            raise UserCodeError(f"{what} returns shape {result.shape}, expected {shape}")
        self.watch.add(f"what {what} returned", result)
        array: Array = result
        return array

    @staticmethod
    def _check_array(value: Any, what: str) -> None:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise UserCodeError(f"{what} {_kind(value)}, expected an array of floating point")


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
        WatchedLayer._check_array(dx, f"{what} returns")
        if dx.shape != x.shape:
            raise UserCodeError(f"{what} returns shape {dx.shape}, expected {x.shape}")
        self.watch.add(f"what {what} returned", dx)
        array: Array = dx
        return array

    def _targets(self, x: Array, labels: Array) -> Array:
        targets = encode(labels, x.shape[1], x.dtype) if self.one_hot else labels
        self.watch.add("targets", targets)
        return targets


class UserEngine:
    """A network with the user's layers where there are some, and ours for the rest.

    Our optimizer updates our parameters from the user's gradients, and each step begins by copying
    them into the user's layers.

    Args:
        learner: of our network, whose parameters and optimizer are used.
        classes: the user's, by name.
        path: the user's file.
        running: told what of the user's is being called.
    """

    def __init__(
        self,
        learner: NumpyLearner,
        classes: Mapping[str, type],
        path: Path,
        running: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.learner, self.watch = learner, Watch(path, running)
        linear = classes.get("LinearModule")
        transposed = linear is not None and _is_transposed(linear, self.watch)
        self.layers: list[Any] = []
        for i, layer in enumerate(learner.model.layers):
            kind, name = classes.get(type(layer).__name__), name_of(i, layer)
            params = layer.params if is_parametric(layer) else {}
            if kind is not None:
                layer = _construct(kind, layer, name, i == 0, self.watch)
            self.layers.append(
                WatchedLayer(
                    layer, name, params, transposed and kind is linear, self.watch, first=i == 0
                )
                if kind is not None
                else layer
            )
        loss: Any = ours.CrossEntropyModule()
        if kind := classes.get("CrossEntropyModule"):
            name = "CrossEntropyModule"
            theirs = self.watch.call(f"construction of {name}", kind)
            loss = WatchedLoss(theirs, name, _wants_one_hot(theirs), self.watch)
        self.loss = loss

    def step(self, x: Array, labels: Array, lr: float) -> float:
        """Update the weights on one batch and return its loss."""
        trace = self.trace(x, labels)
        loss = float(trace[Place(len(self.layers), "output")])
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}")
        optimizer, places = self.learner.optimizer, self._places()
        optimizer.lr = lr
        optimizer.step(
            [
                np.asarray(trace[place], param.dtype)
                for place, param in zip(places, optimizer.params, strict=True)
            ]
        )
        return loss

    def weights(self) -> dict[str, Array]:
        """Return parameters and running statistics by name."""
        return self.learner.weights()

    def load(self, weights: Mapping[str, Array]) -> None:
        """Copy ``weights`` into the network."""
        self.learner.load_weights(weights)

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        self.learner.model.train()
        for layer in self.layers:
            if isinstance(layer, WatchedLayer) and hasattr(layer, "params"):
                layer.lend()
        self.watch.begin(images=x, labels=labels)
        return walk(self.layers, self.loss, x, labels)

    def _places(self) -> list[Place]:
        names = [name.split(".") for name, _, _ in self.learner.model.named_parameters()]
        return [Place(int(layer), key) for _, layer, key in names]


def encode(labels: Array, n_classes: int, dtype: Any) -> Array:
    """Return one-hot rows (N, C) for labels (N,)."""
    rows: Array = np.eye(n_classes, dtype=dtype)[labels]
    return rows


def _construct(kind: type, layer: Any, name: str, first: bool, watch: Watch) -> Any:
    """Return a user's layer in place of ours, with as many arguments as its constructor takes."""
    accepted = inspect.signature(kind).parameters
    arguments: Sequence[Any] = ()
    keywords: dict[str, Any] = {}
    if isinstance(layer, ours.LinearModule):
        arguments = (layer.in_features, layer.out_features)
        if "input_layer" in accepted:
            keywords["input_layer"] = first
    elif accepted:
        value = getattr(layer, "alpha", getattr(layer, "neg_slope", None))
        arguments = () if value is None else (value,)
    what = f"construction of {name}"
    return watch.call(what, lambda: kind(*arguments, **keywords))


def _is_transposed(kind: type, watch: Watch) -> bool:
    """Say whether a user's linear layer has its weight as (in, out)."""
    layer = _construct(kind, ours.LinearModule(2, 3), "LinearModule", False, watch)
    params = getattr(layer, "params", None)
    return isinstance(params, dict) and np.shape(params.get("weight", 0)) == (2, 3)


def _wants_one_hot(loss: Any) -> bool:
    """Say whether a user's loss is written for one-hot rows rather than labels.

    Both are tried on a small batch: what gives our numbers is meant; where neither does, what does
    not raise.
    """
    x, labels = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), np.array([1, 2])
    mine = ours.CrossEntropyModule()

    def score(targets: Array) -> int:
        points = 0
        for method in ("forward", "backward"):
            try:
                with np.errstate(all="ignore"):
                    theirs = np.asarray(getattr(loss, method)(x.copy(), targets.copy()))
                points += 1
                points += 2 * np.allclose(theirs, getattr(mine, method)(x, labels), rtol=1e-3)
            except Exception:
                continue
        return points

    return score(encode(labels, 3, x.dtype)) > score(labels)


def _squeezed(shape: tuple[int, ...], key: str) -> tuple[int, ...]:
    """Return a shape to be compared: a bias may be (out,), (1, out) or (out, 1)."""
    return shape if key == "weight" else tuple(size for size in shape if size != 1)


def _kind(value: Any) -> str:
    """Return what a value is, for an error."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"
