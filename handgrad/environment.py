"""What a run ran on: recorded beside its settings."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

# What makes OpenBLAS use other kernels, or cut its work for another cache, than it would choose.
HOLDS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

# Seconds of a product of 768×768 matrices in single precision, and the kernels that were used.
_PRODUCT = """
import time
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
threads = {threads}
cores = [pool.get("architecture") for pool in threadpool_info() if pool.get("user_api") == "blas"]
a = np.ones((768, 768), np.float32)
with threadpool_limits(threads):
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
print(min(times), cores[0])
"""


def describe_environment() -> dict[str, Any]:
    """Return versions, processor and the libraries that do the matrix products."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("handgrad", "numpy", "matplotlib", "safetensors")},
            # Asked for only where they are in use already.
            **{name: _version(name) for name in ("torch", "torchvision") if name in sys.modules},
        },
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "blas": [
            {
                "name": pool.get("internal_api"),
                "version": pool.get("version"),
                "core": pool.get("architecture"),
                "threads": pool.get("num_threads"),
            }
            for pool in threadpool_info()
            if pool.get("user_api") == "blas"
        ],
        "blas_held_by": held_by(),
    }


def blas_threads() -> int | None:
    """Return how many threads NumPy's matrix products may use; None where nobody knows."""
    pools = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    return max((int(pool["num_threads"]) for pool in pools), default=None)


def held_by() -> dict[str, str]:
    """Return the environment variables that choose for OpenBLAS, with their values."""
    return {name: os.environ[name] for name in HOLDS if os.environ.get(name)}


def cost_of_held_blas(threads: int | None = None) -> str | None:
    """Return a line about what the environment's choice for OpenBLAS costs; None if nothing.

    Where no variable chooses, nothing is measured. Where one does, a matrix product is timed in
    two small processes, with the variables and without. The choice itself is the user's.

    Args:
        threads: of the products; None for all.
    """
    held = held_by()
    if not held:
        return None
    free = {name: value for name, value in os.environ.items() if name not in held}
    try:
        mine, core = _time_product(dict(os.environ), threads)
        own, own_core = _time_product(free, threads)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if own * 1.1 > mine:
        return None
    variables = " ".join(f"{name}={value}" for name, value in held.items())
    return (
        f"{variables} keeps OpenBLAS from what this processor has: its own choice ({own_core} "
        f"kernels, not {core}) multiplies matrices {mine / own:.1f} times as fast; unset "
        f"{' and '.join(held)} to use it"
    )


def _time_product(environment: dict[str, str], threads: int | None) -> tuple[float, str]:
    code = _PRODUCT.format(threads=threads)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, core = result.stdout.split()
    return float(seconds), core


def peak_memory_bytes() -> int | None:
    """Return the largest resident memory this process has had, where the system tells."""
    try:
        # Linux hands ru_maxrss down from the parent process; this one is our own.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
