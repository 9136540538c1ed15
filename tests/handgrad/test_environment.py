from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from handgrad import environment
from handgrad.environment import cost_of_held_blas, describe_environment


def test_describes_what_ran() -> None:
    found = json.loads(json.dumps(describe_environment()))
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["handgrad"]
    assert found["cores"] >= 1 and found["processor"] and found["platform"]
    assert any(pool["name"] and pool["threads"] >= 1 for pool in found["blas"])


# A process begins with the peak of the one that started it: this one in between is small.
IN_BETWEEN = [
    sys.executable,
    "-c",
    "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))",
]


def test_peak_memory_counts_in_bytes() -> None:
    pytest.importorskip("resource")
    code = (
        "import numpy; from handgrad.environment import peak_memory_bytes as peak\n"
        "before = peak(); numpy.ones(2 * 10**8, numpy.uint8); print(before, peak())"
    )
    printed = subprocess.run(
        [*IN_BETWEEN, sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    before, after = map(int, printed.split())
    assert 5e6 < before < 2e8 < after < 6e8


def test_nothing_is_measured_where_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.HOLDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "_time_product", lambda *args: pytest.fail("measured"))
    assert cost_of_held_blas() is None
    assert describe_environment()["blas_held_by"] == {}


def test_what_a_held_blas_costs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.delenv("OPENBLAS_L2_SIZE", raising=False)

    def product(variables: dict[str, str], threads: int | None) -> tuple[float, str]:
        assert threads == 2
        return (0.5, "Haswell") if "OPENBLAS_CORETYPE" in variables else (0.2, "SkylakeX")

    monkeypatch.setattr(environment, "_time_product", product)
    line = cost_of_held_blas(2)
    assert line is not None and "\n" not in line
    for part in ("OPENBLAS_CORETYPE=Haswell", "SkylakeX kernels, not Haswell", "2.5 times"):
        assert part in line
    assert describe_environment()["blas_held_by"] == {"OPENBLAS_CORETYPE": "Haswell"}
    # A choice that costs nothing is not worth a line; nor is one that cannot be measured.
    monkeypatch.setattr(environment, "_time_product", lambda *args: (0.2, "Haswell"))
    assert cost_of_held_blas(2) is None

    def fails(*args: object) -> tuple[float, str]:
        raise ValueError

    monkeypatch.setattr(environment, "_time_product", fails)
    assert cost_of_held_blas(2) is None


def test_a_product_is_timed_in_another_process() -> None:
    seconds, core = environment._time_product(dict(os.environ), 1)
    assert 0 < seconds < 60 and core
