"""Pictures of graphs."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import numpy_mlp.autograd as vg


@pytest.fixture
def loss() -> vg.TensorNode:
    x = vg.TensorNode(np.ones((2, 3)), name='the "input"')
    shifted = x + 1.0
    return (shifted * shifted).sum()


def test_dot_text(loss: vg.TensorNode) -> None:
    text = vg.graph.draw(loss)
    assert text.startswith("digraph {") and text.rstrip().endswith("}")
    labels = dict(re.findall(r'  (n\d+) \[label="((?:[^"\\]|\\.)*)"', text))
    assert sorted(labels.values()) == sorted(
        ['the \\"input\\"\\n2×3', "1", "Add", "2×3", "Multiply", "2×3", "Sum", "24"]
    )
    shapes = dict(re.findall(r"  (n\d+) \[.*shape=(\w+)\]", text))
    names = {label: key for key, label in labels.items()}
    assert shapes[names["Add"]] == "diamond" and shapes[names["24"]] == "ellipse"
    edges = re.findall(r"  (n\d+) -> (n\d+);", text)
    assert len(edges) == 2 + 1 + 2 + 1 + 1 + 1
    assert edges.count((edges[3][0], names["Multiply"])) == 2  # the square uses one node twice
    assert (names["Sum"], names["24"]) in edges


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "dot"])
def test_files(loss: vg.TensorNode, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph.{suffix}"
    text = vg.graph.draw(loss, path)
    if suffix == "png":
        image = matplotlib.image.imread(path)
        assert image.shape[0] > 300 and image[..., :3].std() > 0.02
    elif suffix == "svg":
        assert "<svg" in path.read_text()
    elif suffix == "dot":
        assert path.read_text(encoding="utf-8") == text
    else:
        assert path.read_bytes().startswith(b"%PDF")


def test_a_file_below_the_home_folder(
    loss: vg.TensorNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = vg.graph.draw(loss, "~/graph.dot")
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == text


def test_nodes_do_not_overlap(loss: vg.TensorNode) -> None:
    from numpy_mlp.autograd import graph

    rng = np.random.default_rng(0)
    mlp = vg.MLP(3, 4, hidden_sizes=(5, 4), rng=rng)
    deep = vg.logceloss(vg.logsoftmax(mlp.logits(vg.TensorNode(np.ones((6, 3))))), np.arange(6) % 4)
    for node in (loss, deep):
        places = graph._places(graph._labels(node), list(graph._edges(node)))
        assert len({(round(x, 6), y) for x, y in places.values()}) == len(places)
        rows: dict[float, list[float]] = {}
        for x, y in places.values():
            rows.setdefault(y, []).append(x)
        for row in rows.values():
            assert np.diff(sorted(row)).min(initial=1.0) >= 1.0 - 1e-9


def test_what_cannot_be_drawn(loss: vg.TensorNode, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"graph\.bmp"):
        vg.graph.draw(loss, tmp_path / "graph.bmp")
    node = loss
    for _ in range(200):
        node = node + 1.0
    with pytest.raises(ValueError, match="at most 300"):
        vg.graph.draw(node)
    loss.clear()
    with pytest.raises(vg.ClearedGraphError):
        vg.graph.draw(loss)
    assert "0.5" in vg.graph.draw(vg.TensorNode(0.5))
