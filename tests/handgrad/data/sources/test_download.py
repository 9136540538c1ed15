from __future__ import annotations

import hashlib
import pwd
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest
import requests

from handgrad.data.sources.download import default_data_dir, fetch, find_beside, find_file
from handgrad.errors import DataError, UserError

CONTENT = random.Random(0).randbytes(300_000)
HASH = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
NAME = "cifar-10-python.tar.gz"


class _Handler(BaseHTTPRequestHandler):
    """Serves ``/<behaviour>/<name>``."""

    def do_GET(self) -> None:
        behaviour = self.path.split("/")[1]
        range_header = self.headers.get("Range")
        self.server.requests.append((behaviour, range_header))  # type: ignore[attr-defined]
        if behaviour == "absent":
            self.send_error(404)
            return
        content = bytes(len(CONTENT)) if behaviour == "wrong" else CONTENT
        start = 0
        if range_header and behaviour != "norange":
            start = int(range_header.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + 150_000 if behaviour == "cut" else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str | None]] = []

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/{NAME}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _fetch(server: Server, folder: Path, *behaviours: str) -> Path:
    urls = [server.url(behaviour) for behaviour in behaviours]
    return fetch("cifar10", urls, folder / NAME, HASH, folder)


@pytest.mark.parametrize(
    "behaviours",
    [
        ["whole"],
        ["absent", "whole"],
        ["wrong", "whole"],
        ["cut", "whole"],
        ["cut", "norange"],
        ["absent", "cut", "wrong", "whole"],
        ["norange"],
    ],
    ids="-".join,
)
def test_mirrors_are_tried_in_turn(server: Server, tmp_path: Path, behaviours: list[str]) -> None:
    path = _fetch(server, tmp_path / "new" / "folder", *behaviours)
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert [asked for asked, _ in server.requests] == behaviours
    assert list(path.parent.iterdir()) == [path], "no part files are left"


def test_dead_host_falls_through(server: Server, tmp_path: Path) -> None:
    with Server() as dead:
        dead_url = dead.url("whole")
    path = fetch("cifar10", [dead_url, server.url("whole")], tmp_path / NAME, HASH, tmp_path)
    assert path.read_bytes() == CONTENT


def test_first_good_mirror_is_enough(server: Server, tmp_path: Path) -> None:
    _fetch(server, tmp_path, "whole", "absent")
    assert server.requests == [("whole", None)]


def test_resumes_where_it_was_interrupted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no connection"):
        _fetch(server, tmp_path, "cut")
    (part,) = tmp_path.iterdir()
    assert part.name == f"{NAME}.part"
    size = part.stat().st_size
    assert 50_000 < size <= 150_000
    assert part.read_bytes() == CONTENT[:size]
    assert _fetch(server, tmp_path, "whole").read_bytes() == CONTENT
    assert server.requests == [("cut", None), ("whole", f"bytes={size}-")]


def test_starts_afresh_where_the_server_cannot_resume(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert _fetch(server, tmp_path, "norange").read_bytes() == CONTENT
    assert server.requests == [("norange", "bytes=1000-")]


def test_part_that_is_whole_already(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert _fetch(server, tmp_path, "whole").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1000])
def test_part_of_another_file_is_given_up(server: Server, tmp_path: Path, size: int) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * size)
    with pytest.raises(DataError, match="wrong hash"):
        _fetch(server, tmp_path, "whole")
    assert list(tmp_path.iterdir()) == []
    assert _fetch(server, tmp_path, "whole").read_bytes() == CONTENT
    assert server.requests == [("whole", f"bytes={size}-"), ("whole", None)]


def test_every_mirror_fails(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(DataError) as caught:
        _fetch(server, folder, "absent", "wrong")
    message = str(caught.value)
    for piece in (NAME, str(folder), "HTTP 404", "wrong hash", "127.0.0.1", "--dataset digits"):
        assert piece in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(requests.ConnectionError("x"), "no connection"), (requests.Timeout("x"), "silent for")],
)
def test_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(requests, "get", unreachable)
    urls = ["https://one.example/a/file.gz", "https://two.example/a/file.gz"]
    with pytest.raises(DataError) as caught:
        fetch("mnist", urls, tmp_path / "MNIST" / "file.gz", HASH, tmp_path)
    message = str(caught.value)
    for piece in ("file.gz", str(tmp_path), f"one.example: {reason}", "two.example", "digits"):
        assert piece in message
    assert list(tmp_path.iterdir()) == []


