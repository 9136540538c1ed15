"""Several engines, step by step on the same batches, and where the first difference comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from handgrad.errors import UserError
from handgrad.lockstep.cause import Diagnosis, Finding, largest_difference
from handgrad.lockstep.engines import Array, Engine, MakeEngine, Trace
from handgrad.user_code.blame import UserCodeError

_IN_ONE = "the loss (softmax with cross-entropy)"


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


@dataclass
class Contestant:
    """An engine that is compared with the reference, and what became of it.

    Attributes:
        name: of the engine.
        make: makes it anew, for the diagnosis.
        make_parted: makes the reference with softmax and loss one after the other, where this
            engine has them so.
        engine: that takes part.
        classes: the user's among its layers, by name.
        distances: after each step.
        first: the first step that is beyond the tolerance, and the weights and the batch with which
            it began.
        lived: what it computes from those weights on that batch, having been trained so far.
        finding: where that comes from; or a layer that differs though the weights agree.
        stopped: why it takes part no more.
    """

    name: str
    make: MakeEngine
    engine: Engine
    classes: Mapping[str, type] = field(default_factory=dict)
    make_parted: MakeEngine | None = None
    distances: list[Distance] = field(default_factory=list)
    first: tuple[int, dict[str, Array], Array, Array] | None = None
    lived: Trace | None = None
    finding: Finding | None = None
    stopped: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether it was within the tolerance at each step, and no layer differs."""
        return self.first is None and self.finding is None

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
        """Whether all engines agree with the reference."""
        return all(contestant.agrees for contestant in self.contestants)

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
            if step == 1:
                beginning = _copy(reference.weights()), x, labels
            before = _copy(reference.weights())
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
            contestant.finding = self._diagnose(contestant, rates, beginning)
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
            parameter, relative, where = largest_difference(after, contestant.engine.weights())
            difference = abs(loss - self.losses[-1])
            distance = Distance(difference, parameter, relative, where)
        contestant.distances.append(distance)
        if contestant.first is None and not distance.worst <= self.tolerance:
            contestant.first = (step, before, x, labels)
            contestant.lived = _trace_from(contestant.engine, before, x, labels)

    def _diagnose(
        self,
        contestant: Contestant,
        rates: list[float],
        beginning: tuple[dict[str, Array], Array, Array],
    ) -> Finding | None:
        parted = contestant.make_parted is not None
        diagnosis = Diagnosis(
            self.reference,
            contestant.make_parted or self.make_reference,
            contestant.name,
            contestant.make,
            contestant.classes,
            self.layer_names if parted else [*self.layer_names[:-2], _IN_ONE],
            self.epsilon,
            parted,
        )
        try:
            if contestant.first is None:
                return diagnosis.wrong_layer(*beginning, self.tolerance)
            step, weights, x, labels = contestant.first
            course = [
                max(distance.relative, distance.loss / max(1.0, abs(loss)))
                for distance, loss in zip(contestant.distances[:step], self.losses, strict=False)
            ]
            return diagnosis.run(weights, x, labels, rates[step - 1], contestant.lived, course)
        except (UserCodeError, FloatingPointError) as error:
            return Finding("error", f"from the same weights, anew: {error}")


def _copy(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in weights.items()}


def _trace_from(
    engine: Engine, weights: Mapping[str, Array], x: Array, labels: Array
) -> Trace | None:
    """Return what ``engine`` computes from ``weights``, and put its own weights back.

    None where it cannot: a user's code may fail by now.
    """
    own = _copy(engine.weights())
    engine.load(weights)
    try:
        return {k: np.array(v) for k, v in engine.trace(x.copy(), labels.copy()).items()}
    except UserCodeError:
        return None
    finally:
        engine.load(own)
