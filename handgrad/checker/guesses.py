"""Sensible arguments for constructors nobody has described.

Names are taken at their word (``in_features``, ``p``, ``eps``, ``gamma``), then annotations; what
cannot run at what was guessed is tried at the next guess.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handgrad.checker.probe import Given, Probe, Sizes, draw
from handgrad.user_code.parameters import find_parameters, is_module, loose_arrays
from handgrad.user_code.randomness import reseed
from numpy_mlp.modules import LinearModule, TanhModule

# Names of constructor arguments, constants and inputs, by what stands behind them.
_WORDS = {
    "in": "in_features n_in in_dim input_dim input_size n_inputs fan_in num_features n_features "
    "n_neurons features dim d_in d_model size normalized_shape in_size input_features n_dims "
    "in_channels channels n_channels num_channels c_in",
    "out": "out_features n_out out_dim output_dim output_size n_outputs fan_out n_classes "
    "num_classes d_out out_size n_units units output_features out_channels filters n_filters "
    "num_filters c_out hidden_size",
    "probability": "p dropout dropout_p prob drop_prob dropout_rate rate p_drop keep_prob keep "
    "p_keep keep_p",
    "slope": "alpha neg_slope negative_slope slope leak",
    "eps": "eps epsilon",
    "scale": "factor temperature lam lmbda exponent power",
    "hidden": "n_hidden hidden hidden_dims hidden_sizes hidden_units dnn_hidden_units",
    "kernel": "kernel_size kernel k ksize filter_size",
    "window": "pool_size pool window",
    "one": "padding pad stride axis dim groups n_heads num_heads",
    "rng": "rng generator random_state",
    "image": "in_channels channels n_channels num_channels kernel_size kernel k pool_size pool",
    "vector": "gamma beta bias b shift scale running_mean running_var",
    "matrix": "weight weights w matrix kernel wt mat m",
    "given matrix": "w weight weights",
    "given vector": "b bias biases gamma beta",
    "target": "y t target targets label labels y_true truth onehot one_hot t_true gt actual",
    "mask": "mask masks weight weights sample_weight sample_weights lengths",
    "widths": "sizes layer_sizes layer_dims layers_dims",
    "index": "indices targets index labels target label",
    "mode": "training train eval inplace in_place verbose debug",
    "untrained": "mask running_mean running_var",
    "geometry": "stride strides padding pad dilation groups",
    "least": "min low lo lower min_val min_value minimum a_min vmin",
    "most": "max high hi upper max_val max_value maximum a_max vmax",
}
NAMES = {kind: set(words.split()) for kind, words in _WORDS.items()}
NUMBERS = {
    **dict.fromkeys(NAMES["probability"] | NAMES["slope"], 0.3),
    **dict.fromkeys(NAMES["eps"], 1e-5),
    **dict.fromkeys(NAMES["scale"], 1.7),
    "scale": 1.7,
    "momentum": 0.1,
    **dict.fromkeys(NAMES["least"], -0.8),
    **dict.fromkeys(NAMES["most"], 0.9),
}

_MODULE = re.compile(r"(^|[\[|( ])(Module|Layer)\b")  # in an annotation
# Attributes that are parameters by their names: W, b1, W_xh, bias, gamma.
PARAMETER = re.compile(
    r"_*((w|b)(_?\d+|_?[a-z]{0,2})|weights?\d*|bias(es)?\d*|gamma\d*|beta\d*)_*", re.IGNORECASE
)


def parse_arguments(text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from text such as ``4, 3, alpha=0.5``.

    Raises:
        ValueError: it is something else than plain values.
    """
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("no list of arguments")
        kwargs = {}
        for word in call.keywords:
            if word.arg is None:
                raise ValueError("no name")
            kwargs[word.arg] = ast.literal_eval(word.value)
        return tuple(ast.literal_eval(node) for node in call.args), kwargs
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _guess_by_name(name: str, annotation: str, sizes: Sizes) -> Any:
    if (modules := _guess_modules(annotation, sizes)) is not None:
        return modules
    key = name.lower().strip("_")
    if key in NUMBERS:
        return NUMBERS[key]
    guesses = {
        "widths": [sizes.d, sizes.d + 2, sizes.c],
        "in": sizes.d, "out": sizes.c, "hidden": [sizes.d + 2], "kernel": 3, "window": 2, "one": 1,
        "rng": np.random.default_rng(7),
    }  # fmt: skip
    for kind, value in guesses.items():
        if key in NAMES[kind]:
            return value
    if key == "num_groups":
        return 1 if sizes.d % 2 else 2
    if key in NAMES["mode"]:
        return "train" in key
    if key in ("seed", "dtype"):
        return {"seed": 7, "dtype": np.float64}[key]
    if "prob" in key or "rate" in key:
        return 0.3
    if "bool" in annotation:
        return False
    if "float" in annotation:
        return 0.5
    if "list" in annotation.lower() or "sequence" in annotation.lower():
        return [sizes.d + 2]
    return None


