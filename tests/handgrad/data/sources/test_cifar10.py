from __future__ import annotations

import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import ARCHIVE_ORDER, BATCHES, cifar_batch, pack_cifar, write_cifar

from handgrad.data.sources import cifar10
from handgrad.errors import DataError

N = 40
PIXELS = np.zeros((N, 3072), np.uint8)
LABELS = [i % 10 for i in range(N)]


def _load(folder: Path) -> tuple[np.ndarray, ...]:
    return cifar10.load(folder, download=False)


def _assert_equal(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for array, wanted in zip(found, expected, strict=True):
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py", "some/folders/cifar-10-batches-py"])
def test_folder_is_found(tmp_path: Path, below: str) -> None:
    expected = write_cifar(tmp_path / below)
    _assert_equal(_load(tmp_path), expected)


@pytest.mark.parametrize("below", ["", "downloads"])
def test_archive_gives_what_the_folder_gives(tmp_path: Path, below: str) -> None:
    expected = write_cifar(tmp_path / "files")
    (tmp_path / "data" / below).mkdir(parents=True)
    pack_cifar(tmp_path / "files", tmp_path / "data" / below / "cifar-10-python.tar.gz")
    _assert_equal(_load(tmp_path / "data"), expected)
    assert sorted(path.suffix for path in (tmp_path / "data").rglob("*") if path.is_file()) == [
        ".gz"
    ], "the archive is read in place"


def test_folder_is_preferred_to_the_archive(tmp_path: Path) -> None:
    expected = write_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"never opened")
    _assert_equal(_load(tmp_path), expected)


