"""Weights and checkpoints on disk, as safetensors: arrays and text, never a pickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from handgrad.errors import DataError
from handgrad.files import write_atomically

Arrays = Mapping[str, NDArray[Any]]
_FORMAT = "handgrad-checkpoint-2"
# safetensors writes its texts in random order; all of ours are one text, in JSON.
_TEXTS = "handgrad"
_CHECKSUM = "checksum"


def save_arrays(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write arrays and texts to ``path``, whole or not at all; equal content, equal bytes.

    A checksum goes with them: safetensors itself would not notice a bit that flips later.
    """
    contiguous = {
        name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        for name, array in arrays.items()
    }
    # ascontiguousarray makes a 0-d array 1-d.
    shaped = {name: array.reshape(arrays[name].shape) for name, array in contiguous.items()}
    texts = {**metadata, _CHECKSUM: _checksum(shaped, metadata)}
    write_atomically(path, save(shaped, {_TEXTS: json.dumps(texts, sort_keys=True)}))


def load_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays and texts in a safetensors file.

    Raises:
        DataError: the file is missing, truncated, damaged or not a safetensors file.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
            texts = json.loads((file.metadata() or {}).get(_TEXTS, "{}"))
            texts = {str(key): str(text) for key, text in texts.items()}
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DataError(f"{path} is truncated or not a safetensors file ({error})") from None
    known = texts.pop(_CHECKSUM, None)  # there is none in a file that another library wrote
    if known is not None and known != _checksum(arrays, texts):
        raise DataError(f"{path} is damaged: its content has another checksum than when written")
    return arrays, texts


def check_finite(arrays: Arrays, path: Path) -> None:
    """Raise DataError where one of the ``arrays`` in ``path`` holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{path} is damaged: {name} is not finite")


def _checksum(arrays: Arrays, texts: Mapping[str, str]) -> str:
    about = [(name, a.dtype.str, a.shape) for name, a in sorted(arrays.items())]
    crc = zlib.crc32(repr((about, sorted(texts.items()))).encode())
    for _, array in sorted(arrays.items()):
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return f"crc32:{crc:08x}"


@dataclass
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        weights: the model's arrays.
        learner: the optimizer's arrays.
        learner_text: the rest of the learner's state (random generators).
        best: the best weights on the validation split so far; empty without one.
        progress: the loop's counters, JSON-able.
    """

    weights: Arrays
    learner: Arrays
    learner_text: str
    best: Arrays
    progress: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write to ``path``; the previous checkpoint stays until this one is whole."""
        groups = {"weights": self.weights, "learner": self.learner, "best": self.best}
        arrays = {
            f"{group}/{name}": a for group, named in groups.items() for name, a in named.items()
        }
        save_arrays(
            path,
            arrays,
            {
                "format": _FORMAT,
                "learner": self.learner_text,
                "progress": json.dumps(self.progress),
            },
        )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, damaged, or no checkpoint.
        """
        arrays, texts = load_arrays(path)
        if texts.get("format") != _FORMAT:
            raise DataError(
                f"{path} is not a checkpoint of this version (format {texts.get('format')!r})"
            )
        groups: dict[str, dict[str, NDArray[Any]]] = {"weights": {}, "learner": {}, "best": {}}
        for key, array in arrays.items():
            group, _, name = key.partition("/")
            if group not in groups:
                raise DataError(f"{path} holds an unexpected array {key!r}")
            groups[group][name] = array
        try:
            progress = json.loads(texts["progress"])
            learner_text = texts["learner"]
            if not isinstance(progress, dict):
                raise DataError(f"{path} is damaged: its progress is {progress!r}")
        except (KeyError, json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
        return cls(groups["weights"], groups["learner"], learner_text, groups["best"], progress)
