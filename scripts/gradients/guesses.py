"""Sensible arguments for classes nobody has described: constructors, inputs, constants, targets.

Names are taken at their word (``in_features``, ``p``, ``eps``, ``gamma``), then annotations; what
cannot run at what was guessed is tried at the next guess. Sizes differ from one another, so that a
transposed matrix does not fit by chance, and no value stands at 0 or close to another, where a
kink or a tie could be.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numpy_mlp.autograd.core import Op
from scripts.gradients.subjects import (
    Array,
    LossSession,
    ModuleSession,
    OpSession,
    Parameter,
    Session,
    Subject,
    TorchSession,
    find_parameters,
    reseed,
)


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes: batch, features or channels in, out, and of an image's sides."""

    n: int
    d: int
    c: int
    h: int = 3
    w: int = 2


@dataclass(frozen=True)
class Given:
    """What the user said instead of leaving it to be guessed."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    range: tuple[float, float] | None = None

    @property
    def init(self) -> bool:
        """Whether constructor arguments were given."""
        return bool(self.args or self.kwargs)


class NoInputError(Exception):
    """Nothing that was tried could be run; ``__cause__`` is what came of the first try."""


# Names of constructor arguments, constants and inputs, by what stands behind them.
_WORDS = {
    "in": "in_features n_in in_dim input_dim input_size n_inputs fan_in num_features n_features "
    "n_neurons features dim d_in d_model size normalized_shape in_size input_features n_dims "
    "in_channels channels n_channels num_channels c_in",
    "out": "out_features n_out out_dim output_dim output_size n_outputs fan_out n_classes "
    "num_classes d_out out_size n_units units output_features out_channels filters n_filters "
    "num_filters c_out",
    "probability": "p dropout dropout_p prob drop_prob dropout_rate rate p_drop",
    "slope": "alpha neg_slope negative_slope slope leak",
    "eps": "eps epsilon",
    "scale": "factor temperature lam lmbda exponent power",
    "hidden": "n_hidden hidden hidden_dims hidden_sizes hidden_units layers",
    "kernel": "kernel_size kernel k ksize filter_size",
    "window": "pool_size pool window",
    "one": "padding pad stride axis dim num_groups groups n_heads num_heads",
    "rng": "rng generator random_state",
    "image": "in_channels channels n_channels num_channels kernel_size",
    "vector": "gamma beta bias b shift scale running_mean running_var",
    "matrix": "weight weights w matrix kernel wt mat m",
    "target": "y t target targets label labels y_true truth onehot one_hot t_true gt",
    "index": "indices targets index labels",
}
_NAMES = {kind: set(words.split()) for kind, words in _WORDS.items()}
_NUMBERS = {
    **dict.fromkeys(_NAMES["probability"] | _NAMES["slope"], 0.3),
    **dict.fromkeys(_NAMES["eps"], 1e-5),
    **dict.fromkeys(_NAMES["scale"], 1.7),
    "scale": 1.7,
    "momentum": 0.1,
}


def draw(rng: np.random.Generator, shape: Sequence[int], domain: str = "real") -> Array:
    """Return values that are apart from one another and from 0.

    Args:
        rng: source of their order and signs.
        shape: any.
        domain: ``real``, ``positive`` or ``unit``: (0, 1).
    """
    n = int(np.prod(shape, dtype=int))
    low, high = (0.1, 0.9) if domain == "unit" else (0.3, 2.0)
    gap = (high - low) / max(n, 1)
    values = low + gap * (rng.permutation(n) + rng.uniform(0.2, 0.8, n))
    if domain == "real":
        values *= np.where(rng.permutation(n) < n / 2, -1, 1)
    return values.reshape(tuple(shape))


def guess_argument(name: str, annotation: str, sizes: Sizes, position: int) -> Any:
    """Return a value for a constructor's argument that has no default."""
    key = name.lower().strip("_")
    if key in _NUMBERS:
        return _NUMBERS[key]
    guesses = {
        "in": sizes.d, "out": sizes.c, "hidden": [sizes.d + 2], "kernel": 3, "window": 2, "one": 1,
        "rng": np.random.default_rng(7),
    }  # fmt: skip
    for kind, value in guesses.items():
        if key in _NAMES[kind]:
            return value
    if key in ("seed", "dtype"):
        return {"seed": 7, "dtype": np.float64}[key]
    if "bool" in annotation:
        return False
    if "float" in annotation:
        return 0.5
    if "list" in annotation.lower() or "sequence" in annotation.lower():
        return [sizes.d + 2]
    return sizes.d if position == 0 else sizes.c


