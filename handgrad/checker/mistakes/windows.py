"""Windows that slide over images: which convolution, or which pooling, a layer is.

That is found by trying: a forward pass of ours, with some kernel, stride, padding, dilation and
groups, has to give the output that was seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from handgrad.checker.mistakes.look import Look
from handgrad.checker.subject import Array

_LAST = (0, 3, 1, 2)  # channels last, as channels first
# A weight as (out, in, rows, columns), from PyTorch's order, Keras's and that of the transposed.
_WEIGHTS = ((0, 1, 2, 3), (3, 2, 0, 1), (1, 0, 2, 3), (0, 3, 1, 2))


@dataclass(frozen=True)
class Window:
    """A window on images (N, C, H, W)."""

    shape: tuple[int, ...]  # of the images
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def places(self) -> tuple[int, ...]:
        """At how many places it stops, along rows and columns."""
        return tuple(
            (n + 2 * self.padding - self.dilation * (k - 1) - 1) // self.stride + 1
            for n, k in zip(self.shape[2:], self.kernel, strict=True)
        )

    @property
    def padded(self) -> tuple[int, ...]:
        """The shape of the images with their padding."""
        return (*self.shape[:2], *(n + 2 * self.padding for n in self.shape[2:]))

    def seen(self, places: tuple[int, ...]) -> Array:
        """Return where in a padded channel the entries are that it sees, (kH·kW, OH·OW)."""
        rows, columns = (
            np.add.outer(self.dilation * np.arange(k), self.stride * np.arange(n))
            for k, n in zip(self.kernel, places, strict=True)
        )
        at: Array = rows[:, None, :, None] * self.padded[3] + columns[None, :, None, :]
        return at.reshape(int(np.prod(self.kernel)), -1)

    def patches(self, x: Array, places: tuple[int, ...], value: float = 0.0) -> Array:
        """Return what it sees, (N, C, kH·kW, OH·OW)."""
        around = [(0, 0), (0, 0), *[(self.padding, self.padding)] * 2]
        padded = np.pad(x, around, constant_values=value).reshape(*x.shape[:2], -1)
        found: Array = padded[:, :, self.seen(places)]
        return found

    def spread(self, dpatches: Array, places: tuple[int, ...]) -> Array:
        """Return the gradient of the padded images: what overlaps adds up."""
        flat = np.zeros((*self.shape[:2], int(np.prod(self.padded[2:]))))
        by_entry = flat.transpose(2, 0, 1)  # a view
        np.add.at(by_entry, self.seen(places), dpatches.transpose(2, 3, 0, 1))
        return flat.reshape(self.padded)

    def overwritten(self, dpatches: Array) -> Iterator[Array]:
        """Yield the same where of what overlaps the last stays, in some order of writing."""
        seen = self.seen(self.places)
        for by_place, whole in itertools.product((False, True), repeat=2):
            at, values = (seen.T, dpatches.swapaxes(2, 3)) if by_place else (seen, dpatches)
            flat = np.zeros((*self.shape[:2], int(np.prod(self.padded[2:]))))
            for n, c in np.ndindex(self.shape[:2]):
                here = (values[n, c] != 0) | whole  # only what won, or all that the window sees
                flat[n, c][at[here]] = values[n, c][here]
            yield flat.reshape(self.padded)

    def inside(self, padded: Array, corner: int | None = None) -> Array:
        """Return images without their padding, cut out where they are, or elsewhere."""
        at = self.padding if corner is None else corner
        return padded[:, :, at : at + self.shape[2], at : at + self.shape[3]]


@dataclass(frozen=True)
class Sliding:
    """A layer that was found to be a convolution or a pooling; all of it with channels first.

    Attributes:
        window: of it.
        x: the images.
        dout: the upstream gradient, (N, O, OH·OW).
        last: whether the layer itself has its channels last.
        share: of a pooling, what part of its gradient a place gives each entry, (N, C, kH·kW,
            OH·OW); None of a convolution.
        weight: of a convolution, (O, C/groups, kH, kW).
        order: of the axes of its weight in the layer.
        name: of that variable.
    """

    window: Window
    x: Array
    dout: Array
    last: bool
    share: Array | None = None
    weight: Array | None = None
    order: tuple[int, ...] = ()
    name: str = ""

    @property
    def kernel(self) -> dict[str, float]:
        """The number of entries that it sees, by its name."""
        whole = self.window.kernel == self.window.shape[2:]
        return {"H · W" if whole else "kH · kW": float(np.prod(self.window.kernel))}


def find(look: Look) -> Sliding | None:
    """Return what a layer of images is, if it is a convolution or a pooling."""
    x, y, dout = look.case.variables[look.subject.inputs[0]], look.y, look.dout
    if x.ndim != 4 or y.ndim not in (2, 4) or len(look.case.douts) > 1:
        return None
    for last in (False, True):
        images = x.transpose(_LAST) if last else x
        if y.ndim == 2:  # of a global pooling
            out, upstream = y[:, :, None, None], dout[:, :, None, None]
        else:
            out, upstream = (v.transpose(_LAST) if last else v for v in (y, dout))
        if len(out) == len(images):
            flat = upstream.reshape(*upstream.shape[:2], -1)
            for found in (_convolutions, _poolings):
                for sliding in found(images, out, look):
                    return replace(sliding, dout=flat, last=last)
    return None


def _windows(x: Array, y: Array, kernel: tuple[int, ...], dilations: int) -> Iterator[Window]:
    """Yield the windows that give an output of this size."""
    paddings = range(max(kernel))
    for padding, stride, dilation in itertools.product(paddings, range(1, 5), range(1, dilations)):
        window = Window(x.shape, kernel, stride, padding, dilation)
        if window.places == y.shape[2:]:
            yield window


def _agree(a: Array, b: Array) -> bool:
    return bool(np.abs(a - b).max() < 1e-9 * (np.abs(b).max() + 1e-9))


def _convolutions(x: Array, y: Array, look: Look) -> Iterator[Sliding]:
    for (name, value), order in itertools.product(look.case.variables.items(), _WEIGHTS):
        if value.ndim != 4 or name == look.subject.inputs[0]:
            continue
        weight = value.transpose(order)
        n_out, depth, *kernel = weight.shape
        groups = max(1, x.shape[1] // depth)
        if n_out != y.shape[1] or depth * groups != x.shape[1] or n_out % groups:
            continue
        for window in _windows(x, y, tuple(kernel), 4):
            patches = window.patches(x, window.places)
            out = np.einsum("ock,nckp->nop", whole(weight, x.shape[1]), patches).reshape(y.shape)
            bias = (y - out).mean(axis=(0, 2, 3), keepdims=True)
            if _agree(out + bias, y):
                yield Sliding(window, x, y, False, None, weight, order, name)


def _poolings(x: Array, y: Array, look: Look) -> Iterator[Sliding]:
    if x.shape[:2] != y.shape[:2] or len(look.case.variables) > 1:
        return
    kernels = itertools.product(range(1, x.shape[2] + 1), range(1, x.shape[3] + 1))
    for kernel in list(kernels)[1:]:
        for window in _windows(x, y, kernel, 2):
            real = window.patches(np.ones(x.shape), window.places)
            patches = window.patches(x, window.places)
            count = np.maximum(real.sum(axis=2, keepdims=True), 1)
            for share in (1 / np.prod(kernel) + 0 * real, real / count):
                if _agree((patches * share).sum(axis=2).reshape(y.shape), y):
                    yield Sliding(window, x, y, False, share)
            for outside in (-np.inf, 0.0):
                patches = window.patches(x, window.places, outside)
                if _agree(patches.max(axis=2).reshape(y.shape), y):
                    share = one_of(window, patches.argmax(axis=2))
                    yield Sliding(window, x, y, False, share)


def one_of(window: Window, which: Array) -> Array:
    """Return 1 for the entry of each place that is meant, and 0 for the others, (N, C, K, P)."""
    entries = np.arange(int(np.prod(window.kernel)))
    chosen: Array = entries[:, None] == which[:, :, None]
    return chosen.astype(float)


def channels(n_out: int, depth: int, n_in: int, mixed: str = "") -> Array:
    """Return which channels each filter sees, (O, C/groups): those of its group, or others."""
    groups, number = n_in // depth, np.arange(n_out)
    group = number // (n_out // groups)
    if mixed == "filters":
        group = number % groups
    elif mixed == "rolled":
        group = (group + 1) % groups
    elif mixed == "first":
        group = 0 * group
    apart, first = (groups, group) if mixed == "channels" else (1, group * depth)
    seen: Array = first[:, None] + apart * np.arange(depth)
    return seen


def whole(weight: Array, n_in: int, mixed: str = "") -> Array:
    """Return a weight without groups, (O, C, kH·kW): zeros for what a filter does not see."""
    n_out, depth, *kernel = weight.shape
    full = np.zeros((n_out, n_in, int(np.prod(kernel))))
    at = channels(n_out, depth, n_in, mixed)
    full[np.arange(n_out)[:, None], at] = weight.reshape(n_out, depth, -1)
    return full
