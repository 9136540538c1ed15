"""The bundled digits: 1,797 images of 8×8, part of the package, no download.

UCI's *Optical Recognition of Handwritten Digits* (Alpaydin and Kaynak, 1998), CC BY 4.0; see
``bundled/README.md``. Pixels count ink from 0 to 16 and are stretched to 0..255 here.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.data.sources.idx import parse_idx
from handgrad.errors import DataError

CLASS_NAMES = tuple("0123456789")


def load(data_dir: Path | None = None, download: bool = True) -> tuple[NDArray[Any], ...]:
    """Return train images and labels, test images and labels; every fifth ten is a test ten.

    The file is ordered by writer, and each wrote the ten digits in turn: so each class and each
    writer has its share of both. (The last fifth as test set would mostly hold writers never seen
    in training, and is much harder.)

    Raises:
        DataError: the installed files are damaged.
    """
    folder = resources.files("handgrad.data.bundled")
    images = parse_idx((folder / "digits-images-idx3-ubyte.gz").read_bytes(), "bundled digits")
    labels = parse_idx((folder / "digits-labels-idx1-ubyte.gz").read_bytes(), "bundled digits")
    # A whole IDX file, which is all that was looked at, may hold anything.
    if images.shape != (1797, 8, 8) or labels.shape != (1797,) or labels.max() > 9:
        raise DataError("the bundled digits are damaged; install the package again")
    images = np.minimum(images.astype(np.uint16) * 16, 255).astype(np.uint8)[:, None]
    labels = labels.astype(np.int64)
    test = np.arange(len(labels)) // 10 % 5 == 4
    return images[~test], labels[~test], images[test], labels[test]
