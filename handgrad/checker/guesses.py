"""Sensible arguments for classes nobody has described: constructors, inputs, constants, targets.

Names are taken at their word (``in_features``, ``p``, ``eps``, ``gamma``), then annotations; what
cannot run at what was guessed is tried at the next guess. Sizes differ from one another, so that a
transposed matrix does not fit by chance, and no value stands at 0 or close to another, where a
kink or a tie could be.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from handgrad.checker.check import check
from handgrad.checker.subject import (
    RATES,
    Array,
    ContractError,
    LossSession,
    ModuleSession,
    OpSession,
    Parameter,
    Session,
    Subject,
    TorchSession,
    find_parameters,
    is_module,
    loose_arrays,
    reseed,
)
from numpy_mlp.autograd.core import Op


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes: batch, features or channels in, out, and of an image's sides."""

    n: int
    d: int
    c: int
    h: int = 3
    w: int = 2


@dataclass(frozen=True)
class Point:
    """Where to look.

    Attributes:
        sizes: of the inputs.
        vary: 0 to keep the defaults of arguments, 1 for other numbers, 2 for other switches too.
        scale: what inputs are multiplied with.
    """

    sizes: Sizes
    vary: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Given:
    """What the user said instead of leaving it to be guessed."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Candidate:
    """Inputs to try.

    Attributes:
        layout: what kind of inputs these are, whatever their sizes.
        variables: inputs and parameters.
        start: begins a session.
        another: a further kind of input, looked at where one that is not has been found to run.
        columns: samples are columns.
    """

    layout: str
    variables: dict[str, Array]
    start: Callable[[], Session]
    another: bool = False
    columns: bool = False


class NoInputError(Exception):
    """Nothing that was tried could be run; ``__cause__`` is what came of the first try."""


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
    "one": "padding pad stride axis dim num_groups groups n_heads num_heads",
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
    "least": "min low lo lower min_val min_value minimum a_min vmin",
    "most": "max high hi upper max_val max_value maximum a_max vmax",
}
_NAMES = {kind: set(words.split()) for kind, words in _WORDS.items()}
_NUMBERS = {
    **dict.fromkeys(_NAMES["probability"] | _NAMES["slope"], 0.3),
    **dict.fromkeys(_NAMES["eps"], 1e-5),
    **dict.fromkeys(_NAMES["scale"], 1.7),
    "scale": 1.7,
    "momentum": 0.1,
    **dict.fromkeys(_NAMES["least"], -0.8),
    **dict.fromkeys(_NAMES["most"], 0.9),
}

# Attributes that are parameters by their names: W, b1, W_xh, bias, gamma.
_PARAMETER = re.compile(
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
    """Return a value for an argument that has no default."""
    guess = _guess_by_name(name, annotation, sizes)
    return guess if guess is not None else sizes.d if position == 0 else sizes.c


def _guess_by_name(name: str, annotation: str, sizes: Sizes) -> Any:
    key = name.lower().strip("_")
    if key in _NUMBERS:
        return _NUMBERS[key]
    guesses = {
        "widths": [sizes.d, sizes.d + 2, sizes.c],
        "in": sizes.d, "out": sizes.c, "hidden": [sizes.d + 2], "kernel": 3, "window": 2, "one": 1,
        "rng": np.random.default_rng(7),
    }  # fmt: skip
    for kind, value in guesses.items():
        if key in _NAMES[kind]:
            return value
    if key in _NAMES["mode"]:
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


def invented(call: Callable[..., Any], given: Given) -> list[str]:
    """Return the arguments of a constructor whose values no name and no annotation told."""
    if given.args or given.kwargs:
        return []
    sizes = Sizes(5, 4, 3)
    return [
        p.name
        for p in _signature(call)
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and _guess_by_name(p.name, str(p.annotation), sizes) is None
    ]


def varied(name: str, default: Any, vary: int) -> Any:
    """Return another value than a default, which may hide a mistake, as 1 does."""
    key = name.lower()
    if key in _NAMES["mode"]:
        return default
    if vary > 1 and isinstance(default, bool):
        return not default
    if vary > 1 and isinstance(default, int) and key in ("stride", "padding", "pad", "dilation"):
        return default + 1
    if isinstance(default, bool) or not isinstance(default, int | float):
        return default
    if key in _NAMES["eps"]:
        return 0.01
    if isinstance(default, float) or key in _NUMBERS:
        return 0.7 * default if default else 0.3
    return default


def constructor_arguments(
    call: Callable[..., Any], given: Given, point: Point
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments for a constructor; what the user gave stays."""
    if given.args or given.kwargs:
        return given.args, given.kwargs
    kwargs: dict[str, Any] = {}
    parameters = _signature(call)
    for position, parameter in enumerate(parameters):
        name, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if default is parameter.empty or name in ("rng", "seed", "dtype"):
            annotation = str(parameter.annotation)
            kwargs[name] = guess_argument(name, annotation, point.sizes, position)
        elif point.vary and (other := varied(name, default, point.vary)) != default:
            kwargs[name] = other
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    return tuple(kwargs.pop(name) for name in positional if name in kwargs), kwargs


