"""Dropout: switch units off at random while training."""

from __future__ import annotations

import numpy as np

from numpy_mlp.modules.module import Array, Module
from numpy_mlp.randomness import Source, as_generator


class DropoutModule(Module, takes_workspace=True):
    """Inverted dropout: in training ``y = x · m / (1 - p)`` with m[i] = 0 with probability p.

    Dividing by 1 - p keeps the expectation, E[y] = x, so that evaluation is the identity.

    Args:
        p: probability that an entry is zeroed, 0 ≤ p < 1.
        rng: source of the masks, a generator or a seed; by default NumPy's global one seeds a new
            one.

    Shapes: any; ``x``, ``y``, ``dout`` and ``dx`` have the same.

    Raises:
        ValueError: ``p`` is outside [0, 1).

    Source: Srivastava et al., *Dropout*, JMLR 15, 2014.
    """

    def __init__(self, p: float = 0.5, *, rng: Source = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1), got {p!r}")
        self.p = p
        self.rng = as_generator(rng)

    def forward(self, x: Array) -> Array:
        """Return ``x`` with a share p of its entries zeroed and the others scaled up."""
        x = self._real(x)
        if not self.training:
            return x.copy() if self.workspace is None else x
        # float32 numbers decide for either dtype: half the random bits, and the same masks.
        random = self._new("random", x.shape, np.float32)
        self.rng.random(out=random, dtype=np.float32)
        scale = self._new("scale", x.shape, np.result_type(x, 0.0))
        np.multiply(random >= self.p, 1 / (1 - self.p), out=scale)
        self._remember(scale)
        y: Array = np.multiply(x, scale, out=self._over("y", x))
        return y

    def backward(self, dout: Array) -> Array:
        """Return ∂L/∂x: y[i] = x[i] · scale[i]  ⇒  dx = dout * scale, with the same mask."""
        (scale,) = self._recall()
        dout = self._upstream(dout, scale.shape)
        dx: Array = np.multiply(dout, scale, out=self._over("dx", dout, scale))
        return dx

    def __repr__(self) -> str:
        return f"DropoutModule(p={self.p})"
