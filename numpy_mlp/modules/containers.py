"""Modules made of modules: a chain, and a chain with a way around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from numpy_mlp.modules.module import Array, Module
from numpy_mlp.parallel import elementwise


class _Container(Module):
    """Modules by name, whose parameters, gradients and buffers are its own: ``name.weight``."""

    children: Mapping[str, Module]

    def modules(self) -> Iterator[Module]:
        """Yield this module and all those in it."""
        yield self
        for child in self.children.values():
            yield from child.modules()

    def _gather(self, kind: str) -> dict[str, Array]:
        return {
            f"{name}.{key}": array
            for name, child in self.children.items()
            for key, array in getattr(child, kind, {}).items()
        }

    @property
    def frozen(self) -> frozenset[str]:  # type: ignore[override]
        """Names of parameters that training leaves as they are: those that the children say."""
        return frozenset(
            f"{name}.{key}" for name, child in self.children.items() for key in child.frozen
        )

    @property
    def params(self) -> dict[str, Array]:  # type: ignore[override]
        """The parameters, by the child's name and their own."""
        return self._gather("params")

    @property
    def grads(self) -> dict[str, Array]:  # type: ignore[override]
        """The gradients, by the names of :attr:`params`."""
        return self._gather("grads")

    @property
    def buffers(self) -> dict[str, Array]:  # type: ignore[override]
        """The buffers, by the child's name and their own."""
        return self._gather("buffers")

    def train(self, mode: bool = True) -> None:
        """Put every child into training mode (or evaluation mode)."""
        super().train(mode)
        for child in self.children.values():
            child.train(mode)

    def clear_cache(self) -> None:
        """Make every child forget its last forward pass."""
        super().clear_cache()
        for child in self.children.values():
            child.clear_cache()


class SequentialModule(_Container, takes_workspace=True):
    """One module after another: ``y = f_k(... f_2(f_1(x)))``.

    Args:
        modules: in the order of the forward pass; called 0, 1, and so on.

    The chain rule, a module at a time: the ``dx`` of one is the ``dout`` of the one before it.
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        self.children = {str(i): module for i, module in enumerate(modules)}

    def forward(self, x: Array) -> Array:
        """Return what the last module makes of it."""
        for child in self.children.values():
            x = child.forward(x)
        return x

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x, from the last module to the first."""
        for child in reversed(list(self.children.values())):
            dout = child.backward(dout)
        return dout

    def __repr__(self) -> str:
        return f"SequentialModule({', '.join(map(repr, self.children.values()))})"


class ResidualModule(_Container, takes_workspace=True):
    """``y = x + residual(x)``: a module, and a way around it.

    Args:
        residual: whose output has the shape of its input.

    x reaches y on two ways, ∂y/∂x = 1 + ∂residual/∂x, so that

        dx = δ + (∂L/∂x through the residual)

    Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016.
    """

    def __init__(self, residual: Module) -> None:
        super().__init__()
        self.children = {"residual": residual}

    def forward(self, x: Array) -> Array:
        """Return ``x + residual(x)``."""
        x = self._real(x)
        # Its first module may write over an array that nobody reads any more; x is read below.
        if self.workspace is not None:
            self.workspace.pin([x])
        return self._sum("y", x, self.children["residual"].forward(x))

    def backward(self, dout: Array) -> Array:
        """Return δ and what comes back through the residual, added up."""
        dout = self._real(dout, "dout")
        if self.workspace is not None:
            self.workspace.pin([dout])
        return self._sum("dx", dout, self.children["residual"].backward(dout))

    def _sum(self, name: str, a: Array, b: Array) -> Array:
        assert a.shape == b.shape, f"the residual turns {a.shape} into {b.shape}"
        total = self._like(name, a, np.result_type(a, b))
        elementwise(lambda a, b, out: np.add(a, b, out=out), a, b, total)
        return total

    def __repr__(self) -> str:
        return f"ResidualModule({self.children['residual']})"