def _varied(name: str, default: Any) -> Any:
    """Return another value than the default of a number, which may hide a mistake (1 does)."""
    key = name.lower()
    if isinstance(default, bool) or not isinstance(default, int | float):
        return default
    if key in _NAMES["eps"]:
        return 0.01
    if isinstance(default, float) or key in _NUMBERS:
        return 0.7 * default if default else 0.3
    return default


def constructor_arguments(
    call: Callable[..., Any], given: Given, sizes: Sizes, vary: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments for a constructor; what the user gave stays."""
    if given.init:
        return given.args, given.kwargs
    kwargs: dict[str, Any] = {}
    for position, parameter in enumerate(_signature(call)):
        name, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if default is parameter.empty:
            annotation = str(parameter.annotation)
            kwargs[name] = guess_argument(name, annotation, sizes, position)
        elif name == "dtype":
            kwargs[name] = np.float64
        elif name in ("rng", "seed"):
            kwargs[name] = guess_argument(name, "", sizes, position)
        elif vary and _varied(name, default) != default:
            kwargs[name] = _varied(name, default)
    positional = [p.name for p in _signature(call) if p.kind is p.POSITIONAL_ONLY]
    return tuple(kwargs.pop(name) for name in positional if name in kwargs), kwargs


def _signature(call: Callable[..., Any], skip: int = 0) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(call).parameters.values())[skip:]
    except (TypeError, ValueError):
        return []


def _required(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind in kinds]


def _shown(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    named = {str(i): value for i, value in enumerate(args)} | kwargs
    return {
        key: value for key, value in named.items() if not isinstance(value, np.random.Generator)
    }


def _runs(start: Callable[[], Session], variables: dict[str, Array]) -> BaseException | None:
    """Return what keeps a forward pass from giving finite numbers, or None."""
    try:
        with np.errstate(all="ignore"):
            outputs = start().forward(variables)
    except Exception as error:
        return error
    for out in outputs:
        if out.dtype.kind not in "fiu" or not np.isfinite(out.astype(np.float64)).all():
            return FloatingPointError("forward gave numbers that are not finite")
    return None


# --- modules --------------------------------------------------------------------------------------


def module_subjects(
    cls: type, given: Given, sizes: Sizes, vary: bool, rng: np.random.Generator
) -> list[Subject]:
    """Return a module of the courses at each kind of input that it takes.

    Raises:
        NoInputError: none of the inputs that were tried could be run.
        Exception: whatever the constructor raises.
    """
    args, kwargs = constructor_arguments(cls, given, sizes, vary)
    reseed()
    template = cls(*args, **kwargs)
    if callable(getattr(template, "train", None)):
        template.train()
    parameters = find_parameters(template)
    names = [p.name for p in _required(_signature(template.forward))]
    if len(names) > 1 and names[1].lower() in _NAMES["target"]:
        return _loss_subjects(template, names[0], given, sizes, rng, _shown(args, kwargs))
    names = names or ["x"]
    subjects: list[Subject] = []
    first: BaseException | None = None
    for shapes in _module_shapes(len(names), given, sizes, {*kwargs, *map(str, args)}):
        if subjects and (parameters or len(shapes[0]) != 4):
            continue  # parameters that fit another rank do so by chance
        for domain in _domains(given):
            x = {name: _value(rng, s, domain, given) for name, s in zip(names, shapes, strict=True)}
            for values in _parameter_values(template, parameters, rng):
                variables = {**x, **values}

                def start() -> Session:
                    return ModuleSession(template, parameters, tuple(names), ())

                error = _runs(start, variables)
                if error is None:
                    subject = Subject(cls.__name__, "module", variables, tuple(names), start)
                    subject.settings = _shown(args, kwargs)
                    subjects.append(subject)
                    break
                first = first or error
            else:
                continue
            break
        if len(subjects) == 2:
            break
    if not subjects:
        raise NoInputError("; ".join(_tried(len(names), given, sizes))) from first
    return subjects


def _tried(n_inputs: int, given: Given, sizes: Sizes) -> list[str]:
    shapes = _module_shapes(n_inputs, given, sizes, set())
    return [" and ".join(map(str, s)) for s in shapes]


def _module_shapes(
    n_inputs: int, given: Given, sizes: Sizes, settings: set[str]
) -> Iterator[tuple[tuple[int, ...], ...]]:
    if given.shapes:
        yield given.shapes if len(given.shapes) == n_inputs else given.shapes[:1] * n_inputs
        return
    n, d, h, w = sizes.n, sizes.d, sizes.h, sizes.w
    image = bool(settings & _NAMES["image"])
    ranks = [(n, d), (n, d, h, w), (n, d, h), (n, h, d), (d,)]
    if image:
        ranks = [(n, d, h + 2, w + 2), (n, d, h + 2), (n, d)]
    for shape in ranks:
        yield (shape,) * n_inputs


def _domains(given: Given) -> tuple[str, ...]:
    return ("given",) if given.range else ("real", "positive", "unit")


def _value(rng: np.random.Generator, shape: Sequence[int], domain: str, given: Given) -> Array:
    if domain == "given" and given.range is not None:
        low, high = given.range
        return low + (high - low) * (draw(rng, shape, "unit") - 0.1) / 0.8
    return draw(rng, shape, domain)


def _parameter_values(
    template: Any, parameters: Sequence[Parameter], rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Yield points at which to look: never the initial one, whose ones and zeros hide mistakes."""
    from scripts.gradients.subjects import _at

    own = {p.name: np.asarray(_at(template, p.path).params[p.key], np.float64) for p in parameters}
    yield {name: draw(rng, value.shape) for name, value in own.items()}
    yield {name: draw(rng, value.shape, "positive") for name, value in own.items()}
    yield {
        name: v * (1 + 0.1 * draw(rng, v.shape)) + 0.01 * draw(rng, v.shape)
        for name, v in own.items()
    }


def _loss_subjects(
    template: Any,
    name: str,
    given: Given,
    sizes: Sizes,
    rng: np.random.Generator,
    settings: dict[str, Any],
) -> list[Subject]:
    n, c = given.shapes[0] if given.shapes and len(given.shapes[0]) == 2 else (sizes.n, sizes.d)
    shape = given.shapes[0] if given.shapes else (n, c)
    labels = rng.integers(0, c, n)
    targets: list[Array] = [labels, np.eye(c)[labels], draw(rng, shape)]
    if len(shape) != 2:
        targets = [draw(rng, shape)]
    takes = len(_required(_signature(template.backward)))
    parameters = find_parameters(template)
    first: BaseException | None = None
    for target in targets:

        def start(target: Array = target) -> Session:
            session = LossSession(template, parameters, (name,), (target,))
            session.takes = takes
            return session

        for domain in _loss_domains(start, name, given, shape, rng, target is targets[-1]):
            variables = {name: _value(rng, shape, domain, given)}
            error = _runs(start, variables)
            if error is None and any(out.size != 1 for out in start().forward(variables)):
                error = TypeError("forward(x, y) is expected to return one number, the loss")
            if error is None:
                subject = Subject(
                    type(template).__name__, "loss", variables, (name,), start, settings
                )
                subject.upstream = takes == 1
                return [subject]
            first = first or error
    raise NoInputError(f"{shape} with labels, one-hot rows or numbers as targets") from first


def _loss_domains(
    start: Callable[[], Session],
    name: str,
    given: Given,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    numbers: bool,
) -> tuple[str, ...]:
    """Return what a loss is of: scores, if adding a constant to a row changes nothing, or
    probabilities; or, with numbers as targets, numbers."""
    if given.range:
        return ("given",)
    x = draw(rng, shape, "positive")  # a logarithm that is clipped does not change below 0
    try:
        with np.errstate(all="ignore"):
            before, after = (start().forward({name: x + shift})[0] for shift in (0, 0.7))
    except Exception:
        return ("real", "unit")
    if numbers or np.allclose(before, after, rtol=1e-9):
        return ("real", "unit")
    return ("unit", "real")


# --- ops and functions ----------------------------------------------------------------------------


def op_subjects(
    cls: Any, given: Given, sizes: Sizes, vary: bool, rng: np.random.Generator
) -> list[Subject]:
    """Return an op of the engine at each kind of input that it takes."""
    parameters = _signature(cls.forward, 1)
    positional = [p for p in _required(parameters) if p.name.lower() not in ("indices", "targets")]
    names = [p.name for p in positional]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += ["a", "b"]
    constants = [p for p in parameters if p.name not in names and p.kind is not p.VAR_POSITIONAL]

    def make(x: dict[str, Array], values: dict[str, Any]) -> Callable[[], Session]:
        return lambda: OpSession(cls, tuple(x), values)

    ours = isinstance(cls, type) and issubclass(cls, Op)
    return _function_subjects(
        cls.__name__, "op", names, constants, make, given, sizes, vary, rng, broadcasts=ours
    )


def torch_function_subjects(
    cls: Any, given: Given, sizes: Sizes, vary: bool, rng: np.random.Generator
) -> list[Subject]:
    """Return a ``torch.autograd.Function`` at each kind of input that it takes."""
    own_context = any(
        "setup_context" in k.__dict__ for k in cls.__mro__ if k.__module__[:5] != "torch"
    )
    parameters = _signature(cls.forward, 0 if own_context else 1)
    numbers = [p for p in parameters if _is_constant(p)]
    names = [p.name for p in parameters if p not in numbers and p.kind is not p.VAR_POSITIONAL]
    order = [p.name for p in parameters]

    def make(x: dict[str, Array], values: dict[str, Any]) -> Callable[[], Session]:
        def call(*tensors: Any) -> Any:
            given_tensors = dict(zip(x, tensors, strict=True))
            return cls.apply(*(given_tensors.get(name, values.get(name)) for name in order))

        return lambda: TorchSession(call, tuple(x), ())

    return _function_subjects(
        cls.__name__, "torch function", names, numbers, make, given, sizes, vary, rng
    )


def _is_constant(parameter: inspect.Parameter) -> bool:
    annotation = str(parameter.annotation)
    if parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY:
        return True
    plain = any(kind in annotation for kind in ("int", "float", "bool", "str", "Sequence"))
    return (plain and "Tensor" not in annotation) or parameter.name.lower() in {
        *_NUMBERS, "stride", "padding", "kernel_size", "dim", "axis", "training",
    } - _NAMES["vector"]  # fmt: skip


def _function_subjects(
    title: str,
    kind: str,
    names: list[str],
    constants: list[inspect.Parameter],
    make: Callable[[dict[str, Array], dict[str, Any]], Callable[[], Session]],
    given: Given,
    sizes: Sizes,
    vary: bool,
    rng: np.random.Generator,
    broadcasts: bool = False,
) -> list[Subject]:
    subjects: list[Subject] = []
    taken: tuple[tuple[int, ...], ...] = ()
    first: BaseException | None = None
    tried: list[str] = []
    for shapes in itertools.islice(_function_shapes(names, given, sizes), 80):
        # A vector that is stretched to a matrix by chance is not what a function is made for.
        if subjects and not broadcasts and shapes[1:] != taken[1:]:
            continue
        tried.append(" and ".join(map(str, shapes)))
        for values, domain in itertools.product(
            _constants(constants, shapes, given, sizes, vary, rng), _domains(given)
        ):
            x = {name: _value(rng, s, domain, given) for name, s in zip(names, shapes, strict=True)}
            start = make(x, values)
            error = _runs(start, x)
            if error is None:
                subject = Subject(title, kind, x, tuple(x), start, _shown((), values))
                subject.batch_axis = len(shapes[0]) > 1
                subjects.append(subject)
                taken = shapes
                break
            first = first or error
        if len(subjects) == 2:
            break
    if not subjects:
        raise NoInputError("; ".join(tried[:6])) from first
    return subjects


def _function_shapes(
    names: list[str], given: Given, sizes: Sizes
) -> Iterator[tuple[tuple[int, ...], ...]]:
    if given.shapes:
        yield given.shapes if len(given.shapes) == len(names) else given.shapes[:1] * len(names)
        return
    n, d, c = sizes.n, sizes.d, sizes.c
    choices: list[list[tuple[int, ...]]] = []
    for i, name in enumerate(names):
        key = name.lower()
        if key in _NAMES["vector"] and i and names != ["a", "b"]:
            choices.append([(d,), (1, d), (c,), (1, c), (n, d)])
        elif key in _NAMES["matrix"]:
            choices.append([(c, d), (d, c), (d,), (n, d)])
        elif i:
            choices.append([(n, d), (d, c), (c, d), (d,), (1, d)])
        else:
            choices.append([(n, d), (n, d, sizes.h, sizes.w), (n, 1), (1, d), (d,)])
    yield from itertools.product(*choices)


def _constants(
    parameters: Sequence[inspect.Parameter],
    shapes: Sequence[tuple[int, ...]],
    given: Given,
    sizes: Sizes,
    vary: bool,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    values: dict[str, Any] = {}
    x = shapes[0] if shapes else (sizes.n,)
    for position, p in enumerate(parameters):
        key = p.name.lower()
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        if p.name in given.kwargs:
            values[p.name] = given.kwargs[p.name]
        elif p.default is not p.empty:
            values[p.name] = _varied(p.name, p.default) if vary else p.default
        elif key in _NAMES["index"]:
            values[p.name] = rng.integers(0, x[-1], x[0])
        elif key == "shape":
            values[p.name] = x[::-1]
        elif key in ("repeats", "times"):
            values[p.name] = 4
        else:
            values[p.name] = guess_argument(p.name, str(p.annotation), sizes, position)
    yield values
    if "dim" in values and "dim" not in given.kwargs:
        yield {**values, "dim": 0}


def torch_module_subjects(
    cls: type, given: Given, sizes: Sizes, vary: bool, rng: np.random.Generator
) -> list[Subject]:
    """Return an ``nn.Module``, whose backward pass autograd puts together from its functions'."""
    args, kwargs = constructor_arguments(cls, given, sizes, vary)
    reseed()
    module = cls(*args, **kwargs).double()
    module.train()
    names = [p.name for p in _required(_signature(module.forward))] or ["x"]
    own = {name: p.detach().numpy() for name, p in module.named_parameters()}
    first: BaseException | None = None
    subjects: list[Subject] = []
    for shapes in _module_shapes(len(names), given, sizes, set(kwargs)):
        if subjects and len(shapes[0]) != 4:
            continue
        for domain in _domains(given):
            x = {name: _value(rng, s, domain, given) for name, s in zip(names, shapes, strict=True)}
            variables = {**x, **{name: draw(rng, value.shape) for name, value in own.items()}}

            def start() -> Session:
                return TorchSession(module, tuple(names), (), module)

            error = _runs(start, variables)
            if error is None:
                subject = Subject(cls.__name__, "torch module", variables, tuple(names), start)
                subject.settings = _shown(args, kwargs)
                subjects.append(subject)
                break
            first = first or error
        if len(subjects) == 2:
            break
    if not subjects:
        raise NoInputError("; ".join(_tried(len(names), given, sizes))) from first
    return subjects
