"""What people have images in: each reads as the pixels it came from, or says why not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handgrad.data.images import as_pixels
from handgrad.errors import UserError

GREY, COLOUR = (1, 6, 5), (3, 6, 5)


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (4, *GREY), dtype=np.uint8)


@pytest.fixture
def colour(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (4, *COLOUR), dtype=np.uint8)


def bfloat16(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x).to(torch.bfloat16)


def table(x: np.ndarray) -> Any:
    class Table:  # as pandas' DataFrame has it
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return x.reshape(len(x), -1).astype(np.int64)

    return Table()


def trained_tensor(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x / np.float32(255)).requires_grad_()


ANY: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
    "Fortran": np.asfortranarray,
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.uint8).reshape(x.shape),
    "int64": lambda x: x.astype(np.int64),
    "uint16, other bytes": lambda x: x.astype(">u2"),
    "float64 of 0 to 1": lambda x: x / 255,
    "float32 of 0 to 1": lambda x: x / np.float32(255),
    "float16 of 0 to 1": lambda x: (x / 255).astype(np.float16),
    "float of 0 to 255": lambda x: x.astype(np.float32),
    "float of 0 to 255, resized": lambda x: np.clip(x + 0.3, 0, 255),
    "float of 0 to 1, resized": lambda x: x / 255 * (1 + 2e-4) - 1e-4,
    "list": list,
    "iterator": iter,
    "tuple, channels last": lambda x: tuple(x.transpose(0, 2, 3, 1)),
    "nested lists": lambda x: x.tolist(),
    "list of types and layouts": lambda x: [x[0], x[1] / 255, x[2].transpose(1, 2, 0), x[3:]],
    "tensor that is trained": trained_tensor,
    "list of tensors": lambda x: list(trained_tensor(x)),
}


@pytest.mark.parametrize("form", ANY)
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_many_images(form: str, name: str, request: pytest.FixtureRequest) -> None:
    pixels = request.getfixturevalue(name)
    found = as_pixels(ANY[form](pixels), pixels.shape[1:])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_bfloat16_is_as_near_as_it_can_be(colour: np.ndarray) -> None:
    found = as_pixels(bfloat16(colour / 255), COLOUR)
    np.testing.assert_allclose(found, colour.astype(float), atol=1)


@pytest.mark.parametrize(
    "form", [lambda x: x[:, 0], lambda x: x.reshape(len(x), -1), table, lambda x: list(x[:, 0])]
)
def test_grey_images_need_no_channel(form: Any, grey: np.ndarray) -> None:
    grey = np.concatenate([grey, grey[:1]])
    np.testing.assert_array_equal(as_pixels(form(grey), GREY), grey)


def test_a_list_says_how_many_there_are(grey: np.ndarray) -> None:
    np.testing.assert_array_equal(as_pixels(list(grey[:3, 0]), GREY), grey[:3])


def test_one_image(grey: np.ndarray, colour: np.ndarray) -> None:
    for image in (grey[0], grey[0, 0], grey[0].ravel(), grey[0].transpose(1, 2, 0)):
        np.testing.assert_array_equal(as_pixels(image, GREY), grey[:1])
    for image in (colour[0], colour[0].transpose(1, 2, 0), colour[0].tolist()):
        np.testing.assert_array_equal(as_pixels(image, COLOUR), colour[:1])


def test_true_is_white(grey: np.ndarray) -> None:
    found = as_pixels(grey > 127, GREY)
    np.testing.assert_array_equal(found, np.where(grey > 127, 255, 0))


def test_black_is_black_at_any_scale() -> None:
    for dtype in (np.uint8, np.float32, bool, np.int64):
        assert not as_pixels(np.zeros((2, *GREY), dtype), GREY).any()


def test_no_images() -> None:
    for none in ([], np.zeros((0, *GREY), np.uint8), np.zeros((0, 6, 5)), np.zeros((0, 6, 5, 1))):
        assert as_pixels(none, GREY).shape == (0, *GREY)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x / 127.5 - 1, r"pixels of -1 to 1, normalised already\? give pixels of 0 to"),
        (lambda x: x.astype(int) - 200, "pixels of -200 to 55, normalised already"),
        (lambda x: x.astype(np.uint16) * 257, "pixels of up to 65535; give pixels of 0 to 255"),
        (lambda x: np.where(x == 255, np.nan, x), "NaN among their pixels"),
        (lambda x: np.where(x == 255, np.inf, x), "pixels of up to inf"),
        (lambda x: (x > 127).astype(np.uint8), "no pixel above 1, where 255 is white"),
        (lambda x: np.rint(x / 255 * 16), "no pixel above 16, where 255 is white: of another"),
        (lambda x: x / 128, "no pixel above 1.99219, where 255 is white"),
        (lambda x: x.astype(complex), "images of ndarray, complex128; give pixels"),
        (lambda x: x.astype(object), "images of ndarray, object"),
        (lambda x: {"images": x}, "images of dict, object"),
        (lambda x: None, "images of NoneType, object"),
    ],
)
def test_other_scales_are_refused(change: Any, told: str, grey: np.ndarray) -> None:
    grey[0, 0, 0, :2] = 0, 255
    with pytest.raises(UserError, match=told):
        as_pixels(change(grey), GREY)


@pytest.mark.parametrize(
    ("shape", "image_shape", "told"),
    [
        ((3, 32, 3), (3, 32, 32), r"shape \(3, 32, 3\); this network was trained on colour im"),
        ((32, 32, 32), (3, 32, 32), r"of 32×32: expected \(N, 3, 32, 32\), \(N, 32, 32, 3\), or"),
        ((2, 32, 32, 4), (3, 32, 32), "these are of 4 channels, RGBA perhaps: convert them first"),
        ((32, 32, 4), (3, 32, 32), "these are of 4 channels"),
        ((3, 28, 28), (1, 28, 28), r"be 3 grey ones, or a single one in colour; .* \(3, 1, 28"),
        ((32, 32), (3, 32, 32), "these are grey, 1 channel: convert them first"),
        ((7, 1, 32, 32), (3, 32, 32), "these are grey, 1 channel"),
        ((28, 28, 3), (1, 28, 28), "trained on grey .* these are colour, 3 channels: convert"),
        ((2, 3072), (3, 32, 32), "in a row do not say whether the channels are first or last"),
        ((2, 785), (1, 28, 28), r"shape \(2, 785\); .* grey images of 28×28"),
        ((2, 1, 8, 9), (1, 8, 8), r"shape \(2, 1, 8, 9\)"),
        ((2, 1, 1, 8, 8), (1, 8, 8), r"shape \(2, 1, 1, 8, 8\)"),
        ((), (1, 8, 8), r"shape \(\)"),
        ((2, 3, 3, 3), (3, 3, 3), "could have their channels first or last"),
    ],
)
def test_other_shapes_are_refused(shape: Any, image_shape: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        as_pixels(np.full(shape, 200, np.uint8), image_shape)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.to(torch.complex64), "images of Tensor, complex64; give pixels"),
        (lambda x: x.to_sparse(), "the images are no array: .*dense"),
    ],
)
def test_other_tensors_are_refused(change: Any, told: str, grey: np.ndarray) -> None:
    with pytest.raises(UserError, match=told):
        as_pixels(change(torch.from_numpy(grey)), GREY)


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(UserError, match="the images are no array"):
        as_pixels([[1, 2], [3]], GREY)


def test_pictures_and_their_paths(
    colour: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in colour]
    pictures[0].save(tmp_path / "a.png")
    np.testing.assert_array_equal(as_pixels(pictures[0], COLOUR), colour[:1])
    assert pictures[0].getpixel((0, 0)) is not None  # still open
    np.testing.assert_array_equal(as_pixels(pictures, COLOUR), colour)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png"), "~/a.png"):
        np.testing.assert_array_equal(as_pixels(path, COLOUR), colour[:1])
    mixed = [tmp_path / "a.png", pictures[1], colour[2:]]
    np.testing.assert_array_equal(as_pixels(mixed, COLOUR), colour)


def test_pictures_become_what_the_network_saw(grey: np.ndarray) -> None:
    picture = Image.fromarray(grey[0, 0])
    np.testing.assert_array_equal(as_pixels(picture, GREY), grey[:1])
    np.testing.assert_array_equal(as_pixels(picture, COLOUR), np.tile(grey[:1], (1, 3, 1, 1)))
    for mode in ("RGB", "RGBA", "LA", "P"):
        np.testing.assert_array_equal(as_pixels(picture.convert(mode), GREY), grey[:1])
    bits = np.where(grey[0, 0] > 127, 255, 0)
    found = as_pixels(Image.fromarray(grey[0, 0] > 127), GREY)
    np.testing.assert_array_equal(found[0, 0], bits)
    dark = Image.fromarray(np.ones((6, 5), np.uint8))  # a picture's scale is known
    assert (as_pixels(dark, GREY) == 1).all()


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (Image.new("L", (28, 30)), "a picture is 28 wide and 30 high; .* images 5 wide and 6 high"),
        (Image.new("RGBA", (5, 6)), "a picture is transparent in places; put it on a background"),
        (Image.new("I;16", (5, 6)), "of Pillow's mode I;16; convert it to L or RGB first"),
        (Image.new("F", (5, 6)), "of Pillow's mode F"),
        ("nowhere.png", "nowhere.png cannot be read as a picture: No such file"),
        (".", "cannot be read as a picture: Is a directory"),
        (__file__, "test_images.py cannot be read as a picture: cannot identify image"),
    ],
)
def test_pictures_that_are_refused(picture: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        as_pixels(picture, GREY)


def test_a_picture_that_is_a_program_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"  # Pillow goes by the content
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n%%EOF\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("it was run"))
    with pytest.raises(UserError, match=r"picture\.png is a PostScript program"):
        as_pixels(path, GREY)


def test_a_damaged_picture_is_named(colour: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(colour[0].transpose(1, 2, 0)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cut\.png cannot be read as a picture"):
        as_pixels(path, COLOUR)
