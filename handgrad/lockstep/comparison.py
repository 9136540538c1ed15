"""Several engines, step by step on the same batches, and how far they are from one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from handgrad.errors import UserError
from handgrad.lockstep.engines import Array, Engine, MakeEngine, Trace
from handgrad.user_code.blame import UserCodeError


class Moment(NamedTuple):
    """What a step begins with.

    Attributes:
        step: counted from 1.
        weights: of the reference, by name.
        x: images (N, ...) of the batch, as the network takes them.
        labels: (N,).
        lr: learning rate.
    """

    step: int
    weights: Mapping[str, Array]
    x: Array
    labels: Array
    lr: float

    def train(self, engine: Engine) -> float:
        """Update the engine's weights, whatever they are, on the batch; return its loss."""
        return engine.step(self.x.copy(), self.labels.copy(), self.lr)

    def trace(self, engine: Engine) -> Trace:
        """Return what the engine computes on the batch, with these weights, which it keeps."""
        engine.load(self.weights)
        return engine.trace(self.x.copy(), self.labels.copy())


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
class Cause:
    """Where a difference comes from.

    Attributes:
        kind: ``layer``, ``state`` (right at first, not when used again), ``kink``, ``saturated``
            (softmax and loss apart, where only the two in one are exact), ``update``, ``rounding``,
            ``unexplained`` or ``error``.
        text: for people, in one or two lines.
        layer: number of the first layer that differs, where one does; the loss comes last.
        what: the :class:`~handgrad.lockstep.engines.Place` in it.
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
        make: makes it anew, to find causes.
        engine: that takes part.
        classes: the user's among its layers, by name.
        make_parted: makes the reference with softmax and loss one after the other, where this
            engine has them so.
        distances: after each step.
        first: the first step that is beyond the tolerance.
        lived: what it computes from the weights of ``first``, having been trained so far.
        cause: where that comes from; or a layer that differs though the weights agree.
        stopped: why it takes part no more.
    """

    name: str
    make: MakeEngine
    engine: Engine
    classes: Mapping[str, type] = field(default_factory=dict)
    make_parted: MakeEngine | None = None
    distances: list[Distance] = field(default_factory=list)
    first: Moment | None = None
    lived: Trace | None = None
    cause: Cause | None = None
    stopped: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether it was within the tolerance at each step, and no layer differs."""
        return self.first is None and self.cause is None

    @property
    def worst(self) -> Distance:
        """The largest distance of all steps."""
        return max(self.distances, key=lambda distance: distance.worst)


@dataclass
class Comparison:
    """What is compared, and how.

    Attributes:
        reference: name of the engine that the others are compared with.
        make_reference: makes it anew.
        contestants: the others.
        layer_names: ``layers.0 (LinearModule)``, softmax included, and the loss.
        tolerance: on absolute differences.
        epsilon: of the type that is computed in.
        losses: the reference's, of each step.
        beginning: of the first step.
        seconds: of the whole.
    """

    reference: str
    make_reference: MakeEngine
    contestants: list[Contestant]
    layer_names: list[str]
    tolerance: float
    epsilon: float
    losses: list[float] = field(default_factory=list)
    beginning: Moment | None = None
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether all engines agree with the reference."""
        return all(contestant.agrees for contestant in self.contestants)

    def run(
        self,
        batches: Iterator[tuple[Array, Array]],
        steps: int,
        schedule: Callable[[int], float],
        after_step: Callable[[int], None],
    ) -> None:
        """Take the steps.

        Args:
            batches: images (N, ...) and labels (N,).
            steps: how many.
            schedule: learning rate of each step, counted from 0.
            after_step: called with the number of each step, counted from 1.

        Raises:
            UserError: the loss of the reference is not finite.
            UserCodeError: the user's code failed, with nothing before to blame it on.
        """
        reference = self.make_reference()
        for step in range(1, steps + 1):
            before = Moment(step, copied(reference), *next(batches), schedule(step - 1))
            self.beginning = self.beginning or before
            try:
                self.losses.append(before.train(reference))
            except FloatingPointError as error:
                raise UserError(
                    f"step {step} of {self.reference}: {error}; a smaller --lr may keep it finite"
                ) from None
            for contestant in self.contestants:
                if contestant.stopped is None:
                    self._step(contestant, before, reference.weights())
            after_step(step)

    def _step(self, contestant: Contestant, at: Moment, after: Mapping[str, Array]) -> None:
        try:
            loss = at.train(contestant.engine)
        except FloatingPointError as error:
            contestant.stopped = f"step {at.step}: {error}"
            distance = Distance(np.inf, np.inf, np.inf, "the loss")
        except UserCodeError as error:
            if contestant.first is None:
                raise UserCodeError(f"step {at.step}: {error}") from error
            contestant.stopped = f"step {at.step}: {error}"
            return
        else:
            apart = largest_difference(after, contestant.engine.weights())
            distance = Distance(abs(loss - self.losses[-1]), *apart)
        contestant.distances.append(distance)
        if contestant.first is None and not distance.worst <= self.tolerance:
            contestant.first, contestant.lived = at, _lived(contestant.engine, at)


def copied(engine: Engine) -> dict[str, Array]:
    """Return a copy of an engine's weights."""
    return {name: array.copy() for name, array in engine.weights().items()}


def _lived(engine: Engine, at: Moment) -> Trace | None:
    """Return what a trained engine computes, and put its own weights back.

    None where it cannot: a user's code may fail by now.
    """
    own = copied(engine)
    try:
        return {place: np.array(value) for place, value in at.trace(engine).items()}
    except UserCodeError:
        return None
    finally:
        engine.load(own)


def largest_difference(
    expected: Mapping[str, Array], found: Mapping[str, Array]
) -> tuple[float, float, str]:
    """Return the largest absolute difference, what that is relative to its array, and where.

    What is not ``found`` is not compared: a user's layer keeps its running statistics to itself.
    """
    worst = (-1.0, 0.0, "")
    for name, value in expected.items():
        if name not in found:
            continue
        apart = difference(value, found[name])
        at = np.unravel_index(apart.argmax(), apart.shape)
        if (absolute := float(apart[at])) > worst[0]:
            largest = float(np.abs(value).max()) or 1.0
            index = ", ".join(str(int(i)) for i in at)
            worst = absolute, absolute / largest, f"{name}[{index}]"
    return worst


def difference(expected: Array, found: Array) -> Any:
    """Return absolute differences in double precision; infinite where only one is a number."""
    one, other = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    with np.errstate(all="ignore"):
        apart = np.abs(one - other)
    return np.where(np.isnan(apart), np.where(one == other, 0.0, np.inf), apart)
