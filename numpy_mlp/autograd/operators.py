"""Python's operators on nodes, and the methods that apply an op."""

from __future__ import annotations

from typing import Any, Self


class Operators:
    """What a node inherits: each method applies the op of that name to it."""

    def _apply(self, name: str, *inputs: Any, **constants: Any) -> Self:
        """Apply the op called ``name``; inputs may be nodes, arrays and numbers."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Self:
        return self._apply("Add", self, other)

    def __radd__(self, other: Any) -> Self:
        return self._apply("Add", other, self)

    def __sub__(self, other: Any) -> Self:
        return self._apply("Sub", self, other)

    def __rsub__(self, other: Any) -> Self:
        return self._apply("Sub", other, self)

    def __mul__(self, other: Any) -> Self:
        return self._apply("Multiply", self, other)

    def __rmul__(self, other: Any) -> Self:
        return self._apply("Multiply", other, self)

    def __truediv__(self, other: Any) -> Self:
        return self._apply("Divide", self, other)

    def __rtruediv__(self, other: Any) -> Self:
        return self._apply("Divide", other, self)

    def __neg__(self) -> Self:
        return self._apply("Multiply", self, -1.0)

    def __pow__(self, exponent: float) -> Self:
        return self._apply("Power", self, exponent=float(exponent))

    def __matmul__(self, other: Any) -> Self:
        return self._apply("MatrixMultiply", self, other)

    def __rmatmul__(self, other: Any) -> Self:
        return self._apply("MatrixMultiply", other, self)

    def __getitem__(self, index: Any) -> Self:
        return self._apply("Slice", self, index=index)

    # NumPy must leave ``array + node`` to __radd__ above instead of adding element by element.
    __array_ufunc__ = None

    def matmul(self, other: Self) -> Self:
        """Return the matrix product; (..., N, K) and (..., K, M) -> (..., N, M)."""
        return self._apply("MatrixMultiply", self, other)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Self:
        """Return the sum of all values, or along ``axis``."""
        return self._apply("Sum", self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: int | tuple[int, ...]) -> Self:
        """Return the same values in another shape; one length may be -1."""
        return self._apply("Reshape", self, shape=_flat(shape))

    def transpose(self, *axes: int | tuple[int, ...]) -> Self:
        """Return the dimensions in another order; without ``axes``, reversed."""
        return self._apply("Transpose", self, axes=_flat(axes) or None)

    def squeeze(self, dim: int = 0) -> Self:
        """Return the value without its dimension ``dim``, whose length is 1."""
        return self._apply("Squeeze", self, dim=dim)

    def unsqueeze(self, dim: int = 0) -> Self:
        """Return the value with a dimension of length 1 put in at ``dim``."""
        return self._apply("Unsqueeze", self, dim=dim)


def _flat(numbers: tuple[int | tuple[int, ...], ...]) -> tuple[int, ...]:
    """Return the numbers, given one by one or as one tuple."""
    first = numbers[0] if numbers else ()
    return first if isinstance(first, tuple) else numbers  # type: ignore[return-value]
