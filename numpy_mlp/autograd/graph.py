"""Pictures of small graphs, as the assignment draws them: round values, diamond-shaped ops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy_mlp.autograd.core import TensorNode, _ops_below

_LIMIT = 300  # more nodes than this make no picture that can be read


def draw(node: TensorNode, path: str | Path | None = None) -> str:
    """Return the graph below ``node`` as Graphviz DOT text, and draw it into a file.

    Values are ellipses with their names and shapes, ops are diamonds, and arrows go the way of the
    forward pass.

    Args:
        node: usually the loss.
        path: where to, if anywhere: ``.dot`` for the text, ``.png``, ``.svg`` or ``.pdf`` for a
            picture, drawn by Matplotlib.

    Raises:
        ValueError: another kind of file, or a graph of more than 300 nodes.
        ClearedGraphError: the graph was taken apart.
    """
    edges = list(_edges(node))
    labels = _labels(node)
    if len(labels) > _LIMIT:
        raise ValueError(f"the graph has {len(labels)} nodes; draw one of at most {_LIMIT}")
    text = _dot(labels, edges)
    if path is None:
        return text
    path = Path(path).expanduser()
    if path.suffix == ".dot":
        path.write_text(text, encoding="utf-8")
    elif path.suffix in (".png", ".svg", ".pdf"):
        _picture(labels, edges, path)
    else:
        raise ValueError(f"cannot draw into {path.name!r}; expected .dot, .png, .svg or .pdf")
    return text


def _edges(node: TensorNode) -> Iterator[tuple[int, int]]:
    """Yield (from, to) as ids, each op's inputs and outputs."""
    for op in reversed(_ops_below(node)):
        yield from ((id(value), id(op)) for value in op.inputs)
        yield from ((id(op), id(value)) for value in op.outputs)


def _labels(node: TensorNode) -> dict[int, tuple[str, bool]]:
    """Return the text of each node, and whether it is an op, inputs first."""
    labels: dict[int, tuple[str, bool]] = {}
    for op in reversed(_ops_below(node)):
        for value in op.inputs:
            labels.setdefault(id(value), (_describe(value), False))
        labels[id(op)] = (op.op.__name__, True)
        for value in op.outputs:
            labels.setdefault(id(value), (_describe(value), False))
    labels.setdefault(id(node), (_describe(node), False))
    return labels


def _describe(node: TensorNode) -> str:
    shape = "×".join(map(str, node.value.shape))
    if not shape:
        shape = f"{float(node.value):.4g}"
    return f"{node.name}\n{shape}" if node.name else shape


def _dot(labels: dict[int, tuple[str, bool]], edges: list[tuple[int, int]]) -> str:
    numbers = {key: number for number, key in enumerate(labels)}
    lines = ["digraph {", "  rankdir=BT;"]
    for key, (text, is_op) in labels.items():
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        shape = "diamond" if is_op else "ellipse"
        lines.append(f'  n{numbers[key]} [label="{escaped}", shape={shape}];')
    lines += [f"  n{numbers[start]} -> n{numbers[end]};" for start, end in edges]
    return "\n".join([*lines, "}", ""])


def _picture(labels: dict[int, tuple[str, bool]], edges: list[tuple[int, int]], path: Path) -> None:
    from matplotlib.figure import Figure  # the rest of this package needs NumPy only

    places = _places(labels, edges)
    xs, ys = zip(*places.values(), strict=True)
    figure = Figure(figsize=(1.5 * (max(xs) - min(xs)) + 2, 0.8 * max(ys) + 1.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(min(xs) - 0.7, max(xs) + 0.7)
    axes.set_ylim(-0.7, max(ys) + 0.7)
    texts: dict[int, Any] = {}
    for key, (text, is_op) in labels.items():
        box = {
            "boxstyle": "darrow,pad=0.25" if is_op else "round4,pad=0.3",
            "facecolor": "#fde8c8" if is_op else "#dce9f7",
            "edgecolor": "#555555",
        }
        texts[key] = axes.text(
            *places[key], text, ha="center", va="center", fontsize=9, bbox=box, zorder=3
        )
    for start, end in edges:
        bend = 0.06
        if places[end][1] - places[start][1] > 1:  # outwards, around what stands between
            bend = -0.4 if places[start][0] <= places[end][0] else 0.4
        axes.annotate(
            "",
            xy=places[end],
            xytext=places[start],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#555555",
                "patchA": texts[start].get_bbox_patch(),
                "patchB": texts[end].get_bbox_patch(),
                "shrinkA": 1,
                "shrinkB": 1,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )
    figure.savefig(path, dpi=150)


def _places(
    labels: dict[int, tuple[str, bool]], edges: list[tuple[int, int]]
) -> dict[int, tuple[float, float]]:
    """Return (x, y) for each node: rows by the longest way from an input, what belongs together
    near together.
    """
    sources: dict[int, list[int]] = {key: [] for key in labels}
    targets: dict[int, list[int]] = {key: [] for key in labels}
    for start, end in edges:
        sources[end].append(start)
        targets[start].append(end)
    rows = dict.fromkeys(labels, 0)
    for key in labels:  # inputs first, so that a node's sources are placed before it
        if sources[key]:
            rows[key] = 1 + max(rows[source] for source in sources[key])
    for key in reversed(list(labels)):  # an input stands just below the first op that uses it
        if not sources[key] and targets[key]:
            rows[key] = min(rows[target] for target in targets[key]) - 1
    places: dict[int, tuple[float, float]] = {}
    for row in range(max(rows.values()), -1, -1):
        members = [key for key in labels if rows[key] == row]

        def wanted(key: int) -> float:
            above = [places[target][0] for target in targets[key] if target in places]
            return sum(above) / len(above) if above else 0.0

        members.sort(key=wanted)
        centre = sum(map(wanted, members)) / len(members) if members else 0.0
        for i, key in enumerate(members):
            places[key] = (centre + i - (len(members) - 1) / 2, float(row))
    return places
