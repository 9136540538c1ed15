"""Name what a folder holds, for a line that says what was found where a dataset was expected."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_NAMESAKES = ("fashionmnist", "fashion", "kmnist", "qmnist", "emnist")  # folders, by their letters
# What the path of a file matches, in lower case; the first row that does names it.
_KINDS = (
    (r"cifar-?100|/(train|test|meta)$", "CIFAR-100"),
    (r"(data|test)_batch\w*\.bin$|cifar-?10-binary", "CIFAR-10's binary version"),
    (r"(data|test)_batch\w*\.mat$|cifar-?10-matlab", "CIFAR-10's Matlab version"),
    (r"data_batch|test_batch|cifar-?10", "CIFAR-10 in another form"),
    (r"fashion", "Fashion-MNIST"),
    (r"k49", "Kuzushiji-49"),
    (r"kmnist", "KMNIST"),
    (r"qmnist", "QMNIST"),
    (r"emnist", "EMNIST"),
    (r"(train|t10k)\W?(images|labels)\W?idx", "a part of a set in MNIST's format"),
    (r"mnist", "MNIST in another form"),
    (r"(train|test|extra)_32x32\.mat$", "SVHN"),
)
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_MOST = 100_000  # files that are looked at


def letters(name: str) -> str:
    """Return what counts of the name of a file or folder: no case, no punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_namesake(folder: str) -> bool:
    """Say whether a folder so called holds another dataset under the file names of MNIST."""
    return letters(folder) in _NAMESAKES


def inventory(root: Path) -> str:
    """Return what is in ``root`` and below it, in a few words: ``CIFAR-100 (meta, test, train)``.

    Datasets are told by the names of their files and folders; pictures are counted.
    """
    try:
        os.scandir(root).close()
    except FileNotFoundError:
        return "no files"
    except OSError as error:
        return f"nothing that can be read ({error.strerror})"
    names: dict[str, list[str]] = {}
    pictures: Counter[Path] = Counter()
    for file in islice(_files(root), _MOST):
        if file.suffix.lower() in _PICTURES:
            pictures[file.parent] += 1
            continue
        where = f"{root.resolve().name}/{file.relative_to(root).as_posix()}".lower()
        kind = next((kind for pattern, kind in _KINDS if re.search(pattern, where)), "")
        names.setdefault(kind, []).append(file.name)
    found = [f"{kind} ({_few(names[kind])})" for kind in names if kind]
    if n := pictures.total():
        folders = f" in {len(pictures)} folders" if len(pictures) > 1 else ""
        found.append(f"{n:,} picture{'s' * (n > 1)}{folders}")
    if "" in names:
        found.append(_few(names[""]))
    return ", ".join(found) or "no files"


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(folder, name) for name in sorted(files) if name[0] != ".")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more files" if len(names) > 4 else ""
    return ", ".join(names[: 3 if more else 4]) + more
