"""A network with a user's modules in place of ours, found by their names.

They are expected as the University of Amsterdam's course has them: ``forward(x)`` and
``backward(dout)``, ``params`` and ``grads`` with ``weight`` (out, in) and ``bias`` (out,), and a
loss ``forward(x, y)``, ``backward(x, y)``. Layers of images take and return (N, C, H, W); a
convolution's ``weight`` is (out, in/groups, rows, columns).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from handgrad.errors import UserError
from handgrad.lockstep.engines import Array, ModulesEngine, Place, Trace, places_of
from handgrad.lockstep.watched import Watch, WatchedLayer, WatchedLoss, encode
from handgrad.user_code.blame import UserCodeError, blame
from handgrad.user_code.importing import import_file, python_files
from numpy_mlp import modules as ours
from numpy_mlp.anomaly import name_of
from numpy_mlp.learner import NumpyLearner

REPLACEABLE = (
    "LinearModule",
    "Conv2dModule",
    "MaxPool2dModule",
    "GlobalAvgPoolModule",
    "BatchNormModule",
    "BatchNorm2dModule",
    "FlattenModule",
    "GELUModule",
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
    them into the user's layers. Running statistics of theirs are theirs: they are not compared.

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
        self.watched: list[WatchedLayer] = []
        self._not_compared: set[str] = set()

        def replaced(layer: Any, name: str, first: bool) -> Any:
            kind = classes.get(type(layer).__name__)
            if kind is not None:
                called = name_of(name, layer)
                theirs = _construct(kind, layer, called, first, self.watch)
                turned = transposed and kind is linear
                self.watched.append(
                    WatchedLayer(theirs, called, layer, self.watch, turned, first=first)
                )
                self._not_compared |= {f"{name}.{key}" for key in getattr(layer, "buffers", {})}
                return self.watched[-1]
            if not hasattr(layer, "children"):
                return layer
            chain, parts = copy.copy(layer), layer.children.items()
            chain.children = {key: replaced(part, f"{name}.{key}", False) for key, part in parts}
            return chain

        named = zip(learner.model.names, self.layers, strict=False)
        self.layers = [replaced(layer, name, not i) for i, (name, layer) in enumerate(named)]
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
        optimizer, places = self.learner.optimizer, places_of(self.learner.model).values()
        optimizer.lr = lr
        optimizer.step(
            [
                np.asarray(trace[place], param.dtype)
                for place, param in zip(places, optimizer.params, strict=True)
            ]
        )
        return loss

    def weights(self) -> dict[str, Array]:
        """Return the parameters by name, and the running statistics of our layers."""
        return {n: w for n, w in super().weights().items() if n not in self._not_compared}

    def trace(self, x: Array, labels: Array) -> Trace:
        """Return what a forward and a backward pass compute."""
        for layer in self.watched:
            if hasattr(layer, "params"):
                layer.lend()
        self.watch.begin(images=x, labels=labels)
        return super().trace(x, labels)


def _construct(kind: type, layer: Any, name: str, first: bool, watch: Watch) -> Any:
    """Return a user's layer in place of ours, with as many arguments as its constructor takes."""
    what, accepted = f"construction of {name}", inspect.signature(kind).parameters
    arguments, keywords = _arguments(layer)
    if isinstance(layer, ours.LinearModule) and "input_layer" in accepted:
        keywords["input_layer"] = first
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    usual = inspect.signature(type(layer)).parameters
    for key, value in list(keywords.items()):
        if key in accepted or open_ended:
            continue
        if key in usual and value != usual[key].default:
            raise UserCodeError(
                f"{what}: the network needs {key}={value!r}, which it does not take"
            )
        del keywords[key]
    if not accepted:
        arguments = ()
    return watch.call(what, lambda: kind(*arguments, **keywords))


def _arguments(layer: Any) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the arguments that make a layer like ours: in order, and by PyTorch's names."""
    if isinstance(layer, ours.LinearModule):
        return (layer.in_features, layer.out_features), {"bias": "bias" in layer.params}
    if isinstance(layer, ours.BatchNormModule):
        return (layer.num_features,), {"eps": layer.eps, "momentum": layer.momentum}
    if isinstance(layer, ours.GELUModule):
        return (), {"approximate": layer.approximate}
    if not isinstance(layer, ours.Conv2dModule | ours.MaxPool2dModule):
        value = getattr(layer, "alpha", getattr(layer, "neg_slope", None))
        return () if value is None else (value,), {}
    sizes: dict[str, Any] = {
        key: size[0] if size[0] == size[1] else size
        for key, size in dataclasses.asdict(layer.window).items()
    }
    kernel_size = sizes.pop("kernel_size")
    if isinstance(layer, ours.MaxPool2dModule):
        del sizes["dilation"]
        return (kernel_size,), sizes
    sizes |= {"groups": layer.groups, "bias": "bias" in layer.params}
    return (layer.in_channels, layer.out_channels, kernel_size), sizes


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
