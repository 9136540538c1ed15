"""Convolution and pooling: what is given back, where to, and how it adds up.

The backward pass of a window has three parts: what each place gives back to the entries that it
sees, where those are, and how what comes back from several places is put together. A mistake is one
part exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from handgrad.checker.mistakes.look import Look, Rows, same
from handgrad.checker.mistakes.windows import Sliding, Window, channels, find, one_of, whole
from handgrad.checker.subject import Array

# As rows, but with the gradient of images, or of a weight, in our order of axes.
_Rows = Iterator[tuple[str, str, Array]]

_OVERLAP = "where windows overlap, their gradients have to add up (+=, or np.add.at); the last "
_OVERLAP += "one written (=) is all that is left"
_GROUPS = "the groups are mixed up: each filter has the channels of another group"
_AXES = "axes are exchanged by a reshape where a transpose is needed: channels, rows and columns "
_AXES += "of {} do not stand where they are taken to be"
_MIXED = ("filters", "channels", "rolled", "first")


def windows(look: Look) -> Rows:
    """Of a convolution or a pooling: which part of its backward pass is another?"""
    sliding = find(look)
    if sliding is None:
        return
    if look.name == look.subject.inputs[0]:
        for kind, text, padded in _of_input(sliding):
            cut = padded if padded.shape == sliding.x.shape else sliding.window.inside(padded)
            yield kind, text, _back(cut, sliding.last)
        yield from _of_padding(sliding)
    elif look.name == sliding.name:
        for kind, text, dweight in _of_weight(sliding):
            yield kind, text, dweight.transpose(np.argsort(sliding.order))
    elif sliding.weight is not None and look.x.size == sliding.dout.shape[1]:
        yield from _of_bias(look)


def _back(images: Array, last: bool) -> Array:
    return images.transpose(0, 2, 3, 1) if last else images


def right(look: Look) -> Array | None:
    """Return the gradient of a convolution's weight, or of images, as we compute it; or None."""
    sliding = find(look)
    if sliding is not None and look.name == look.subject.inputs[0]:
        window = sliding.window
        dx = window.inside(window.spread(_given(sliding), window.places))
        return _back(dx, sliding.last)
    if sliding is not None and look.name == sliding.name:
        return _dweight(sliding).transpose(np.argsort(sliding.order))
    return None


def _given(sliding: Sliding, weight: Array | None = None, dout: Array | None = None) -> Array:
    """Return what each place gives back, (N, C, kH·kW, OH·OW)."""
    dout = sliding.dout if dout is None else dout
    if sliding.share is not None:
        return sliding.share * dout[:, :, None]
    assert sliding.weight is not None
    full = whole(sliding.weight, sliding.x.shape[1]) if weight is None else weight
    given: Array = np.einsum("ock,nop->nckp", full, dout)
    return given


def _exchanged(images: Array) -> Iterator[Array]:
    """Yield images whose axes are taken for others: reshaped to another order, and transposed."""
    for order in itertools.permutations(range(images.ndim)):
        shape = [images.shape[axis] for axis in order]
        yield images.reshape(shape).transpose(np.argsort(order))
        yield images.transpose(order).reshape(images.shape)


def _other_windows(window: Window) -> Iterator[tuple[str, str, Window]]:
    """Yield windows that forget something."""
    if window.stride > 1:
        text = f"the stride of {window.stride} is forgotten: the window moves on by 1"
        yield "stride-forgotten", text, replace(window, stride=1)
    if window.dilation > 1:
        text = f"the dilation of {window.dilation} is forgotten: the kernel's entries are taken to "
        yield "dilation-forgotten", f"{text}be neighbours", replace(window, dilation=1)


