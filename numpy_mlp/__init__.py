"""Multi-layer perceptrons in NumPy, every backward pass written by hand.

Start reading at :mod:`numpy_mlp.modules.linear`.
"""

from numpy_mlp.mlp import MLP

__all__ = ["MLP"]
