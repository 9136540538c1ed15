"""Where a difference comes from: the first layer that differs, from the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.comparing.engines import Array, MakeEngine, Place, Trace
from scripts.comparing.user_engine import where_defined

_ROUNDINGS = 1000  # machine epsilons that two ways to round one sum may lie apart
_LEAP = 1e6  # more than rounding grows in one step
_KINKED = ("ReLUModule", "LeakyReLUModule", "ELUModule")


@dataclass(frozen=True)
class Finding:
    """Where a difference comes from.

    Attributes:
        kind: ``layer``, ``state`` (right at first, not when used again), ``kink``, ``update``,
            ``rounding``, ``unexplained`` or ``error``.
        text: for people, in one or two lines.
        layer: number of the first layer that differs, where one does; the loss comes last.
        what: the :class:`~scripts.comparing.engines.Place` in it.
    """

    kind: str
    text: str
    layer: int | None = None
    what: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Two engines, made anew, that compute the same batch from the same weights.

    Attributes:
        reference: name of the engine that is taken to be right.
        make_reference: makes it.
        name: of the other.
        make: makes it.
        classes: the user's among its layers, by name.
        layer_names: ``layers.0 (LinearModule)``, softmax included, and the loss.
        epsilon: of the type that is computed in.
    """

    reference: str
    make_reference: MakeEngine
    name: str
    make: MakeEngine
    classes: Mapping[str, type]
    layer_names: list[str]
    epsilon: float

    def run(
        self,
        weights: Mapping[str, Array],
        x: Array,
        labels: Array,
        lr: float,
        lived: Trace | None,
        course: Sequence[float],
    ) -> Finding:
        """Return the first thing that differs from these weights on.

        Args:
            weights: of the reference.
            x: images (N, D) of the batch.
            labels: (N,).
            lr: learning rate.
            lived: what the trained engine itself computed from these weights on this batch.
            course: the differences up to this step.

        Raises:
            UserCodeError: the user's code failed.
            FloatingPointError: a loss is not finite.
        """
        reference, engine = self.make_reference(), self.make()
        for one in (reference, engine):
            one.load(weights)
        expected = reference.trace(x.copy(), labels)
        found = engine.trace(x.copy(), labels.copy())
        finding, worst = self._first_difference(expected, found, x)
        if finding:
            return finding
        finding, _ = self._first_difference(expected, lived or {}, x)
        if finding:
            return Finding(
                "state",
                "a new network agrees everywhere, but in the one that was trained, "
                f"{finding.text}; something is kept from the passes before",
                finding.layer,
                finding.what,
            )
        agreed = f"from the same weights every layer agrees within {worst:.1e} of its largest value"
        for one in (reference, engine):
            one.load(weights)
            for _ in range(2):  # momentum shows in the second
                one.step(x.copy(), labels.copy(), lr)
        _, relative, where = largest_difference(reference.weights(), engine.weights())
        same = relative <= _ROUNDINGS * self.epsilon * self._amplification(expected, len(x))
        if not same and not self.classes:  # a user's layers are updated by our optimizer
            return Finding(
                "update",
                f"{agreed}, but two updates from there put {where} {relative:.1e} apart, relative "
                "to the largest: the update differs, not a layer",
            )
        before = max([self.epsilon, *course[:-1]])
        if not same or course[-1] > _LEAP * before:
            return Finding(
                "unexplained",
                f"{agreed}; what took this step from {before:.1e} to {course[-1]:.1e} does not "
                "happen each time. Does a layer draw random numbers, or depend on more than its "
                "input? Or a unit was at the kink of its activation",
            )
        return Finding(
            "rounding",
            f"{agreed}, and so does the update ({relative:.1e}): no layer is wrong; rounding has "
            f"grown from {course[0]:.1e} after the first step, as training "
            "magnifies it: with a large learning rate, or where it turns a unit on or off",
        )

    def _first_difference(
        self, expected: Trace, found: Trace, x: Array
    ) -> tuple[Finding | None, float]:
        """Return the first difference, if there is one, and the largest that is but rounding."""
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
            source = self._source(place)
            text = (
                f"the first thing to differ is {self._describe(place)}{index}{source}: "
                f"{self.name} {float(np.asarray(found[place])[at]):.9g}, {self.reference} "
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
            return Finding(kind, text, place.layer, place.what), worst_before
        return None, worst_before

    def _describe(self, place: Place) -> str:
        name = self.layer_names[place.layer]
        if place.what == "output":
            is_loss = place.layer == len(self.layer_names) - 1
            return f"in the forward pass, the {'value' if is_loss else 'output'} of {name}"
        if place.what == "dx":
            return f"in the backward pass, what backward of {name} returns (∂L/∂x)"
        return f"in the backward pass, the gradient of {place.what} in {name}"

    def _source(self, place: Place) -> str:
        """Return where the user's code for ``place`` is, to stand behind its name."""
        kind = self.classes.get(self.layer_names[place.layer].rpartition("(")[2].rstrip(")"))
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


def largest_difference(
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
