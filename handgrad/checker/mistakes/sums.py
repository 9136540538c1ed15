"""Sums over the wrong axes, transposed matrices, turned kernels, wrong shapes and types."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from handgrad.checker.mistakes.factors import by
from handgrad.checker.mistakes.look import Look, Rows, ratio, same


def wrong_type(look: Look) -> Rows:
    """Does it hold something else than numbers?"""
    text = f"the gradient holds {look.a.dtype}, not numbers"
    yield "wrong-type", text, look.a.dtype.kind not in "fiu"


def whole_numbers(look: Look) -> Rows:
    """Was the true gradient cut to whole numbers?"""
    text = f"whole numbers ({look.a.dtype}): what is behind the point is lost"
    for cut in (np.trunc, np.rint, np.floor) if look.a.dtype.kind in "iu" else ():
        yield "wrong-type", text, np.array_equal(look.a, cut(look.n))


def wrong_shape(look: Look) -> Rows:
    """Is it of another shape because it is transposed, or because of a sum?"""
    a, n = look.a, look.n
    says = f"shape {a.shape}, expected {n.shape}"
    if a.ndim >= 1 and a.shape == n.shape[::-1]:
        yield "transposed-gradient", f"{says}: transposed", n.T
    for axes in _axes(a.ndim):
        total = a.sum(axis=axes)
        if total.size == n.size and (c := ratio(total.reshape(n.shape), n)) is not None:
            if a.size == n.size:
                break
            which = "the batch" if axes == (0,) else f"axis {', '.join(map(str, axes))}"
            text = f"{says}: a sum over {which} is missing{by(c, look)}"
            yield "missing-batch-sum", text, True
    if a.size == n.size and (c := ratio(a.reshape(n.shape), n)) is not None:
        text = f"{says}; the numbers are right{by(c, look)}: reshape it"
        yield "wrong-shape", text, True
    if look.batch > 1:  # of a single sample it cannot be told what was summed over
        for kind, text, would in itertools.chain(wrong_sum_axis(look), summed_too_far(look)):
            yield kind, f"{says}: {text}", would
    text = f"{says}: dout is passed on as it came"
    yield "local-derivative-missing", text, same(a, look.dout)
    yield "wrong-shape", says, True


def _axes(ndim: int) -> Iterator[tuple[int, ...]]:
    for count in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), count)


def one_slice(look: Look) -> Rows:
    """Does one sample count only, or one step of another axis that is to be summed over?"""
    if look.is_input or look.dout.ndim < 2:
        return
    for axis, length in enumerate(look.dout.shape):
        if length < 2:
            continue
        parts = look.slices(axis)
        batch = axis == 0 and length == look.batch
        if not batch and any((part[look.n != 0] == 0).any() for part in parts):
            continue  # not summed over: each slice has entries of its own
        for index, part in enumerate(parts):
            one = f"index {index} of axis {axis} of dout counts: the sum over that axis"
            if batch:
                one = f"sample {index} of the batch counts: the sum over the batch"
            found = ratio(look.a, part) is not None
            yield "missing-batch-sum", f"only {one} is missing", found


def wrong_sum_axis(look: Look) -> Rows:
    """Is it summed over the features, one by one for each sample?"""
    if look.is_input or look.dout.ndim < 2 or max(look.n.shape, default=1) != look.n.size:
        return
    for axis, length in enumerate(look.dout.shape):
        if look.a.size == length:
            over_features = np.array([part.sum() for part in look.slices(axis)])
            each = "sample" if axis == 0 and length == look.batch else f"index of axis {axis}"
            text = f"summed over the features, for each {each}, not over the batch"
            yield "wrong-sum-axis", text, over_features.reshape(look.a.shape)


def summed_too_far(look: Look) -> Rows:
    """Is it the true gradient, summed over axes of its own?"""
    if look.is_input and look.a.shape == look.n.shape:
        return
    for axes in _axes(look.n.ndim):
        total = look.n.sum(axis=axes, keepdims=True)
        if total.size == look.n.size:
            continue
        text = f"summed over axis {', '.join(map(str, axes))} of this variable, too"
        for form in (np.broadcast_to(total, look.n.shape), total, total.squeeze(axes)):
            yield "wrong-sum-axis", text, form


def transposed(look: Look) -> Rows:
    """Is it, or a matrix in it, transposed, or a kernel not turned around?"""
    if look.a.ndim == 2:
        yield "transposed-gradient", "transposed", look.n.T
    if look.dout.ndim == 2 and look.dout.shape[0] == look.dout.shape[1]:
        would = look.truth_for(look.dout.T.copy(), *look.case.douts[1:])
        yield "transposed-factor", "dout is used transposed, or should be", would
    for other, value in look.case.variables.items():
        used = f"{other} is used transposed, or should be"
        if value.ndim == 2 and value.shape[0] == value.shape[1]:
            yield "transposed-factor", used, look.truth(**{other: value.T.copy()})
        for last in (1, 2):
            if value.ndim == 1 == last or value.ndim > 2:
                flipped = np.flip(value, axis=tuple(range(-last, 0))).copy()
                text = f"{other} is not turned around as it has to be"
                yield "flipped-kernel", text, look.truth(**{other: flipped})
        if value.ndim == 2 and look.n.shape[-1:] == value.shape[:1] == value.shape[1:]:
            # Before a function, whose slope changes with the matrix: exchange that matrix alone.
            for wrong, right in ((value, value.T), (value.T, value)):
                yield "transposed-factor", used, look.n @ np.linalg.inv(right) @ wrong