def test_without_leave_to_download_nothing_is_asked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=NAME):
        fetch("cifar10", [server.url("whole")], tmp_path / NAME, HASH, tmp_path, download=False)
    assert server.requests == []


def test_target_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write"):
        _fetch(server, tmp_path / "file", "whole")


def test_several_at_once_download_once(server: Server, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(_fetch(server, tmp_path / "data", "good")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and {path.read_bytes() for path in found} == {CONTENT}
    assert len(server.requests) == 1


@pytest.mark.parametrize("size", [0, 1, 2, 149_999, 150_000, 299_999])
def test_interrupted_at_any_byte(server: Server, tmp_path: Path, size: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(CONTENT[:size])
    assert _fetch(server, folder, "good").read_bytes() == CONTENT
    assert [name.name for name in folder.iterdir()] == [NAME]


def test_damaged_file_in_the_cache_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:1000])
    assert _fetch(server, tmp_path, "whole").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        PermissionError("[Errno 13] Permission denied: 'tmp1' | Pooch could not write to it"),
    ],
    ids=["the system's", "pooch's"],
)
def test_a_folder_that_may_not_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: PermissionError
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(DataError, match=rf"cannot write .*{NAME}: Permission denied; point --data"):
        _fetch(server, tmp_path, "good")
    assert server.requests == []


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HANDGRAD_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("HANDGRAD_DATA_DIR")
    assert "handgrad" in str(default_data_dir())


def test_default_folder_of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "HANDGRAD_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(DataError, match=r"no home folder for a cache .* a folder with --data-dir"):
        default_data_dir()
    monkeypatch.setenv("HANDGRAD_DATA_DIR", "~/data")
    with pytest.raises(UserError, match="~/data: there is no home folder for ~ here"):
        default_data_dir()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["b"], "b"),
        (["x/b"], "x/b"),
        (["1/2/3/4/5/6/b"], "1/2/3/4/5/6/b"),
        (["x/b", "a/y/b"], "x/b"),  # the nearest
        (["x/b", "a/b"], "a/b"),  # then the first by name
        (["x/a", "x/b"], "x/a"),  # the preferred name
        ([".hidden/b"], None),
        (["._b", "x/b"], "x/b"),  # what a Mac leaves beside b on other disks
        (["other"], None),
        ([], None),
    ],
)
def test_find_file(tmp_path: Path, files: list[str], expected: str | None) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_file(tmp_path, ("a", "b"))
    assert found == (None if expected is None else tmp_path / expected)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["x/a-1", "x/b-1"], "x/b-1"),
        (["a-1/a-1", "b-1/b-1"], "b-1/b-1"),
        (["a-1/a-1", "b-1/B.1"], "b-1/B.1"),
        (["x/a-1", "y/b-1"], None),
        (["x/a-1", "x/B_1", "x/b-1"], "x/B_1"),
    ],
)
def test_find_beside(tmp_path: Path, files: list[str], expected: str | None) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_beside(tmp_path / files[0], ("b-1", "b-1.gz"))
    assert found == (None if expected is None else tmp_path / expected)


def test_a_link_to_itself_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zoo").touch()
    assert find_file(tmp_path, ("loop",)) is None
    assert find_file(tmp_path, ("zoo",)) == tmp_path / "zoo"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert find_file(tmp_path, ("a",)) is None
    assert find_file(tmp_path / "missing", ("a",)) is None


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "back").symlink_to(tmp_path)
    assert find_file(tmp_path, ("a",)) is None
    (tmp_path / "x" / "y" / "a").touch()
    assert find_file(tmp_path, ("a",)) == tmp_path / "x" / "y" / "a"
