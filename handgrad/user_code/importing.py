"""Import a user's file or package, which is code and runs as such."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from handgrad.errors import UserError
from handgrad.user_code.blame import OURS, PROJECT


def python_files(path: Path) -> list[Path]:
    """Return a ``.py`` file, or those in a folder and below that are no tests and no scripts of it.

    Raises:
        UserError: there is no such file or folder, or it holds no Python.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a .py file or a folder of them")
    files = [path]
    if path.is_dir():
        left_out = (".", "test_", "conftest", "setup", "__main__")
        files = [
            file
            for file in sorted(path.rglob("*.py"))
            if not any(part.startswith(left_out) for part in file.relative_to(path).parts)
        ]
    if not files or any(file.suffix != ".py" for file in files):
        raise UserError(f"{path} holds no Python; give a .py file or a folder of them")
    return [file.absolute() for file in files]


def import_file(file: Path) -> ModuleType:
    """Import a file, given by its absolute path, and return the module.

    A file in a package is imported under its dotted name, so that relative imports work; any other
    sees its own folder first, as a script does. Whatever the user's code raises is raised.
    """
    root = file.parent
    while (root / "__init__.py").exists() and root != root.parent:
        root = root.parent
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        _make_way(root)
    if len(parts) > 1:
        module = importlib.import_module(name)
        if Path(module.__file__ or "").absolute() == file:
            return module
    # Not by name: a student's "training.py" or "types.py" is not the one that is loaded already.
    if name in sys.modules:
        name = f"user_{name.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, file
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make_way(root: Path) -> None:
    """Forget those of our own packages whose names the files beside the user's have as well."""
    if root == PROJECT:
        return
    for name in OURS:
        if (root / name).is_dir() or (root / f"{name}.py").exists():
            for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
                del sys.modules[loaded]