# Shapes of a matrix W and a vector b that are given to a constructor: W is (in, out) or (out, in),
# of columns, of one output, or of a convolution. Of a gamma and a beta alone: features, or one.
_WITH_MATRIX: tuple[tuple[str, str], ...] = (
    ("dc", "c"), ("cd", "c"), ("cd", "c1"), ("d", ""), ("cdhh", "c"),
)  # fmt: skip
_WITHOUT_MATRIX: tuple[tuple[str, str], ...] = (("", "d"), ("", ""))


def _choices(
    call: Callable[..., Any], given: Given, point: Point
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield arguments for a constructor: numbers, or arrays where W and b may be those."""
    args, kwargs = constructor_arguments(call, given, point)
    if given.args or given.kwargs:
        yield args, kwargs
        arrays = tuple(map(_as_array, args)), {k: _as_array(v) for k, v in kwargs.items()}
        if any(isinstance(value, np.ndarray) for value in (*arrays[0], *arrays[1].values())):
            yield arrays
        return
    plain = ("int", "float", "bool", "str")
    words = [
        p.name
        for p in _signature(call)
        if p.name in kwargs
        and p.default is p.empty
        and not any(kind in str(p.annotation) for kind in plain)
    ]
    matrices = [name for name in words if name.lower() in _NAMES["given matrix"]]
    vectors = [name for name in words if name.lower() in _NAMES["given vector"]]
    lengths = {"d": point.sizes.d, "c": point.sizes.c, "h": 3, "1": 1}
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


def _construct(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], *, guessed: bool
) -> tuple[Any, Callable[[], Any], dict[str, Any]]:
    """Return an instance, a way to another like it, and the arguments to be shown."""
    choices = [kwargs]
    for name, value in kwargs.items():  # a list of widths may have to be one width
        if isinstance(value, list) and guessed:
            choices.append({**kwargs, name: value[0]})
    first: Exception | None = None
    for chosen in choices:
        try:
            reseed()
            instance = cls(*copy.deepcopy(args), **copy.deepcopy(chosen))
        except Exception as error:
            first = first or error
            continue

        def again(chosen: dict[str, Any] = chosen) -> Any:
            return cls(*copy.deepcopy(args), **copy.deepcopy(chosen))

        return instance, again, shown(args, chosen)
    assert first is not None
    raise first


def _widths(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[int]:
    """Return widths of the input that an argument or a default of the constructor tells."""
    try:
        bound = inspect.signature(call).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        return []
    bound.apply_defaults()
    found = []
    for name, value in bound.arguments.items():
        if name.lower() in _NAMES["in"] and type(value) is int and value > 1:
            found.append(value)
        elif name.lower() in _NAMES["given matrix"] and np.ndim(_as_array(value)) == 2:
            found += np.shape(_as_array(value))
    return found


def _signature(call: Callable[..., Any], skip: int = 0) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(call).parameters.values())[skip:]
    except (TypeError, ValueError):
        return []


def _required(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind in kinds]


def shown(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a constructor as they are shown."""
    named = {str(i): value for i, value in enumerate(args)} | kwargs
    hidden = np.random.Generator | type
    return {key: value for key, value in named.items() if not isinstance(value, hidden)}


def _runs(start: Callable[[], Session], variables: dict[str, Array]) -> BaseException | None:
    """Return what keeps a forward pass from giving finite numbers, or None."""
    try:
        with np.errstate(all="ignore"):
            outputs = start().forward(variables)
    except (Exception, SystemExit) as error:
        return error
    for out in outputs:
        if out.dtype.kind not in "fiu" or not np.isfinite(out.astype(np.float64)).all():
            return FloatingPointError("forward gave numbers that are not finite")
    return None


def _fits(candidate: Candidate | Subject, inputs: Sequence[str]) -> bool:
    """Say whether backward runs, and gives the inputs gradients of their shapes."""
    try:
        with np.errstate(all="ignore"):
            session = candidate.start()
            outputs = session.forward(candidate.variables)
            gradients = session.backward(tuple(np.ones(out.shape) for out in outputs))
    except (Exception, SystemExit):
        return False
    given = [(gradients.get(name), candidate.variables[name]) for name in inputs]
    return all(gradient is None or gradient.shape == x.shape for gradient, x in given)


def _is_identity(candidate: Candidate, inputs: Sequence[str]) -> bool:
    (first, *rest) = candidate.start().forward(candidate.variables)
    return not rest and len(inputs) == 1 and np.array_equal(first, candidate.variables[inputs[0]])


def _may_replace(candidate: Candidate, held: Candidate, inputs: Sequence[str]) -> bool:
    """Say whether a candidate may be what is meant where ``held`` is not.

    Images and sequences may. A single sample may not: a sum over the batch that is missing is not
    missed there. Columns may where a batch of rows does not run, and so may another target.
    """
    x, other = (c.variables[inputs[0]] for c in (candidate, held))
    return x.ndim > 2 or (candidate.columns and other.ndim != 2) or x.shape == other.shape


def _accept(
    candidates: Iterator[Candidate],
    like: Subject | None,
    inputs: Sequence[str],
    make: Callable[[Candidate], Subject],
    *,
    fitting: bool = False,
) -> list[Subject]:
    """Return the first candidate that runs, and the first of another kind of input, if any does.

    Args:
        candidates: in the order of how likely they are meant.
        like: only inputs of the kind that this subject has.
        inputs: which of the variables are inputs.
        make: makes a subject of one.
        fitting: pass over inputs on which forward runs by chance, to judge by backward, and those
            that forward gives back as they are, of which a flattening shows nothing; if there are
            no others, the first of them counts.

    Raises:
        NoInputError: none of them runs.
    """
    subjects: list[Subject] = []
    first: BaseException | None = None
    tried: list[str] = []
    held: Candidate | None = None
    unfit: list[str] = []
    for candidate in candidates:
        if candidate.another != bool(subjects) or (
            like is not None and candidate.layout != like.layout
        ):
            continue
        error = _runs(candidate.start, candidate.variables)
        shapes = " and ".join(
            str(value.shape) for name, value in candidate.variables.items() if name in inputs
        )
        tried += [shapes] if shapes not in tried else []
        if error is not None:
            # What broke a rule of ours says more than what no input of this kind could do.
            if first is None or (
                isinstance(error, ContractError) and not isinstance(first, ContractError)
            ):
                first = error
            continue
        if fitting and like is None and not subjects:
            if held is not None and not _may_replace(candidate, held, inputs):
                continue
            same = _is_identity(candidate, inputs)
            if same or (not _fits(candidate, inputs) and (held is None or unfit)):
                unfit += [] if same else [shapes]
                held = held or candidate
                continue
        subjects.append(make(candidate))
        subjects[-1].layout = candidate.layout
        if kinds := "; ".join(dict.fromkeys(kind for kind in unfit if kind != shapes)):
            text = f"judged at {shapes}; forward runs on {kinds} too, but backward does not fit"
            subjects[-1].notes.append(text)
        if len(subjects) == 2 or like is not None:
            break
    if not subjects and held is not None:
        subjects.append(make(held))
        subjects[-1].layout = held.layout
    if not subjects:
        raise NoInputError("; ".join(tried[:6])) from first
    return subjects


def _domains(given: Given) -> tuple[str, ...]:
    return ("given",) if given.range else ("real", "positive", "unit")


def _value(
    rng: np.random.Generator, shape: Sequence[int], domain: str, given: Given, point: Point
) -> Array:
    if domain == "given" and given.range is not None:
        low, high = given.range
        return low + (high - low) * (draw(rng, shape, "unit") - 0.1) / 0.8
    return draw(rng, shape, domain) * (1.0 if domain == "unit" else point.scale)


# --- modules --------------------------------------------------------------------------------------


def module_subjects(
    cls: type, given: Given, point: Point, rng: np.random.Generator, like: Subject | None = None
) -> list[Subject]:
    """Return a module of the courses, or a loss, with inputs that it takes.

    Raises:
        NoInputError: none of the inputs that were tried could be run.
        Exception: whatever the constructor raises.
    """
    choices = list(_choices(cls, given, point))
    best: tuple[tuple[bool, bool], list[Subject]] | None = None
    errors: list[Exception] = []
    for number, (args, kwargs) in enumerate(choices):
        label = f"{number} "
        if like is not None and not like.layout.startswith(label):
            continue
        try:
            subjects = _subjects_with(cls, args, kwargs, label, given, point, rng, like)
        except Exception as error:
            errors.append(error)
            continue
        main = subjects[0]
        if like is not None or len(choices) == 1:
            return subjects
        # An array that has no gradient is rather a number, unless somebody gave it.
        known = bool(given.args or given.kwargs)
        meant = known or len(main.variables) > len(main.inputs)
        if meant and _passes(main):
            return subjects
        rank = (_fits(main, main.inputs), meant or number == len(choices) - 1)
        if best is None or rank > best[0]:
            best = rank, subjects
    if best is not None:
        return best[1]
    raise errors[0 if given.args or given.kwargs else -1]


def _passes(subject: Subject) -> bool:
    """Say whether all gradients of a subject are right."""
    try:
        with np.errstate(all="ignore"):
            findings = check(subject, np.random.default_rng(2), lambda *_: ("", ""))
    except (Exception, SystemExit):
        return False
    return all(finding.passed for finding in findings)


def _subjects_with(
    cls: type,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    label: str,
    given: Given,
    point: Point,
    rng: np.random.Generator,
    like: Subject | None,
) -> list[Subject]:
    template, again, settings = _construct(cls, args, kwargs, guessed=not given.kwargs)
    if callable(getattr(template, "train", None)):
        template.train()
    parameters = find_parameters(template)
    names = [p.name for p in _required(_signature(template.forward))] or ["x"]
    takes = len([p for p in _required(_signature(template.backward)) if p.name not in RATES])
    if len(names) == 2 and (takes == 2 or names[1].lower() in _NAMES["target"]):
        return _loss_subjects(
            template, again, names, takes, label, given, point, rng, settings, like
        )
    own = {p.name: np.asarray(p.value(template), np.float64) for p in parameters}

    def start() -> ModuleSession:
        return ModuleSession(template, again, parameters, tuple(names))

    def candidates() -> Iterator[Candidate]:
        for rank, (shapes, columns) in enumerate(
            _module_shapes(cls, args, kwargs, len(names), given, point.sizes)
        ):
            for domain in _domains(given):
                x = _inputs(names, shapes, domain, given, point, rng)
                for values in _parameter_values(own, rng):
                    layout = f"{label}{rank} {domain}"
                    yield Candidate(layout, {**x, **values}, start, columns=columns)

    def make(candidate: Candidate) -> Subject:
        subject = Subject(cls.__name__, "module", candidate.variables, tuple(names), start)
        subject.settings = settings
        subject.columns = _in_columns(candidate, names)
        subject.batch_axis = not subject.columns
        session = start()
        subject.upstream = not session.is_loss(candidate.variables)
        outputs = session.forward(candidate.variables)
        no_layer = _NAMES["target"] if all(out.size == 1 for out in outputs) else set()
        subject.optional = frozenset(n for n in names[1:] if n.lower() in no_layer | _NAMES["mask"])
        for name in session.rates:
            text = f"backward was given a {name} of 0: what it updates by itself was not checked"
            subject.notes.append(text)
        _made_of(subject, template, parameters)
        return _with_loose_arrays(subject, template, again, parameters, rng)

    return _accept(candidates(), like, names, make, fitting=True)


def _with_loose_arrays(
    subject: Subject,
    template: Any,
    again: Callable[[], Any],
    parameters: list[Parameter],
    rng: np.random.Generator,
) -> Subject:
    """Take for parameters what is kept as ``W`` with its gradient as ``dW``, and note the rest."""
    loose = [p for p in loose_arrays(template) if p.name not in subject.inputs]
    together = [*parameters, *loose]
    session = ModuleSession(template, again, together, subject.inputs)
    try:
        own = {p.name: p.value(template) for p in loose}
        outputs = session.forward(subject.variables | own)
        gradients = session.backward(tuple(np.ones(out.shape) for out in outputs))
    except (Exception, SystemExit):  # the check itself will say so
        return subject
    for late in loose_arrays(session.module):
        made = late.name not in {p.name for p in together} and _PARAMETER.fullmatch(str(late.key))
        if made and late.gradient(session.module) is not None:
            text = "is made by forward and was not checked: the constructor is where to make it"
            subject.notes.append(f"{late.name} {text}")
    trained = [p for p in loose if gradients[p.name] is not None]
    for parameter in loose:
        if parameter in trained:
            continue
        other = ModuleSession(template, again, parameters, subject.inputs)
        value = parameter.value(other.module)
        parameter.set(other.module, value + 0.1 * (1 + np.abs(value)))
        with contextlib.suppress(Exception):
            if _same_outputs(other.forward(subject.variables), outputs):
                continue
            if session.rates:  # updated in backward: there is a note already
                continue
            word = parameter.key if isinstance(parameter.key, str) else parameter.holder
            known = _PARAMETER.fullmatch(word)
            if known or not is_module(parameter.owner(template)):
                subject.ungraded.append(parameter.name)
            else:
                text = "changes the output and has no gradient: taken for a constant"
                subject.notes.append(f"{parameter.name} {text}")
    if trained:
        together = [*parameters, *trained]
        subject.variables |= {p.name: draw(rng, p.value(template).shape) for p in trained}
        subject.start = lambda: ModuleSession(template, again, together, subject.inputs)
        _made_of(subject, template, together)
    return subject


def _made_of(subject: Subject, template: Any, parameters: list[Parameter]) -> None:
    owners = [p.owner(template) for p in parameters if p.path]
    subject.layers = sorted({type(owner).__name__ for owner in owners if is_module(owner)})
    subject.is_network = bool(subject.layers)


def _same_outputs(ours: Sequence[Array], others: Sequence[Array]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, others, strict=True))


