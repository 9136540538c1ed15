"""Numerical gradients, and a checker that compares a module's backward pass with them.

A derivative is estimated by central differences, ``(f(x+h) - f(x-h)) / 2h``, whose error is O(h²)
(Goodfellow et al., *Deep Learning*, 2016, section 11.5). All of it needs float64: in float32 the
difference drowns in rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from numpy_mlp.modules.module import Array, underflow_is_zero
from numpy_mlp.randomness import Source, as_generator


def eval_numerical_gradient(
    f: Callable[[Array], float], x: Array, verbose: bool = False, h: float = 1e-5
) -> Array:
    """Return the gradient of a scalar function at ``x``, an entry at a time.

    Args:
        f: maps an array like ``x`` to a scalar. It may ignore its argument and read ``x`` itself,
            whose entries are changed in place during the call and restored afterwards.
        x: the point, any shape, floating-point.
        verbose: print each entry's index and derivative.
        h: half the width of the difference.
    """
    grad = eval_numerical_gradient_array(lambda x_: np.asarray(f(x_)), x, 1.0, h)
    if verbose:
        for index in np.ndindex(x.shape):
            print(index, grad[index])
    return grad


@underflow_is_zero
def eval_numerical_gradient_array(
    f: Callable[[Array], Array], x: Array, df: Array | float, h: float = 1e-5
) -> Array:
    """Return ∂(Σ df · f(x))/∂x: the gradient through an array-valued ``f`` with upstream ``df``.

    Args:
        f: maps an array like ``x`` to an array of the shape of ``df``; as in
            :func:`eval_numerical_gradient` it may read ``x`` itself.
        x: the point, any shape, floating-point; restored afterwards.
        df: upstream gradient.
        h: half the width of the difference.

    Raises:
        ValueError: ``x`` holds integers or float16, to which h would be lost.
    """
    if x.dtype.kind != "f" or x.dtype.itemsize < 4:
        raise ValueError(f"a numerical gradient needs a floating-point x, got {x.dtype}")
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        old = x[index]
        try:
            x[index] = old + h
            # f may return x itself or a view of it, which the next line would change.
            right = np.array(f(x))
            x[index] = old - h
            left = np.array(f(x))
        finally:
            x[index] = old
        grad[index] = np.sum((right - left) * df) / (2 * h)
    return grad


@dataclass(frozen=True)
class GradientError:
    """The worst disagreement in one gradient.

    Attributes:
        name: ``x`` or the parameter's name.
        max_relative_error: largest |a - n| / max(|a|, |n|, floor) over the entries.
        index: where it is.
        numerical: the central difference n there.
        analytic: what ``backward`` gave there, a.
        tolerance: largest error that passes.
    """

    name: str
    max_relative_error: float
    index: tuple[int, ...]
    numerical: float
    analytic: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the gradient agrees; NaN does not."""
        return self.max_relative_error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok   " if self.passed else "WRONG"
        return (
            f"{verdict} {self.name}: worst relative error {self.max_relative_error:.1e} at "
            f"{self.index}: backward {self.analytic:.9g}, numerical {self.numerical:.9g}"
        )


