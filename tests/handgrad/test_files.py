from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from handgrad.errors import UserError
from handgrad.files import user_path, write_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"", b"\x00\xff" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def _disk_full(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "function"), [(os, "fsync"), (Path, "replace")], ids=["flush", "rename"]
)
@pytest.mark.parametrize("old", [None, b"old"])
def test_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, module, function: str
) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    before = list(tmp_path.iterdir())
    monkeypatch.setattr(module, function, _disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == before
    assert old is None or path.read_bytes() == old


def test_content_is_on_disk_before_the_name_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    replace, fsync = Path.replace, os.fsync

    def noted_fsync(descriptor: int) -> None:
        events.append("flush")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append(f"rename {self.read_bytes()!r}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomically(tmp_path / "file", b"content")
    assert events[:2] == ["flush", "rename b'content'"]


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"")


def test_the_home_folder_is_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs/x") == user_path(Path("~/runs/x")) == tmp_path / "runs" / "x"
    assert user_path("~") == tmp_path
    assert user_path("runs/~") == Path("runs/~")
    assert user_path("./~/runs") == user_path(user_path("./~/runs")) == Path.cwd() / "~" / "runs"


def test_paths_that_are_none() -> None:
    with pytest.raises(UserError, match="~nobody-of-that-name/x: there is no home folder for ~nob"):
        user_path("~nobody-of-that-name/x")
    for value in (5, None, b"x", ["x"]):
        with pytest.raises(UserError, match="is not a path; give a text or a Path"):
            user_path(value)  # type: ignore[arg-type]