def _of_input(sliding: Sliding) -> _Rows:
    """Yield gradients of the padded images."""
    window, given = sliding.window, _given(sliding)
    for dpatches in (given, _given(_last_filter(sliding))):
        for padded in window.overwritten(dpatches):
            yield "overlap-overwritten", _OVERLAP, padded
    parts = _kernels(sliding) if sliding.share is None else _shares(sliding)
    for kind, text, dpatches in parts:
        yield kind, text, window.spread(dpatches, window.places)
    for kind, text, other in _other_windows(window):
        yield kind, text, other.spread(given, window.places)
    shape = (*sliding.dout.shape[:2], *window.places)
    for dout in _exchanged(sliding.dout.reshape(shape)):
        dpatches = _given(sliding, dout=dout.reshape(sliding.dout.shape))
        yield "axes-exchanged", _AXES.format("dout"), window.spread(dpatches, window.places)
    for dx in _exchanged(window.inside(window.spread(given, window.places))):
        yield "axes-exchanged", _AXES.format("dx"), dx


def _last_filter(sliding: Sliding) -> Sliding:
    """Return it with the upstream gradient of its last filter alone, which a loop ends with."""
    dout = np.zeros_like(sliding.dout)
    dout[:, -1] = sliding.dout[:, -1]
    return sliding if sliding.share is not None else replace(sliding, dout=dout)


def _of_padding(sliding: Sliding) -> Rows:
    window = sliding.window
    p = window.padding
    padded = window.spread(_given(sliding), window.places)
    text = f"the padding of {p} is forgotten: "
    whole_text = f"{text}the gradient is that of the padded images, whose edges are to be cut off"
    yield "padding-forgotten", whole_text, _back(padded, sliding.last)
    for corner in (0, 2 * p):
        cut = window.inside(padded, corner)
        yield "padding-forgotten", f"{text}dx is moved by it", _back(cut, sliding.last)


def _kernels(sliding: Sliding) -> _Rows:
    """Yield what the places give back with another kernel."""
    weight, n_in = sliding.weight, sliding.x.shape[1]
    assert weight is not None
    n_out, depth, *kernel = weight.shape
    others = [("flipped-kernel", "turned around, which it is not to be", weight[..., ::-1, ::-1])]
    if kernel[0] == kernel[1]:
        text = "transposed: its rows and columns are exchanged"
        others.append(("transposed-kernel", text, weight.swapaxes(2, 3)))
    text = "taken with in and out channels exchanged"
    exchanged = [weight.reshape(depth, n_out, *kernel).swapaxes(0, 1)]
    exchanged += [weight.swapaxes(0, 1).reshape(weight.shape)]
    others += [("channels-exchanged", text, other) for other in exchanged]
    text = "taken with channels and places exchanged, by a reshape where a transpose is needed"
    for order in itertools.permutations(range(1, 4)):
        shape = [weight.shape[axis] for axis in order]
        back = np.argsort(order) + 1
        exchanged = [weight.reshape(n_out, *shape).transpose(0, *back)]
        exchanged += [weight.transpose(0, *order).reshape(weight.shape)]
        others += [("channels-exchanged", text, other) for other in exchanged]
    for kind, text, other in others:
        yield kind, f"the kernel is {text}", _given(sliding, whole(other, n_in))
    for mixed in _MIXED if depth < n_in else ():
        yield "groups-mixed", _GROUPS, _given(sliding, whole(weight, n_in, mixed))


def _shares(sliding: Sliding) -> _Rows:
    """Yield what the places of a pooling give back if it goes to other entries."""
    window, dout, share = sliding.window, sliding.dout[:, :, None], sliding.share
    assert share is not None
    patches = window.patches(sliding.x, window.places)
    text = "the gradient of a window goes to {}, not to the entry that was the largest"
    if not np.isin(share, (0.0, 1.0)).all():
        text = "the gradient of a window goes to {}, not to each of its entries"
    places, size = patches.shape[:2] + patches.shape[3:], patches.shape[2]
    for what, which in {
        "its first entry": np.zeros(places),
        "its last entry": np.full(places, size - 1),
        "the smallest entry": patches.argmin(axis=2),
        "the largest entry": patches.argmax(axis=2),
        "the entry of the largest size": np.abs(patches).argmax(axis=2),
    }.items():
        yield "wrong-entry", text.format(what), one_of(window, which) * dout
    yield "missing-mask", text.format("all of its entries"), np.ones_like(share) * dout
    turned = share.reshape(*share.shape[:2], *window.kernel, -1).swapaxes(2, 3)
    text = "rows and columns within the window are exchanged"
    yield "transposed-kernel", text, turned.reshape(share.shape) * dout
    real = window.patches(np.ones(sliding.x.shape), window.places)
    text = "divided by the number of entries within the image, where forward divides by kH · kW"
    counted = real / np.maximum(real.sum(axis=2, keepdims=True), 1)
    if same(share, counted):
        text = "divided by kH · kW, where forward divides by the number of entries within the image"
        counted = real / share.shape[2]
    yield "wrong-count", text, counted * dout