@dataclass(frozen=True)
class GradientReport:
    """One :class:`GradientError` for the input and for each parameter."""

    errors: tuple[GradientError, ...]

    @property
    def passed(self) -> bool:
        """Whether every gradient agrees."""
        return all(error.passed for error in self.errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def relative_errors(analytic: Array, numerical: Array, floor: float) -> Array:
    """Return the error of each entry a of ``analytic``, beside its n of ``numerical``.

    It is relative to the entry, the larger of |a| and |n|. For an entry that is small beside the
    whole gradient it is relative to a thousandth of the largest; and never to less than ``floor``,
    since rounding (about 1e-11 at h = 1e-5) is all that a difference shows of an exact zero.
    """
    least = 1e-3 * np.abs(numerical).max(initial=0.0) + floor
    scale = np.maximum(np.maximum(np.abs(analytic), np.abs(numerical)), least)
    errors: Array = np.abs(analytic - numerical) / scale
    return errors


def compare_gradients(
    name: str,
    analytic: Array,
    numerical: Array,
    tolerance: float = 1e-6,
    floor: float = 1e-4,
) -> GradientError:
    """Compare two gradients by :func:`relative_errors` and report the worst entry.

    Gradients that are tiny throughout need a smaller ``floor``.
    """
    assert analytic.shape == numerical.shape, (
        f"gradient of {name} has shape {analytic.shape}, expected {numerical.shape}"
    )
    relative = relative_errors(analytic, numerical, floor)
    # A NaN wins argmax, and fails.
    index = np.unravel_index(int(relative.argmax()), relative.shape) if relative.size else ()
    return GradientError(
        name=name,
        max_relative_error=float(relative[index]) if relative.size else 0.0,
        index=tuple(int(i) for i in index),
        numerical=float(numerical[index]) if relative.size else 0.0,
        analytic=float(analytic[index]) if relative.size else 0.0,
        tolerance=tolerance,
    )


@underflow_is_zero
def check_gradients(
    module: Any,
    x: Array,
    *,
    rng: Source = None,
    h: float = 1e-5,
    tolerance: float = 1e-6,
) -> GradientReport:
    """Compare ``module.backward`` with central differences, for ``x`` and every parameter.

    The scalar that is differentiated is ``Σ dout · forward(x)`` with a random ``dout``: an all-ones
    upstream would hide mistakes (the input gradient of softmax is then zero). Every evaluation
    runs on a copy of the module, so that random masks repeat and running statistics stay put.
    Choose ``x`` away from kinks: at a distance below h a difference straddles them.

    Args:
        module: has ``forward(x)`` and ``backward(dout) -> dx``, and perhaps ``params`` and
            ``grads`` (dictionaries of arrays), as the layers of this package and MLP do.
        x: float64 input.
        rng: source of the upstream gradient, a generator or a seed; by default NumPy's global one.
        h: half the width of the differences.
        tolerance: largest relative error that passes.

    Raises:
        ValueError: ``x`` or a parameter is not float64; ``forward`` or ``backward`` returns nothing
            or modifies its argument; ``backward`` leaves a parameter without its gradient.
    """
    params: dict[str, Array] = getattr(module, "params", {})
    for name, array in {"x": x, **params}.items():
        dtype = getattr(array, "dtype", type(array).__name__)
        if dtype != np.float64:
            raise ValueError(
                f"gradients are checked in float64, {name} is {dtype}; convert it with "
                f"np.asarray({name}, dtype=np.float64)"
            )

    x = np.array(x)  # to be changed an entry at a time, whatever the caller's allows

    def forward(_: Array) -> Array:
        out: Array = copy.deepcopy(module).forward(x.copy())
        return out

    worker = copy.deepcopy(module)
    out = _unmodified(module, "forward", worker.forward, x)
    dout = as_generator(rng).standard_normal(np.shape(out))
    dx = _unmodified(module, "backward", worker.backward, dout)
    grads: dict[str, Array] = getattr(worker, "grads", {})
    for name in params:
        if not isinstance(grads.get(name), np.ndarray):
            raise ValueError(f"{type(module).__name__}.backward left no array in grads[{name!r}]")
    errors = [
        compare_gradients("x", dx, eval_numerical_gradient_array(forward, x, dout, h), tolerance)
    ]
    errors += [
        compare_gradients(
            name, grads[name], eval_numerical_gradient_array(forward, param, dout, h), tolerance
        )
        for name, param in params.items()
    ]
    return GradientReport(tuple(errors))


def _unmodified(module: Any, method: str, call: Callable[[Array], Any], argument: Array) -> Array:
    """Return ``call(argument)``; ValueError where it changes its argument or returns nothing."""
    given = argument.copy()
    result = call(given)
    name = f"{type(module).__name__}.{method}"
    if not isinstance(result, np.ndarray):
        raise ValueError(f"{name} returned {type(result).__name__}; an array is expected")
    if not np.array_equal(given, argument, equal_nan=True):
        raise ValueError(
            f"{name} modified its argument; make a new array instead (no `x *= ...`, no `x[...] =`)"
        )
    return result


@underflow_is_zero
def check_loss_gradient(
    loss: Any, x: Array, y: Array, *, h: float = 1e-5, tolerance: float = 1e-6
) -> GradientReport:
    """Compare ``loss.backward(x, y)`` with central differences of ``loss.forward(x, y)``.

    Args:
        loss: has ``forward(x, y) -> float`` and ``backward(x, y) -> dx``.
        x: float64 predictions.
        y: targets.
        h: half the width of the differences.
        tolerance: largest relative error that passes.
    """
    x = np.array(x)
    numerical = eval_numerical_gradient(lambda x_: loss.forward(x_, y), x, h=h)
    return GradientReport((compare_gradients("x", loss.backward(x, y), numerical, tolerance),))