LAYOUTS: dict[str, Callable[[str], str]] = {
    "other case": lambda name: f"CIFAR-10-Batches-PY/{name.title()}",
    "a folder a file": lambda name: f"{name}/{name}",
    "hyphens": lambda name: name.replace("_", "-"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_files_under_similar_names(tmp_path: Path, layout: Callable[[str], str]) -> None:
    expected = write_cifar(tmp_path / "official")
    for name in BATCHES:
        target = tmp_path / "data" / layout(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "official" / name, target)
    assert cifar10.is_below(tmp_path / "data")
    _assert_equal(_load(tmp_path / "data"), expected)


def _pictures(n: int, seed: int) -> np.ndarray:
    """Return smooth images (n, 3072), as photographs are."""
    corners = np.random.default_rng(seed).integers(0, 256, (n, 3, 2, 2))
    t = np.linspace(0, 1, 32)
    weights = np.stack([1 - t, t])
    return np.einsum("ncij,ih,jw->nchw", corners, weights, weights).astype(np.uint8).reshape(n, -1)


def _write(folder: Path, protocol: int = 2, **changed: Callable[[Any], Any]) -> list[np.ndarray]:
    """Pickle six batches of 20 pictures, changed by ``data(images)``, ``labels`` and ``key``."""
    alike = {name: changed.get(name, lambda value: value) for name in ("data", "labels", "key")}
    key, images, labels = alike["key"], [], []
    for i, name in enumerate(BATCHES):
        images.append(_pictures(20, i))
        labels.append(np.random.default_rng(i).integers(0, 10, 20))
        batch = {
            key("data"): alike["data"](images[-1]),
            key("labels"): alike["labels"](labels[-1].tolist()),
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    shape = (-1, 3, 32, 32)
    train, test = np.concatenate(images[:5]).reshape(shape), images[5].reshape(shape)
    return [train, np.concatenate(labels[:5]), test, labels[5]]


WRITTEN: dict[str, dict[str, Any]] = {
    **{f"protocol {p}": {"protocol": p} for p in range(6)},
    **{
        f"column by column, protocol {p}": {"protocol": p, "data": np.asfortranarray}
        for p in (2, 5)
    },
    "keys of bytes": {"key": str.encode},
    "labels of NumPy": {"labels": lambda labels: list(np.array(labels))},
    "labels in an array": {"labels": np.array},
    "labels in a column": {"labels": lambda labels: np.array(labels, np.uint8)[:, None]},
    "images": {"data": lambda x: x.reshape(-1, 3, 32, 32)},
    "images, channels last": {"data": lambda x: x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)},
    "wider integers": {"data": lambda x: x.astype(np.int64)},
}


@pytest.mark.parametrize("how", WRITTEN.values(), ids=WRITTEN)
def test_batches_written_again(tmp_path: Path, how: dict[str, Any]) -> None:
    expected = _write(tmp_path, **how)
    found = _load(tmp_path)
    _assert_equal(found, tuple(expected))
    assert all(array.flags.c_contiguous for array in found)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "0 to 1": ({"data": lambda x: x / 255}, r"data is float64 from 0 to .*uint8, 0 to 255"),
    "beyond 255": ({"data": lambda x: x + np.int16(9)}, r"data is int16 from .* to 2\d\d"),
    "pixel by pixel": (
        {"data": lambda x: x.reshape(-1, 3, 1024).transpose(0, 2, 1).reshape(-1, 3072)},
        r"data is pixel by pixel, .* write data\.reshape\(-1, 32, 32, 3\)\.transpose\(0, 3, 1, 2\)",
    ),
    "turned": ({"data": lambda x: x.T}, r"data has shape \(3072, 20\), expected \(N, 3072\)"),
    "a list": ({"data": lambda x: x.tolist()}, "data is list"),
    "from 1": ({"labels": lambda labels: [n + 1 for n in labels]}, "10 is among the labels"),
    "halves": ({"labels": lambda labels: [n / 2 for n in labels]}, "not a list of whole numbers"),
    "a number": ({"labels": lambda labels: np.array(3)}, "not a list of whole numbers"),
    "huge": ({"labels": lambda labels: [10**5000]}, "not a list of whole numbers"),
    "one-hot": ({"labels": lambda labels: np.eye(10, dtype=int)[labels]}, "not a list of whole"),
    "CIFAR-100's": (
        {"key": lambda key: key.replace("labels", "fine_labels")},
        r"with data and labels, found one with data, fine_labels \(CIFAR-100\)",
    ),
}


@pytest.mark.parametrize(("how", "message"), REFUSED.values(), ids=REFUSED)
def test_other_content_is_named(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    _write(tmp_path, **how)
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_a_part_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "fetch", None)
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").unlink()
    with pytest.raises(DataError, match="data_batch_1 is missing; the folder should hold"):
        cifar10.load(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_2", "cifar-10-python.tar.gz"])
def test_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name in BATCHES:
        write_cifar(tmp_path)
    (tmp_path / name).touch()
    opened = Path.open

    def refuse(path: Path, *mode: str) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *mode)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=f"{name} cannot be read: Permission denied"):
        _load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--dataset digits") as caught:
        _load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "cifar-10-python.tar.gz" in str(caught.value)


