"""A finished run guesses nothing: images of any usual kind are classified alike, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import handgrad
from handgrad.errors import UserError
from handgrad.runs.trained import TrainedRun

TEST = handgrad.load_dataset("digits").test
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "numpy": ("mlp-numpy", {"hidden_dims": 32}),
    "mean image": ("mlp-numpy", {"preprocess": "mean-image", "lr": 1e-4}),
    "pytorch": ("mlp-pytorch", {"hidden_dims": 32, "precision": "float32"}),
    "convnet": ("convnet", {"model": "vu-convnet", "precision": "float32", "max_steps": 5}),
}


@pytest.fixture(scope="module", params=NETWORKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    network, options = NETWORKS[request.param]
    options = {"max_steps": 300, "threads": 1, "quiet": True, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handgrad.runs.result.draw_pictures", lambda *args: None)
        return handgrad.train(network, out=tmp_path_factory.mktemp("trained") / "run", **options)


def test_every_kind_of_image_gives_the_same(run: TrainedRun, tmp_path: Path) -> None:
    import torch

    n = 40
    images = TEST.images[:n]
    p = run.predict_proba(images)
    paths = [tmp_path / f"{i}.png" for i in range(n)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[0]).save(path)
    kinds = {
        "0 to 1": images / 255,
        "float32": (images / 255).astype(np.float32),
        "channels last": images.transpose(0, 2, 3, 1),
        "grey": images[:, 0],
        "rows": images.reshape(n, -1),
        "list": list(images),
        "tensor": torch.from_numpy(images),
        "paths": paths,
    }
    for kind, given in kinds.items():
        np.testing.assert_array_equal(run.predict_proba(given), p, err_msg=kind)
    np.testing.assert_array_equal(run.predict(paths[3]), p[3:4].argmax(axis=1))
    assert run.predict([]).shape == (0,)


def test_a_mask_is_not_black(run: TrainedRun) -> None:
    white = np.where(TEST.images > 127, 255, 0).astype(np.uint8)
    predicted = run.predict(TEST.images > 127)
    np.testing.assert_array_equal(predicted, run.predict(white))
    if run.settings.max_steps == 300 and run.settings.preprocess == "standardize":
        assert (predicted == TEST.labels).mean() > 0.8


def test_other_images_are_refused(run: TrainedRun) -> None:
    for images in (run.preprocessing(TEST.images), TEST.images // 16, TEST.images[:, :, 1:]):
        with pytest.raises(UserError, match="images "):
            run.predict(images)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (TEST.images / 255, "images of float64; preprocessing takes pixels of 0 to 255 in"),
        (TEST.images > 127, "images of bool"),
        (TEST.images.astype(np.int64), "images of int64"),
        (TEST.images.tolist(), "images of list"),
    ],
)
def test_the_preprocessing_takes_pixels_only(run: TrainedRun, images: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        run.preprocessing(images)