def _guess_modules(annotation: str, sizes: Sizes) -> Any:
    """Return a module, or a list of them, where an annotation asks for that."""
    if not _MODULE.search(annotation):
        return None
    layers = [LinearModule(sizes.d, sizes.d), TanhModule(), LinearModule(sizes.d, sizes.d)]
    return layers[0] if annotation.startswith(("Module", "Layer")) else layers


def guess_argument(parameter: inspect.Parameter, sizes: Sizes, position: int) -> Any:
    """Return a value for an argument that has no default."""
    annotation = str(parameter.annotation).strip("'\"")
    guess = _guess_by_name(parameter.name, annotation, sizes)
    return guess if guess is not None else sizes.d if position == 0 else sizes.c


def varied(name: str, default: Any, vary: int) -> Any:
    """Return another value than a default, which may hide a mistake, as 1 does."""
    key = name.lower()
    if key in NAMES["mode"]:
        return default
    if vary > 1 and isinstance(default, bool):
        return not default
    if vary > 1 and key in NAMES["geometry"]:  # windows that overlap, and skip some rows
        if key == "groups":
            return 2 if vary > 2 else default
        if key.startswith("stride") and default in (None, 2):
            return 2 if default is None else 1
        return default + 1 if isinstance(default, int) else default
    if isinstance(default, bool) or not isinstance(default, int | float):
        return default
    if key in NAMES["eps"]:
        return 0.01
    if isinstance(default, float) or key in NUMBERS:
        return 0.7 * default if default else 0.3
    return default


def parameters_of(call: Callable[..., Any], skip: int = 0) -> list[inspect.Parameter]:
    """Return the parameters of a function but for the first; none where they cannot be told."""
    try:
        return list(inspect.signature(call).parameters.values())[skip:]
    except (TypeError, ValueError):
        return []


def required(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return those of the parameters that have to be given, in their order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind in kinds]


def invented(call: Callable[..., Any], given: Given) -> list[str]:
    """Return the arguments of a constructor whose values no name and no annotation told."""
    if given.arguments or given.instance is not None:
        return []
    sizes = Sizes(5, 4, 3)
    return [
        p.name
        for p in parameters_of(call)
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and _guess_by_name(p.name, str(p.annotation), sizes) is None
    ]


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _guess_arguments(probe: Probe) -> Arguments:
    """Return arguments for a constructor; what the user gave stays."""
    given, point = probe.given, probe.point
    if given.arguments:
        return given.args, given.kwargs
    kwargs: dict[str, Any] = {}
    several: Any = None
    parameters = parameters_of(probe.cls)
    for position, parameter in enumerate(parameters):
        name, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            if parameter.kind is parameter.VAR_POSITIONAL:
                several = _guess_modules(f"[{parameter.annotation}", point.sizes)
            continue
        if default is parameter.empty or name in ("rng", "seed", "dtype"):
            kwargs[name] = guess_argument(parameter, point.sizes, position)
            if name.lower() in NAMES["geometry"]:
                kwargs[name] = varied(name, kwargs[name], point.vary)
        elif point.vary and (other := varied(name, default, point.vary)) != default:
            kwargs[name] = other
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    return (*(kwargs.pop(name) for name in positional if name in kwargs), *(several or ())), kwargs


# Shapes of a matrix W and a vector b that are given to a constructor: W is (in, out) or (out, in),
# of columns, of one output, or of a convolution. Of a gamma and a beta alone: features, or one.
_WITH_MATRIX: tuple[tuple[str, str], ...] = (
    ("dc", "c"), ("cd", "c"), ("cd", "c1"), ("d", ""), ("cdhh", "c"),
)  # fmt: skip
_WITHOUT_MATRIX: tuple[tuple[str, str], ...] = (("", "d"), ("", ""))