def _replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _truncate(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return cut


DAMAGE = {
    "missing": ("data_batch_4", lambda folder: (folder / "data_batch_4").unlink()),
    "missing test": ("test_batch", lambda folder: (folder / "test_batch").unlink()),
    "empty": ("data_batch_2", _replace("data_batch_2", b"")),
    "truncated pixels": ("data_batch_2", _truncate("data_batch_2", 0.5)),
    "truncated names": ("test_batch", _truncate("test_batch", 0.999)),
    "a text": ("data_batch_5", _replace("data_batch_5", b"<html>404 Not Found</html>\n")),
    "an image": ("data_batch_1", _replace("data_batch_1", b"\x89PNG\r\n\x1a\n" + bytes(99))),
    "a list": ("data_batch_1", _replace("data_batch_1", b"\x80\x02](K\x01K\x02e.")),
    "another dict": ("data_batch_1", _replace("data_batch_1", b"\x80\x02}U\x04dataK\x01s.")),
    "label 10": ("data_batch_3", _replace("data_batch_3", cifar_batch(PIXELS, [10, *LABELS[1:]]))),
    "label -1": ("data_batch_3", _replace("data_batch_3", cifar_batch(PIXELS, [-1, *LABELS[1:]]))),
    "a label less": ("data_batch_3", _replace("data_batch_3", cifar_batch(PIXELS, LABELS[1:]))),
    "float pixels": (
        "data_batch_3", _replace("data_batch_3", cifar_batch(PIXELS.astype("f4"), LABELS)),
    ),
    "28×28": ("test_batch", _replace("test_batch", cifar_batch(PIXELS[:, :784], LABELS))),
    "no images": ("test_batch", _replace("test_batch", cifar_batch(PIXELS[:0], []))),
    "a smaller batch": (
        "data_batch_5", _replace("data_batch_5", cifar_batch(PIXELS[:30], LABELS[:30])),
    ),
    "a shape beyond the bytes": (
        "data_batch_1", _replace("data_batch_1", cifar_batch(PIXELS, LABELS, (10**9, 3072))),
    ),
    "a negative shape": (
        "data_batch_1", _replace("data_batch_1", cifar_batch(PIXELS, LABELS, (-N, -3072))),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folder(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    write_cifar(tmp_path, N)
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        _load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_too_large_a_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    pack_cifar(tmp_path, tmp_path / "cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar10, "_FILE_LIMIT", 1000)
    with pytest.raises(DataError, match=r"data_batch_1 is .* too large"):
        _load(tmp_path)
    for path in tmp_path.glob("*_batch*"):
        path.unlink()
    with pytest.raises(DataError, match="data_batch_4 is too large"):
        _load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_truncated_archive(tmp_path: Path, share: float) -> None:
    write_cifar(tmp_path / "files")
    path = tmp_path / "data" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    pack_cifar(tmp_path / "files", path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz"):
        _load(path.parent)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x1f\x8b\x08\x00" + bytes(50)])
def test_foreign_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz is truncated or not a gzipped"):
        _load(tmp_path)


@pytest.mark.parametrize("absent", ["data_batch_3", "test_batch"])
def test_archive_without_a_batch(tmp_path: Path, absent: str) -> None:
    write_cifar(tmp_path / "files")
    path = tmp_path / "data" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    pack_cifar(tmp_path / "files", path, [name for name in ARCHIVE_ORDER if name != absent])
    with pytest.raises(DataError, match=f"cifar-10-python.tar.gz does not contain {absent}"):
        _load(path.parent)


def test_damage_inside_an_archive_names_the_batch(tmp_path: Path) -> None:
    write_cifar(tmp_path / "files")
    (tmp_path / "files" / "data_batch_2").write_bytes(b"nothing")
    path = tmp_path / "data" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    pack_cifar(tmp_path / "files", path)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz/data_batch_2"):
        _load(path.parent)


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    write_cifar(tmp_path / "files")
    path = tmp_path / "data" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name in ARCHIVE_ORDER:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "files" / name)
            tar.addfile(member)
    with pytest.raises(DataError, match="does not contain"):
        _load(path.parent)


def test_real_data(real_data: Path) -> None:
    train, train_labels, test, test_labels = _load(real_data)
    assert train.shape == (50_000, 3, 32, 32) and train.dtype == np.uint8
    assert test.shape == (10_000, 3, 32, 32) and test.dtype == np.uint8
    assert train_labels.dtype == test_labels.dtype == np.int64
    assert np.bincount(train_labels).tolist() == [5000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    means = [train[:, c].mean() / 255 for c in range(3)]
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-3)


def test_flipped_label_in_real_data(real_data: Path, tmp_path: Path) -> None:
    for path in (real_data / "cifar-10-batches-py").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data_batch_3").unlink()
    shutil.copyfile(real_data / "cifar-10-batches-py" / "data_batch_3", tmp_path / "data_batch_3")
    # Behind the header and "labels" stand the labels, two bytes each: BININT1 and the value.
    with (tmp_path / "data_batch_3").open("r+b") as file:
        place = file.read(200).index(b"labels") + len(b"labels") + 21
        file.seek(place)
        label = file.read(1)[0]
        assert label <= 9
        file.seek(place)
        file.write(bytes([label ^ 1]))
    with pytest.raises(DataError, match="training labels are damaged"):
        _load(tmp_path)


def test_every_flipped_bit_of_the_archive_is_noticed(tmp_path: Path) -> None:
    write_cifar(tmp_path / "folder", n=2)
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    pack_cifar(tmp_path / "folder", archive)
    content = archive.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(12, len(content), 60):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        archive.write_bytes(flipped)
        with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
            cifar10.load(archive.parent, download=False)
