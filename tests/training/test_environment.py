from __future__ import annotations

import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from training.environment import describe_environment


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
        "import numpy; from training.environment import peak_memory_bytes as peak\n"
        "before = peak(); numpy.ones(2 * 10**8, numpy.uint8); print(before, peak())"
    )
    printed = subprocess.run(
        [*IN_BETWEEN, sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    before, after = map(int, printed.split())
    assert 5e6 < before < 2e8 < after < 6e8
