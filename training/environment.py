"""What a run ran on: recorded beside its settings."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info


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
    }


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
