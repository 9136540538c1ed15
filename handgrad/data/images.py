"""Images in whatever people have them in, as the pixels that a network was trained on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.dataset import Images
from handgrad.errors import UserError
from handgrad.files import user_path

_EXPECTED = "give pixels of 0 to 255, or of 0 to 1 as floating-point numbers"
_DARK = 16  # no photograph or digit in colours of 0 to 255 is all below; other scales end there
_ROUNDING = 1e-3  # by which resized images, say, may overshoot
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}  # of 8 bits


def as_pixels(images: Any, image_shape: tuple[int, ...]) -> Images:
    """Return images of any usual kind as pixels (N, C, H, W), uint8.

    Args:
        images: one or many, as an array, a tensor, a table, a list, or as Pillow's images and paths
            of pictures. Shapes: (N, C, H, W) or (N, H, W, C); of grey images also (N, H, W), or
            (N, H·W) with each in a row; a single one without N. Values: whole numbers of 0 to 255,
            booleans, or floating-point numbers of 0 to 1, and those of 0 to 255 rounded. Pictures
            are converted to colour or grey, as ``image_shape`` asks.
        image_shape: (C, H, W).

    Raises:
        UserError: layout, scale, size or colours are others, or could be read in two ways.
    """
    if _is_picture(images):
        return _read_picture(images, image_shape)
    if isinstance(images, Iterator):
        images = list(images)
    if isinstance(images, list | tuple):
        if not images:
            return np.empty((0, *image_shape), np.uint8)
        if any(map(_is_picture, images)):
            return np.concatenate([as_pixels(image, image_shape) for image in images])
        arrays = [_as_array(image) for image in images]
        several = not isinstance(images[0], list | tuple)  # a nested list may be a single image
        alike = len({(array.shape, array.dtype) for array in arrays}) == 1
        if arrays[0].ndim > 1 and not alike:
            return np.concatenate([as_pixels(array, image_shape) for array in arrays])
        images = np.stack(arrays)[:, None] if several and arrays[0].ndim == 2 else arrays
    pixels = _as_array(images)
    return _as_uint8(_channels_first(pixels, image_shape))


def _as_array(images: Any) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(images, torch.Tensor):
            images = images.detach().cpu()
            # NumPy knows no bfloat16.
            images = images.float() if images.is_floating_point() else images
        array = np.asarray(images)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the images are no array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"images of {type(images).__name__}, {array.dtype}; {_EXPECTED}")
    return array


def _channels_first(pixels: NDArray[Any], image_shape: tuple[int, ...]) -> NDArray[Any]:
    """Return pixels as (N, C, H, W)."""
    channels, height, width = image_shape
    shape = pixels.shape
    last = (height, width, channels)
    known = _layouts(channels, height, width)
    if shape in known:
        shape = (1, *shape)
    elif channels == 1 and shape in ((3, height, width), (4, height, width)):
        raise UserError(
            f"images of shape {shape} could be {shape[0]} grey ones, or a single one in colour; "
            f"give grey ones as ({shape[0]}, 1, {height}, {width})"
        )
    if shape[1:] not in known:
        raise UserError(_what_is_wrong_with(pixels.shape, image_shape))
    if shape[1:] != last or channels == 1:
        return pixels.reshape(-1 if pixels.size else len(pixels), *image_shape)
    if last == image_shape:
        raise UserError(
            f"images of shape {pixels.shape} could have their channels first or last; give pictures"
        )
    return pixels.reshape(shape).transpose(0, 3, 1, 2)


def _layouts(channels: int, height: int, width: int) -> set[tuple[int, ...]]:
    """Return the shapes that an image may have."""
    found: set[tuple[int, ...]] = {(channels, height, width), (height, width, channels)}
    return found | ({(height, width), (height * width,)} if channels == 1 else set())


def _what_is_wrong_with(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> str:
    channels, height, width = image_shape
    colours = "grey" if channels == 1 else "colour"
    text = (
        f"images of shape {shape}; this network was trained on {colours} images of "
        f"{height}×{width}: expected (N, {channels}, {height}, {width}), "
        f"(N, {height}, {width}, {channels}), or one of them without N"
    )
    if shape[-1:] == (channels * height * width,):
        return f"{text}; pixels in a row do not say whether the channels are first or last"
    others = {1: "grey, 1 channel", 3: "colour, 3 channels", 4: "of 4 channels, RGBA perhaps"}
    for n, what in others.items():
        layouts = _layouts(n, height, width)
        if n != channels and (shape in layouts or shape[1:] in layouts):
            return f"{text}; these are {what}: convert them first"
    return text


def _as_uint8(pixels: NDArray[Any]) -> Images:
    """Return pixels in whole numbers of 0 to 255."""
    if pixels.dtype == bool:
        return pixels * np.uint8(255)
    if not pixels.size:
        return pixels.astype(np.uint8)
    low, high = pixels.min(), pixels.max()
    is_float = pixels.dtype.kind == "f"
    if np.isnan(high):
        raise UserError(f"images with NaN among their pixels; {_EXPECTED}")
    if low < -_ROUNDING:
        raise UserError(
            f"images with pixels of {low:g} to {high:g}, normalised already? {_EXPECTED}: they are "
            f"normalised here as they were for training"
        )
    if high > 255 + _ROUNDING:
        raise UserError(f"images with pixels of up to {high:g}; {_EXPECTED}")
    if is_float and high <= 1 + _ROUNDING:
        pixels = pixels * 255
    elif 0 < high <= _DARK:
        raise UserError(
            f"images with no pixel above {high:g}, where 255 is white: of another scale? "
            f"{_EXPECTED}"
        )
    found: Images = (np.rint(pixels) if is_float else pixels).astype(np.uint8, copy=False)
    return found


def _is_picture(images: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    is_open = pillow is not None and isinstance(images, pillow.Image)
    return is_open or isinstance(images, str | os.PathLike)


def _read_picture(picture: Any, image_shape: tuple[int, ...]) -> Images:
    """Return the pixels (1, C, H, W) of an image of Pillow's, or of one in a file."""
    from PIL import Image

    name = "a picture"
    try:
        if isinstance(picture, Image.Image):
            return _converted(picture, name, image_shape)
        name = str(path := user_path(picture))
        with Image.open(path) as opened:
            return _converted(opened, name, image_shape)
    except UserError:
        raise
    except Exception as error:  # whatever a decoder raises where a file is damaged
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be read as a picture: {reason}") from None


def _converted(picture: Any, name: str, image_shape: tuple[int, ...]) -> Images:
    channels, height, width = image_shape
    if picture.format == "EPS":  # Pillow would let Ghostscript run it
        raise UserError(f"{name} is a PostScript program, no picture; convert it to PNG first")
    if picture.size != (width, height):
        raise UserError(
            f"{name} is {picture.width} wide and {picture.height} high; this network was trained "
            f"on images {width} wide and {height} high: resize it first"
        )
    if picture.mode not in _MODES:
        raise UserError(f"{name} is of Pillow's mode {picture.mode}; convert it to L or RGB first")
    if "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA"):
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{name} is transparent in places; put it on a background first")
    pixels = np.asarray(picture.convert("RGB").convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)