def _dweight(sliding: Sliding, mixed: str = "", **other: Array) -> Array:
    """Return the gradient of the weight, (O, C/groups, kH, kW)."""
    window, weight = sliding.window, sliding.weight
    assert weight is not None
    n_out, depth = weight.shape[:2]
    patches = other["patches"] if "patches" in other else window.patches(sliding.x, window.places)
    full = np.einsum("nop,nckp->ock", other.get("dout", sliding.dout), patches)
    at = channels(n_out, depth, sliding.x.shape[1], mixed)
    dweight: Array = full[np.arange(n_out)[:, None], at].reshape(weight.shape)
    return dweight


def _of_weight(sliding: Sliding) -> _Rows:
    window, right = sliding.window, _dweight(sliding)
    depth, *kernel = right.shape[1:]
    yield "flipped-kernel", "the gradient of the kernel is turned around", right[..., ::-1, ::-1]
    if kernel[0] == kernel[1]:
        text = "the gradient of the kernel is transposed: rows and columns are exchanged"
        yield "transposed-kernel", text, right.swapaxes(2, 3)
    text = "in and out channels, or the places of the kernel, are exchanged by a reshape"
    for other in _exchanged(right):
        yield "channels-exchanged", text, other
    if window.padding:
        text = f"the padding of {window.padding} is forgotten: windows begin in the image's corner"
        x = np.pad(sliding.x, [(0, 0), (0, 0), *[(0, 2 * window.padding)] * 2])
        bare = Window(x.shape, window.kernel, window.stride, 0, window.dilation)
        dweight = _dweight(sliding, patches=bare.patches(x, window.places))
        yield "padding-forgotten", text, dweight
    for kind, text, moved in _other_windows(window):
        yield kind, text, _dweight(sliding, patches=moved.patches(sliding.x, window.places))
    shape = (*sliding.dout.shape[:2], *window.places)
    for dout in _exchanged(sliding.dout.reshape(shape)):
        dweight = _dweight(sliding, dout=dout.reshape(sliding.dout.shape))
        yield "axes-exchanged", _AXES.format("dout"), dweight
    for x in _exchanged(sliding.x):
        dweight = _dweight(sliding, patches=window.patches(x, window.places))
        yield "axes-exchanged", _AXES.format("x"), dweight
    for mixed in _MIXED if depth < sliding.x.shape[1] else ():
        yield "groups-mixed", _GROUPS, _dweight(sliding, mixed)
    yield from _one_of_many(sliding)


def _one_of_many(sliding: Sliding) -> _Rows:
    """Yield gradients of the weight where what should be added up is not."""
    every = slice(None)
    for index, which in ((0, "first"), (-1, "last")):
        for here, what in (
            ((index,), "image"),
            ((every, every, index), "place"),
            ((index, every, index), "place of an image"),
        ):
            dout = np.zeros_like(sliding.dout)
            dout[here] = sliding.dout[here]
            text = f"only the {which} {what} counts: the others are to be added (+=)"
            yield "missing-batch-sum", text, _dweight(sliding, dout=dout)


def _of_bias(look: Look) -> Rows:
    axes = range(look.dout.ndim)
    for count in axes[-2:]:  # all, or all but one; where more are left a sum is missing
        for chosen in itertools.combinations(axes, count + 1):
            total = look.dout.sum(axis=chosen)
            text = f"dout is summed over its axes {chosen}, where all but the channels are meant"
            yield "wrong-sum-axis", text, total
