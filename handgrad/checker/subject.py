"""What can be checked: anything with a forward and a backward pass, seen alike.

A :class:`Subject` has variables, by name, in float64: its inputs and its parameters. A
:class:`Session` is one fresh copy of it: ``forward`` at given variables, then ``backward`` with a
given upstream gradient. Every evaluation of a numerical gradient begins a session of its own, so
that random masks repeat and nothing that a pass leaves behind reaches the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.user_code.randomness import reseed

Array = NDArray[Any]
Variables = Mapping[str, Array]
Gradients = dict[str, Array | None]


class ContractError(Exception):
    """A forward or backward pass broke a rule that has nothing to do with its arithmetic.

    Attributes:
        kind: which rule, as a diagnosis is called.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Session:
    """One copy of a subject, in use: ``forward``, then ``backward``.

    Attributes:
        modified: what the passes wrote to that was not theirs: (kind of mistake, a sentence).
        only: the one input that wants a gradient; None for all of them.
    """

    only: str | None = None

    def __init__(self) -> None:
        self.modified: list[tuple[str, str]] = []

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return the outputs at ``variables``."""
        raise NotImplementedError

    def backward(self, douts: tuple[Array, ...]) -> Gradients:
        """Return the gradient of each variable, given that of each output."""
        raise NotImplementedError


class ArraySession(Session):
    """A session of code on NumPy arrays, which is watched for what it writes to.

    Attributes:
        name: of the class.
        inputs: names of the inputs.
        given: the inputs, as forward was given them.
        upstream: what the upstream gradient is called.
    """

    upstream = "dout"

    def __init__(self, name: str, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.name, self.inputs = name, inputs

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return the outputs at ``variables``."""
        self.given = {name: variables[name].copy() for name in self.inputs}
        reseed()
        outputs = _as_outputs(self._forward(), f"{self.name}.forward")
        self._watch("input-modified", "forward", self.given, variables)
        self._watch("parameter-modified", "forward", self._parameters(), variables)
        return outputs

    def backward(self, douts: tuple[Array, ...]) -> Gradients:
        """Return the gradient of each variable, given that of each output."""
        before = {f"{self.upstream}{i or ''}": dout for i, dout in enumerate(douts)}
        upstream = {name: dout.copy() for name, dout in before.items()}
        parameters = {name: array.copy() for name, array in self._parameters().items()}
        given = {name: array.copy() for name, array in self.given.items()}
        result = self._backward(*upstream.values())
        self._watch("upstream-modified", "backward", upstream, before)
        self._watch("parameter-modified", "backward", self._parameters(), parameters)
        self._watch("input-modified", "backward", self.given, given)
        return self._gradients(result)

    def _parameters(self) -> dict[str, Array]:
        return {}

    def _forward(self) -> Any:
        """Return what forward returns for ``given``."""
        raise NotImplementedError

    def _backward(self, *douts: Array) -> Any:
        """Return what backward returns for the upstream gradients."""
        raise NotImplementedError

    def _gradients(self, result: Any) -> Gradients:
        """Return the gradients, given what backward returned."""
        raise NotImplementedError

    def _watch(self, kind: str, who: str, now: Variables, before: Variables) -> None:
        for name, array in now.items():
            if not np.array_equal(np.asarray(array), before[name], equal_nan=True):
                self.modified.append((kind, f"{who} modified {name} in place"))


def _as_outputs(result: Any, who: str) -> tuple[Array, ...]:
    """Return what a forward pass returned as a tuple of arrays."""
    items = result if isinstance(result, tuple | list) else (result,)
    for item in items:
        if not isinstance(item, np.ndarray | np.generic | float | int):
            what = "None" if item is None else type(item).__name__
            text = f"{who} returned {what}; an array is expected"
            raise ContractError("returns-nothing", text)
    return tuple(np.array(item) for item in items)


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
        layout: what kind of inputs these are.
        columns: whether the last axis of the inputs is the batch, not the first.
        upstream: False for a loss whose ``backward`` takes none.
        optional: variables that may have no gradient.
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
    layout: str = ""
    columns: bool = False
    upstream: bool = True
    optional: frozenset[str] = frozenset()
    ungraded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    elsewhere: Callable[[], Subject | None] = lambda: None

    def evaluate(self, variables: Variables, warm: Variables | None = None) -> tuple[Array, ...]:
        """Return the outputs of a new session; after a pass at ``warm``, where that is given."""
        return self._begun(warm).forward(variables)

    def differentiate(
        self, variables: Variables, douts: tuple[Array, ...], warm: Variables | None = None
    ) -> tuple[Gradients, Session]:
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
