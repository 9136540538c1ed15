"""Factors: a sign, 1/N, a variable that is missing or too much; errors like those of rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from handgrad.checker.differences import Case, is_float32
from handgrad.checker.mistakes.look import Look, Rows, ratio, same
from handgrad.checker.mistakes.windows import find
from handgrad.checker.subject import Array

# What a mean may be of, by the number of its entries.
_MEANS = {"kH · kW": "a window's entries", "H · W": "an image's pixels"}


def factor(look: Look) -> Rows:
    """Is it a multiple of the true gradient?"""
    c = float(look.a.item() / look.n.item()) if look.a.size == 1 else ratio(look.a, look.n)
    if c is None or abs(c - 1) < 1e-5 or not np.isfinite(c) or not c:
        return
    if not same(look.a, c * look.n, min(1e-5, 0.1 * abs(c - 1))):
        return
    if look.subject.upstream:
        # One number is always a multiple of another: the factor has to hold elsewhere, too.
        given, true = look.given_for(*look.other), look.truth_for(*look.other)
        if not np.allclose(given, c * true, rtol=1e-4, atol=1e-6 * np.abs(given).max()):
            return
    yield *kind_of_factor(c, look), True


def kind_of_factor(c: float, look: Look) -> tuple[str, str]:
    """Return the name of a mistake that makes a gradient ``c`` times too large, and a sentence."""
    if np.isclose(c, -1):
        return "sign", "the sign is wrong"
    name = named(c, look)
    sign = " and the sign is wrong" if c < 0 else ""
    if name.lstrip("-") == "N":
        text = f"{abs(c):g} times too large: the factor 1/N of the mean is missing{sign}"
        return "missing-1/N", text
    if name.lstrip("-") == "1/N":
        text = f"{1 / abs(c):g} times too small: divided by the batch size, which only the loss "
        return "extra-1/N", f"{text}does{sign}"
    for entries, mean in _MEANS.items():
        kind = entries.replace(" ", "")
        if name == entries:
            text = f"{c:g} times too large: the factor 1/({entries}) of the mean of {mean} is "
            return f"missing-1/({kind})", f"{text}missing"
        if name == f"1/({entries})":
            text = (
                f"{1 / c:g} times too small: divided by {entries}, the number of {mean}, where a "
            )
            return f"extra-1/({kind})", f"{text}sum over them is meant"
    value = f"{c:.6g}"
    bare = name[1:-1] if name.startswith("(") and name.endswith(")") else name
    what = "" if name in (value, value.lstrip("-")) else f" ({bare})"
    return "constant-factor", f"{value} times what it should be{what}, everywhere"


def by(c: float, look: Look) -> str:
    """Return what to add where the gradient of a mistake fits but for a factor."""
    return "" if np.isclose(c, 1, rtol=1e-5) else f", and a factor {named(c, look)} too much"


def named(c: float, look: Look) -> str:
    """Return a factor in words that fit at other sizes, too, or as a number."""
    names = _names(c, look)
    if names and (other := _elsewhere(look)) is not None:
        elsewhere = ratio(other.a, other.n)
        if elsewhere is not None and not np.isclose(elsewhere, 1):
            there = _names(elsewhere, other)
            names = [name for name in names if name in there]
    return names[0] if names else f"{c:.6g}"


def _names(c: float, look: Look) -> list[str]:
    """Return the names of a factor, in the order of how likely they are meant."""
    table: dict[str, float] = {}
    for key, value in _quantities(look).items():
        if value:
            over = f"1/({key})" if "·" in key else f"1/{key}"
            table |= {key: value, over: 1 / value}
    return [
        f"{mark}{label}"
        for label, value in table.items()
        for sign, mark in ((1, ""), (-1, "-"))
        if np.isclose(c, sign * value, rtol=1e-5)
    ]


def _quantities(look: Look) -> dict[str, float]:
    """Return the numbers of the problem that a factor may be, by name."""
    found: dict[str, float] = {"2": 2.0, "3": 3.0, "ln 2": float(np.log(2))}
    if (sliding := find(look)) is not None:
        found |= sliding.kernel
    for key, value in look.numbers().items():
        if value not in (0, 1):
            rest = 1.0 - value
            found |= {key: value, f"(1 - {key})": rest, f"{key}/(1 - {key})": value / rest}
    if look.batch > 1:
        found |= {"N": look.batch, "N - 1": look.batch - 1.0}
    dout, x = look.dout, look.x
    if dout.ndim > 1 and dout.shape[-1] > 1:
        found["the outputs of a sample"] = dout.size / max(look.batch, 1)
        found["the entries of the output"] = dout.size
    if x.ndim > 1 and x.shape[-1] > 1:
        found["the last axis of this variable"] = x.shape[-1]
        found["the entries of this variable"] = x.size
    if dout.ndim == 4:
        found |= {"N · H · W": dout.size / dout.shape[1], "H · W": dout.shape[2] * dout.shape[3]}
    return found


def _elsewhere(look: Look) -> Look | None:
    """Return the same variable of the same class at other sizes."""
    try:
        subject = look.subject.elsewhere()
        if subject is None:
            return None
        case = Case.of(subject, np.random.default_rng(3))
        gradient = case.given()[0].get(look.name)
    except Exception:
        return None
    return None if gradient is None else Look(case, look.name, gradient, case.truth(look.name)[0])


def of_some(look: Look) -> tuple[str, str]:
    """Return what can be told from some of the entries."""
    seen = ~np.isnan(look.n)
    a, n = look.a[seen], look.n[seen]
    part = f", by {len(n)} of its {look.a.size:,} entries"
    if not np.isfinite(a).all():
        return "not-finite", f"the gradient holds {a[~np.isfinite(a)].flat[0]}"
    if np.abs(a).max() < 1e-12:
        return "zero-gradient", f"the gradient is zero{part}"
    c = ratio(a, n)
    if c is not None and abs(c - 1) > 1e-5:
        kind, text = kind_of_factor(c, look)
        return kind, text + part
    return "unknown", f"wrong{part}; a smaller --input-shape or --init would tell more"


def zero(look: Look) -> Rows:
    """Is it zero, where the true one is not?"""
    nothing = np.abs(look.a).max(initial=0.0) <= 1e-12 and np.abs(look.n).max(initial=0.0) >= 1e-9
    yield "zero-gradient", "the gradient is zero everywhere", nothing


def missing_factor(look: Look) -> Rows:
    """Is it as if another variable were 1 everywhere?"""
    for other, value in look.case.variables.items():
        if other != look.name:
            yield *_without(other), look.truth(**{other: np.ones_like(value)})


def missing_own_factor(look: Look) -> Rows:
    """Is it as if the variable itself were 1 everywhere?"""
    if look.x.shape == look.dout.shape:  # all ones are a tie to a maximum
        yield *_without(look.name), look.truth(**{look.name: np.ones_like(look.x)})


def _without(name: str) -> tuple[str, str]:
    return "missing-factor", f"as if {name} were 1 everywhere: the factor {name} is missing"


def by_value(look: Look) -> Rows:
    """Is it the true gradient times, or over, the values of something at hand?"""
    if same(look.a, look.dout):
        return
    values = dict(look.case.variables)
    if len(look.case.douts) == 1:
        values["y"] = look.y
    if (target := look.target) is not None:
        values["target"] = target
    for name, value in values.items():
        if np.ptp(value) == 0 or np.broadcast_shapes(value.shape, look.n.shape) != look.n.shape:
            continue
        if (value != 0).all():  # what is zero in places is a mask there, not a factor
            yield "extra-factor", f"multiplied by {name}, which is too much", look.n * value
        if (c := ratio(look.a * value, look.n)) is not None:
            yield "missing-factor", f"the factor {name} is missing{by(c, look)}", True


def one_feature(look: Look) -> Rows:
    """Is it off by a factor for each feature, or for each sample?"""
    if look.x.ndim < 2 or min(look.x.shape[:2]) < 2:
        return
    for axis, along in ((1, "feature"), (0, "sample")):
        rest = tuple(i for i in range(look.x.ndim) if i != axis)
        c = (look.a * look.n).sum(axis=rest, keepdims=True)
        c /= (look.n**2).sum(axis=rest, keepdims=True)
        text = f"off by a factor for each {along}, from {c.min():.3g} to {c.max():.3g}: one that "
        text += f"differs from {along} to {along} is missing or too much"
        yield f"{along}-factor", text, same(look.a, c * look.n)


def rounded(look: Look) -> Rows:
    """Is the error that of rounding, in single or half precision, or to some decimals?"""
    error, off = np.abs(look.a - look.n), look.off
    if off > 0.01:
        return
    text = f"right to a part in {1 / off:.0f}"
    exact = [d for d in range(1, 9) if np.array_equal(look.a, np.round(look.a, d))]
    if exact and 0.1 < error.max() * 2 * 10 ** exact[0] < 1.01:
        yield "small-error", f"{text}: rounded to {exact[0]} decimals", True
    text += ": computed in"
    half = np.array_equal(look.a, look.a.astype(np.float16))
    single = off < 1e-3 and is_float32(look.a)
    yield "float32-noise", f"{text} {'float16' if half else 'float32'} somewhere", single
    # float16 is right to 2⁻¹¹ and float32 to 2⁻²⁴, less what is lost later on.
    bends = [np.minimum(b, error.max()).mean() for b in _bends(look, 2 * off, look.given_for)]
    jumps = off < 2**-9 and np.median(bends) > 0.5 * error.mean()
    precision = "float32" if off < 2**-14 else "half precision"
    yield "float32-noise", f"{text} {precision} somewhere", jumps
    bends = [b.mean() for b in _bends(look, 1e-7, lambda *_, **at: look.evaluate(**at)[0])]
    jumps = np.median(bends) > 1e-9 * np.abs(look.y).max()
    yield "float32-noise", f"{text} float32 somewhere in forward", jumps


def _bends(look: Look, size: float, of: Callable[..., Array]) -> Iterator[Array]:
    """Yield second differences of ``of`` over random steps of some relative size.

    They are small, in proportion to the square of the size, unless ``of`` changes by jumps, as what
    is rounded does. Of five, some may meet a kink.
    """
    rng, douts, variables = np.random.default_rng(8), look.case.douts, look.case.variables
    for _ in range(5):
        moves = {name: size * rng.standard_normal(v.shape) for name, v in variables.items()}
        sway = [size * rng.standard_normal(dout.shape) for dout in douts]
        left, middle, right = (
            of(
                *(d * (1 + k * s) for d, s in zip(douts, sway, strict=True)),
                **{name: v * (1 + k * moves[name]) for name, v in variables.items()},
            )
            for k in (-1, 0, 1)
        )
        yield np.abs(left - 2 * middle + right)


def nearly(look: Look) -> Rows:
    """Is it right but for a small part?"""
    larger = np.abs(look.a) - np.abs(look.n)
    same_way = (larger > -1e-9).all() or (larger < 1e-9).all()
    cause = "an eps that is missing?" if same_way else "an approximation, or a constant a bit off?"
    off = look.off
    yield "small-error", f"right but for a part in {1 / off:.0f}: {cause}", off <= 0.01
