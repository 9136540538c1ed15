"""The Jacobian entry by entry; paths through a mean and a variance."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from handgrad.checker.mistakes.look import Look, Rows, same
from handgrad.checker.subject import Array


def jacobian(look: Look) -> Rows:
    """Which entries of ∂y/∂x are wrong?"""
    if len(look.case.douts) > 1 or (both := look.jacobians()) is None:
        return
    ours, true = both
    size = np.abs(true).max()
    wrong = np.abs(ours - true) > 1e-5 * size
    diagonal = np.eye(len(true), dtype=bool)
    if np.abs(true[~diagonal]).max() < 1e-7 * size:
        return  # elementwise, and rightly so
    rows = look.batch if look.x.ndim > 1 else 1
    same_sample = np.kron(np.eye(rows), np.ones((len(true) // rows,) * 2)).astype(bool)
    text = "every entry of x is taken to change its own entry of y only: the off-diagonal terms of "
    alone = np.abs(ours[~diagonal]).max() < 1e-7 * size
    yield "off-diagonal-missing", f"{text}the Jacobian are missing", alone
    yield "jacobian-transposed", "the Jacobian is used transposed", same(ours, true.T)
    ours_mixed, true_mixed = (np.abs(j[~same_sample]).max(initial=0.0) for j in (ours, true))
    if rows > 1 and ours_mixed > 1e-6 * size:
        text = "samples of the batch get into one another: something is summed over the batch that "
        text += "should be summed over the features"
        yield "mixes-samples", text, true_mixed < 1e-7 * size
    elif rows > 1:
        text = "every sample is treated by itself, but y depends on the whole batch"
        yield "batch-path-missing", text, true_mixed > 1e-6 * size
    text = "right on the diagonal of the Jacobian, wrong beside it"
    yield "off-diagonal-wrong", text, not (wrong & diagonal).any()
    text = "wrong on the diagonal of the Jacobian only"
    yield "diagonal-wrong", text, not (wrong & ~diagonal).any()
    beside = same_sample & ~diagonal
    for name, v in {"y": look.y, "exp(y)": np.exp(look.y)}.items():
        text = f"the factor {name} is missing beside the diagonal of the Jacobian, that is in the "
        text += "sum over the features"
        for factor in (v.reshape(-1, 1), v.reshape(1, -1)):
            found = same(ours[beside] * np.broadcast_to(factor, ours.shape)[beside], true[beside])
            yield "missing-factor", text, found


def statistics(look: Look) -> Rows:
    """Of a normalisation: are the means in dx those of other axes, or of another number?"""
    x, y = look.x, look.y
    if not look.elementwise or x.ndim < 3 or len(look.case.douts) > 1:
        return
    names = ("samples", "channels", "rows", "columns")[: x.ndim]
    every = [c for k in range(1, x.ndim + 1) for c in itertools.combinations(range(x.ndim), k)]
    for axes in every:
        deviation = x - x.mean(axis=axes, keepdims=True)
        variance = (deviation**2).mean(axis=axes, keepdims=True)
        slope = (y * deviation).mean(axis=axes, keepdims=True) / variance
        if not same(slope * deviation, y - y.mean(axis=axes, keepdims=True), 1e-9):
            continue
        for eps in (*look.numbers().values(), 1e-5, 1e-8, 0.0):
            std = np.sqrt(variance + eps)
            dx = functools.partial(_dx, look.dout * slope * std, deviation / std, std)
            if not same(dx(axes), look.n, 1e-6):
                continue
            right = " and ".join(names[axis] for axis in axes)
            for over in every:
                text = f"the means in dx are over {' and '.join(names[axis] for axis in over)}, "
                yield "wrong-mean", f"{text}those of forward over {right}", dx(over)
                size = np.prod([x.shape[axis] for axis in over])
                count = np.prod([x.shape[axis] for axis in axes]) / size
                text = f"the sums in dx are divided by {size}, where they are over {right}"
                yield "wrong-mean", text, dx(axes, count)
            return


def _dx(g: Array, x_hat: Array, std: Array, over: tuple[int, ...], factor: float = 1.0) -> Array:
    mean, along = (factor * v.mean(axis=over, keepdims=True) for v in (g, g * x_hat))
    dx: Array = (g - mean - x_hat * along) / std
    return dx


def normalised(look: Look) -> Rows:
    """Is a path through a mean or a variance missing, of what subtracts or divides by them?"""
    if not look.is_input or look.x.ndim < 2:
        return
    x, difference = look.x, look.a - look.n
    small = 1e-5 * np.abs(difference).max()
    for axes in ((0,), (x.ndim - 1,), (0, *range(2, x.ndim)), tuple(range(1, x.ndim))):
        if np.prod([x.shape[axis] for axis in axes]) < 3:
            continue
        along = "the batch" if axes[0] == 0 else "the features"
        mean = x.mean(axis=axes, keepdims=True)
        deviation = x - mean
        subtracts = _unmoved(look, x + 0.5 + 0.1 * mean)
        divides = _unmoved(look, mean + 1.5 * deviation)
        centred = difference - difference.mean(axis=axes, keepdims=True)
        text = f"off by the same amount along {along}: the path of x through the mean over {along} "
        only_mean = subtracts and np.abs(centred).max() < small
        yield "mean-path-missing", f"{text}is missing or wrong", only_mean
        slope = (difference * deviation).sum(axis=axes, keepdims=True)
        slope /= (deviation**2).sum(axis=axes, keepdims=True)
        text = f"off in proportion to x - mean along {along}: the path of x through the variance is"
        only_variance = divides and np.abs(difference - slope * deviation).max() < small
        yield "variance-path-missing", f"{text} missing or wrong", only_variance
        text = f"the paths of x through mean and variance over {along} are missing or wrong"
        both = subtracts and divides and np.abs(centred - slope * deviation).max() < small
        yield "mean-and-variance-paths", text, both


def _unmoved(look: Look, x: Array) -> bool:
    """Say whether the output stays, but for an eps, when the input changes to ``x``."""
    (moved, *_), (turned, *_) = (look.evaluate(**{look.name: v}) for v in (x, look.rolled()))
    return bool(np.abs(moved - look.y).max() < 0.01 * np.abs(turned - look.y).max())
