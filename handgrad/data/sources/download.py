"""Find data files below a folder, or fetch them: mirrors in turn, hash-checked, resumable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from handgrad.data.sources.inventory import inventory, is_namesake, letters
from handgrad.errors import DataError, UserError
from handgrad.files import locked, user_path

_TIMEOUT = 20  # seconds without a byte before the next mirror is tried


def default_data_dir() -> Path:
    """Return the folder for data when none is named: $HANDGRAD_DATA_DIR or a per-user cache.

    Raises:
        UserError: neither can be.
    """
    if named := os.environ.get("HANDGRAD_DATA_DIR"):
        return user_path(named)
    try:
        return user_path(pooch.os_cache("handgrad"))
    except (RuntimeError, UserError):  # a user without a home folder, as in some containers
        raise DataError(
            "there is no home folder for a cache of the data; name a folder with --data-dir, or in "
            "HANDGRAD_DATA_DIR"
        ) from None


def find_file(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of ``names`` found in ``root`` or below it, the nearest first.

    Case and punctuation do not count: tools that unpack turn ``train-images-idx3-ubyte`` into
    ``train-images.idx3-ubyte``. Hidden folders, folders that may not be read, and those of other
    datasets with the same file names are passed over; links are followed once.
    """
    seen = set()
    level = [root]
    while level:
        below = []
        for folder in level:
            with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a link to itself
                real = folder.resolve()
                if real not in seen and folder.is_dir():
                    seen.add(real)
                    found, folders = _entries(folder, names)
                    if found is not None:
                        return found
                    below += [entry for entry in folders if not is_namesake(entry.name)]
        level = sorted(below)
    return None


def find_beside(found: Path, names: Sequence[str]) -> Path | None:
    """Return the first of ``names`` in the folder of ``found``, or where Kaggle has it.

    Its archives keep each file in a folder of the same name.
    """
    with contextlib.suppress(OSError):
        if (file := _entries(found.parent, names)[0]) is not None:
            return file
        wanted = [letters(name) for name in names]
        for folder in _entries(found.parent.parent, ())[1]:
            if letters(folder.name) in wanted and (file := _entries(folder, names)[0]) is not None:
                return file
    return None


def _entries(folder: Path, names: Sequence[str]) -> tuple[Path | None, list[Path]]:
    """Return the first of ``names`` among the files of ``folder``, and the folders in it."""
    wanted = [letters(name) for name in names]
    files: dict[str, Path] = {}
    folders = []
    with os.scandir(folder) as entries:
        shown = (entry for entry in entries if entry.name[0] != ".")  # a Mac's ._data_batch_1
        for entry in sorted(shown, key=lambda entry: entry.name):
            with contextlib.suppress(OSError):  # a link to where nothing may be read, or to itself
                if entry.is_dir():
                    folders.append(folder / entry.name)
                elif (plain := letters(entry.name)) in wanted and entry.is_file():
                    files.setdefault(plain, folder / entry.name)
    return next((files[name] for name in wanted if name in files), None), folders


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what keeps ``path`` from being read into DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def fetch(
    dataset: str,
    urls: Sequence[str],
    target: Path,
    known_hash: str,
    searched: Path,
    download: bool = True,
) -> Path:
    """Download ``target`` from the first of ``urls`` that serves it whole.

    An interrupted download leaves ``<target>.part`` and goes on from there next time. Of several
    processes that want the same file one downloads it, and the others wait.

    Args:
        dataset: its name, for the error.
        urls: mirrors, in the order to try.
        target: where the file goes.
        known_hash: ``algorithm:hex digest``.
        searched: the folder that was searched, for the error.
        download: whether the network may be used.

    Raises:
        DataError: no mirror delivered.
    """
    pooch.get_logger().setLevel("WARNING")  # the progress bar says it better
    folders = (target.parent, *target.parent.parents)
    missing = [folder for folder in folders if not os.access(folder, os.F_OK)]
    reasons = []
    for url in urls if download else ():
        host = url.split("/")[2]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent, wait=True):
                return Path(
                    pooch.retrieve(
                        url,
                        known_hash,
                        fname=target.name,
                        path=target.parent,
                        downloader=_resume_download,
                    )
                )
        except requests.RequestException as error:
            reasons.append(f"{host}: {_reason(error)}")
        except ValueError:  # pooch's hash mismatch; it has removed what it got
            reasons.append(f"{host}: served another file (wrong hash)")
        except OSError as error:
            # pooch words its own refusals, at length
            refused = isinstance(error, PermissionError)
            reason = "Permission denied" if refused else error.strerror or error
            raise DataError(
                f"cannot write {target}: {reason}; point --data-dir at the folder that holds it, "
                f"or at one where it may be written"
            ) from None
    # The part file of an interrupted download keeps its folder; an empty one is no use to anyone.
    for folder in missing:
        with contextlib.suppress(OSError):
            folder.rmdir()
    tried = f", and no mirror could be reached ({'; '.join(reasons)})" if reasons else ""
    raise DataError(
        f"{target.name} was not found below {searched}, which holds {inventory(searched)}{tried}; "
        f"point --data-dir at the folder that holds it, or use --dataset digits, which needs no "
        f"download"
    )


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"silent for {_TIMEOUT} s"
    return "no connection"


def _resume_download(url: str, output_file: Any, _pooch: Any) -> None:
    """Write ``url`` to ``output_file``, going on from an earlier attempt where there is one.

    The part file stands beside the temporary one that pooch hands in, under a name that the next
    attempt finds again. pooch checks the hash of what comes out.
    """
    output = Path(output_file)
    part = output.parent / (url.rpartition("/")[2] + ".part")
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the file as it is, so that its length counts
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
        if response.status_code == 416:  # the part is already as long as the file
            part.replace(output)
            return
        response.raise_for_status()
        resumed = response.status_code == 206
        total = int(response.headers.get("Content-Length", 0)) + (start if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                total=total or None,
                initial=start if resumed else 0,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                delay=0.5,
            ) as bar,
        ):
            for chunk in response.iter_content(1 << 16):
                bar.update(file.write(chunk))
    if total and part.stat().st_size < total:
        raise requests.ConnectionError(f"{url} ended early")
    part.replace(output)
