"""Where it is wrong: below or above a value, at some rows, outside a mask."""

from __future__ import annotations

import numpy as np

from handgrad.checker.mistakes.factors import named
from handgrad.checker.mistakes.look import Look, Rows, differs, ratio, same


def threshold(look: Look) -> Rows:
    """Is it wrong just where x is below, or above, some value?"""
    if not look.is_input or look.a.shape != look.x.shape:
        return
    bad = differs(look.a, look.n)
    good = ~bad
    if bad.sum() >= 2 and good.sum() >= 2:
        detail = ""
        if (c := ratio(look.a[bad], look.n[bad])) is not None:
            detail = f"; there it is {named(c, look)} times what it should be"
        elif np.abs(look.a[bad]).max() < 1e-12:
            detail = "; there it is zero"
        elif look.a.shape == look.dout.shape and same(look.a[bad], look.dout[bad]):
            detail = "; there dout is passed on as it came"
        target, values = look.target, {look.name: look.x}
        if target is not None and len(np.unique(target)) > target.size / 2:  # no classes
            values[f"{look.name} - target"] = look.x - target
        for v, x in values.items():
            low, high = x[good].min(), x[good].max()
            for of_sign, of_value, sign, below, above in (
                ("negative-only", "below-threshold", "<", x[bad].max(), low),
                ("positive-only", "above-threshold", ">", high, x[bad].min()),
            ):
                at_zero = below <= 0 <= above
                name = of_sign if at_zero else of_value
                edge = "0" if at_zero else f"{np.mean((below, above)):.2g} or so"
                yield name, f"wrong only where {v} {sign} {edge}{detail}", below < above
            text = f"right only where {v} is between {low:.2g} and {high:.2g} or so{detail}"
            yield "outside-range", text, ((x[bad] < low) | (x[bad] > high)).all()
    yield from _between(look)


def _between(look: Look) -> Rows:
    """Is it wrong just between two values of x? The few of one input would not tell."""
    values: list[float] = []
    bad: list[bool] = []
    for scale in (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1):
        x = scale * look.x
        values += list(x.flat)
        bad += list(differs(*look.at(x)).flat)
    order = np.argsort(values)
    x, wrong = np.array(values)[order], np.array(bad)[order]
    places = np.flatnonzero(wrong)
    if len(places) < 4 or len(places) != np.ptp(places) + 1:
        return
    low, high = x[places[0]], x[places[-1]]
    text = f"wrong only where {look.name} is between {low:.2g} and {high:.2g} or so"
    yield "inside-range", text, places[0] >= 2 and places[-1] <= len(x) - 3


def some_rows(look: Look) -> Rows:
    """Is it wrong at the same few rows or columns, whatever the values there?"""
    places = [differs(*look.at(look.rolled(shift))) for shift in (0, 1, 3)]
    fixed = all(np.array_equal(places[0], other) for other in places)
    if places[0].sum() == 1 and look.x.size > 2:
        at = tuple(np.argwhere(places[0])[0].tolist())
        yield "some-entries-only", f"wrong only at {at}", fixed
    for axis, length in enumerate(look.x.shape):
        rest = tuple(i for i in range(look.x.ndim) if i != axis)
        first, *others = (np.flatnonzero(bad.any(axis=rest)) for bad in places)
        few = 0 < len(first) <= max(1, length // 3) and length > 2
        found = few and all(np.array_equal(first, other) for other in others)
        text = f"wrong only at index {', '.join(map(str, first))} of axis {axis}"
        yield "some-entries-only", text, found


def missing_mask(look: Look) -> Rows:
    """Do entries that the output does not depend on get a gradient, all others being right?"""
    used = look.n != 0
    if not look.is_input or used.sum() < 3 or differs(look.a, look.n)[used].any():
        return
    bad = look.a[~used] != 0
    text = "right where y depends on x, but what it does not depend on gets a gradient, too: the "
    text += "mask of forward (of a dropout, of a maximum) is missing"
    yield "missing-mask", text, bad.sum() >= max(3, 0.5 * bad.size)


def branches(look: Look) -> Rows:
    """Are what is for x < 0 and what is for x > 0 exchanged?"""
    slopes, below = look.slopes(), look.x < 0
    if slopes is None or not below.any() or below.all():
        return
    sides = [s[part] for s in slopes for part in (below, ~below)]
    if all(np.ptp(side) < 1e-4 for side in sides):
        a_low, a_high, n_low, n_high = (side[0] for side in sides)
        text = "the slopes for x < 0 and for x > 0 are exchanged"
        exchanged = (a_low, a_high) == (n_high, n_low) and n_low != n_high
        yield "swapped-branches", text, exchanged


def another_mask(look: Look) -> Rows:
    """Are the factors right, but in other places (a random mask drawn a second time)?"""
    if (slopes := look.slopes()) is None:
        return
    ours, true = slopes
    few = np.unique(true)
    if np.ptp(ours) == 0 or not 1 < len(few) <= 3 or not set(np.unique(ours)) <= set(few):
        return
    moved = look.truth(**{look.name: look.rolled()})
    by_chance = np.array_equal(true, np.round(moved / look.dout, 5))  # x would have moved, too
    text = "the mask is not the one of forward: remember it, do not draw it again"
    yield "another-mask", text, by_chance and (ours != true).any()
