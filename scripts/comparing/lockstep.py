"""Several engines, step by step on the same batches, and where the first difference comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scripts.comparing.engines import Array, Engine, MakeEngine, Place, Trace
from scripts.comparing.user_modules import UserCodeError, where_defined
from training.errors import UserError

_ROUNDINGS = 1000  # machine epsilons that two ways to round one sum may lie apart
_KINKED = ("ReLUModule", "LeakyReLUModule", "ELUModule")


@dataclass(frozen=True)
class Distance:
    """How far an engine is from the reference after a step.

    Attributes:
        loss: absolute difference of the losses.
        parameter: largest absolute difference of a parameter.
        relative: the same, relative to the largest value of that parameter's array.
        where: which: ``layers.0.weight[3, 17]``.
    """

    loss: float
    parameter: float
    relative: float
    where: str

    @property
    def worst(self) -> float:
        """The larger of the two absolute differences."""
        return max(self.loss, self.parameter)


@dataclass(frozen=True)
class Finding:
    """Where a difference comes from.

    Attributes:
        kind: ``layer``, ``state`` (right at first, not when used again), ``kink``, ``update``,
            ``rounding`` or ``error``.
        text: for people, in one or two lines.
        layer: number of the first layer that differs, where one does; the loss comes last.
        what: the :class:`~scripts.comparing.engines.Place` in it.
    """

    kind: str
    text: str
    layer: int | None = None
    what: str | None = None


@dataclass
class Contestant:
    """An engine that is compared with the reference, and what became of it.

    Attributes:
        name: of the engine.
        make: makes it anew, for the diagnosis.
        engine: that takes part.
        classes: the user's among its layers, by name.
        distances: after each step.
        first: the first step that is beyond the tolerance, and the weights and the batch with which
            it began.
        finding: where that comes from.
        stopped: why it takes part no more.
    """

    name: str
    make: MakeEngine
    engine: Engine
    classes: Mapping[str, type] = field(default_factory=dict)
    distances: list[Distance] = field(default_factory=list)
    first: tuple[int, dict[str, Array], Array, Array] | None = None
    finding: Finding | None = None
    stopped: str | None = None

    @property
    def worst(self) -> Distance:
        """The largest distance of all steps."""
        return max(self.distances, key=lambda distance: distance.worst)


@dataclass
class Comparison:
    """What was compared, and how.

    Attributes:
        reference: name of the engine that the others are compared with.
        make_reference: makes it anew.
        contestants: the others.
        layer_names: ``layers.0 (LinearModule)``, softmax included, and the loss.
        tolerance: on absolute differences.
        epsilon: of the type that is computed in.
        losses: the reference's, of each step.
        seconds: of the whole.
    """

    reference: str
    make_reference: MakeEngine
    contestants: list[Contestant]
    layer_names: list[str]
    tolerance: float
    epsilon: float
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether no engine was beyond the tolerance at any step."""
        return all(contestant.first is None for contestant in self.contestants)

    def run(
        self,
        batches: Iterator[tuple[Array, Array]],
        steps: int,
        schedule: Callable[[int], float],
        after_step: Callable[[int], None],
    ) -> None:
        """Take the steps, then find out where the differences come from.

        Args:
            batches: images (N, D) and labels (N,).
            steps: how many.
            schedule: learning rate of each step, counted from 0.
            after_step: called with the number of each step, counted from 1.

        Raises:
            UserError: the loss of the reference is not finite.
            UserCodeError: the user's code failed, with nothing before to blame it on.
        """
        start = time.perf_counter()
        reference = self.make_reference()
        rates = []
        for step in range(1, steps + 1):
            x, labels = next(batches)
            rates.append(schedule(step - 1))
            before = {name: array.copy() for name, array in reference.weights().items()}
            try:
                self.losses.append(reference.step(x.copy(), labels, rates[-1]))
            except FloatingPointError as error:
                raise UserError(
                    f"step {step} of {self.reference}: {error}; a smaller --lr may keep it finite"
                ) from None
            after = reference.weights()
            for contestant in self.contestants:
                if contestant.stopped is None:
                    self._step(contestant, step, x, labels, rates[-1], before, after)
            after_step(step)
        for contestant in self.contestants:
            if contestant.first is not None:
                try:
                    contestant.finding = self._diagnose(contestant, rates)
                except (UserCodeError, FloatingPointError) as error:
                    contestant.finding = Finding("error", f"from the same weights, anew: {error}")
        self.seconds = time.perf_counter() - start

    def _step(
        self,
        contestant: Contestant,
        step: int,
        x: Array,
        labels: Array,
        lr: float,
        before: dict[str, Array],
        after: Mapping[str, Array],
    ) -> None:
        try:
            loss = contestant.engine.step(x.copy(), labels.copy(), lr)
        except FloatingPointError as error:
            contestant.stopped = f"step {step}: {error}"
            distance = Distance(np.inf, np.inf, np.inf, "the loss")
        except UserCodeError as error:
            if contestant.first is None:
                raise UserCodeError(f"step {step}: {error}") from error
            contestant.stopped = f"step {step}: {error}"
            return
        else:
            parameter, relative, where = _distance(after, contestant.engine.weights())
            difference = abs(loss - self.losses[-1])
            distance = Distance(difference, parameter, relative, where)
        contestant.distances.append(distance)
        if contestant.first is None and not distance.worst <= self.tolerance:
            contestant.first = (step, before, x, labels)

    def _diagnose(self, contestant: Contestant, rates: list[float]) -> Finding:
        """Name the first thing that differs, from equal weights, on the batch of the first step
        beyond the tolerance.
        """
        assert contestant.first is not None
        step, weights, x, labels = contestant.first
        reference, engine = self.make_reference(), contestant.make()
        for one in (reference, engine):
            one.load(weights)
        expected = reference.trace(x.copy(), labels)
        found = engine.trace(x.copy(), labels.copy())
        if finding := self._first_difference(expected, found, x, contestant):
            return finding
        again = engine.trace(x.copy(), labels.copy())
        if finding := self._first_difference(expected, again, x, contestant):
            return Finding(
                "state",
                "a new network agrees everywhere, but when the same one computes the same batch "
                f"again, {finding.text}; something is kept from the pass before",
                finding.layer,
                finding.what,
            )
        worst = max(_relative(expected[place], found[place])[0] for place in found)
        agreed = f"from the same weights every layer agrees within {worst:.1e} of its largest value"
        for one in (reference, engine):
            one.load(weights)
            for _ in range(2):  # momentum shows in the second
                one.step(x.copy(), labels.copy(), rates[step - 1])
        _, relative, where = _distance(reference.weights(), engine.weights())
        if not relative <= _ROUNDINGS * self.epsilon * self._amplification(expected, len(x)):
            return Finding(
                "update",
                f"{agreed}, but two updates from there put {where} {relative:.1e} apart, relative "
                "to the largest: the update differs, not a layer",
            )
        return Finding(
            "rounding",
            f"{agreed}, and so does the update ({relative:.1e}): no layer is wrong; rounding has "
            f"grown from {contestant.distances[0].worst:.1e} after the first step, as training "
            "magnifies it: with a large learning rate, or where it turns a unit on or off",
        )

    def _first_difference(
        self, expected: Trace, found: Trace, x: Array, contestant: Contestant
    ) -> Finding | None:
        bound = _ROUNDINGS * self.epsilon
        worst_before = 0.0
        for place, value in expected.items():
            if place not in found:
                continue
            backward = place.what != "output"
            least = self._scale(expected, place, x)
            relative, at = _relative(value, found[place], least)
            amplification = self._amplification(expected, len(x)) if backward else 1.0
            if relative <= bound * amplification:
                worst_before = max(worst_before, relative)
                continue
            index = f"[{', '.join(map(str, at))}]" if at else ""
            source = self._source(place, contestant.classes)
            text = (
                f"the first thing to differ is {self._describe(place)}{index}{source}: "
                f"{contestant.name} {float(np.asarray(found[place])[at]):.9g}, {self.reference} "
                f"{float(np.asarray(value)[at]):.9g} ("
                + (f"{relative:.1e} of the largest; " if np.isfinite(relative) else "")
                + f"everything before it agrees within {worst_before:.1e})"
            )
            kind = "layer"
            if place.what == "dx" and any(k in self.layer_names[place.layer] for k in _KINKED):
                before = expected.get(Place(place.layer - 1, "output"), x)
                if abs(before[at]) <= bound * np.abs(before).max():
                    kind = "kink"
                    text += (
                        f"; there the input is {before[at]:.1e}, at the kink of the activation, "
                        "where either derivative is right and rounding may choose"
                    )
            return Finding(kind, text, place.layer, place.what)
        return None

    def _describe(self, place: Place) -> str:
        name = self.layer_names[place.layer]
        if place.what == "output":
            is_loss = place.layer == len(self.layer_names) - 1
            return f"in the forward pass, the {'value' if is_loss else 'output'} of {name}"
        if place.what == "dx":
            return f"in the backward pass, what backward of {name} returns (∂L/∂x)"
        return f"in the backward pass, the gradient of {place.what} in {name}"

    def _source(self, place: Place, classes: Mapping[str, type]) -> str:
        """Return where the user's code for ``place`` is, to stand behind its name."""
        kind = classes.get(self.layer_names[place.layer].rpartition("(")[2].rstrip(")"))
        method = "forward" if place.what == "output" else "backward"
        source = None if kind is None else where_defined(kind, method)
        return f", your {source}" if source else ""

    def _scale(self, trace: Trace, place: Place, x: Array) -> float:
        """Return what rounding is relative to, at least: a sum whose terms cancel keeps theirs."""
        loss = len(self.layer_names) - 1
        if place == (loss, "output"):
            return 1.0
        if place == (loss - 1, "dx"):
            return 1.0 / len(x)  # (p - onehot) / N
        if place.what not in ("output", "dx"):
            before = trace.get(Place(place.layer - 1, "output"), x)
            dout = trace[Place(place.layer + 1, "dx")]
            factor = np.abs(before).max() if place.what == "weight" else 1.0
            return float(np.abs(dout).max() * factor)
        return 0.0

    def _amplification(self, trace: Trace, n: int) -> float:
        """Return how much larger rounding is in the backward pass, relative to its values.

        (p - onehot) / N is a difference, whose rounding is that of 1/N even where p is nearly 1.
        """
        dlogits = trace[Place(len(self.layer_names) - 2, "dx")]
        largest = float(np.abs(dlogits).max())
        return max(1.0, 1.0 / (n * largest)) if largest else 1.0


