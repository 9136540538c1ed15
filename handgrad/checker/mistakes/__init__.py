"""What kind of wrong a gradient looks like: the table of mistakes.

Each question compares what ``backward`` gave with what it would have given under one particular
mistake: the true gradient with its sign changed, with a variable replaced by ones or transposed,
for one sample of the batch only, and so on. It yields rows: the name of the mistake, a sentence,
and that gradient (or whether it is this one). The questions stand in the order of what they
explain; the first row that fits is the diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from handgrad.checker.differences import Case
from handgrad.checker.mistakes import chain_rule, factors, images, jacobian, state, sums, where
from handgrad.checker.mistakes.look import Look, Row, Rows, ratio, same
from handgrad.checker.subject import Array

_Questions = tuple[Callable[[Look], Rows], ...]

_FIRST: _Questions = (sums.wrong_type, state.not_finite)
_OF_ANOTHER_SHAPE: _Questions = (state.accumulation, images.windows, sums.wrong_shape)
# What is right but for so little agrees with a mistake whose effect is small, as with the truth.
_TINY, _ALMOST_RIGHT = 1e-4, (factors.factor, factors.rounded, factors.nearly)
_WRONG: _Questions = (
    state.accumulation,
    state.shared_cache,
    sums.whole_numbers,
    factors.zero,
    factors.factor,
    factors.rounded,
    chain_rule.upstream_ignored,
    chain_rule.upstream_powers,
    images.windows,
    sums.one_slice,
    sums.wrong_sum_axis,
    chain_rule.swapped,
    chain_rule.one_output,
    sums.transposed,
    factors.missing_factor,
    chain_rule.fused,
    factors.by_value,
    where.threshold,
    chain_rule.passed_through,
    factors.missing_own_factor,
    where.branches,
    factors.nearly,
    jacobian.jacobian,
    chain_rule.linear,
    jacobian.statistics,
    jacobian.normalised,
    chain_rule.by_output,
    where.another_mask,
    where.some_rows,
    where.missing_mask,
    sums.summed_too_far,
    factors.one_feature,
    chain_rule.local_derivative,
)


def diagnose(case: Case, name: str, analytic: Array, numerical: Array) -> tuple[str, str]:
    """Return the name of a mistake, and a sentence, for a gradient that is wrong there."""
    look = Look(case, name, analytic, numerical)
    questions = _WRONG
    if np.isnan(numerical).any():  # too many entries to look at all of them
        right, seen = images.right(look), ~np.isnan(numerical)
        if right is None or not same(right[seen], numerical[seen]):
            return factors.of_some(look)
        look, questions = Look(case, name, analytic, right), (images.windows,)
    if analytic.shape != numerical.shape:
        questions = _OF_ANOTHER_SHAPE
    elif np.nanmax(np.abs(analytic - numerical), initial=0.0) < _TINY * np.nanmax(
        np.abs(numerical), initial=0.0
    ):
        questions = _ALMOST_RIGHT
    with np.errstate(all="ignore"):
        for question in (*_FIRST, *questions):
            try:
                for row in question(look):
                    if (says := _says(row, look)) is not None:
                        return row[0], says
            except Exception:  # the code looked at may fail at the points that a question needs
                continue
    if np.isnan(numerical).any():
        return factors.of_some(Look(case, name, analytic, numerical))
    return "unknown", f"fits no known mistake; {_similarity(analytic, numerical)}"


def _says(row: Row, look: Look) -> str | None:
    """Return the sentence of a mistake if it explains the gradient, or None."""
    _, sentence, would = row
    if isinstance(would, bool | np.bool_):
        return sentence if would else None
    c = ratio(look.a, would)
    return None if c is None else sentence + factors.by(c, look)


def _similarity(a: Array, n: Array) -> str:
    if a.shape != n.shape or not np.abs(a).max(initial=0.0) or not np.abs(n).max(initial=0.0):
        return "nothing in common"
    cosine = float(np.sum(a * n) / np.sqrt(np.sum(a * a) * np.sum(n * n)))
    share = float(np.mean(np.abs(a - n) <= 1e-5 * np.abs(n).max()))
    return f"cosine of the angle to the true gradient {cosine:.3f}, {share:.0%} of it right"