def _in_columns(candidate: Candidate, names: Sequence[str]) -> bool:
    """Say whether there may be more columns in the input, and not more rows."""
    x = {name: candidate.variables[name] for name in names}
    if any(value.ndim != 2 for value in x.values()):
        return False
    more_rows, more_columns = (
        {n: np.concatenate([v, 0.9 * v.take([0], axis)], axis) for n, v in x.items()}
        for axis in (0, 1)
    )
    start, variables = candidate.start, candidate.variables
    return (
        _runs(start, {**variables, **more_rows}) is not None
        and _runs(start, {**variables, **more_columns}) is None
    )


def _module_shapes(
    cls: type,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    n_inputs: int,
    given: Given,
    sizes: Sizes,
) -> Iterator[tuple[tuple[tuple[int, ...], ...], bool]]:
    """Yield the shapes of the inputs, and whether samples are columns."""
    if given.shapes:
        yield _given_shapes(n_inputs, given), False
        return
    names = {*kwargs}
    with contextlib.suppress(TypeError, ValueError):
        names |= {*inspect.signature(cls).bind_partial(*args, **kwargs).arguments}
    for d in dict.fromkeys((*_widths(cls, args, kwargs), sizes.d)):
        n = sizes.n + 2 * (sizes.n == d != sizes.d)  # a square would hide what is transposed
        h = sizes.h
        columns: list[tuple[int, ...]] = []
        if names & _NAMES["image"]:
            images = (min(n, 3), min(d, 3) if not names & _NAMES["in"] else d, 4, 6)
            ranks: list[tuple[int, ...]] = [images, (n, d, h + 2), (n, d)]
            if names & _NAMES["in"]:  # channels last
                ranks += [(n, h + 4, d), (min(n, 2), 5, 7, d)]
        else:
            # One sample early: what takes no batch of rows may take W @ x of others by chance.
            ranks = [(n, d), (d,), (min(n, 3), d, 4, 6), (n, d, h), (n, h, d)]
            columns = [(d, n), (d, 1)]
        for shape in ranks:
            yield (shape,) * n_inputs, False
        if n_inputs > 1:  # of an input and a state or two
            yield ((n, d), *[(n, sizes.c)] * (n_inputs - 1)), False
        if n_inputs == 2:  # steps and their mask
            yield ((n, h, d), (n, h)), False
        for shape in columns:
            yield (shape,) * n_inputs, True


