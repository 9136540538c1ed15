"""The chain rule: the upstream gradient, the local derivative, the variable it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from handgrad.checker.mistakes.factors import by
from handgrad.checker.mistakes.look import Look, Rows, ratio, same
from handgrad.checker.subject import Array


def upstream_ignored(look: Look) -> Rows:
    """Does it not depend on the upstream gradient?"""
    if not look.subject.upstream or not same(look.given_for(*look.other), look.a, 1e-9):
        return
    c = ratio(look.a, look.truth_for(*(np.ones(d.shape) for d in look.case.douts)))
    detail = "" if c is None else f": as if it were 1 everywhere{by(c, look)}"
    yield "upstream-ignored", f"does not depend on the upstream gradient{detail}", True


def upstream_powers(look: Look) -> Rows:
    """Is it linear in the upstream gradient, as every backward pass is?"""
    if not look.subject.upstream:
        return
    double = look.given_for(*(2.0 * d for d in look.case.douts))
    minus = look.given_for(*(-d for d in look.case.douts))
    if same(double, 2 * look.a, 1e-6) and same(minus, -look.a, 1e-6):
        return
    if look.a.shape == look.dout.shape:
        # Of each sign of the upstream gradient there is one slope.
        slope, up = look.a / look.dout, look.dout > 0
        mask = all(np.ptp(slope[part]) < 1e-9 for part in (up, ~up) if part.any())
        text = "the sign of the upstream gradient decides, where that of x should"
        yield "upstream-mask", text, mask
    text = "twice the upstream gradient does not give twice the gradient"
    yield "not-linear-in-upstream", text, True


def swapped(look: Look) -> Rows:
    """Is it the gradient of another variable?"""
    for other, value in look.case.variables.items():
        if other != look.name and value.shape == look.x.shape:
            found = ratio(look.a, look.case.truth(other)[0]) is not None
            yield "swapped-gradients", f"this is the gradient of {other}", found


def one_output(look: Look) -> Rows:
    """Does one of several outputs count only?"""
    douts = look.case.douts
    for i, dout in enumerate(douts) if len(douts) > 1 else ():
        only = tuple(np.zeros_like(d) for d in douts)
        would = look.truth_for(*only[:i], dout, *only[i + 1 :])
        yield "output-ignored", f"only the upstream gradient of output {i} counts", would


def passed_through(look: Look) -> Rows:
    """Is the upstream gradient passed on?"""
    text = "dout is passed on as it came: the layer's own derivative is missing"
    yield "local-derivative-missing", text, look.is_input and same(look.a, look.dout)


def fused(look: Look) -> Rows:
    """Of a loss of probabilities: is it the gradient with respect to the scores before softmax?"""
    if look.subject.kind == "loss" and look.x.ndim == 2:
        # ∂L/∂p = -t/(N p), so that t = -N p ∂L/∂p, and through the softmax it becomes (p - t)/N.
        target = -look.batch * look.x * look.n
        text = "this is the gradient of softmax and cross-entropy together, with respect to the "
        text += "scores before the softmax"
        yield "fused-gradient", text, (look.x - target) / look.batch


def linear(look: Look) -> Rows:
    """Does dout go back through matrices and sums alone, past the function that is between?"""
    if len(look.case.douts) > 1 or look.dout.ndim < 2 or not look.subject.upstream:
        return
    if same(look.truth(**{look.name: look.rolled()}), look.n):
        return  # there is no such function
    dout, y = (v.reshape(-1, look.dout.shape[-1]) for v in (look.dout, look.y))
    text = "dout goes back as through a linear layer: the derivative of the function after it, an "
    text += "activation perhaps, is missing"
    starts = [("local-derivative-missing", text, dout)]
    if (y > 0).all() and np.allclose(y.sum(axis=1), 1):
        text = "the softmax is taken elementwise: its off-diagonal terms are missing"
        starts.append(("off-diagonal-missing", text, dout * y * (1 - y)))
    for kind, text, start in starts:
        if any(same(look.a, form) for form in _through(start, look)):
            if _has_all_factors(look):
                yield kind, text, True
            return


def _has_all_factors(look: Look) -> bool:
    """Say whether the gradient grows with every variable that the true one grows with."""
    others = {name: 2 * v for name, v in look.case.variables.items() if name != look.name}
    return all(
        same(look.given_for(*look.case.douts, **{name: v}), 2 * look.a)
        for name, v in others.items()
        if same(look.truth(**{name: v}), 2 * look.n)
    )


def _through(upstream: Array, look: Look, matrices: int = 2) -> Iterator[Array]:
    """Yield what the gradient may be where all that follows is products with matrices."""
    variables, shape = look.case.variables, look.n.shape
    if upstream.size == look.n.size and upstream.shape[-1:] == shape[-1:]:
        yield upstream.reshape(shape)
    if upstream.shape[1] == look.n.size:
        yield upstream.sum(axis=0).reshape(shape)
    for name in look.subject.inputs:
        v = variables[name]
        if v.ndim >= 2 and v.size == len(upstream) * v.shape[-1] and len(shape) == 2:
            product = v.reshape(len(upstream), -1).T @ upstream
            yield from (product, product.T)
    for v in variables.values():
        for matrix in (v, v.T) if matrices and v.ndim == 2 else ():
            if len(matrix) == upstream.shape[1]:
                yield from _through(upstream @ matrix, look, matrices - 1)


def by_output(look: Look) -> Rows:
    """Was a derivative that is written in terms of the output applied to the input?"""
    if not look.elementwise:
        return
    x, y, true = look.x, look.y, look.n / look.dout
    forms: dict[str, Callable[[Any], Any]] = {
        "y(1 - y)": lambda v: v * (1 - v),
        "1 - y²": lambda v: 1 - v**2,
    }
    for text, form in forms.items():
        for says, v in {
            f"the derivative is {text} of the output y, not of x": x,
            f"the function is applied twice: {text} has y already": 1 / (1 + np.exp(-y)),
        }.items():
            found = same(true, form(y)) and same(look.a, look.dout * form(v))
            yield "output-taken-for-input", says, found


def local_derivative(look: Look) -> Rows:
    """Of a function of each entry alone: what does the backward pass take its derivative for?"""
    if look.is_input and look.dout.size == 1 < look.x.size:
        yield from _local_loss(look)
    elif (both := look.jacobians()) is not None:
        ours, true = both
        diagonal = np.eye(len(true), dtype=bool)
        if np.abs(true[~diagonal]).max() > 1e-7 * np.abs(true).max():
            return
        mixed = np.abs(ours[~diagonal]).max() > 1e-7 * np.abs(ours).max()
        text = "y is a function of each entry of x alone, but the entries get mixed"
        yield "mixes-entries", text, mixed
        yield from _derivative(look, np.diag(ours), np.diag(true))


def _local_loss(look: Look) -> Rows:
    """Of a loss that is a sum over the entries, each by itself, see which derivative is taken."""
    half = np.arange(look.x.size).reshape(look.x.shape) % 2 == 0
    x = look.x.copy()
    x[half] = np.roll(x[half], 1)
    ours, true = look.at(x)
    if not any(
        np.abs(before - after)[~half].max() > 1e-6 * np.abs(before).max()
        for before, after in ((look.n, true), (look.a, ours))
    ):
        yield from _derivative(look, look.a.ravel(), look.n.ravel())


def _derivative(look: Look, ours: Array, true: Array) -> Rows:
    worst = int(np.abs(ours - true).argmax())
    text = f"the derivative itself is wrong: at {look.name} = {look.x.flat[worst]:.4g} it is "
    yield "wrong-derivative", f"{text}{true[worst]:.4g}, backward takes {ours[worst]:.4g}", True
