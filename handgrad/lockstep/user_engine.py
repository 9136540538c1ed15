"""A network with a user's modules in place of ours, found by their names.

They are expected as the University of Amsterdam's course has them: ``forward(x)`` and
``backward(dout)``, ``params`` and ``grads`` with ``weight`` (out, in) and ``bias`` (out,), and a
loss ``forward(x, y)``, ``backward(x, y)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from handgrad.errors import UserError
from handgrad.lockstep.engines import Array, ModulesEngine, Place, Trace
from handgrad.lockstep.watched import Watch, WatchedLayer, WatchedLoss, encode
from handgrad.user_code.blame import blame
from handgrad.user_code.importing import import_file, python_files
from numpy_mlp import modules as ours
from numpy_mlp.anomaly import name_of
from numpy_mlp.learner import NumpyLearner

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


def parts_the_loss(classes: Mapping[str, type]) -> bool:
    """Say whether a user's network has softmax and loss one after the other, not in one."""
    return "SoftMaxModule" in classes or "CrossEntropyModule" in classes


def load_classes(path: Path) -> dict[str, type]:
    """Import a user's file, or a folder of them, and return its layers and loss by name.

    Raises:
        UserError: there is none of :data:`REPLACEABLE` in it, or one of them twice.
        UserCodeError: it cannot be imported.
    """
    modules: list[ModuleType] = blame(
        "the import", path.absolute(), lambda: [import_file(file) for file in python_files(path)]
    )
    classes: dict[str, type] = {}
    others: list[str] = []
    for module in modules:
        for name, value in vars(module).items():
            if not inspect.isclass(value) or value.__module__.startswith("numpy_mlp."):
                continue
            if name not in REPLACEABLE:
                others += [name] if value.__module__ == module.__name__ else []
            elif inspect.getfile(classes.setdefault(name, value)) != inspect.getfile(value):
                raise UserError(f"--modules {path} has two classes {name}; give one file")
    if not classes:
        found = f"only {', '.join(others[:5])}" if others else "no class"
        raise UserError(
            f"--modules {path} has {found}; expected one or more of {', '.join(REPLACEABLE)}"
        )
    return classes


class UserEngine(ModulesEngine):
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
        super().__init__(learner, parted=parts_the_loss(classes))
        self.watch = Watch(path, running)
        linear = classes.get("LinearModule")
        transposed = linear is not None and _is_transposed(linear, self.watch)
        self.layers: list[Any] = list(self.layers)
        for i, layer in enumerate(self.layers):
            if kind := classes.get(type(layer).__name__):
                name = name_of(f"layers.{i}", layer)
                theirs = _construct(kind, layer, name, i == 0, self.watch)
                turned = transposed and kind is linear
                self.layers[i] = WatchedLayer(theirs, name, layer, self.watch, turned, first=not i)
        if kind := classes.get("CrossEntropyModule"):
            name = "CrossEntropyModule"
            loss = self.watch.call(f"construction of {name}", kind)
            self.loss: Any = WatchedLoss(loss, name, _wants_one_hot(loss, self.watch), self.watch)

    def step(self, x: Array, labels: Array, lr: float) -> float:
        """Update the weights on one batch and return its loss."""
        trace = self.trace(x, labels)
        loss = float(trace[Place(len(self.layers), "output")])
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}")
        optimizer, names = self.learner.optimizer, self.learner.model.named_parameters()
        places = [Place(int(layer), key) for _, layer, key in (n.split(".") for n, _, _ in names)]
        optimizer.lr = lr
        optimizer.step(
            [
                np.asarray(trace[place], param.dtype)
                for place, param in zip(places, optimizer.params, strict=True)
            ]
        )
        return loss

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        for layer in self.layers:
            if isinstance(layer, WatchedLayer) and hasattr(layer, "params"):
                layer.lend()
        self.watch.begin(images=x, labels=labels)
        return super().trace(x, labels)


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


def _wants_one_hot(loss: Any, watch: Watch) -> bool:
    """Say whether a user's loss is written for one-hot rows rather than labels.

    Both are tried on a small batch: what gives our numbers is meant; where neither does, what does
    not raise.
    """
    x, labels = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), np.array([1, 2])
    mine = ours.CrossEntropyModule()

    def score(targets: Array) -> int:
        points = 0
        for method in ("forward", "backward"):
            watch.running(f"{method} of CrossEntropyModule")
            try:
                with np.errstate(all="ignore"):
                    theirs = np.asarray(getattr(loss, method)(x.copy(), targets.copy()))
                points += 1
                points += 2 * np.allclose(theirs, getattr(mine, method)(x, labels), rtol=1e-3)
            except Exception:
                continue
        return points

    return score(encode(labels, 3, x.dtype)) > score(labels)
