from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from handgrad.pictures.figures import PALETTE, save


def _figure() -> Figure:
    figure = Figure()
    figure.add_subplot().plot([1, 2], color=PALETTE[0], label="a curve")
    return figure


@pytest.mark.parametrize("name", ["a.png", "a.SVG", "a.pdf"])
def test_the_same_figure_is_the_same_file(tmp_path: Path, name: str) -> None:
    contents = set()
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / name, _figure())
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name]
        contents.add((tmp_path / folder / name).read_bytes())
    (content,) = contents
    assert b"CreationDate" not in content and b"<dc:date>" not in content


def test_what_cannot_be_written_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(path, _figure())
    assert path.read_bytes() == b"old"
