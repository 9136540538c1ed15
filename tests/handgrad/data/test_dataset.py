from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_cifar, write_mnist

from handgrad.data import DATASETS, Split, load_dataset
from handgrad.errors import UserError


def _keys(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split.images]


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    write_cifar(tmp_path / "cifar-10-batches-py")
    return tmp_path


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (0.0, 0), (0.1, 20), (0.25, 50), (1, 1), (37, 37), (199, 199)]
)
def test_validation_size(cifar: Path, size: float, expected: int) -> None:
    whole = load_dataset("cifar10", cifar, validation_size=0)
    dataset = load_dataset("cifar10", cifar, validation_size=size)
    assert len(dataset.validation) == expected
    assert len(dataset.train) == 200 - expected
    assert len(dataset.test) == 40
    # Complete, disjoint, each image still with its own label.
    label_of = dict(zip(_keys(whole.train), whole.train.labels, strict=True))
    assert len(label_of) == 200
    assert sorted(_keys(dataset.train) + _keys(dataset.validation)) == sorted(label_of)
    for split in (dataset.train, dataset.validation):
        assert [label_of[key] for key in _keys(split)] == split.labels.tolist()


def test_validation_split_depends_on_the_seed_alone(cifar: Path) -> None:
    first, again, other = (
        load_dataset("cifar10", cifar, validation_size=0.2, seed=seed) for seed in (3, 3, 4)
    )
    assert _keys(first.validation) == _keys(again.validation)
    assert _keys(first.train) == _keys(again.train)
    assert _keys(first.validation) != _keys(other.validation)
    assert _keys(first.test) == _keys(other.test)


def test_the_last_images_may_validate(cifar: Path) -> None:
    whole = load_dataset("cifar10", cifar, validation_size=0)
    split = load_dataset("cifar10", cifar, validation_size=30, validation_images="last", seed=3)
    assert _keys(split.validation) == _keys(whole.train)[-30:]
    assert _keys(split.train) == _keys(whole.train)[:-30]


def test_a_larger_validation_split_contains_the_smaller(cifar: Path) -> None:
    small = load_dataset("cifar10", cifar, validation_size=10)
    large = load_dataset("cifar10", cifar, validation_size=30)
    assert set(_keys(small.validation)) < set(_keys(large.validation))


@pytest.mark.parametrize("size", [200, 201, 1e30, 0.999])
def test_nothing_left_to_train_on(cifar: Path, size: float) -> None:
    with pytest.raises(UserError, match=r"--validation-size .* 200 training images"):
        load_dataset("cifar10", cifar, validation_size=size)


@pytest.mark.parametrize(
    ("name", "shape"), [("digits", (1, 8, 8)), ("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))]
)
def test_registry(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    write_cifar(tmp_path / "cifar")
    write_mnist(tmp_path / "mnist")
    dataset = load_dataset(name, tmp_path, download=False)
    assert dataset.name == name
    assert dataset.image_shape == shape
    assert dataset.n_classes == len(set(dataset.class_names)) == 10
    for split in ("train", "validation", "test"):
        assert dataset.split(split) is getattr(dataset, split)
        assert dataset.split(split).images.shape[1:] == shape


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_file_in_place_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; a folder is expected"):
        load_dataset(name, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("below", ["", "deep", "deep/deeper"])
def test_the_folder_may_be_too_high(tmp_path: Path, below: str) -> None:
    write_cifar(tmp_path / "deep" / "deeper" / "cifar-10-batches-py")
    write_mnist(tmp_path / "deep" / "deeper" / "MNIST" / "raw")
    for name in ("cifar10", "mnist"):
        assert load_dataset(name, tmp_path / below, download=False).name == name


def test_every_registered_dataset_is_tested() -> None:
    assert set(DATASETS) == {"digits", "mnist", "cifar10"}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((3, 64), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((3, 1, 8, 8), np.float32), np.zeros(3, np.int64)),
        (np.zeros((3, 1, 8, 8), np.uint8), np.zeros(4, np.int64)),
    ],
    ids=["flat", "float", "a label more"],
)
def test_split_checks_its_arrays(images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        Split(images, labels)


def test_arguments_that_are_none(tmp_path: Path) -> None:
    expected: list[tuple[dict[str, Any], str]] = [
        ({"seed": 2**64}, "seed 18446744073709551616: expected a whole number from 0 to"),
        ({"seed": -1}, "seed -1: expected"),
        ({"validation_size": -1}, "validation_size -1: expected a number of images, or a share"),
        ({"validation_size": float("nan")}, "validation_size nan: expected"),
        ({"validation_size": float("inf")}, "validation_size inf: expected"),
        ({"validation_size": "0.1"}, "validation_size '0.1': expected"),
        ({"validation_images": "first"}, "validation_images 'first' is unknown; expected one of: "),
        ({"data_dir": 5}, "5 is not a path"),
        ({"data_dir": "~nobody-of-that-name"}, "there is no home folder for ~nobody"),
    ]
    for options, told in expected:
        with pytest.raises(UserError, match=told):
            load_dataset("digits", **options)
    with pytest.raises(UserError, match="is unknown; expected one of: digits, mnist"):
        load_dataset(["mnist"], tmp_path)  # type: ignore[arg-type]


def test_the_folder_may_be_a_text_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("~/data", Path("~/data"), str(tmp_path / "data")):
        assert load_dataset("mnist", folder, download=False).name == "mnist"
    monkeypatch.setenv("HANDGRAD_DATA_DIR", "~/data")
    assert load_dataset("mnist", download=False).name == "mnist"
