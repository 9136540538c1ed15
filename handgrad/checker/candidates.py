"""Inputs to try, and which of them count: the first that run, judged by backward where in doubt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, ClassVar

import numpy as np

from handgrad.checker.guesses import (
    NAMES,
    NUMBERS,
    Made,
    guess_argument,
    parameters_of,
    required,
    shown,
    varied,
)
from handgrad.checker.probe import Probe, Shapes
from handgrad.checker.subject import Array, ContractError, Session, Subject, Variables

Start = Callable[[], Session]


@dataclass(frozen=True)
class Candidate:
    """Inputs to try.

    Attributes:
        layout: what kind of inputs these are, whatever their sizes.
        variables: inputs and parameters.
        start: begins a session.
        another: a further kind of input, looked at where one that is not has been found to run.
        columns: samples are columns.
        constants: what else is handed to a function.
    """

    layout: str
    variables: dict[str, Array]
    start: Start
    another: bool = False
    columns: bool = False
    constants: dict[str, Any] = field(default_factory=dict)


class NoInputError(Exception):
    """Nothing that was tried could be run; ``__cause__`` is what came of the first try."""


class Kind:
    """A kind of subject: a class at a point, what may be its inputs, and what is checked then.

    Attributes:
        name: of the kind.
        fitting: pass over inputs on which forward runs by chance, to judge by backward, and those
            that forward gives back as they are, of which a flattening shows nothing; if there are
            no others, the first of them counts.
        names: which of the variables are inputs.
        settings: arguments of the constructor, where there is one.
    """

    name: ClassVar[str]
    fitting = False
    names: list[str]
    settings: dict[str, Any] | None = None

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def candidates(self) -> Iterator[Candidate]:
        """Yield inputs, in the order of how likely they are meant."""
        raise NotImplementedError

    def subject(self, candidate: Candidate) -> Subject:
        """Return what is checked at inputs that run."""
        constants = shown((), candidate.constants)
        return Subject(
            self.probe.cls.__name__,
            self.name,
            candidate.variables,
            tuple(name for name in candidate.variables if name in self.names),
            candidate.start,
            constants if self.settings is None else self.settings,
            candidate.layout,
        )

    def subjects(self) -> list[Subject]:
        """Return it with inputs that run, and with those of another kind, if any do.

        Raises:
            NoInputError: none of those that were tried could be run.
        """
        return _Search(self).run()


class _Search:
    def __init__(self, kind: Kind) -> None:
        self.kind, self.names, self.like = kind, kind.names, kind.probe.like
        self.subjects: list[Subject] = []
        self.first: BaseException | None = None  # of what came of those that do not run
        self.tried: dict[str, None] = {}  # their shapes
        self.held: Candidate | None = None  # runs, but may not be what is meant
        self.unfit: dict[str, None] = {}  # shapes on which backward does not run

    def run(self) -> list[Subject]:
        for candidate in self.kind.candidates():
            if candidate.another != bool(self.subjects) or (
                self.like is not None and candidate.layout != self.like.layout
            ):
                continue
            shapes = " and ".join(
                str(value.shape)
                for name, value in candidate.variables.items()
                if name in self.names
            )
            self.tried[shapes] = None
            if (error := error_at(candidate.start, candidate.variables)) is not None:
                self._blame(error)
            elif not self._is_held(candidate, shapes):
                self._take(candidate, shapes)
                if len(self.subjects) == 2 or self.like is not None:
                    break
        if not self.subjects and self.held is not None:
            self.subjects.append(self.kind.subject(self.held))
        if not self.subjects:
            raise NoInputError("; ".join(list(self.tried)[:6])) from self.first
        return self.subjects

    def _blame(self, error: BaseException) -> None:
        # What broke a rule of ours says more than what no input of this kind could do.
        broke_rule = isinstance(error, ContractError) and not isinstance(self.first, ContractError)
        if self.first is None or broke_rule:
            self.first = error

    def _is_held(self, candidate: Candidate, shapes: str) -> bool:
        """Say whether to look for something better than a candidate that runs."""
        if not self.kind.fitting or self.like is not None or self.subjects:
            return False
        if self.held is not None and not self._may_replace(candidate, self.held):
            return True
        same = self._is_identity(candidate)
        if same or (not fits(candidate, self.names) and (self.held is None or self.unfit)):
            self.unfit |= {} if same else {shapes: None}
            self.held = self.held or candidate
            return True
        return False

    def _may_replace(self, candidate: Candidate, held: Candidate) -> bool:
        """Say whether a candidate may be what is meant where ``held`` is not.

        Images and sequences may. A single sample may not: a sum over the batch that is missing is
        not missed there. Columns may where a batch of rows does not run, and so may another target.
        """
        x, other = (c.variables[self.names[0]] for c in (candidate, held))
        return x.ndim > 2 or (candidate.columns and other.ndim != 2) or x.shape == other.shape

    def _is_identity(self, candidate: Candidate) -> bool:
        (first, *rest) = candidate.start().forward(candidate.variables)
        x = candidate.variables[self.names[0]]
        return not rest and len(self.names) == 1 and np.array_equal(first, x)

    def _take(self, candidate: Candidate, shapes: str) -> None:
        subject = self.kind.subject(candidate)
        if kinds := "; ".join(kind for kind in self.unfit if kind != shapes):
            text = f"judged at {shapes}; forward runs on {kinds} too, but backward does not fit"
            subject.notes.append(text)
        self.subjects.append(subject)


def error_at(start: Start, variables: Variables) -> BaseException | None:
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


def fits(one: Candidate | Subject, inputs: Sequence[str]) -> bool:
    """Say whether backward runs, and gives the inputs gradients of their shapes."""
    try:
        with np.errstate(all="ignore"):
            session = one.start()
            outputs = session.forward(one.variables)
            gradients = session.backward(tuple(np.ones(out.shape) for out in outputs))
    except (Exception, SystemExit):
        return False
    given = [(gradients.get(name), one.variables[name]) for name in inputs]
    return all(gradient is None or gradient.shape == x.shape for gradient, x in given)


def _given_shapes(probe: Probe, n_inputs: int) -> Shapes:
    shapes = probe.given.shapes
    if len(shapes) not in (1, n_inputs):
        plural = "s" * (n_inputs > 1)
        raise NoInputError(f"{len(shapes)} of --input-shape for {n_inputs} input{plural}")
    return shapes if len(shapes) == n_inputs else shapes * n_inputs


class ModuleKind(Kind):
    """A module, made already; ``label`` is what the layouts begin with."""

    fitting = True

    def __init__(self, probe: Probe, made: Made, label: str = "") -> None:
        super().__init__(probe)
        self.made, self.settings, self.label = made, made.settings, label
        self.names = [p.name for p in required(parameters_of(made.template.forward))] or ["x"]

    def start(self) -> Session:
        """Begin a session."""
        raise NotImplementedError

    def own(self) -> dict[str, Array]:
        """Return the parameters that the module was made with."""
        raise NotImplementedError

    def candidates(self) -> Iterator[Candidate]:
        """Yield rows, one sample, images, sequences, columns; at other parameters than its own."""
        own = self.own()
        for rank, (shapes, columns) in enumerate(self._shapes(len(self.names))):
            for domain in self.probe.domains:
                x = self.probe.inputs(self.names, shapes, domain)
                for values in self.probe.parameters(own):
                    layout = f"{self.label}{rank} {domain}"
                    yield Candidate(layout, {**x, **values}, self.start, columns=columns)

    def _shapes(self, n_inputs: int) -> Iterator[tuple[Shapes, bool]]:
        """Yield the shapes of the inputs, and whether samples are columns."""
        if self.probe.given.shapes:
            yield _given_shapes(self.probe, n_inputs), False
            return
        sizes, names = self.probe.point.sizes, self.made.names
        for d in dict.fromkeys((*self.made.widths, sizes.d)):
            n = sizes.n + 2 * (sizes.n == d != sizes.d)  # a square would hide what is transposed
            h, few = sizes.h, n if n < 4 else 2
            columns: list[tuple[int, ...]] = []
            if names & NAMES["image"]:
                # More rows than channels, and an odd number of columns.
                images = [(few, d, 6, 5), (few, 6, 5, d)]
                if not names & NAMES["in"]:
                    images = [(few, min(d, 3), 8, 6)]
                ranks: list[tuple[int, ...]] = [images[0], (n, d, h + 2), (n, d)]
                if names & NAMES["in"]:  # channels last
                    ranks += [(n, h + 4, d), images[1]]
            else:
                # One sample early: what takes no batch of rows may take W @ x of others by chance.
                ranks = [(n, d), (d,), (few, d, 6, 5), (n, d, h), (n, h, d)]
                ranks.append((few, min(d, 3), 8, 6))
                columns = [(d, n), (d, 1)]
            for shape in ranks:
                yield (shape,) * n_inputs, False
            if n_inputs > 1:  # of an input and a state or two
                yield ((n, d), *[(n, sizes.c)] * (n_inputs - 1)), False
            if n_inputs == 2:  # steps and their mask
                yield ((n, h, d), (n, h)), False
            for shape in columns:
                yield (shape,) * n_inputs, True

    def subject(self, candidate: Candidate) -> Subject:
        """Return the module at an input."""
        subject = super().subject(candidate)
        subject.columns = self._in_columns(candidate)
        return subject

    def _in_columns(self, candidate: Candidate) -> bool:
        """Say whether there may be more columns in the input, and not more rows."""
        x = {name: candidate.variables[name] for name in self.names}
        if any(value.ndim != 2 for value in x.values()):
            return False
        more_rows, more_columns = (
            {n: np.concatenate([v, 0.9 * v.take([0], axis)], axis) for n, v in x.items()}
            for axis in (0, 1)
        )
        at = candidate.variables
        return (
            error_at(candidate.start, {**at, **more_rows}) is not None
            and error_at(candidate.start, {**at, **more_columns}) is None
        )


class FunctionKind(Kind):
    """A function of inputs and constants, some of which may be ``optional``: None."""

    optional: Sequence[str] = ()

    def tried(
        self, names: Sequence[str], others: Sequence[Parameter], most: int, repeats: bool = False
    ) -> Iterator[tuple[str, Shapes, dict[str, Array], dict[str, Any]]]:
        """Yield layouts, shapes, inputs ``names``, and constants for the ``others``."""
        for shapes in itertools.islice(self._shapes(names, repeats), most):
            for values in self._constants(others, shapes):
                for domain in self.probe.domains:
                    ranks = [len(shape) for shape in shapes]
                    layout = f"{ranks} {sorted(values)} {values.get('dim')} {domain}"
                    yield layout, shapes, self.probe.inputs(names, shapes, domain), values

    def _shapes(self, names: Sequence[str], repeats: bool) -> Iterator[Shapes]:
        if self.probe.given.shapes:
            yield _given_shapes(self.probe, len(names))
            return
        sizes = self.probe.point.sizes
        n, d, c = sizes.n, sizes.d, sizes.c
        choices: list[list[tuple[int, ...]]] = []
        for i, name in enumerate(names):
            key = name.lower()
            if key in NAMES["vector"] and i and list(names) != ["a", "b"]:
                choices.append([(d,), (1, d), (c,), (1, c), (n, d)])
            elif key in NAMES["matrix"]:
                choices.append([(c, d), (d, c), (d,), (n, d), (c, d, 2, 2)])
            elif i:
                choices.append([(n, d), (d, c), (c, d), (d,), (1, d)])
            elif repeats:
                choices.append([(n, 1), (1, d)])
            else:
                choices.append([(n, d), (n, d, sizes.h, sizes.w), (n, 1), (1, d), (d,)])
        yield from itertools.product(*choices)

    def _constants(
        self, parameters: Sequence[Parameter], shapes: Shapes
    ) -> Iterator[dict[str, Any]]:
        given = self.probe.given.kwargs
        values: dict[str, Any] = {}
        for p in parameters:
            if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                continue
            values[p.name] = given[p.name] if p.name in given else self._constant(p, shapes)
            if p.name in self.optional:
                values[p.name] = None
        yield values
        if "dim" in values and "dim" not in (*given, *self.optional):
            yield {**values, "dim": 0}

    def _constant(self, p: Parameter, shapes: Shapes) -> Any:
        key, point = p.name.lower(), self.probe.point
        x = shapes[0] if shapes else (point.sizes.n,)
        if p.default is not p.empty:
            return varied(p.name, p.default, point.vary) if point.vary else p.default
        if key in NAMES["index"]:
            return self.probe.rng.integers(0, x[-1], x[0])
        known = {"shape": x[::-1], "repeats": 4, "times": 4, "dim": 1, "axis": 1}
        known |= dict.fromkeys(NAMES["kernel"] | NAMES["window"], 2) | {"widths": ((1, 0), (0, 2))}
        if key not in known and key in {*NAMES["one"], *NAMES["mode"], *NUMBERS}:
            return guess_argument(p, point.sizes, 1)
        return known.get(key, 1.3)
