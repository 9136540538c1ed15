"""Losses of the courses: ``forward(x, y)`` and ``backward(x, y)``, or another of their kind."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from handgrad.checker.candidates import Candidate, Kind, NoInputError
from handgrad.checker.guesses import NAMES, PARAMETER, Made
from handgrad.checker.kinds.module_session import ModuleSession
from handgrad.checker.probe import Probe, draw
from handgrad.checker.subject import Array, ContractError, Subject, Variables
from handgrad.user_code.parameters import Parameter, find_parameters, loose_arrays


class LossSession(ModuleSession):
    """A loss in use.

    Attributes:
        target: its other argument.
        target_first: whether that is the first one.
        takes: arguments of backward.
    """

    def __init__(self, made: Made, parameters: list[Parameter], loss: Loss, target: Array) -> None:
        super().__init__(made, parameters, tuple(loss.names))
        self.target, self.takes, self.target_first = target, loss.takes, loss.target_first

    def _arguments(self) -> tuple[Any, ...]:
        (x,) = self.given.values()
        return (self.target.copy(), x) if self.target_first else (x, self.target.copy())

    def forward(self, variables: Variables) -> tuple[Array, ...]:
        """Return the loss; one of each sample, where backward takes an upstream gradient."""
        outputs = super().forward(variables)
        if self.takes != 1 and any(out.size != 1 for out in outputs):
            raise ContractError("no-input", "forward is expected to return one number, the loss")
        return outputs

    def _call(self, *douts: Array) -> Any:
        if self.takes >= 2:
            return self.module.backward(*self._arguments())
        given = [float(dout) if dout.ndim == 0 else dout for dout in douts[: self.takes]]
        return self.module.backward(*given)


class Loss(Kind):
    """A loss of an input and a target, or what shares its signature.

    Args:
        names: of the arguments of forward.
        takes: how many backward has.
        label: what the layouts begin with.
    """

    name = "loss"

    def __init__(self, probe: Probe, made: Made, names: list[str], takes: int, label: str) -> None:
        super().__init__(probe)
        self.made, self.takes, self.label = made, takes, label
        self.settings = made.settings
        first, second = (name.lower() in NAMES["target"] for name in names)
        self.target_first = first and not second
        self.names = [names[self.target_first]]
        self.parameters = find_parameters(made.template)
        self.own = {p.name: np.asarray(p.value(made.template), float) for p in self.parameters}
        loose = loose_arrays(made.template)
        self.loose = [p.name for p in loose if PARAMETER.fullmatch(str(p.key))]
        self.fitting = bool(self.parameters or self.loose)
        if len(probe.given.shapes) > 2:
            text = f"{len(probe.given.shapes)} of --input-shape for a prediction and a target"
            raise NoInputError(text)

    def _start(self, target: Array) -> LossSession:
        return LossSession(self.made, self.parameters, self, target)

    def candidates(self) -> Iterator[Candidate]:
        """Yield predictions with targets that they may have."""
        given, sizes = self.probe.given.shapes, self.probe.point.sizes
        n, d = sizes.n, sizes.d
        for shape in given[:1] or ((n, d), (n, 1), (n,)):
            learnt = [(n, sizes.c), (n,), (n, 1)] if self.fitting else []
            for which, other in enumerate(given[1:] or (shape, *learnt)):
                for kind, target in self._targets(shape, other).items():
                    for domain in self._domains(shape, target):
                        x = self.probe.inputs(self.names, (shape,), domain)
                        layout = f"{self.label}{kind} {len(shape)} {which} {domain}"
                        start = functools.partial(self._start, target)
                        for values in self.probe.parameters(self.own):
                            yield Candidate(layout, {**x, **values}, start)

    def subject(self, candidate: Candidate) -> Subject:
        """Return the loss at a prediction and a target."""
        subject = super().subject(candidate)
        subject.upstream = self.takes == 1
        subject.notes += [
            f"{held} was not checked: parameters of a loss are, where they stand in params"
            for held in self.loose
        ]
        return subject

    def _targets(self, shape: tuple[int, ...], other: tuple[int, ...]) -> dict[str, Array]:
        """Return targets of shape ``other`` for predictions of ``shape``, by kind; labels, too."""
        targets: dict[str, Array] = {}
        rng, n_classes = self.probe.rng, self.probe.point.sizes.d
        several = len(shape) == 2 and (shape[1] > 1 or n_classes == 1)
        if several and other in (shape, shape[:1]):
            labels = rng.integers(0, shape[1], shape[0])
            targets = {"labels": labels, "one-hot": np.eye(shape[1])[labels]}
            if other != shape:
                del targets["one-hot"]
        return targets | {"numbers": draw(rng, other), "shares": draw(rng, other, "unit")}

    def _domains(self, shape: tuple[int, ...], target: Array) -> tuple[str, ...]:
        """Return what a loss is of: scores, if adding a constant to a row changes nothing, or
        probabilities; or numbers, if those are targets, or if only differences from it count."""
        if self.probe.given.range:
            return self.probe.domains
        shifted = self._start(target)
        x = draw(self.probe.rng, shape, "positive")  # a clipped logarithm does not change below 0
        at = [{**self.own, self.names[0]: x + shift} for shift in (0, 0.7)]
        try:
            with np.errstate(all="ignore"):
                before, after = (self._start(target).forward(variables)[0] for variables in at)
                shifted.target = target + 0.7 if target.dtype.kind == "f" else target
                both = shifted.forward(at[1])[0]
        except Exception:
            return ("real", "unit")
        numbers = target.dtype.kind == "f" and bool((target < 0).any())
        if numbers or any(np.allclose(before, other, rtol=1e-9) for other in (after, both)):
            return ("real", "unit")
        return ("unit", "real")
