"""Where a difference comes from: the first layer that differs, from the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handgrad.lockstep.comparison import (
    Cause,
    Comparison,
    Contestant,
    Moment,
    copied,
    difference,
    largest_difference,
)
from handgrad.lockstep.engines import Array, Place, Trace
from handgrad.user_code.blame import UserCodeError

_ROUNDINGS = 1000  # machine epsilons that two ways to round one sum may lie apart
_SHARE = 1e-4  # of the whole difference, that one in a layer must have to explain it
_LEAP = 1e6  # more than rounding grows in one step
_KINKED = ("ReLUModule", "LeakyReLUModule", "ELUModule")
_IN_ONE = "the loss (softmax with cross-entropy)"


def find_cause(comparison: Comparison, contestant: Contestant) -> Cause | None:
    """Return where an engine's first difference comes from; None where all agrees.

    Where losses and weights agree, a layer may differ all the same: nothing may read its dx.
    """
    search = _Search(comparison, contestant)
    try:
        if contestant.first is not None:
            return search.first_cause(contestant.first)
        assert comparison.beginning is not None
        bound = max(search.bound, comparison.tolerance)
        cause = search.compare(comparison.beginning, bound)[1]
        return cause if cause and cause.kind == "layer" else None
    except (UserCodeError, FloatingPointError) as error:
        return Cause("error", f"from the same weights, anew: {error}")


class _Search:
    """The reference and another engine, made anew, that compute the same from the same weights."""

    def __init__(self, comparison: Comparison, contestant: Contestant) -> None:
        self.contestant, self.losses = contestant, comparison.losses
        self.name, self.reference = contestant.name, comparison.reference
        self.classes, self.make = contestant.classes, contestant.make
        # Both have softmax and loss one after the other, or in one.
        self.parted = contestant.make_parted is not None
        self.make_reference = contestant.make_parted or comparison.make_reference
        names = comparison.layer_names
        self.layer_names = names if self.parted else [*names[:-2], _IN_ONE]
        self.epsilon, self.bound = comparison.epsilon, _ROUNDINGS * comparison.epsilon

    def first_cause(self, at: Moment) -> Cause:
        """Return the first thing that differs from the beginning of a step on."""
        distances = self.contestant.distances[: at.step]
        course = [
            max(distance.relative, distance.loss / max(1.0, abs(loss)))
            for distance, loss in zip(distances, self.losses, strict=False)
        ]
        expected, cause, worst = self.compare(at, self.bound)
        if cause and cause.kind == "layer":
            # log(p + 1e-12) differs, too, but does not put weights 0.01 apart.
            telling = self.compare(at, max(self.bound, _SHARE * course[-1]))[1]
            if telling and (telling.layer, telling.what) != (cause.layer, cause.what):
                small = f"{telling.text}; what differs before it is too small to explain this"
                return replace(telling, text=small)
        if cause:
            return cause
        cause, _ = self._first_difference(expected, self.contestant.lived or {}, at.x, self.bound)
        if cause:
            text = "a new network agrees everywhere, but in the one that was trained, "
            text += f"{cause.text}; something is kept from the passes before"
            return replace(cause, kind="state", text=text)
        agreed = f"from the same weights every layer agrees within {worst:.1e} of its largest value"
        same, relative, where = self._updates(at)
        if not same and self._saturated(expected).any():
            return self._saturation(expected)
        if not same and not self.classes:
            return Cause(
                "update",
                f"{agreed}, but updates from there put {where} {relative:.1e} apart, relative "
                "to the largest: the update differs, not a layer",
            )
        before = max([self.epsilon, *course[:-1]])
        if not same or course[-1] > _LEAP * self._size_of_logits(expected) * before:
            return Cause(
                "unexplained",
                f"{agreed}; what took the weights or the loss from {before:.1e} to "
                f"{course[-1]:.1e} apart (relative) does not happen each time. Does a layer draw "
                "random numbers, or depend on more than its input? Or a unit was at the kink of "
                "its activation",
            )
        return Cause(
            "rounding",
            f"{agreed}, and so does the update ({relative:.1e}): no layer is wrong; rounding has "
            f"grown from {course[0]:.1e} after the first step, as training "
            "magnifies it: with a large learning rate, or where it turns a unit on or off",
        )

    def compare(self, at: Moment, bound: float) -> tuple[Trace, Cause | None, float]:
        """Return the reference's trace, and what :meth:`_first_difference` does, of new engines."""
        expected, found = at.trace(self.make_reference()), at.trace(self.make())
        cause, worst = self._first_difference(expected, found, at.x, bound)
        saturated = self._saturated(expected)
        if cause and saturated.any() and cause.layer is not None:
            at_loss = cause.layer > self._softmax
            if at_loss or (cause.layer == self._softmax and cause.what == "dx"):
                # Whether it is only that, the other images tell.
                others, cause = ~saturated, None
                if others.sum() > 1:  # of one image, there are no batch statistics
                    rest = at._replace(x=at.x[others], labels=at.labels[others])
                    _, cause, worst = self.compare(rest, bound)
                cause = cause or self._saturation(expected)
        return expected, cause, worst

    def _updates(self, at: Moment) -> tuple[bool, float, str]:
        """Return whether updates from the same weights agree, and how far apart they are, where."""
        reference, engine = self.make_reference(), self.make()
        reference.load(at.weights)
        apart = (True, 0.0, "")
        # Momentum shows in the second; a user's layers are updated by our optimizer.
        for _ in range(1 if self.classes else 2):
            start = at._replace(weights=copied(reference))
            engine.load(start.weights)
            try:
                for one in (reference, engine):
                    start.train(one)
            except FloatingPointError:
                break  # the step before was too large for another
            expected = start.trace(self.make_reference())
            bound = self.bound * self._amplification(expected, len(at.x))
            _, relative, where = largest_difference(reference.weights(), engine.weights())
            apart = max(apart, (relative <= bound, relative, where), key=lambda a: (not a[0], a[1]))
        return apart

    def _first_difference(
        self, expected: Trace, found: Trace, x: Array, bound: float
    ) -> tuple[Cause | None, float]:
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
            before = expected.get(Place(place.layer - 1, "output"), x)
            kink = self._kink(place, value, found[place], before, at, bound)
            kind = "kink" if kink else "layer"
            return Cause(kind, text + kink, place.layer, place.what), worst_before
        return None, worst_before

    def _kink(
        self,
        place: Place,
        expected: Array,
        found: Array,
        x: Array,
        at: tuple[int, ...],
        bound: float,
    ) -> str:
        """Return why either derivative is right, if the input ``x`` is at a kink; else nothing."""
        name = self.layer_names[place.layer]
        if place.what != "dx":
            return ""
        if "MaxPool2dModule" in name and _is_tie(expected, found, x, at, bound):
            return (
                f"; there the input is {x[at]:.1e}, as at another place, which has that gradient "
                "instead: of equal values either may be the largest, and rounding may choose"
            )
        if any(k in name for k in _KINKED) and abs(x[at]) <= bound * np.abs(x).max():
            return (
                f"; there the input is {x[at]:.1e}, at the kink of the activation, "
                "where either derivative is right and rounding may choose"
            )
        return ""

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
        method = getattr(kind, "forward" if place.what == "output" else "backward", None)
        code = getattr(method, "__code__", None)  # which not everything has that can be called
        return f", your {Path(code.co_filename).name}, line {code.co_firstlineno}" if code else ""

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

    def _saturation(self, trace: Trace) -> Cause:
        saturated = self._saturated(trace)
        k, n = saturated.sum(), len(saturated)
        return Cause(
            "saturated",
            f"in {k} of the batch's {n} images a probability is rounded to 0, as the softmax "
            "saturates: a softmax and a loss that are apart, ours too, lose there what the two in "
            f"one keep, with which {self.reference} trains. The layers before them "
            + ("agree" if n - k < 2 else "agree, and so do the other images")
            + "; smaller weights or a smaller --lr avoid it",
        )


def _is_tie(expected: Array, found: Array, x: Array, at: tuple[int, ...], bound: float) -> bool:
    """Say whether a gradient of max-pooling went to another entry of x, of the same value."""
    plane = at[:2]  # of one channel of an image
    apart = difference(expected[plane], found[plane])
    least = bound * float(np.abs(expected).max())
    same = np.abs(x[plane] - x[at]) <= bound * float(np.abs(x).max())
    moved = abs(float((expected[plane] - found[plane])[same].sum()))
    return bool(((apart > least) & same).sum() > 1 and moved <= least * apart.size)


def _relative(expected: Array, found: Array, least: float = 0.0) -> tuple[float, tuple[int, ...]]:
    """Return the largest difference, relative to the largest value or ``least``, and its place."""
    expected, found = np.asarray(expected), np.asarray(found)
    apart = difference(expected, found)
    at = tuple(int(i) for i in np.unravel_index(apart.argmax(), apart.shape))
    largest = max(float(np.abs(expected).max()), least)
    if not apart[at]:
        return 0.0, at
    return float(apart[at] / largest) if largest else np.inf, at