def choices(probe: Probe) -> Iterator[Arguments]:
    """Yield arguments for a constructor: numbers, or arrays where W and b may be those."""
    args, kwargs = _guess_arguments(probe)
    if probe.given.arguments or probe.given.instance is not None:
        yield args, kwargs
        arrays = tuple(map(_as_array, args)), {k: _as_array(v) for k, v in kwargs.items()}
        if any(isinstance(value, np.ndarray) for value in (*arrays[0], *arrays[1].values())):
            yield arrays
        return
    plain = ("int", "float", "bool", "str")
    words = [
        p.name
        for p in parameters_of(probe.cls)
        if p.name in kwargs
        and p.default is p.empty
        and not any(kind in str(p.annotation) for kind in plain)
    ]
    matrices = [name for name in words if name.lower() in NAMES["given matrix"]]
    vectors = [name for name in words if name.lower() in NAMES["given vector"]]
    lengths = {"d": probe.point.sizes.d, "c": probe.point.sizes.c, "h": 3, "1": 1}
    rng = np.random.default_rng(7)
    for forms in (_WITH_MATRIX if matrices else _WITHOUT_MATRIX) if matrices or vectors else ():
        arrays_by_name = {
            name: draw(rng, [lengths[axis] for axis in form])
            for names, form in zip((matrices, vectors), forms, strict=True)
            for name in names
        }
        yield args, {**kwargs, **arrays_by_name}
    yield args, kwargs


def _as_array(value: Any) -> Any:
    """Return a list of numbers, or of lists of them, as an array."""
    if isinstance(value, list):
        with contextlib.suppress(ValueError, TypeError):
            return np.array(value, np.float64)
    return value


@dataclass(frozen=True)
class Made:
    """An object of the class, which is copied for every session.

    Attributes:
        template: the object.
        again: makes another like it.
        settings: its arguments, as they are shown.
        names: of its arguments.
        widths: of its input, which they tell.
    """

    template: Any
    again: Callable[[], Any]
    settings: dict[str, Any]
    names: set[str]
    widths: list[int]


def make(probe: Probe, arguments: Arguments | None = None) -> Made:
    """Return an object made with arguments, those guessed by default, or a copy of the one given.

    Raises:
        Exception: whatever the constructor raises.
    """
    cls, given = probe.cls, probe.given
    if given.instance is not None:
        return _copied(given.instance)
    args, kwargs = arguments or _guess_arguments(probe)
    choices = [kwargs]
    for name, value in kwargs.items():  # a list of widths may have to be one width
        if isinstance(value, list) and not given.kwargs:
            choices.append({**kwargs, name: value[0]})
    first: Exception | None = None
    for chosen in choices:

        def again(chosen: dict[str, Any] = chosen) -> Any:
            return cls(*copy.deepcopy(args), **copy.deepcopy(chosen))

        try:
            reseed()
            template = again()
        except Exception as error:
            first = first or error
            continue
        names, widths = _told(cls, args, kwargs)
        return Made(template, again, shown(args, chosen), {*kwargs, *names}, widths)
    assert first is not None
    raise first


def _told(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the names of the arguments, and the widths of the input that they tell."""
    try:
        bound = inspect.signature(call).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        return [], []
    names = list(bound.arguments)
    bound.apply_defaults()
    widths = []
    for name, value in bound.arguments.items():
        if name.lower() in NAMES["in"] and type(value) is int and value > 1:
            widths.append(value)
        elif name.lower() in NAMES["given matrix"] and np.ndim(_as_array(value)) == 2:
            widths += np.shape(_as_array(value))
    return names, widths


def _copied(instance: Any) -> Made:
    """Return a copy of an object; its attributes and arrays tell the widths of its input."""

    def again() -> Any:
        return copy.deepcopy(instance)

    own = getattr(instance, "__dict__", {})
    widths = [
        value
        for name, value in own.items()
        if name.lower() in NAMES["in"] and type(value) is int and value > 1
    ]
    if is_module(instance):
        found = [*find_parameters(instance), *loose_arrays(instance)]
        shapes = [parameter.value(instance).shape for parameter in found]
    else:
        shapes = [tuple(parameter.shape) for parameter in instance.parameters()]
    for shape in shapes[:2]:  # (out, in), (in, out), or a vector
        widths += shape[1::-1]
    return Made(again(), again, {}, set(own), widths)


def shown(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a constructor as they are shown."""
    named = {str(i): value for i, value in enumerate(args)} | kwargs
    hidden = np.random.Generator | type
    return {key: value for key, value in named.items() if not isinstance(value, hidden)}
