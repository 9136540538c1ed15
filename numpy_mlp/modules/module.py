"""What every layer has in common: a forward, a backward, a mode and a cache."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numpy_mlp.workspace import Workspace

Array = NDArray[Any]
"""An array of float32 or float64; a shape comment says which axes it has."""

underflow_is_zero = np.errstate(under="ignore")
"""Decorates what computes: a number too small for its type is 0, whatever ``np.seterr`` says."""


class BackwardBeforeForwardError(RuntimeError):
    """``backward`` was called with nothing remembered from a training ``forward`` of its own."""


class Module:
    """A differentiable function ``y = f(x)`` that remembers what its backward pass reads.

    A subclass writes ``forward(x)`` and ``backward(dout) -> dx``, where ``dout`` is ∂L/∂y and
    ``dx`` is ∂L/∂x, of the shapes of ``y`` and ``x``. Neither modifies its argument. What
    ``backward`` needs is handed to :meth:`_remember`, which keeps it in training mode only:
    evaluation costs no memory. A subclass with parameters also sets ``params`` and ``grads``
    (dictionaries with the same keys); ``backward`` writes ``grads`` and never touches ``params``.
    The arrays in ``grads`` stay the same ones, zeros at first: each ``backward`` writes into them.
    What is remembered is not copied: between ``forward`` and ``backward`` the caller leaves x and y
    as they are; and it serves one ``backward``, which forgets it. ``buffers`` holds arrays that are
    part of the state but are not trained.

    Arguments are real numbers of any type, memory order and strides: :func:`as_real` says in which
    type they are computed with.

    Results are new arrays. While a training step lends the layers its :class:`Workspace`, results
    are in that step's arrays, which the next step overwrites, and a layer may write over an
    argument that nobody reads any more: :meth:`_new` and :meth:`_over` give a result its array
    either way.

    Attributes:
        takes_workspace: whether the class may be lent one: it keeps what its ``backward`` reads by
            :meth:`_remember` alone. A class declares it for itself, ``class ReLUModule(Module,
            takes_workspace=True)``, and no subclass inherits it, which may keep other things.
        frozen: names of parameters that training leaves as they are.
    """

    takes_workspace: ClassVar[bool] = False
    frozen: frozenset[str] = frozenset()
    workspace: Workspace | None = None
    params: dict[str, Array]
    grads: dict[str, Array]
    buffers: dict[str, Array]

    def __init_subclass__(cls, *, takes_workspace: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.takes_workspace = takes_workspace
        for name in ("forward", "backward", "backward_parameters"):
            if isinstance(method := vars(cls).get(name), FunctionType):
                setattr(cls, name, underflow_is_zero(method))

    def __init__(self) -> None:
        self.training = True
        self._cache: tuple[Any, ...] | None = None

    def forward(self, x: Array) -> Array:
        """Return ``f(x)``."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x, given ``dout`` = ∂L/∂f(x); parameter gradients go into ``grads``."""
        raise NotImplementedError

    def backward_parameters(self, dout: Array) -> None:
        """Store the parameter gradients; a layer that can leave out ∂L/∂x has its own.

        Enough for the first layer with parameters of a network, whose ∂L/∂x training never reads.
        """
        self.backward(dout)

    def __call__(self, x: Array) -> Array:
        """Return :meth:`forward` of ``x``."""
        return self.forward(x)

    def train(self, mode: bool = True) -> None:
        """Enter training mode (or, with ``mode=False``, evaluation mode)."""
        self.training = mode

    def eval(self) -> None:
        """Enter evaluation mode: nothing is remembered, so ``backward`` is not available."""
        self.train(False)
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forget what the last ``forward`` remembered."""
        self._cache = None

    def modules(self) -> Iterator[Module]:
        """Yield this module, and those that it is made of."""
        yield self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _remember(self, *values: Any) -> None:
        """Keep ``values`` for ``backward``, in training mode."""
        self._cache = values if self.training else None
        if self.workspace is not None and self.training:
            self.workspace.pin(values)

    def _recall(self) -> tuple[Any, ...]:
        """Return what :meth:`_remember` kept, and forget it: it serves one backward pass.

        Raises:
            BackwardBeforeForwardError: nothing is kept.
        """
        values, self._cache = self._cache, None
        if values is None:
            name = type(self).__name__
            raise BackwardBeforeForwardError(
                f"{name}.backward() has nothing to work on: call {name}.forward(x) before each "
                f"backward, in training mode (evaluation mode and clear_cache() forget); a {name} "
                f"used at two places of a network must be two objects"
            )
        return values

    def _real(self, x: Any, name: str = "x") -> Array:
        """Return an argument called ``name`` in the type that it is computed with."""
        if type(x) is np.ndarray and x.dtype in _FLOATS:
            return x
        params = getattr(self, "params", {})
        return as_real(x, f"{type(self).__name__}: {name}", params.get("weight", 0.0))

    def _upstream(self, dout: Any, shape: tuple[int, ...]) -> Array:
        """Return ``dout`` in the type that it is computed with; its shape must be that of y."""
        array = self._real(dout, "dout")
        assert array.shape == shape, (
            f"{type(self).__name__}.backward: dout has shape {array.shape}, "
            f"but forward returned {shape}"
        )
        return array

    def _grad(self, name: str) -> Array:
        """Return the array in ``grads`` that a parameter's gradient is written into."""
        param, grad = self.params[name], self.grads.get(name)
        if grad is None or grad.shape != param.shape:  # a user took it out
            grad = self.grads[name] = np.zeros_like(param)
        return grad

    def _new(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an array to write a result into, its contents undefined."""
        if self.workspace is None:
            return np.empty(shape, dtype)
        return self.workspace.array((id(self), name), shape, dtype)

    def _scratch(self, name: str, lane: int, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an array to work in that is nobody's when this call ends: all layers share it.

        Args:
            name: tells apart those that are needed at once.
            lane: whose it is; see :func:`numpy_mlp.parallel.for_chunks`.
            shape: of the array.
            dtype: of its entries.
        """
        if self.workspace is None:
            return np.empty(shape, dtype)
        return self.workspace.array((name, lane, np.dtype(dtype).char), shape, dtype)

    def _like(self, name: str, x: Array, dtype: DTypeLike | None = None) -> Array:
        """Return such an array of the shape of ``x`` and, for images, its order in memory."""
        dtype = np.result_type(x, 0.0) if dtype is None else dtype
        if x.ndim == 4 and not x.flags.c_contiguous:
            n, channels, height, width = x.shape
            return self._new(name, (n, height, width, channels), dtype).transpose(0, 3, 1, 2)
        return self._new(name, x.shape, dtype)

    def _over(self, name: str, x: Array, *others: Any) -> Array:
        """Return an array to write a result of x's shape into: x itself, if nobody needs it.

        Args:
            name: of the array that is used otherwise.
            x: an argument of the operation.
            others: what else the result's type depends on; at least a floating-point number.
        """
        dtype = np.result_type(x, 0.0, *others)
        if self.workspace is not None and x.dtype == dtype and self.workspace.may_overwrite(x):
            return x
        return self._like(name, x, dtype)

    def _matmul(self, name: str, a: Array, b: Array) -> Array:
        """Return ``a @ b``, (M, K) @ (K, N) -> (M, N), in an array of :meth:`_new`."""
        out = self._new(name, (a.shape[0], b.shape[1]), np.result_type(a, b))
        return np.matmul(a, b, out=out)


def as_real(x: Any, what: str, like: Any = 0.0) -> Array:
    """Return ``x`` as an array in the floating-point type that it is computed with.

    float32 and float64 stay. float16 becomes float32, as its sums would overflow and its
    denominators vanish, or the type of ``like``, if that is larger; whole numbers and booleans take
    a type that holds them and ``like``.

    Raises:
        TypeError: ``x`` holds other things than real numbers; the error begins with ``what``.
    """
    array: Array = np.asarray(x)
    if array.dtype in _FLOATS:
        return array
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{what} holds {array.dtype}, expected real numbers; give floats, "
            f"np.asarray(..., dtype=np.float64)"
        )
    at_least = np.float32 if array.dtype.kind == "f" else array.dtype
    return array.astype(np.result_type(array, at_least, like))


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def check_dtype(dtype: DTypeLike) -> None:
    """Raise ValueError unless ``dtype`` is float32 or float64."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")


def is_parametric(module: Module) -> bool:
    """Say whether ``module`` has parameters (activations have no ``params`` at all)."""
    return hasattr(module, "params")


def is_trained(module: Module) -> bool:
    """Say whether ``module`` has a parameter that training changes."""
    return is_parametric(module) and not module.params.keys() <= module.frozen