def _relative(expected: Array, found: Array, least: float = 0.0) -> tuple[float, tuple[int, ...]]:
    """Return the largest difference, relative to the largest value or ``least``, and its place."""
    expected, found = np.asarray(expected), np.asarray(found)
    difference = _difference(expected, found)
    at = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    largest = max(float(np.abs(expected).max()), least)
    if not difference[at]:
        return 0.0, at
    return float(difference[at] / largest) if largest else np.inf, at


def _distance(
    expected: Mapping[str, Array], found: Mapping[str, Array]
) -> tuple[float, float, str]:
    """Return the largest absolute difference, what that is relative to its array, and where."""
    worst = (-1.0, 0.0, "")
    for name, value in expected.items():
        difference = _difference(value, found[name])
        at = np.unravel_index(difference.argmax(), difference.shape)
        if (absolute := float(difference[at])) > worst[0]:
            largest = float(np.abs(value).max()) or 1.0
            index = ", ".join(str(int(i)) for i in at)
            worst = absolute, absolute / largest, f"{name}[{index}]"
    return worst


def _difference(expected: Array, found: Array) -> Any:
    """Return absolute differences in double precision; infinite where only one is a number."""
    one, other = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(one - other)
    return np.where(np.isnan(difference), np.where(one == other, 0.0, np.inf), difference)
