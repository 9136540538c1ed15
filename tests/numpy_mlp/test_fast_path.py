"""The fast network on Winograd's algorithm and on im2col: the same numbers, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numpy_mlp.convnet import ConvNet, fast, whitening_filters
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import Conv2dModule
from numpy_mlp.modules.winograd import Winograd
from numpy_mlp.muon import Muon
from numpy_mlp.parallel import get_num_threads, set_num_threads

IMAGES, WIDTHS = (3, 26, 26), (16, 24, 24)


def _network(algorithm: str, dtype: Any, widths: tuple[int, ...] = WIDTHS) -> ConvNet:
    model = fast(IMAGES, 4, widths=widths, dtype=dtype, rng=np.random.default_rng(2))
    for layer in model.modules():
        if isinstance(layer, Conv2dModule) and Winograd.fits(layer.window):
            layer.algorithm = algorithm
    # As in training: a random first layer saturates GELU, and zeros are ties of max-pooling.
    images = np.concatenate([x for x, _ in _batches(16, dtype)])
    model.params["features.0.weight"][...] = whitening_filters(images)
    return model


def _learner(model: ConvNet) -> NumpyLearner:
    # Decay and rates as the recipe has them: the filters' norm is fixed, the others are slow.
    optimizer = Muon(model.trained_parameters(), 0.02, rest_lr=0.01, weight_decay=1e-3)
    return NumpyLearner(model, optimizer, label_smoothing=0.2)


def _batches(n: int, dtype: Any) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(4)
    means = rng.standard_normal((4, *IMAGES))
    batches = []
    for _ in range(n):
        y = rng.integers(0, 4, 8)
        noise = rng.standard_normal((8, *IMAGES))
        batches.append(((means[y] + noise).astype(dtype), y))
    return batches


def _apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest ‖a - b‖ / ‖b‖ of all arrays."""
    return max(float(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k])) for k in b if b[k].any())


@pytest.mark.parametrize(
    ("dtype", "steps", "rtol"), [("float32", 100, 1e-4), ("float64", 5, 1e-10)]
)
def test_winograd_is_im2col_at_every_step_of_training(dtype: str, steps: int, rtol: float) -> None:
    """Loss and gradients at the same weights, all along the way that im2col takes.

    Left alone, the two part in float32 as any two roundings do: training is chaotic, and after a
    hundred steps of this network the losses are 2 % apart. And where two entries of a max-pooling
    window are equal but for rounding, the gradient goes to either: such steps are the exception.
    """
    plain, quick = (_learner(_network(algorithm, dtype)) for algorithm in ("im2col", "winograd"))
    losses, apart = [], []
    for x, y in _batches(steps, dtype):
        quick.model.load_state_dict(plain.model.state_dict())
        want, got = (learner.train_step(x, y, 0.02)[0] for learner in (plain, quick))
        assert got == pytest.approx(want, rel=rtol)
        apart.append(_apart(quick.model.grads, plain.model.grads))
        losses.append(want)
    assert np.quantile(apart, 0.95) < rtol
    assert steps < 100 or np.mean(losses[-10:]) < 0.5 * losses[0]  # it does learn


def test_the_fast_network_chooses_winograd() -> None:
    model, want = fast((3, 32, 32), 10, dtype=np.float32), []
    for layer in model.modules():
        if isinstance(layer, Conv2dModule):
            want.append(layer.window.kernel_size == (3, 3))
            side = (31, 15, 7, 3)[max(0, len(want) - 1) // 2]
            assert isinstance(layer._algorithm(500, (side, side)), Winograd) is want[-1]
    assert sum(want) == 6


def test_a_batch_of_500_needs_less_than_a_gibibyte_and_a_half() -> None:
    """What grows with the batch, and what all batches need, from two smaller ones."""
    rng, threads = np.random.default_rng(0), get_num_threads()
    learner = _learner(fast((3, 32, 32), 10, dtype=np.float32, rng=rng))
    small, large = 140, 148  # of which two threads fill their arrays for chunks
    try:
        set_num_threads(2)
        needed = []
        for n in (small, large):
            images = rng.standard_normal((n, 3, 32, 32), dtype=np.float32)
            learner.train_step(images, rng.integers(0, 10, n), 0.02)
            needed.append(learner.workspace.nbytes)
    finally:
        set_num_threads(threads)
    per_image = (needed[1] - needed[0]) / (large - small)
    assert per_image < 2.3 * 2**20
    assert needed[0] + (500 - small) * per_image < 1.3 * 2**30  # the rest is the interpreter's
