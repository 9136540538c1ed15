"""Convolution, for every shape that it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from module_proofs import (
    apart,
    assert_close,
    assert_gradients_are_differences,
    run,
    run_in_torch,
    with_random_parameters,
)

from numpy_mlp.modules import Conv2dModule, convolution
from numpy_mlp.modules.convolution import Im2col
from numpy_mlp.modules.window import Window, col2im, im2col
from numpy_mlp.modules.winograd import Winograd
from numpy_mlp.workspace import Workspace

SHAPES: list[tuple[tuple[int, int], dict[str, Any], tuple[int, int]]] = [
    ((in_channels, out_channels), {"kernel_size": kernel, **options}, size)
    for in_channels, out_channels, groups in ((1, 1, 1), (1, 3, 1), (4, 6, 2), (3, 6, 3))
    for kernel, options, size in (
        (1, {}, (3, 4)),
        (3, {"padding": 1}, (5, 4)),
        (3, {"stride": 2, "padding": 1}, (6, 7)),
        (2, {"stride": 3}, (7, 8)),  # pixels that no window sees
        ((3, 2), {"stride": (1, 2), "padding": (2, 1), "dilation": (1, 3)}, (4, 7)),
        ((1, 4), {"padding": (0, 3), "bias": False}, (1, 2)),
        (5, {"padding": 4, "dilation": 2, "stride": 4}, (3, 1)),
    )
    for options in ({**options, "groups": groups},)
]


@pytest.mark.parametrize(("channels", "options", "size"), SHAPES)
def test_every_shape(
    channels: tuple[int, int],
    options: dict[str, Any],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    module = with_random_parameters(Conv2dModule(*channels, **options, rng=rng))
    twin = torch.nn.Conv2d(*channels, **options).double()
    x = apart(rng, 3, channels[0], *size)
    dout = rng.standard_normal(twin(torch.from_numpy(x)).shape)
    assert_close(run(module, x, dout), run_in_torch(twin, module, x, dout), 1e-11)
    if channels == (4, 6):
        assert_gradients_are_differences(module, x[:1], rng)


def test_images_are_taken_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    module = with_random_parameters(Conv2dModule(3, 4, 3, padding=1, rng=rng, algorithm="im2col"))
    x = apart(rng, 7, 3, 5, 6)
    dout = rng.standard_normal((7, 4, 5, 6))
    want, image = run(module, x, dout), 9 * 5 * 6 * 3 * x.itemsize
    for images in (1, 2, 3, 6):
        monkeypatch.setattr(convolution, "_CHUNK_BYTES", images * image)
        assert Im2col(module.window).images_at_once(5, 6, 3 * x.itemsize) == images
        assert_close(run(module, x, dout), want, 1e-12)


def test_patches_are_never_there_for_the_whole_batch(rng: np.random.Generator) -> None:
    module = Conv2dModule(4, 4, 5, padding=2, rng=rng, dtype=np.float32)
    workspace = Workspace()
    x = rng.standard_normal((200, 4, 16, 16)).astype(np.float32)
    with workspace.lent_to([module]):
        module.backward(module.forward(x))
    patches = 25 * x.nbytes
    # y, the caller's images channels-last, dx, and what one chunk needs.
    assert workspace.nbytes < 3 * x.nbytes + 2 * convolution._CHUNK_BYTES < patches


def test_a_gradient_is_no_view_of_memory_that_is_used_again(rng: np.random.Generator) -> None:
    # A channel each: the matrix's entries are in the order of the weight's already.
    modules = [Conv2dModule(4, 4, 3, groups=4, rng=rng) for _ in range(2)]
    x, workspace = apart(rng, 2, 4, 7, 7), Workspace()
    with workspace.lent_to(modules):
        dout = modules[1].forward(modules[0].forward(x))
        dx = modules[1].backward(dout)
        kept = modules[1].grads["weight"].copy()
        modules[0].backward(dx)
        np.testing.assert_array_equal(modules[1].grads["weight"], kept)


@pytest.mark.parametrize("window", [Window((3, 2), (1, 2), (2, 1), (2, 1)), Window((2, 2), (3, 3))])
def test_col2im_is_the_transpose_of_im2col(window: Window, rng: np.random.Generator) -> None:
    """<im2col(x), p> = <x, col2im(p)> for any x and p."""
    x = rng.standard_normal((2, 8, 9, 3))
    p = rng.standard_normal((*window.kernel_size, 2, *Window.output_size(window, 4, 7), 3))
    patches, image = np.empty_like(p), np.empty_like(x)
    im2col(window, x, patches)
    col2im(window, p, image)
    np.testing.assert_allclose((patches * p).sum(), (x * image).sum(), rtol=1e-12)


def test_the_weight_of_a_matrix_is_the_transpose_of_its_matrix(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((3, 3, 2, 6))
    for algorithm in (Im2col(Window((3, 3)), groups=3), Winograd(Window((3, 3)))):
        matrix = algorithm.matrix(weight, lambda name, shape: np.empty(shape))
        parts = [rng.standard_normal(matrix.shape) for _ in range(3)]
        want = (matrix * sum(parts)).sum()
        dweight = np.full_like(weight, np.nan)
        algorithm.weight(parts, dweight)
        np.testing.assert_allclose((dweight * weight).sum(), want, rtol=1e-12)


@pytest.mark.parametrize("frozen", [{"weight"}, {"bias"}, {"weight", "bias"}])
@pytest.mark.parametrize("algorithm", ["im2col", "winograd"])
def test_what_is_frozen_has_no_gradient(
    frozen: set[str], algorithm: str, rng: np.random.Generator
) -> None:
    module = Conv2dModule(2, 3, 3, padding=1, algorithm=algorithm, rng=rng)
    x, dout = apart(rng, 3, 2, 5, 4), rng.standard_normal((3, 3, 5, 4))
    want = run(module, x, dout)
    for grad in module.grads.values():
        grad[...] = 7
    module.frozen = frozenset(frozen)
    got = run(module, x, dout)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], 7 if name in frozen else array)


@pytest.mark.parametrize("algorithm", ["im2col", "winograd"])
def test_a_weight_in_pytorchs_order_is_as_good(algorithm: str, rng: np.random.Generator) -> None:
    module = Conv2dModule(2, 3, 3, padding=1, algorithm=algorithm, rng=rng)
    x, dout = apart(rng, 3, 2, 5, 4), rng.standard_normal((3, 3, 5, 4))
    want = run(module, x, dout)
    module.params["weight"] = np.ascontiguousarray(module.params["weight"])
    assert_close(run(module, x, dout), want, 1e-12)


def test_the_algorithm_follows_the_shape() -> None:
    def chosen(*args: Any, images: int = 100, size: int = 12, **options: Any) -> type:
        module = Conv2dModule(*args, **options)
        module.forward(np.zeros((images, args[0], size, size)))
        return type(module._recall()[1])

    assert chosen(16, 16, 3) is chosen(64, 16, (3, 3), padding=5) is Winograd
    assert chosen(16, 16, 3, images=1) is chosen(16, 16, 3, size=3) is Im2col
    assert chosen(15, 64, 3) is chosen(64, 15, 3) is Im2col  # transforms would cost more
    assert chosen(16, 16, 3, 2) is chosen(16, 16, 3, dilation=2) is Im2col
    assert chosen(16, 16, (3, 2)) is chosen(32, 32, 3, groups=2) is Im2col
    assert chosen(1, 1, 3, algorithm="winograd") is Winograd
    assert chosen(64, 64, 3, algorithm="im2col") is Im2col


def test_initial_weights_keep_the_variance_and_follow_the_generator() -> None:
    def weight(**options: Any) -> np.ndarray:
        rng = np.random.default_rng(5)
        made = Conv2dModule(32, 64, 3, groups=2, rng=rng, **options)
        assert not made.params["bias"].any() and made.params["weight"].shape == (64, 16, 3, 3)
        return made.params["weight"]

    fan_in = 16 * 9
    assert abs(weight().std() / np.sqrt(2 / fan_in) - 1) < 0.03
    np.testing.assert_allclose(weight(gain=1.0), weight() / np.sqrt(2), rtol=1e-12)
    assert abs(weight(weight_std=0.1).std() / 0.1 - 1) < 0.03
    np.testing.assert_array_equal(weight(), weight())


@pytest.mark.parametrize(
    ("args", "options", "named"),
    [
        ((0, 1, 3), {}, "in_channels must be a positive integer, got 0"),
        ((1, 2.0, 3), {}, "out_channels must be a positive integer, got 2.0"),
        ((4, 6, 3), {"groups": 3}, "groups must divide in_channels=4, got 3"),
        ((6, 4, 3), {"groups": 3}, "groups must divide out_channels=4, got 3"),
        ((4, 4, 3), {"groups": 0}, "groups must divide in_channels=4, got 0"),
        ((1, 1, 0), {}, "kernel_size must be a whole number of at least 1"),
        ((1, 1, (3, 3, 3)), {}, r"or two \(rows, columns\), got \(3, 3, 3\)"),
        ((1, 1, "33"), {}, "kernel_size must be a whole number .* got '33'"),
        ((1, 1, 3.0), {}, "kernel_size must be a whole number .* got 3.0"),
        ((1, 1, ()), {}, r"kernel_size must be .* got \(\)"),
        ((1, 1, 3), {"stride": 0}, "stride must be .* at least 1, .* got 0"),
        ((1, 1, 3), {"padding": (1, -1)}, r"padding must be .* at least 0, .* got \(1, -1\)"),
        ((1, 1, 3), {"dilation": (1, 0)}, "dilation must be .* at least 1"),
        ((1, 1, 3), {"dtype": np.int64}, "dtype must be float32 or float64, got int64"),
        ((1, 1, 3), {"weight_std": 0.0}, "weight_std must be positive, got 0.0"),
        ((4, 2, 3), {"groups": 2, "weight": np.ones((2, 4, 3, 3))}, r"expected \(2, 2, 3, 3\)"),
        ((1, 1, 3), {"algorithm": "fft"}, "algorithm must be one of auto, im2col, winograd"),
        ((1, 1, 5), {"algorithm": "winograd"}, "winograd needs a 3×3 kernel"),
        ((2, 2, 3), {"algorithm": "winograd", "groups": 2}, "and one group"),
        ((2, 2, 3), {"algorithm": "winograd", "stride": 2}, "with stride 1"),
    ],
)
def test_what_cannot_be_is_refused(
    args: tuple[Any, ...], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Conv2dModule(*args, **options)


def test_images_that_do_not_fit_are_named() -> None:
    module = Conv2dModule(2, 3, 3, padding=(0, 1), dilation=2)
    with pytest.raises(ValueError, match=r"reaches over 5×5 .* of 4×6 with a padding of 0 and 1"):
        module.forward(np.ones((1, 2, 4, 6)))
    assert module.forward(np.ones((1, 2, 5, 3))).shape == (1, 3, 1, 1)
    for shape in ((1, 3, 8, 8), (2, 8, 8)):
        with pytest.raises(AssertionError, match=r"expected \(N, 2, H, W\)"):
            module.forward(np.ones(shape))
