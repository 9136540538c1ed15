"""What kind of wrong a gradient looks like.

Each question compares what ``backward`` gave with what it would have given under one particular
mistake: the true gradient with its sign changed, with a variable replaced by ones or transposed,
for one sample of the batch only, and so on. The questions stand in the order of what they explain;
the first that answers is the diagnosis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from handgrad.checker.check import Case, is_float32
from handgrad.checker.subject import Array

Answer = tuple[str, str] | None
_EACH = 40  # inputs and outputs up to which a whole Jacobian is computed
_TINY = 1e-4  # a relative error so small that what agrees with a mistake agrees with the truth


def diagnose(case: Case, name: str, analytic: Array, numerical: Array) -> tuple[str, str]:
    """Return the name of a mistake and a sentence about it.

    Args:
        case: where the gradient is wrong.
        name: of the variable.
        analytic: what ``backward`` gave.
        numerical: what it should have been.
    """
    look = _Look(case, name, analytic, numerical)
    if np.isnan(numerical).any():  # too many entries to look at all of them
        return _of_some(look)
    questions: list[Callable[[_Look], Answer]] = [_type, _finite]
    if analytic.shape != numerical.shape:
        questions += [_accumulation, _shape]
    elif np.abs(analytic - numerical).max(initial=0.0) < _TINY * np.abs(numerical).max(initial=0.0):
        questions += [_factor, _rounded, _nearly]
    else:
        questions += [
            _accumulation, _shared_cache, _whole, _zero, _factor, _rounded, _upstream_ignored,
            _upstream_powers, _one_slice, _sum_axis, _swapped, _one_output, _transposed,
            _missing_factor, _fused, _by_value, _threshold, _passed_through, _missing_own_factor,
            _branches, _nearly, _jacobian, _linear, _normalised, _by_output, _mask, _some_rows,
            _missing_mask, _summed_too_far, _one_feature, _local_derivative,
        ]  # fmt: skip
    with np.errstate(all="ignore"):
        for question in questions:
            try:
                answer = question(look)
            except Exception:  # the code looked at may fail at the points that a question needs
                continue
            if answer is not None:
                return answer
    return "unknown", f"fits no known mistake; {_similarity(analytic, numerical)}"


class _Look:
    """A wrong gradient, and ways of asking about it."""

    def __init__(self, case: Case, name: str, analytic: Array, numerical: Array) -> None:
        self.case, self.name, self.a, self.n = case, name, analytic, numerical
        self.x = case.variables[name]
        self.dout = case.douts[0]
        batch = case.variables[case.subject.inputs[0]].shape
        # Of a function all variables are inputs; some are parameters all the same.
        self.is_input = name in case.subject.inputs and self.x.shape == batch
        self.batch = batch[0] if case.subject.batch_axis and batch else 1
        if case.subject.columns:
            self.batch = batch[-1]
        self.other = tuple(np.random.default_rng(5).standard_normal(d.shape) for d in case.douts)

    @property
    def y(self) -> Array:
        """The first output."""
        return self.evaluate()[0]

    @property
    def target(self) -> Array | None:
        """What a loss compares its input with, entry by entry, or None."""
        target = getattr(self.case.subject.start(), "target", None)
        shaped = isinstance(target, np.ndarray) and target.shape == self.x.shape
        return target if shaped and self.is_input else None

    def evaluate(self, **changed: Array) -> tuple[Array, ...]:
        """Return the outputs where variables are replaced."""
        return self.case.subject.evaluate({**self.case.variables, **changed}, self.case.warm)

    def truth(self, **changed: Array) -> Array:
        """Return the true gradient where variables are replaced."""
        return self.case.truth(self.name, {**self.case.variables, **changed})[0]

    def truth_for(self, douts: tuple[Array, ...]) -> Array:
        """Return the true gradient for another upstream gradient."""
        return self.case.truth(self.name, douts=douts)[0]

    def slices(self, axis: int) -> list[Array]:
        """Return what each slice of the upstream gradient contributes to the true gradient."""
        found = []
        for index in range(self.dout.shape[axis]):
            only = np.zeros_like(self.dout)
            here = (slice(None),) * axis + (index,)
            only[here] = self.dout[here]
            found.append(self.truth_for((only, *self.case.douts[1:])))
        return found

    def given_for(self, douts: tuple[Array, ...], **changed: Array) -> Array:
        """Return what ``backward`` gives for another upstream gradient, at other variables."""
        gradient = self.case.given({**self.case.variables, **changed}, douts)[0][self.name]
        assert gradient is not None
        return gradient


def _same(a: Array, b: Array, rtol: float = 1e-5) -> bool:
    """Say whether two gradients agree; agreement on nothing but zeros does not count."""
    if a.shape != b.shape or not a.size:
        return False
    size = np.abs(b).max()
    return bool(size > 1e-14 and np.abs(a - b).max() <= rtol * size)


def _ratio(a: Array, b: Array) -> float | None:
    """Return c where a = c · b, or None; of two numbers each is a multiple of the other: only 1."""
    if a.shape != b.shape or not a.size or np.abs(b).max() < 1e-14:
        return None
    if a.size == 1:
        return 1.0 if _same(a, b) else None
    c = float(np.sum(a * b) / np.sum(b * b))
    return c if c and _same(a, c * b) else None


def _of_some(look: _Look) -> tuple[str, str]:
    """Return what can be told from some of the entries."""
    seen = ~np.isnan(look.n)
    a, n = look.a[seen], look.n[seen]
    part = f", by {len(n)} of its {look.a.size:,} entries"
    if not np.isfinite(a).all():
        return "not-finite", f"the gradient holds {a[~np.isfinite(a)].flat[0]}"
    if np.abs(a).max() < 1e-12:
        return "zero-gradient", f"the gradient is zero{part}"
    c = _ratio(a, n)
    if c is not None and abs(c - 1) > 1e-5:
        kind, text = _kind_of_factor(c, look)
        return kind, text + part
    return "unknown", f"wrong{part}; a smaller --input-shape or --init would tell more"


def _type(look: _Look) -> Answer:
    if look.a.dtype.kind in "fiu":
        return None
    return "wrong-type", f"the gradient holds {look.a.dtype}, not numbers"


def _finite(look: _Look) -> Answer:
    if np.isfinite(look.a).all():
        return None
    return "not-finite", f"the gradient holds {look.a[~np.isfinite(look.a)].flat[0]}"


def _accumulation(look: _Look) -> Answer:
    """After an earlier pass: is its gradient, or its input, still there?"""
    case = look.case
    if case.warm is None:
        return None
    rng = np.random.default_rng(99)  # the same upstream as in that pass
    outputs = case.subject.evaluate(case.warm)
    earlier = tuple(rng.standard_normal(out.shape) for out in outputs)
    first = case.subject.differentiate(case.warm, earlier)[0][look.name]
    assert first is not None
    if _same(look.a, look.n + first):
        return (
            "accumulation",
            "the gradient of the pass before is still in it: assign it (=) instead of adding (+=)",
        )
    stale = case.subject.differentiate(case.warm, case.douts)[0][look.name]
    if stale is not None and _same(look.a, stale):
        return "stale-cache", "a second pass still uses what the first forward remembered"
    return (
        "state",
        "right in the first pass, wrong in the second: the first leaves something behind",
    )


def _shape(look: _Look) -> Answer:
    a, n = look.a, look.n
    says = f"shape {a.shape}, expected {n.shape}"
    if a.ndim >= 1 and a.shape == n.shape[::-1] and (c := _ratio(a.T, n)) is not None:
        return "transposed-gradient", f"{says}: transposed{_by(c, look)}"
    for axes in _axes(a.ndim):
        total = a.sum(axis=axes)
        if total.size == n.size and (c := _ratio(total.reshape(n.shape), n)) is not None:
            if a.size == n.size:
                break
            which = "the batch" if axes == (0,) else f"axis {', '.join(map(str, axes))}"
            return "missing-batch-sum", f"{says}: a sum over {which} is missing{_by(c, look)}"
    if a.size == n.size and (c := _ratio(a.reshape(n.shape), n)) is not None:
        return "wrong-shape", f"{says}; the numbers are right{_by(c, look)}: reshape it"
    # Of a single sample it cannot be told what was summed over.
    answer = (_sum_axis(look) or _summed_too_far(look)) if look.batch > 1 else None
    if answer is not None:
        return answer[0], f"{says}: {answer[1]}"
    if _same(a, look.dout):
        return "local-derivative-missing", f"{says}: dout is passed on as it came"
    return "wrong-shape", says


def _axes(ndim: int) -> Iterator[tuple[int, ...]]:
    for count in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), count)


def _shared_cache(look: _Look) -> Answer:
    """Is what belongs to the class, and so to all of its objects, still from another forward?"""
    session = look.case.subject.start()
    holders = [vars(cls).values() for cls in type(getattr(session, "module", None)).__mro__]
    for value in itertools.chain.from_iterable(holders):
        items = list(value.values()) if isinstance(value, dict) else value
        for item in items if isinstance(items, list) else [items]:
            for name in look.case.subject.inputs:
                x = look.case.variables[name]
                if (
                    isinstance(item, np.ndarray)
                    and item.shape == x.shape
                    and not np.array_equal(item, x)
                    and _same(look.a, look.truth(**{name: item}))
                ):
                    text = "backward uses what another forward remembered: the cache belongs to "
                    return "stale-cache", f"{text}the class, so that all objects share it"
    return None


def _zero(look: _Look) -> Answer:
    if np.abs(look.a).max(initial=0.0) > 1e-12 or np.abs(look.n).max(initial=0.0) < 1e-9:
        return None
    return "zero-gradient", "the gradient is zero everywhere"


def _whole(look: _Look) -> Answer:
    if look.a.dtype.kind not in "iu":
        return None
    for cut in (np.trunc, np.rint, np.floor):
        if np.array_equal(look.a, cut(look.n)):
            return "wrong-type", f"whole numbers ({look.a.dtype}): what is behind the point is lost"
    return None


def _rounded(look: _Look) -> Answer:
    """Is the error that of rounding, in single or half precision, or to some decimals?"""
    error = np.abs(look.a - look.n)
    off = float(error.max() / np.abs(look.n).max())
    if off > 0.01:
        return None
    exact = [d for d in range(1, 9) if np.array_equal(look.a, np.round(look.a, d))]
    if exact and 0.1 < error.max() * 2 * 10 ** exact[0] < 1.01:
        text = f"right to a part in {1 / off:.0f}: rounded to {exact[0]} decimals"
        return "small-error", text
    text = f"right to a part in {1 / off:.0f}: computed in"
    if off < 1e-3 and is_float32(look.a):
        half = np.array_equal(look.a, look.a.astype(np.float16))
        return "float32-noise", f"{text} {'float16' if half else 'float32'} somewhere"
    # float16 is right to 2⁻¹¹ and float32 to 2⁻²⁴, less what is lost later on.
    bends = [np.minimum(b, error.max()).mean() for b in _bends(look, 2 * off, look.given_for)]
    if off < 2**-9 and np.median(bends) > 0.5 * error.mean():
        precision = "float32" if off < 2**-14 else "half precision"
        return "float32-noise", f"{text} {precision} somewhere"
    bends = [b.mean() for b in _bends(look, 1e-7, lambda _, **at: look.evaluate(**at)[0])]
    if np.median(bends) > 1e-9 * np.abs(look.y).max():
        return "float32-noise", f"{text} float32 somewhere in forward"
    return None


def _bends(look: _Look, size: float, of: Callable[..., Array]) -> Iterator[Array]:
    """Yield second differences of ``of`` over random steps of some relative size.

    They are small, in proportion to the square of the size, unless ``of`` changes by jumps, as what
    is rounded does. Of five, some may meet a kink.
    """
    rng, douts = np.random.default_rng(8), look.case.douts
    for _ in range(5):
        moves = {n: size * rng.standard_normal(v.shape) for n, v in look.case.variables.items()}
        sway = [size * rng.standard_normal(dout.shape) for dout in douts]
        left, middle, right = (
            of(
                tuple(d * (1 + k * s) for d, s in zip(douts, sway, strict=True)),
                **{n: v * (1 + k * moves[n]) for n, v in look.case.variables.items()},
            )
            for k in (-1, 0, 1)
        )
        yield np.abs(left - 2 * middle + right)


def _quantities(look: _Look) -> dict[str, float]:
    """Return the numbers of the problem that a factor may be, by name."""
    found: dict[str, float] = {"2": 2.0, "3": 3.0, "ln 2": float(np.log(2))}
    module = getattr(look.case.subject.start(), "module", None)
    own = {k: v for k, v in getattr(module, "__dict__", {}).items() if not k.startswith("_")}
    for key, value in {**own, **look.case.subject.settings}.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value not in (0, 1):
            rest = 1.0 - value
            found |= {key: float(value), f"(1 - {key})": rest, f"{key}/(1 - {key})": value / rest}
    if look.batch > 1:
        found |= {"N": look.batch, "N - 1": look.batch - 1.0}
    if look.dout.ndim > 1 and look.dout.shape[-1] > 1:
        found["the outputs of a sample"] = look.dout.size / max(look.batch, 1)
        found["the entries of the output"] = look.dout.size
    if look.x.ndim > 1 and look.x.shape[-1] > 1:
        found["the last axis of this variable"] = look.x.shape[-1]
        found["the entries of this variable"] = look.x.size
    if look.dout.ndim == 4:
        found["N · H · W"] = look.dout.size / look.dout.shape[1]
        found["H · W"] = look.dout.shape[2] * look.dout.shape[3]
    return found


def _names(c: float, look: _Look) -> dict[str, None]:
    """Return the names of a factor, in the order of how likely they are meant."""
    table: dict[str, float] = {}
    for key, value in _quantities(look).items():
        if value:
            over = f"1/({key})" if "·" in key else f"1/{key}"
            table |= {key: value, over: 1 / value}
    return {
        f"{mark}{label}": None
        for label, value in table.items()
        for sign, mark in ((1, ""), (-1, "-"))
        if np.isclose(c, sign * value, rtol=1e-5)
    }


def _named(c: float, look: _Look) -> str:
    """Return a factor in words that fit at other sizes, too, or as a number."""
    names = list(_names(c, look))
    if names and (other := _elsewhere(look)) is not None:
        elsewhere = _ratio(other.a, other.n)
        if elsewhere is not None and not np.isclose(elsewhere, 1):
            names = [name for name in names if name in _names(elsewhere, other)]
    return names[0] if names else f"{c:.6g}"


def _elsewhere(look: _Look) -> _Look | None:
    """Return the same variable of the same class at other sizes."""
    try:
        subject = look.case.subject.elsewhere()
        if subject is None:
            return None
        outputs = subject.evaluate(subject.variables)
        rng = np.random.default_rng(3)
        douts = tuple(
            rng.standard_normal(o.shape) if subject.upstream else np.ones(o.shape) for o in outputs
        )
        case = Case(subject, subject.variables, douts)
        gradient = case.given()[0].get(look.name)
    except Exception:
        return None
    return None if gradient is None else _Look(case, look.name, gradient, case.truth(look.name)[0])


def _by(c: float, look: _Look) -> str:
    return "" if np.isclose(c, 1, rtol=1e-5) else f", and a factor {_named(c, look)} too much"


def _factor(look: _Look) -> Answer:
    c = float(look.a.item() / look.n.item()) if look.a.size == 1 else _ratio(look.a, look.n)
    if c is None or abs(c - 1) < 1e-5 or not np.isfinite(c) or not c:
        return None
    if not _same(look.a, c * look.n, min(1e-5, 0.1 * abs(c - 1))):
        return None
    if look.case.subject.upstream:
        # One number is always a multiple of another: the factor has to hold elsewhere, too.
        given, true = look.given_for(look.other), look.truth_for(look.other)
        if not np.allclose(given, c * true, rtol=1e-4, atol=1e-6 * np.abs(given).max()):
            return None
    return _kind_of_factor(c, look)


def _kind_of_factor(c: float, look: _Look) -> tuple[str, str]:
    if np.isclose(c, -1):
        return "sign", "the sign is wrong"
    name = _named(c, look)
    sign = " and the sign is wrong" if c < 0 else ""
    if name.lstrip("-") == "N":
        n = abs(c)
        return "missing-1/N", f"{n:g} times too large: the factor 1/N of the mean is missing{sign}"
    if name.lstrip("-") == "1/N":
        n = 1 / abs(c)
        text = f"{n:g} times too small: divided by the batch size, which only the loss does{sign}"
        return "extra-1/N", text
    value = f"{c:.6g}"
    bare = name[1:-1] if name.startswith("(") and name.endswith(")") else name
    what = "" if name in (value, value.lstrip("-")) else f" ({bare})"
    return "constant-factor", f"{value} times what it should be{what}, everywhere"


def _upstream_ignored(look: _Look) -> Answer:
    if not look.case.subject.upstream or not _same(look.given_for(look.other), look.a, 1e-9):
        return None
    ones = tuple(np.ones(d.shape) for d in look.case.douts)
    c = _ratio(look.a, look.truth_for(ones))
    detail = "" if c is None else f": as if it were 1 everywhere{_by(c, look)}"
    return "upstream-ignored", f"does not depend on the upstream gradient{detail}"


def _upstream_powers(look: _Look) -> Answer:
    """Is it linear in the upstream gradient, as every backward pass is?"""
    if not look.case.subject.upstream:
        return None
    double = look.given_for(tuple(2.0 * d for d in look.case.douts))
    minus = look.given_for(tuple(-d for d in look.case.douts))
    if _same(double, 2 * look.a, 1e-6) and _same(minus, -look.a, 1e-6):
        return None
    if look.a.shape == look.dout.shape:
        # Of each sign of the upstream gradient there is one slope.
        slope, up = look.a / look.dout, look.dout > 0
        if all(np.ptp(slope[part]) < 1e-9 for part in (up, ~up) if part.any()):
            return (
                "upstream-mask",
                "the sign of the upstream gradient decides, where that of x should",
            )
    return "not-linear-in-upstream", "twice the upstream gradient does not give twice the gradient"


def _one_slice(look: _Look) -> Answer:
    """Does one sample count only, or one step of another axis that is to be summed over?"""
    if look.is_input or len(look.dout.shape) < 2:
        return None
    for axis, length in enumerate(look.dout.shape):
        if length < 2:
            continue
        parts = look.slices(axis)
        batch = axis == 0 and length == look.batch
        if not batch and any((part[look.n != 0] == 0).any() for part in parts):
            continue  # not summed over: each slice has entries of its own
        for index, part in enumerate(parts):
            if _ratio(look.a, part) is not None:
                one = f"index {index} of axis {axis} of dout counts: the sum over that axis"
                if batch:
                    one = f"sample {index} of the batch counts: the sum over the batch"
                return "missing-batch-sum", f"only {one} is missing"
    return None


def _sum_axis(look: _Look) -> Answer:
    """Is it summed over the features, one by one for each sample?"""
    if look.is_input or look.dout.ndim < 2:
        return None
    for axis, length in enumerate(look.dout.shape):
        if look.a.size != length or max(look.n.shape, default=1) != look.n.size:
            continue
        over_features = np.array([part.sum() for part in look.slices(axis)])
        c = _ratio(look.a.ravel(), over_features)
        if c is not None:
            each = "sample" if axis == 0 and length == look.batch else f"index of axis {axis}"
            text = f"summed over the features, for each {each}, not over the batch"
            return "wrong-sum-axis", f"{text}{_by(c, look)}"
    return None


def _summed_too_far(look: _Look) -> Answer:
    """Is it the true gradient, summed over axes of its own?"""
    if look.is_input and look.a.shape == look.n.shape:
        return None
    for axes in _axes(look.n.ndim):
        total = look.n.sum(axis=axes, keepdims=True)
        if total.size == look.n.size:
            continue
        whole = np.broadcast_to(total, look.n.shape)
        for form in (whole, total, total.squeeze(axes)):
            if form.shape == look.a.shape and (c := _ratio(look.a, form)) is not None:
                which = ", ".join(map(str, axes))
                text = f"summed over axis {which} of this variable, too{_by(c, look)}"
                return "wrong-sum-axis", text
    return None


def _swapped(look: _Look) -> Answer:
    for other, value in look.case.variables.items():
        if other != look.name and value.shape == look.x.shape:
            c = _ratio(look.a, look.case.truth(other)[0])
            if c is not None:
                return "swapped-gradients", f"this is the gradient of {other}"
    return None


def _one_output(look: _Look) -> Answer:
    if len(look.case.douts) < 2:
        return None
    for i, dout in enumerate(look.case.douts):
        only = tuple(np.zeros_like(d) for d in look.case.douts)
        c = _ratio(look.a, look.truth_for((*only[:i], dout, *only[i + 1 :])))
        if c is not None:
            text = f"only the upstream gradient of output {i} counts{_by(c, look)}"
            return "output-ignored", text
    return None


def _transposed(look: _Look) -> Answer:
    if look.a.ndim == 2 and (c := _ratio(look.a.T, look.n)) is not None:
        return "transposed-gradient", f"transposed{_by(c, look)}"
    if look.dout.ndim == 2 and look.dout.shape[0] == look.dout.shape[1]:
        c = _ratio(look.a, look.truth_for((look.dout.T.copy(), *look.case.douts[1:])))
        if c is not None:
            return "transposed-factor", f"dout is used transposed, or should be{_by(c, look)}"
    for other, value in look.case.variables.items():
        changes: list[tuple[str, str, Array]] = []
        if value.ndim == 2 and value.shape[0] == value.shape[1]:
            used = f"{other} is used transposed, or should be"
            changes.append(("transposed-factor", used, value.T.copy()))
        for last in range(1, 3):
            if value.ndim == 1 == last or value.ndim > 2:
                flipped = np.flip(value, axis=tuple(range(-last, 0))).copy()
                text = f"{other} is not turned around as it has to be"
                changes.append(("flipped-kernel", text, flipped))
        for kind, text, changed in changes:
            c = _ratio(look.a, look.truth(**{other: changed}))
            if c is not None:
                return kind, f"{text}{_by(c, look)}"
        if value.ndim == 2 and look.n.shape[-1:] == value.shape[:1] == value.shape[1:]:
            # Before a function, whose slope changes with the matrix: exchange that matrix alone.
            for wrong, right in ((value, value.T), (value.T, value)):
                c = _ratio(look.a, look.n @ np.linalg.inv(right) @ wrong)
                if c is not None:
                    return "transposed-factor", f"{used}{_by(c, look)}"
    return None


def _missing_factor(look: _Look) -> Answer:
    others = {k: v for k, v in look.case.variables.items() if k != look.name}
    for other, value in others.items():
        c = _ratio(look.a, look.truth(**{other: np.ones_like(value)}))
        if c is not None:
            return _without(other, c, look)
    return None


def _missing_own_factor(look: _Look) -> Answer:
    if look.x.shape != look.dout.shape:  # all ones are a tie to a maximum
        return None
    c = _ratio(look.a, look.truth(**{look.name: np.ones_like(look.x)}))
    return None if c is None else _without(look.name, c, look)


def _without(name: str, c: float, look: _Look) -> Answer:
    text = f"as if {name} were 1 everywhere: the factor {name} is missing{_by(c, look)}"
    return "missing-factor", text


def _passed_through(look: _Look) -> Answer:
    if look.is_input and _same(look.a, look.dout):
        text = "dout is passed on as it came: the layer's own derivative is missing"
        return "local-derivative-missing", text
    return None


def _fused(look: _Look) -> Answer:
    """Of a loss of probabilities: is it the gradient with respect to the scores before softmax?"""
    if look.case.subject.kind != "loss" or look.x.ndim != 2:
        return None
    # ∂L/∂p = -t/(N p), so that t = -N p ∂L/∂p, and through the softmax it becomes (p - t)/N.
    target = -look.batch * look.x * look.n
    c = _ratio(look.a, (look.x - target) / look.batch)
    if c is None:
        return None
    return (
        "fused-gradient",
        "this is the gradient of softmax and cross-entropy together, with respect to the scores "
        f"before the softmax{_by(c, look)}",
    )


def _threshold(look: _Look) -> Answer:
    """Is it wrong just where x is below, or above, some value?"""
    if not look.is_input or look.a.shape != look.x.shape:
        return None
    bad = _wrong(look.a, look.n)
    good = ~bad
    if bad.sum() < 2 or good.sum() < 2:
        return _between(look)
    detail = ""
    if (c := _ratio(look.a[bad], look.n[bad])) is not None:
        detail = f"; there it is {_named(c, look)} times what it should be"
    elif np.abs(look.a[bad]).max() < 1e-12:
        detail = "; there it is zero"
    elif look.a.shape == look.dout.shape and _same(look.a[bad], look.dout[bad]):
        detail = "; there dout is passed on as it came"
    target, name = look.target, look.name
    values = {name: look.x}
    if target is not None and len(np.unique(target)) > target.size / 2:  # numbers, not classes
        values[f"{name} - target"] = look.x - target
    for v, x in values.items():
        low, high = x[good].min(), x[good].max()
        if x[bad].max() < low:
            edge = (x[bad].max(), low)
            if edge[0] <= 0 <= edge[1]:
                return "negative-only", f"wrong only where {v} < 0{detail}"
            return "below-threshold", f"wrong only where {v} < {np.mean(edge):.2g} or so{detail}"
        if x[bad].min() > high:
            edge = (high, x[bad].min())
            if edge[0] <= 0 <= edge[1]:
                return "positive-only", f"wrong only where {v} > 0{detail}"
            return "above-threshold", f"wrong only where {v} > {np.mean(edge):.2g} or so{detail}"
        if ((x[bad] < low) | (x[bad] > high)).all():
            text = f"right only where {v} is between {low:.2g} and {high:.2g} or so{detail}"
            return "outside-range", text
    return _between(look)


def _wrong(ours: Array, true: Array) -> Array:
    wrong: Array = np.abs(ours - true) > 1e-5 * np.abs(true).max()
    return wrong


def _between(look: _Look) -> Answer:
    """Is it wrong just between two values of x? The few of one input would not tell."""
    values: list[float] = []
    bad: list[bool] = []
    for scale in (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1):
        x = scale * look.x
        ours, true = look.given_for(look.case.douts, **{look.name: x}), look.truth(**{look.name: x})
        values += list(x.flat)
        bad += list(_wrong(ours, true).flat)
    order = np.argsort(values)
    x, wrong = np.array(values)[order], np.array(bad)[order]
    places = np.flatnonzero(wrong)
    if len(places) < 4 or len(places) != np.ptp(places) + 1:
        return None
    if places[0] < 2 or places[-1] > len(x) - 3:
        return None
    low, high = x[places[0]], x[places[-1]]
    return "inside-range", f"wrong only where {look.name} is between {low:.2g} and {high:.2g} or so"


def _jacobian(look: _Look) -> Answer:
    """Compare ∂y/∂x as the backward pass has it with the true one, entry by entry."""
    if not look.is_input or look.x.shape != look.dout.shape or look.x.size > _EACH:
        return None
    if len(look.case.douts) > 1:
        return None
    ours, true = _jacobians(look)
    size = np.abs(true).max()
    wrong = np.abs(ours - true) > 1e-5 * size
    diagonal = np.eye(len(true), dtype=bool)
    if np.abs(true[~diagonal]).max() < 1e-7 * size:
        return None  # elementwise, and rightly so
    rows = look.batch if look.x.ndim > 1 else 1
    same_sample = np.kron(np.eye(rows), np.ones((len(true) // rows,) * 2)).astype(bool)
    if np.abs(ours[~diagonal]).max() < 1e-7 * size:
        return (
            "off-diagonal-missing",
            "every entry of x is taken to change its own entry of y only: the off-diagonal terms "
            "of the Jacobian are missing",
        )
    if _same(ours, true.T):
        return "jacobian-transposed", "the Jacobian is used transposed"
    if rows > 1 and np.abs(ours[~same_sample]).max(initial=0.0) > 1e-6 * size:
        if np.abs(true[~same_sample]).max() < 1e-7 * size:
            return (
                "mixes-samples",
                "samples of the batch get into one another: something is summed over the batch "
                "that should be summed over the features",
            )
    elif rows > 1 and np.abs(true[~same_sample]).max() > 1e-6 * size:
        return (
            "batch-path-missing",
            "every sample is treated by itself, but y depends on the whole batch",
        )
    if not (wrong & diagonal).any():
        return "off-diagonal-wrong", "right on the diagonal of the Jacobian, wrong beside it"
    if not (wrong & ~diagonal).any():
        return "diagonal-wrong", "wrong on the diagonal of the Jacobian only"
    beside = same_sample & ~diagonal
    for text, v in {"y": look.y, "exp(y)": np.exp(look.y)}.items():
        for factor in (v.reshape(-1, 1), v.reshape(1, -1)):
            if _same(ours[beside] * np.broadcast_to(factor, ours.shape)[beside], true[beside]):
                text = f"the factor {text} is missing beside the diagonal of the Jacobian, that is "
                return "missing-factor", f"{text}in the sum over the features"
    return None


def _jacobians(look: _Look) -> tuple[Array, Array]:
    """Return ∂y[j]/∂x[i], rows j, as the backward pass has it and as it is."""
    size = look.x.size
    ours, true = np.zeros((size, size)), np.zeros((size, size))
    for j in range(size):
        one = np.zeros(size)
        one[j] = 1
        douts = (one.reshape(look.dout.shape),)
        ours[j], true[j] = look.given_for(douts).ravel(), look.truth_for(douts).ravel()
    return ours, true


def _linear(look: _Look) -> Answer:
    """Does dout go back through matrices and sums alone, past the function that is between?"""
    if len(look.case.douts) > 1 or look.dout.ndim < 2 or not look.case.subject.upstream:
        return None
    moved = np.roll(look.x.ravel(), 1).reshape(look.x.shape)
    if _same(look.truth(**{look.name: moved}), look.n):
        return None  # there is no such function
    dout, y = (v.reshape(-1, look.dout.shape[-1]) for v in (look.dout, look.y))
    past = (
        "local-derivative-missing",
        "dout goes back as through a linear layer: the derivative of the function after it, an "
        "activation perhaps, is missing",
    )
    starts = [(dout, past)]
    if (y > 0).all() and np.allclose(y.sum(axis=1), 1):
        text = "the softmax is taken elementwise: its off-diagonal terms are missing"
        starts.append((dout * y * (1 - y), ("off-diagonal-missing", text)))
    for start, answer in starts:
        if any(_same(look.a, form) for form in _through(start, look)):
            return answer if _all_factors(look) else None
    return None


def _all_factors(look: _Look) -> bool:
    """Say whether the gradient grows with every variable that the true one grows with."""
    others = {name: 2 * v for name, v in look.case.variables.items() if name != look.name}
    return all(
        _same(look.given_for(look.case.douts, **{name: v}), 2 * look.a)
        for name, v in others.items()
        if _same(look.truth(**{name: v}), 2 * look.n)
    )


def _through(upstream: Array, look: _Look, matrices: int = 2) -> Iterator[Array]:
    """Yield what the gradient may be where all that follows is products with matrices."""
    variables, shape = look.case.variables, look.n.shape
    if upstream.size == look.n.size and upstream.shape[-1:] == shape[-1:]:
        yield upstream.reshape(shape)
    if upstream.shape[1] == look.n.size:
        yield upstream.sum(axis=0).reshape(shape)
    for name in look.case.subject.inputs:
        v = variables[name]
        if v.ndim >= 2 and v.size == len(upstream) * v.shape[-1] and len(shape) == 2:
            product = v.reshape(len(upstream), -1).T @ upstream
            yield from (product, product.T)
    for v in variables.values():
        for matrix in (v, v.T) if matrices and v.ndim == 2 else ():
            if len(matrix) == upstream.shape[1]:
                yield from _through(upstream @ matrix, look, matrices - 1)


def _normalised(look: _Look) -> Answer:
    """Is a path through a mean or a variance missing, of what subtracts or divides by them?"""
    if not look.is_input or look.x.ndim < 2:
        return None
    difference = look.a - look.n
    size = np.abs(difference).max()
    axes_of = [(0,), (look.x.ndim - 1,), (0, *range(2, look.x.ndim)), tuple(range(1, look.x.ndim))]
    for axes in axes_of:
        if np.prod([look.x.shape[axis] for axis in axes]) < 3:
            continue
        along = "the batch" if axes[0] == 0 else "the features"
        mean = look.x.mean(axis=axes, keepdims=True)
        deviation = look.x - mean
        subtracts = _unmoved(look, look.x + 0.5 + 0.1 * mean)
        divides = _unmoved(look, mean + 1.5 * deviation)
        centred = difference - difference.mean(axis=axes, keepdims=True)
        if subtracts and np.abs(centred).max() < 1e-5 * size:
            return (
                "mean-path-missing",
                f"off by the same amount along {along}: the path of x through the mean over "
                f"{along} is missing or wrong",
            )
        slope = (difference * deviation).sum(axis=axes, keepdims=True)
        slope /= (deviation**2).sum(axis=axes, keepdims=True)
        if divides and np.abs(difference - slope * deviation).max() < 1e-5 * size:
            return (
                "variance-path-missing",
                f"off in proportion to x - mean along {along}: the path of x through the variance "
                "is missing or wrong",
            )
        if subtracts and divides and np.abs(centred - slope * deviation).max() < 1e-5 * size:
            return (
                "mean-and-variance-paths",
                f"the paths of x through mean and variance over {along} are missing or wrong",
            )
    return None


def _unmoved(look: _Look, x: Array) -> bool:
    """Say whether the output stays, but for an eps, when the input changes to ``x``."""
    (moved, *_), (turned, *_) = (
        look.evaluate(**{look.name: v}) for v in (x, np.roll(look.x.ravel(), 1).reshape(x.shape))
    )
    return bool(np.abs(moved - look.y).max() < 0.01 * np.abs(turned - look.y).max())


def _by_output(look: _Look) -> Answer:
    """Was a derivative that is written in terms of the output applied to the input?"""
    if not look.is_input or look.x.shape != look.dout.shape:
        return None
    (y, *_) = look.case.subject.evaluate(look.case.variables, look.case.warm)
    x, true = look.x, look.n / look.dout
    forms: dict[str, Callable[[Any], Any]] = {
        "y(1 - y)": lambda v: v * (1 - v),
        "1 - y²": lambda v: 1 - v**2,
    }
    for text, form in forms.items():
        if _same(true, form(y)) and _same(look.a, look.dout * form(x)):
            return "output-taken-for-input", f"the derivative is {text} of the output y, not of x"
        if _same(true, form(y)) and _same(look.a, look.dout * form(np.vectorize(_sigmoid)(y))):
            return "output-taken-for-input", f"the function is applied twice: {text} has y already"
    return None


def _sigmoid(v: float) -> float:
    return float(1 / (1 + np.exp(-v)))


def _some_rows(look: _Look) -> Answer:
    """Is it wrong at the same few rows or columns, whatever the values there?"""
    places = []
    for shift in (0, 1, 3):
        x = np.roll(look.x.ravel(), shift).reshape(look.x.shape)
        changed = {look.name: x}
        places.append(_wrong(look.given_for(look.case.douts, **changed), look.truth(**changed)))
    if (
        places[0].sum() == 1
        and look.x.size > 2
        and all(np.array_equal(places[0], other) for other in places)
    ):
        return "some-entries-only", f"wrong only at {tuple(np.argwhere(places[0])[0].tolist())}"
    for axis in range(look.x.ndim):
        rest = tuple(i for i in range(look.x.ndim) if i != axis)
        first, *others = (np.flatnonzero(bad.any(axis=rest)) for bad in places)
        few = 0 < len(first) <= max(1, look.x.shape[axis] // 3) and look.x.shape[axis] > 2
        if few and all(np.array_equal(first, other) for other in others):
            where = ", ".join(map(str, first))
            return "some-entries-only", f"wrong only at index {where} of axis {axis}"
    return None


def _missing_mask(look: _Look) -> Answer:
    """Do entries that the output does not depend on get a gradient, all others being right?"""
    used = look.n != 0
    if not look.is_input or used.sum() < 3 or _wrong(look.a, look.n)[used].any():
        return None
    bad = look.a[~used] != 0
    if bad.sum() < max(3, 0.5 * bad.size):
        return None
    text = "right where y depends on x, but what it does not depend on gets a gradient, too: the "
    return "missing-mask", f"{text}mask of forward (of a dropout, of a maximum) is missing"


def _by_value(look: _Look) -> Answer:
    """Is it the true gradient times, or over, the values of something at hand?"""
    if _same(look.a, look.dout):
        return None
    values = dict(look.case.variables)
    if len(look.case.douts) == 1:
        values["y"] = look.y
    if (target := look.target) is not None:
        values["target"] = target
    for name, value in values.items():
        if np.ptp(value) == 0 or np.broadcast_shapes(value.shape, look.n.shape) != look.n.shape:
            continue
        # What is zero in places is a mask there, not a factor.
        if (value != 0).all() and (c := _ratio(look.a, look.n * value)) is not None:
            return "extra-factor", f"multiplied by {name}, which is too much{_by(c, look)}"
        if (c := _ratio(look.a * value, look.n)) is not None:
            return "missing-factor", f"the factor {name} is missing{_by(c, look)}"
    return None


def _slopes(look: _Look) -> tuple[Array, Array] | None:
    """Return ∂y/∂x as backward has it and as it is, of a function of each entry alone."""
    if not look.is_input or look.x.shape != look.dout.shape:
        return None
    return np.round(look.a / look.dout, 5), np.round(look.n / look.dout, 5)


def _branches(look: _Look) -> Answer:
    """Are what is for x < 0 and what is for x > 0 exchanged?"""
    slopes = _slopes(look)
    if slopes is None:
        return None
    (ours, true), below = slopes, look.x < 0
    if not below.any() or below.all():
        return None
    two = [(np.ptp(s[part]) < 1e-4, s[part][0]) for s in (ours, true) for part in (below, ~below)]
    if not all(constant for constant, _ in two):
        return None
    (_, a_low), (_, a_high), (_, n_low), (_, n_high) = two
    if (a_low, a_high) == (n_high, n_low) and n_low != n_high:
        return "swapped-branches", "the slopes for x < 0 and for x > 0 are exchanged"
    return None


def _mask(look: _Look) -> Answer:
    """Are the factors right, but in other places (a random mask drawn a second time)?"""
    slopes = _slopes(look)
    if slopes is None:
        return None
    ours, true = slopes
    few = np.unique(true)
    if (
        np.ptp(ours) == 0
        or not 1 < len(few) <= 3
        or not set(np.unique(ours)) <= set(few)
        or (ours == true).all()
    ):
        return None
    moved = look.truth(**{look.name: np.roll(look.x.ravel(), 1).reshape(look.x.shape)})
    if not np.array_equal(true, np.round(moved / look.dout, 5)):  # x decides, not chance
        return None
    return "another-mask", "the mask is not the one of forward: remember it, do not draw it again"


def _one_feature(look: _Look) -> Answer:
    """Is it off by a factor for each feature, or for each sample?"""
    if look.x.ndim < 2 or min(look.x.shape[:2]) < 2:
        return None
    for axis, along in ((1, "feature"), (0, "sample")):
        rest = tuple(i for i in range(look.x.ndim) if i != axis)
        c = (look.a * look.n).sum(axis=rest, keepdims=True)
        c /= (look.n**2).sum(axis=rest, keepdims=True)
        if _same(look.a, c * look.n):
            text = (
                f"off by a factor for each {along}, from {c.min():.3g} to {c.max():.3g}: one that"
            )
            return (
                f"{along}-factor",
                f"{text} differs from {along} to {along} is missing or too much",
            )
    return None


def _local_derivative(look: _Look) -> Answer:
    """Of a function of each entry alone: what does the backward pass take its derivative for?"""
    if look.is_input and look.dout.size == 1 < look.x.size:
        return _local_loss(look)
    if not look.is_input or look.x.shape != look.dout.shape or look.x.size > _EACH:
        return None
    ours, true = _jacobians(look)
    diagonal = np.eye(len(true), dtype=bool)
    if np.abs(true[~diagonal]).max() > 1e-7 * np.abs(true).max():
        return None
    if np.abs(ours[~diagonal]).max() > 1e-7 * np.abs(ours).max():
        return (
            "mixes-entries",
            "y is a function of each entry of x alone, but the entries get mixed",
        )
    return _derivative(look, np.diag(ours), np.diag(true))


def _local_loss(look: _Look) -> Answer:
    """Of a loss that is a sum over the entries, each by itself, see which derivative is taken."""
    half = np.arange(look.x.size).reshape(look.x.shape) % 2 == 0
    x = look.x.copy()
    x[half] = np.roll(x[half], 1)
    changed = {look.name: x}
    ours, true = look.given_for(look.case.douts, **changed), look.truth(**changed)
    for before, after in ((look.n, true), (look.a, ours)):
        if np.abs(before - after)[~half].max() > 1e-6 * np.abs(before).max():
            return None
    return _derivative(look, look.a.ravel(), look.n.ravel())


def _derivative(look: _Look, ours: Array, true: Array) -> Answer:
    worst = int(np.abs(ours - true).argmax())
    return (
        "wrong-derivative",
        f"the derivative itself is wrong: at {look.name} = {look.x.flat[worst]:.4g} it is "
        f"{true[worst]:.4g}, backward takes {ours[worst]:.4g}",
    )


def _nearly(look: _Look) -> Answer:
    off = float(np.abs(look.a - look.n).max() / np.abs(look.n).max())
    if off > 0.01:
        return None
    larger = np.abs(look.a) - np.abs(look.n)
    same_way = (larger > -1e-9).all() or (larger < 1e-9).all()
    cause = "an eps that is missing?" if same_way else "an approximation, or a constant a bit off?"
    return "small-error", f"right but for a part in {1 / off:.0f}: {cause}"


def _similarity(a: Array, n: Array) -> str:
    if a.shape != n.shape or not np.abs(a).max(initial=0.0) or not np.abs(n).max(initial=0.0):
        return "nothing in common"
    cosine = float(np.sum(a * n) / np.sqrt(np.sum(a * a) * np.sum(n * n)))
    share = float(np.mean(np.abs(a - n) <= 1e-5 * np.abs(n).max()))
    return f"cosine of the angle to the true gradient {cosine:.3f}, {share:.0%} of it right"
