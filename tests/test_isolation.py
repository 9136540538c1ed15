"""What may import what, shown in fresh processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

OURS = {"numpy_mlp", "custom_modules", "torch_models", "handgrad"}


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('MODULES', *{{m.partition('.')[0] for m in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(result.stdout.rpartition("MODULES")[2].split())


def test_the_numpy_command_never_imports_torch(tmp_path) -> None:  # type: ignore[no-untyped-def]
    code = (
        "from handgrad.backends.command import train_mlp_numpy as main\n"
        f"assert main(['--max-steps', '5', '--quiet', '--out', {str(tmp_path / 'run')!r}]) == 0"
    )
    modules = _modules_after(code)
    assert {"numpy", "matplotlib"} <= modules
    assert not modules & {"torch", "torchvision", "sklearn", "scipy"}


@pytest.mark.parametrize(
    "package", ["numpy_mlp.learner", "numpy_mlp.autograd", "custom_modules", "handgrad.runs.run"]
)
def test_packages_stand_alone(package: str) -> None:
    modules = _modules_after(f"import {package}")
    assert modules & OURS == {package.partition(".")[0]}


def test_numpy_mlp_needs_numpy_only() -> None:
    modules = _modules_after(
        "import numpy_mlp.learner, numpy_mlp.gradient_check, numpy_mlp.autograd.learner"
    )
    assert not modules & {"matplotlib", "safetensors", "threadpoolctl", "tqdm", "torch"}
