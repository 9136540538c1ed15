"""The plan of the house: who may know whom, and how large anything may become."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

PACKAGES = ("handgrad", "numpy_mlp", "torch_models", "custom_modules")
MOST_LINES = 28_000  # of the product; less is better
MOST_OF_A_ROOM = 0.2  # of them
MOST_OF_A_FILE, MOST_OF_A_FUNCTION = 400, 60


def product() -> dict[Path, str]:
    """Return the sources of what is installed, and of the thin command lines, by their paths."""
    folders = (*PACKAGES, "scripts")
    files = [p for name in folders for p in (ROOT / name).rglob("*") if p.suffix in (".py", ".j2")]
    return {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in sorted(files)}


def room(path: Path) -> str:
    """Return the room that a file is in: a folder of a library or of ``handgrad``."""
    return "/".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield name and length of every function in a file: its lines but for its docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            docstring = (ast.get_docstring(node, clean=False) or "").count("\n") + 1
            length = (node.end_lineno or 0) - node.lineno + 1
            yield node.name, length - docstring * isinstance(first, ast.Expr)


def test_the_ceilings() -> None:
    lines = {path: text.count("\n") for path, text in product().items()}
    total = sum(lines.values())
    assert total <= MOST_LINES, total
    rooms: Counter[str] = Counter()
    for path, count in lines.items():
        rooms[room(path)] += count
    assert not {name: count for name, count in rooms.items() if count > MOST_OF_A_ROOM * total}
    assert not {str(path): n for path, n in lines.items() if n > MOST_OF_A_FILE}
    long = {
        f"{path}:{name}": length
        for path, text in product().items()
        if path.suffix == ".py"
        for name, length in functions(text)
        if length > MOST_OF_A_FUNCTION
    }
    assert not long


def test_no_room_knows_one_above_it() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_command_lines_are_thin() -> None:
    files = sorted((ROOT / "scripts").iterdir())
    assert {f.suffix for f in files if f.is_file()} == {".py"}
    for file in files:
        if file.is_file():
            assert file.read_text(encoding="utf-8").count("\n") <= 12, file
    assert not (ROOT / "scripts/__init__.py").exists()
