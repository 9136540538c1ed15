"""Check correct layers at random shapes: ``check-gradients`` may not find anything.

    python tests/handgrad/checker/random_shapes.py [COUNT]

COUNT checks, 10,000 by default, of every module, op and custom normalisation of this project, at
random sizes, settings, parameters and inputs.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

import custom_modules.custom_batchnorm
import custom_modules.custom_layernorm
import numpy_mlp.autograd.ops
import numpy_mlp.convnet
import numpy_mlp.mlp
import numpy_mlp.modules
from handgrad.checker.candidates import NoInputError
from handgrad.checker.check import check
from handgrad.checker.kinds import Found, find
from handgrad.checker.mistakes import diagnose
from handgrad.checker.probe import Given, Point, Sizes

_MODULES = [
    *(getattr(numpy_mlp.modules, name) for name in ("activations", "batchnorm", "dropout")),
    *(getattr(numpy_mlp.modules, name) for name in ("flatten", "linear", "losses", "softmax")),
    *(getattr(numpy_mlp.modules, name) for name in ("convolution", "pooling", "normalization")),
    numpy_mlp.modules.containers,
    numpy_mlp.convnet,
    numpy_mlp.mlp,
    *(getattr(numpy_mlp.autograd.ops, name) for name in ("elementwise", "matrices", "shapes")),
    custom_modules.custom_batchnorm,
    custom_modules.custom_layernorm,
]


def correct_classes() -> list[Found]:
    """Return everything of ours that has a backward pass."""
    return find(_MODULES)[0]


def false_alarms(count: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Return what was found wrong in ``count`` checks, and how many of them each class had."""
    rng = np.random.default_rng(seed)
    classes = correct_classes()
    alarms: list[str] = []
    checked: Counter[str] = Counter()
    number = 0
    while sum(checked.values()) < count:
        found: Any = classes[number % len(classes)]
        number += 1
        sizes = Sizes(
            *(int(n) for n in rng.integers(1, 7, 3)), *(int(n) for n in rng.integers(1, 3, 2))
        )
        try:
            subjects = found.subjects(Given(), Point(sizes, int(rng.integers(2))), rng)
        except NoInputError:
            if sizes.n > 1:
                raise
            continue  # batch normalisation says no to a batch of one
        subject = subjects[int(rng.integers(len(subjects)))]
        with np.errstate(all="ignore"):
            findings = check(subject, rng, diagnose, warm=0 if rng.integers(2) else None)
        checked[found.cls.__name__] += 1
        # A softmax of one class is 1, a batch of one less its mean is 0: that is no alarm.
        findings = [f for f in findings if not f.passed and f.diagnosis != "constant"]
        alarms += [f"{found.cls.__name__} at {sizes}: {finding}" for finding in findings]
    return alarms, checked


def main(argv: Sequence[str]) -> int:
    count = int(argv[0]) if argv else 10_000
    start = time.perf_counter()
    alarms, checked = false_alarms(count, seed=0)
    print(*alarms, sep="\n", end="\n" if alarms else "")
    each = f"{min(checked.values())} to {max(checked.values())} of each of {len(checked)} classes"
    print(f"{count:,} checks at random shapes, {each}: {len(alarms)} false alarms")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