def _given_shapes(n_inputs: int, given: Given) -> tuple[tuple[int, ...], ...]:
    if len(given.shapes) not in (1, n_inputs):
        raise NoInputError(
            f"{len(given.shapes)} of --input-shape for {n_inputs} input{'s' * (n_inputs > 1)}"
        )
    return given.shapes if len(given.shapes) == n_inputs else given.shapes * n_inputs


def _parameter_values(
    own: dict[str, Array], rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Yield points at which to look: never the initial one, whose ones and zeros hide mistakes."""
    yield {name: draw(rng, value.shape) for name, value in own.items()}
    if own:
        yield {name: draw(rng, value.shape, "positive") for name, value in own.items()}
        near = {name: draw(rng, value.shape) for name, value in own.items()}
        yield {name: value + 0.1 * near[name] * np.abs(value) for name, value in own.items()}


def _loss_subjects(
    template: Any,
    again: Callable[[], Any],
    names: list[str],
    takes: int,
    label: str,
    given: Given,
    point: Point,
    rng: np.random.Generator,
    settings: dict[str, Any],
    like: Subject | None,
) -> list[Subject]:
    first_is_target = names[0].lower() in _NAMES["target"] and names[1].lower() not in {
        *_NAMES["target"]
    }
    name = names[first_is_target]
    n, d = point.sizes.n, point.sizes.d
    parameters = find_parameters(template)
    own = {p.name: np.asarray(p.value(template), np.float64) for p in parameters}
    loose = [p.name for p in loose_arrays(template) if _PARAMETER.fullmatch(str(p.key))]
    if len(given.shapes) > 2:
        raise NoInputError(f"{len(given.shapes)} of --input-shape for a prediction and a target")

    def candidates() -> Iterator[Candidate]:
        for shape in given.shapes[:1] or ((n, d), (n, 1), (n,)):
            learnt = [(n, point.sizes.c), (n,), (n, 1)] if parameters or loose else []
            others = given.shapes[1:] or (shape, *learnt)
            for which, other in enumerate(others):
                yield from with_targets(shape, which, _targets(shape, other, rng, d))

    def with_targets(
        shape: tuple[int, ...], which: int, targets: dict[str, Array]
    ) -> Iterator[Candidate]:
        for kind, target in targets.items():

            def start(target: Array = target) -> LossSession:
                session = LossSession(template, again, parameters, (name,))
                session.target, session.takes, session.target_first = target, takes, first_is_target
                return session

            for domain in _loss_domains(start, name, own, given, shape, rng):
                x = {name: _value(rng, shape, domain, given, point)}
                layout = f"{label}{kind} {len(shape)} {which} {domain}"
                for values in _parameter_values(own, rng):
                    yield Candidate(layout, {**x, **values}, start)

    def make(candidate: Candidate) -> Subject:
        kind = type(template).__name__
        subject = Subject(kind, "loss", candidate.variables, (name,), candidate.start, settings)
        subject.upstream = takes == 1
        subject.notes += [
            f"{held} was not checked: parameters of a loss are, where they stand in params"
            for held in loose
        ]
        return subject

    return _accept(candidates(), like, (name,), make, fitting=bool(parameters or loose))


def _targets(
    shape: tuple[int, ...], other: tuple[int, ...], rng: np.random.Generator, n_classes: int
) -> dict[str, Array]:
    """Return targets of shape ``other`` for predictions of ``shape``, by kind; labels as well."""
    targets: dict[str, Array] = {}
    several = len(shape) == 2 and (shape[1] > 1 or n_classes == 1)
    if several and other in (shape, shape[:1]):
        labels = rng.integers(0, shape[1], shape[0])
        targets = {"labels": labels, "one-hot": np.eye(shape[1])[labels]}
        if other != shape:
            del targets["one-hot"]
    return targets | {"numbers": draw(rng, other), "shares": draw(rng, other, "unit")}


def _loss_domains(
    start: Callable[[], LossSession],
    name: str,
    own: dict[str, Array],
    given: Given,
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Return what a loss is of: scores, if adding a constant to a row changes nothing, or
    probabilities; or numbers, if those are targets, or if only differences from it count."""
    if given.range:
        return ("given",)
    session = start()
    target = session.target
    x = draw(rng, shape, "positive")  # a logarithm that is clipped does not change below 0
    try:
        with np.errstate(all="ignore"):
            before, after = (start().forward({**own, name: x + s})[0] for s in (0, 0.7))
            session.target = target + 0.7 if target.dtype.kind == "f" else target
            both = session.forward({**own, name: x + 0.7})[0]
    except Exception:
        return ("real", "unit")
    numbers = target.dtype.kind == "f" and bool((target < 0).any())
    if numbers or any(np.allclose(before, other, rtol=1e-9) for other in (after, both)):
        return ("real", "unit")
    return ("unit", "real")


# --- ops and functions ----------------------------------------------------------------------------


def op_subjects(
    cls: Any, given: Given, point: Point, rng: np.random.Generator, like: Subject | None = None
) -> list[Subject]:
    """Return an op of the engine with inputs that it takes."""
    parameters = _signature(cls.forward, 1)
    names = [p.name for p in _required(parameters) if p.name.lower() not in _NAMES["index"]]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += ["a", "b"]
    constants = [p for p in parameters if p.name not in names and p.kind is not p.VAR_POSITIONAL]
    broadcasts = isinstance(cls, type) and issubclass(cls, Op)

    def candidates() -> Iterator[Candidate]:
        for shapes in itertools.islice(_function_shapes(names, given, point.sizes, constants), 80):
            for values, domain in itertools.product(
                _constants(constants, shapes, given, point, rng), _domains(given)
            ):
                x = _inputs(names, shapes, domain, given, point, rng)
                layout = _layout(shapes, values, domain)

                def start(values: dict[str, Any] = values) -> Session:
                    return OpSession(cls, tuple(names), values)

                yield Candidate(layout, x, start)
                if broadcasts and len(shapes) == 2 and shapes[0] != shapes[1]:
                    yield Candidate(layout, x, start, another=True)

    def make(candidate: Candidate) -> Subject:
        constants_used = getattr(candidate.start(), "constants", {})
        return Subject(
            cls.__name__, "op", candidate.variables, tuple(names), candidate.start,
            shown((), constants_used),
        )  # fmt: skip

    return _accept(candidates(), like, names, make)


def torch_function_subjects(
    cls: Any, given: Given, point: Point, rng: np.random.Generator, like: Subject | None = None
) -> list[Subject]:
    """Return a ``torch.autograd.Function`` with inputs that it takes.

    An argument for which ``backward`` returns None is no variable, if a plain number will do for
    it, or if its name says so.
    """
    own_context = any(
        "setup_context" in k.__dict__ for k in cls.__mro__ if not k.__module__.startswith("torch")
    )
    parameters = _signature(cls.forward, 0 if own_context else 1)
    if given.args:
        raise NoInputError("--init of a function needs names, as in --init 'scale=2.0'")
    order = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    settled = [p.name for p in parameters if _is_constant(p, given)]
    unsettled = [p for p in parameters if p.name in order and p.name not in settled]
    optional = [p.name for p in unsettled if p.default is None]
    # All that may be tensors first; then numbers in place of those that need not be.
    numbers = [p.name for p in unsettled[1:] if p.name.lower() not in _NAMES["matrix"]]
    choices = [(), *((name,) for name in reversed(numbers)), tuple(numbers)]

    def candidates() -> Iterator[Candidate]:
        # At last, whatever runs: its backward may be what is wrong.
        for plain, strict in (*((c, True) for c in dict.fromkeys(choices)), ((), False)):
            names = [name for name in order if name not in settled and name not in plain]
            constants = [p for p in parameters if p.name in order and p.name not in names]
            base: tuple[tuple[int, ...], ...] = ()
            for shapes in itertools.islice(_function_shapes(names, given, point.sizes), 60):
                for values in _constants(constants, shapes, given, point, rng):
                    for domain in _domains(given):
                        values = {k: None if k in optional else v for k, v in values.items()}
                        x = _inputs(names, shapes, domain, given, point, rng)
                        start = _torch_start(cls, order, names, values)
                        if strict and not _gradients_exist(start, x, numbers):
                            continue
                        layout = f"{plain} {_layout(shapes, values, domain)}"
                        yield Candidate(layout, x, start)
                        if any(isinstance(value, np.ndarray) for value in values.values()):
                            continue  # labels, one for each sample
                        if len(shapes[0]) == 4 and (not base or shapes[1:] == base[1:]):
                            yield Candidate(layout, x, start, another=True)
                        base = base or shapes

    def make(candidate: Candidate) -> Subject:
        names = tuple(candidate.variables)
        subject = Subject(
            cls.__name__, "torch function", candidate.variables, names, candidate.start
        )
        subject.settings = shown((), getattr(candidate.start(), "constants", {}))
        subject.optional = frozenset(
            n for n in names if n.lower() in _NAMES["untrained"] | _NAMES["target"]
        )
        return subject

    return _accept(candidates(), like, order, make)


def _torch_start(
    cls: Any, order: list[str], names: list[str], values: dict[str, Any]
) -> Callable[[], Session]:
    def call(*tensors: Any) -> Any:
        import torch

        plain = {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()
        }
        given = dict(zip(names, tensors, strict=True))
        return cls.apply(*(given.get(name, plain.get(name)) for name in order))

    return lambda: TorchSession(call, tuple(names), values)


def _gradients_exist(start: Callable[[], Session], x: dict[str, Array], maybe: list[str]) -> bool:
    """Say whether backward runs, with a gradient for each tensor that may as well be a number."""
    try:
        session = start()
        outputs = session.forward(x)
        gradients = session.backward(tuple(np.ones(out.shape) for out in outputs))
    except Exception:
        return False
    known = _NAMES["untrained"] | _NAMES["target"] | (_NAMES["vector"] - {"scale", "shift"})
    return all(gradients[n] is not None for n in maybe if n in gradients and n.lower() not in known)


def _is_constant(parameter: inspect.Parameter, given: Given) -> bool:
    if parameter.name in given.kwargs or parameter.kind is parameter.KEYWORD_ONLY:
        return True
    if (
        parameter.default is None
        and parameter.name.lower() in _NAMES["vector"] - _NAMES["untrained"]
    ):
        return False  # a bias may be there
    if parameter.default is not parameter.empty:
        return True
    annotation = str(parameter.annotation)
    plain = any(kind in annotation for kind in ("int", "float", "bool", "str", "Sequence"))
    words = _NAMES["index"] | _NAMES["one"] | _NAMES["kernel"] | _NAMES["mode"] | {*_NUMBERS}
    return (plain and "Tensor" not in annotation) or parameter.name.lower() in (
        words - _NAMES["vector"] - _NAMES["matrix"]
    )


def _inputs(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    domain: str,
    given: Given,
    point: Point,
    rng: np.random.Generator,
) -> dict[str, Array]:
    return {
        name: _value(rng, shape, domain, given, point)
        for name, shape in zip(names, shapes, strict=True)
    }


def _layout(shapes: Sequence[tuple[int, ...]], values: dict[str, Any], domain: str) -> str:
    return f"{[len(s) for s in shapes]} {sorted(values)} {values.get('dim')} {domain}"


def _function_shapes(
    names: list[str], given: Given, sizes: Sizes, constants: Sequence[inspect.Parameter] = ()
) -> Iterator[tuple[tuple[int, ...], ...]]:
    if given.shapes:
        yield _given_shapes(len(names), given)
        return
    n, d, c = sizes.n, sizes.d, sizes.c
    choices: list[list[tuple[int, ...]]] = []
    for i, name in enumerate(names):
        key = name.lower()
        if key in _NAMES["vector"] and i and names != ["a", "b"]:
            choices.append([(d,), (1, d), (c,), (1, c), (n, d)])
        elif key in _NAMES["matrix"]:
            choices.append([(c, d), (d, c), (d,), (n, d), (c, d, 2, 2)])
        elif i:
            choices.append([(n, d), (d, c), (c, d), (d,), (1, d)])
        elif any(p.name == "repeats" for p in constants):  # of a dimension of length 1
            choices.append([(n, 1), (1, d)])
        else:
            choices.append([(n, d), (n, d, sizes.h, sizes.w), (n, 1), (1, d), (d,)])
    yield from itertools.product(*choices)


def _constants(
    parameters: Sequence[inspect.Parameter],
    shapes: Sequence[tuple[int, ...]],
    given: Given,
    point: Point,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    values: dict[str, Any] = {}
    x = shapes[0] if shapes else (point.sizes.n,)
    for p in parameters:
        key = p.name.lower()
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        if p.name in given.kwargs:
            values[p.name] = given.kwargs[p.name]
        elif p.default is not p.empty:
            values[p.name] = varied(p.name, p.default, point.vary) if point.vary else p.default
        elif key in _NAMES["index"]:
            values[p.name] = rng.integers(0, x[-1], x[0])
        elif key == "shape":
            values[p.name] = x[::-1]
        elif key in ("repeats", "times"):
            values[p.name] = 4
        elif key in ("dim", "axis"):
            values[p.name] = 1
        elif key in _NAMES["one"] | _NAMES["mode"] or key in _NUMBERS:
            values[p.name] = guess_argument(p.name, str(p.annotation), point.sizes, 1)
        else:
            values[p.name] = 1.3
    yield values
    if "dim" in values and "dim" not in given.kwargs:
        yield {**values, "dim": 0}


def torch_module_subjects(
    cls: type, given: Given, point: Point, rng: np.random.Generator, like: Subject | None = None
) -> list[Subject]:
    """Return an ``nn.Module``, whose backward pass autograd puts together from its functions'."""
    args, kwargs = constructor_arguments(cls, given, point)
    template, _, settings = _construct(cls, args, kwargs, guessed=not given.kwargs)
    module = template.double()
    module.train()
    names = [p.name for p in _required(_signature(module.forward))] or ["x"]
    own = {name: p.detach().numpy() for name, p in module.named_parameters()}

    def start() -> Session:
        return TorchSession(module, tuple(names), {}, module)

    def candidates() -> Iterator[Candidate]:
        for rank, (shapes, columns) in enumerate(
            _module_shapes(cls, args, kwargs, len(names), given, point.sizes)
        ):
            for domain in _domains(given):
                x = _inputs(names, shapes, domain, given, point, rng)
                for values in _parameter_values(own, rng):
                    variables, layout = {**x, **values}, f"{rank} {domain}"
                    yield Candidate(layout, variables, start, columns=columns)
                    if len(shapes[0]) == 4 and rank:
                        yield Candidate(layout, variables, start, another=True)

    def make(candidate: Candidate) -> Subject:
        subject = Subject(cls.__name__, "torch module", candidate.variables, tuple(names), start)
        subject.settings = settings
        subject.columns = _in_columns(candidate, names)
        subject.batch_axis = not subject.columns
        return subject

    return _accept(candidates(), like, names, make, fitting=True)
