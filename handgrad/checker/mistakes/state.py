"""What an earlier pass, or another object, has left behind; and what is no number."""

from __future__ import annotations

import itertools

import numpy as np

from handgrad.checker.mistakes.look import Look, Rows, same


def not_finite(look: Look) -> Rows:
    """Does it hold NaN or infinity?"""
    bad = look.a[~np.isfinite(look.a)]
    if bad.size:
        yield "not-finite", f"the gradient holds {bad.flat[0]}", True


def accumulation(look: Look) -> Rows:
    """After an earlier pass: is its gradient, or its input, still there?"""
    case, subject = look.case, look.subject
    if case.warm is None:
        return
    rng = np.random.default_rng(99)  # the same upstream as in that pass
    outputs = subject.evaluate(case.warm)
    earlier = tuple(rng.standard_normal(out.shape) for out in outputs)
    first = subject.differentiate(case.warm, earlier)[0][look.name]
    assert first is not None
    yield (
        "accumulation",
        "the gradient of the pass before is still in it: assign it (=) instead of adding (+=)",
        same(look.a, look.n + first),
    )
    stale = subject.differentiate(case.warm, case.douts)[0][look.name]
    if stale is not None:
        text = "a second pass still uses what the first forward remembered"
        yield "stale-cache", text, same(look.a, stale)
    text = "right in the first pass, wrong in the second: the first leaves something behind"
    yield "state", text, True


def shared_cache(look: Look) -> Rows:
    """Is what belongs to the class, and so to all of its objects, still from another forward?"""
    text = "backward uses what another forward remembered: the cache belongs to the class, so that "
    text += "all objects share it"
    module = getattr(look.subject.start(), "module", None)
    for value in itertools.chain.from_iterable(vars(c).values() for c in type(module).__mro__):
        items = list(value.values()) if isinstance(value, dict) else value
        for item in items if isinstance(items, list) else [items]:
            for name in look.subject.inputs:
                x = look.case.variables[name]
                if not isinstance(item, np.ndarray) or item.shape != x.shape:
                    continue
                if not np.array_equal(item, x):
                    yield "stale-cache", text, same(look.a, look.truth(**{name: item}))
