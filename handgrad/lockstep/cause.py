"""Where a difference comes from: the first layer that differs, from the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.lockstep.engines import Array, Engine, MakeEngine, Place, Trace
from handgrad.lockstep.user_engine import where_defined

_ROUNDINGS = 1000  # machine epsilons that two ways to round one sum may lie apart
_SHARE = 1e-4  # of the whole difference, that one in a layer must have to explain it
_LEAP = 1e6  # more than rounding grows in one step
_KINKED = ("ReLUModule", "LeakyReLUModule", "ELUModule")


@dataclass(frozen=True)
class Finding:
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


@dataclass(frozen=True)
class Diagnosis:
    """Two engines, made anew, that compute the same batch from the same weights.

    Attributes:
        reference: name of the engine that is taken to be right.
        make_reference: makes it.
        name: of the other.
        make: makes it.
        classes: the user's among its layers, by name.
        layer_names: ``layers.0 (LinearModule)``, softmax included, and the loss; or instead of
            these two the one that is both.
        epsilon: of the type that is computed in.
        parted: whether both traces have softmax and loss one after the other.
    """

    reference: str
    make_reference: MakeEngine
    name: str
    make: MakeEngine
    classes: Mapping[str, type]
    layer_names: list[str]
    epsilon: float
    parted: bool = False

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
            course: the relative differences up to this step.

        Raises:
            UserCodeError: the user's code failed.
            FloatingPointError: a loss is not finite.
        """
        bound = _ROUNDINGS * self.epsilon
        expected, finding, worst = self._compare(weights, x, labels, bound)
        if finding and finding.kind == "layer":
            # log(p + 1e-12) differs, too, but does not put weights 0.01 apart.
            telling = self._compare(weights, x, labels, max(bound, _SHARE * course[-1]))[1]
            if telling and (telling.layer, telling.what) != (finding.layer, finding.what):
                small = f"{telling.text}; what differs before it is too small to explain this"
                return replace(telling, text=small)
        if finding:
            return finding
        finding, _ = self._first_difference(expected, lived or {}, x, _ROUNDINGS * self.epsilon)
        if finding:
            return Finding(
                "state",
                "a new network agrees everywhere, but in the one that was trained, "
                f"{finding.text}; something is kept from the passes before",
                finding.layer,
                finding.what,
            )
        agreed = f"from the same weights every layer agrees within {worst:.1e} of its largest value"
        same, relative, where = self._updates(weights, x, labels, lr)
        if not same and self._saturated(expected).any():
            return self._saturation(expected)
        if not same and not self.classes:
            return Finding(
                "update",
                f"{agreed}, but updates from there put {where} {relative:.1e} apart, relative "
                "to the largest: the update differs, not a layer",
            )
        before = max([self.epsilon, *course[:-1]])
        if not same or course[-1] > _LEAP * self._size_of_logits(expected) * before:
            return Finding(
                "unexplained",
                f"{agreed}; what took the weights or the loss from {before:.1e} to "
                f"{course[-1]:.1e} apart (relative) does not happen each time. Does a layer draw "
                "random numbers, or depend on more than its input? Or a unit was at the kink of "
                "its activation",
            )
        return Finding(
            "rounding",
            f"{agreed}, and so does the update ({relative:.1e}): no layer is wrong; rounding has "
            f"grown from {course[0]:.1e} after the first step, as training "
            "magnifies it: with a large learning rate, or where it turns a unit on or off",
        )

    def wrong_layer(
        self, weights: Mapping[str, Array], x: Array, labels: Array, tolerance: float
    ) -> Finding | None:
        """Return the first layer that differs though the weights agree: nothing may read its dx.

        Args:
            weights: of the reference.
            x: images (N, D) of the batch.
            labels: (N,).
            tolerance: on differences relative to the largest value, if more than rounding.

        Raises:
            UserCodeError: the user's code failed.
        """
        bound = max(_ROUNDINGS * self.epsilon, tolerance)
        finding = self._compare(weights, x, labels, bound)[1]
        return finding if finding and finding.kind == "layer" else None

    def _compare(
        self, weights: Mapping[str, Array], x: Array, labels: Array, bound: float
    ) -> tuple[Trace, Finding | None, float]:
        """Return the reference's trace, and what :meth:`_first_difference` does, of new engines."""
        expected = self._traced(self.make_reference(), weights, x, labels)
        found = self._traced(self.make(), weights, x, labels)
        finding, worst = self._first_difference(expected, found, x, bound)
        saturated = self._saturated(expected)
        if finding and saturated.any() and finding.layer is not None:
            at_loss = finding.layer > self._softmax
            if at_loss or (finding.layer == self._softmax and finding.what == "dx"):
                # Whether it is only that, the other images tell.
                others, finding = ~saturated, None
                if others.sum() > 1:  # of one image, there are no batch statistics
                    _, finding, worst = self._compare(weights, x[others], labels[others], bound)
                finding = finding or self._saturation(expected)
        return expected, finding, worst

    @staticmethod
    def _traced(engine: Engine, weights: Mapping[str, Array], x: Array, labels: Array) -> Trace:
        engine.load(weights)
        return engine.trace(x.copy(), labels.copy())

    def _updates(
        self, weights: Mapping[str, Array], x: Array, labels: Array, lr: float
    ) -> tuple[bool, float, str]:
        """Return whether updates from the same weights agree, and how far apart they are, where."""
        reference, engine = self.make_reference(), self.make()
        reference.load(weights)
        apart = (True, 0.0, "")
        # Momentum shows in the second; a user's layers are updated by our optimizer.
        for _ in range(1 if self.classes else 2):
            start = {name: array.copy() for name, array in reference.weights().items()}
            engine.load(start)
            try:
                for one in (reference, engine):
                    one.step(x.copy(), labels.copy(), lr)
            except FloatingPointError:
                break  # the step before was too large for another
            expected = self._traced(self.make_reference(), start, x, labels)
            bound = _ROUNDINGS * self.epsilon * self._amplification(expected, len(x))
            _, relative, where = largest_difference(reference.weights(), engine.weights())
            apart = max(apart, (relative <= bound, relative, where), key=lambda a: (not a[0], a[1]))
        return apart

    def _first_difference(
        self, expected: Trace, found: Trace, x: Array, bound: float
    ) -> tuple[Finding | None, float]:
        """Return the first difference, if there is one, and the largest that is but rounding."""
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
            kinds = [np.asarray(array).dtype for array in (found[place], value)]
            if self.classes and kinds[0].itemsize < kinds[1].itemsize:
                returns = "returns" if place.what in ("output", "dx") else "makes"
                text += f"; {self.name} {returns} {kinds[0]}, {self.reference} {kinds[1]}"
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
        if place.what == "output" and place.layer >= self._softmax:
            return self._size_of_logits(trace)  # whose absolute error is the relative one of p
        if place == (self._softmax, "dx"):
            return 1.0 / len(x)  # (p - onehot) / N
        if place.what not in ("output", "dx"):
            before = trace.get(Place(place.layer - 1, "output"), x)
            dout = trace[Place(place.layer + 1, "dx")]
            factor = np.abs(before).max() if place.what == "weight" else 1.0
            return float(np.abs(dout).max() * factor)
        return 0.0

    def _amplification(self, trace: Trace, n: int) -> float:
        """Return how much larger rounding is in the backward pass, relative to its values.

        (p - onehot) / N is a difference, whose rounding is that of 1/N even where p is nearly 1;
        and p has as relative error the absolute one of the logits.
        """
        largest = float(np.abs(trace[Place(self._softmax, "dx")]).max())
        size = self._size_of_logits(trace)
        return max(size, size / (n * largest)) if largest else size

    @property
    def _softmax(self) -> int:
        """The number of the layer that takes the logits: softmax, or softmax and loss in one."""
        return len(self.layer_names) - (2 if self.parted else 1)

    def _size_of_logits(self, trace: Trace) -> float:
        return max(1.0, float(np.abs(trace[Place(self._softmax - 1, "output")]).max()))

    def _saturated(self, trace: Trace) -> NDArray[np.bool_]:
        """Return which images, (N,), have a probability that is rounded to 0 before the loss."""
        n = len(trace[Place(0, "output")])
        if not self.parted:
            return np.zeros(n, bool)
        p = trace[Place(self._softmax, "output")]
        saturated: NDArray[np.bool_] = (p < np.finfo(p.dtype).tiny).any(axis=1)
        return saturated

    def _saturation(self, trace: Trace) -> Finding:
        saturated = self._saturated(trace)
        k, n = saturated.sum(), len(saturated)
        return Finding(
            "saturated",
            f"in {k} of the batch's {n} images a probability is rounded to 0, as the softmax "
            "saturates: a softmax and a loss that are apart, ours too, lose there what the two in "
            f"one keep, with which {self.reference} trains. The layers before them "
            + ("agree" if n - k < 2 else "agree, and so do the other images")
            + "; smaller weights or a smaller --lr avoid it",
        )


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
