"""The operations: what each computes, and what its backward pass is.

In every ``backward``, ``go`` is ∂L/∂output; the formula above it is the chain rule for one element.
Elementwise ops broadcast as NumPy does and leave it to the engine to sum their gradients back to
the shapes that went in. docs/derivations.md derives them a line at a time.
"""

from numpy_mlp.autograd.core import OPS
from numpy_mlp.autograd.ops import elementwise, images, matrices, shapes
from numpy_mlp.autograd.ops.elementwise import *  # noqa: F403
from numpy_mlp.autograd.ops.images import *  # noqa: F403
from numpy_mlp.autograd.ops.matrices import *  # noqa: F403
from numpy_mlp.autograd.ops.shapes import *  # noqa: F403

__all__ = [*elementwise.__all__, *images.__all__, *matrices.__all__, *shapes.__all__]

OPS.update({name: globals()[name] for name in __all__})
