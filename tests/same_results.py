"""Record what the commands do, and compare: that a change of structure changed nothing else.

    python tests/same_results.py record before.json --data-dir DATA    with the version before
    python tests/same_results.py compare before.json --data-dir DATA   with the version after

Each of the runs below is made with the commands beside this interpreter. What must be the same are
the bytes of ``model.safetensors``, ``metrics.csv`` but for its times, every option of every
``--help``, and what comes of runs that the version before began, was killed in, and left behind.
That takes some minutes, without ``--data-dir`` (CIFAR-10 and MNIST) fewer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_TORCH = "--device cpu --precision float32"
# Two backends in NumPy, two in PyTorch; every optimizer, schedule, augmentation and normalisation.
RUNS = {
    "digits": "train-mlp-numpy",
    "digits-graph": "train-mlp-numpy --engine graph --activation tanh --epochs 5 --schedule step",
    "digits-float64": "train-mlp-numpy --dtype float64 --activation elu --epochs 5 --threads 2",
    "digits-adamw": "train-mlp-numpy --optimizer adamw --weight-decay 0.01 --schedule cosine "
    "--warmup-steps 20 --dropout 0.2 --batch-norm --epochs 8",
    "digits-crop": "train-mlp-numpy --augment crop cutout --neg-slope 0.1 --momentum 0.9 "
    "--nesterov --epochs 6 --validation-images last",
    "digits-graph-dropout": "train-mlp-numpy --engine graph --activation sigmoid --dropout 0.3 "
    "--input-dropout 0.1 --optimizer adamw --epochs 4 --augment crop",
    "digits-torch": f"train-mlp-pytorch {_TORCH} --epochs 5 --batch-norm --norm manual "
    "--dropout 0.2 --schedule cosine --momentum 0.9",
    "digits-torch-adam": f"train-mlp-pytorch {_TORCH} --epochs 4 --optimizer adam --mixup 0.2 "
    "--label-smoothing 0.1 --batch-norm --norm autograd --threads 2",
    "digits-convnet": f"train-convnet {_TORCH} --model small-vgg --max-steps 40 --batch-size 32 "
    "--optimizer adamw --augment crop --norm manual",
    "mnist": "train-mlp-numpy --preset mnist --max-steps 300 --eval-every 150",
    "mnist-momentum": "train-mlp-numpy --preset vu-momentum --max-steps 150 --eval-every 75",
    "mnist-torch": f"train-mlp-pytorch {_TORCH} --preset vu-mnist --hidden-dims 200 100 "
    "--max-steps 300 --eval-every 150",
    "mnist-convnet": f"train-convnet {_TORCH} --preset vu-mnist --max-steps 60 --eval-every 30",
    "cifar10": "train-mlp-numpy --preset uva-2018 --max-steps 300",
    "cifar10-best": "train-mlp-numpy --preset best --max-steps 120 --eval-every 60 --augment flip",
    "cifar10-torch": f"train-mlp-pytorch {_TORCH} --preset uva-2018 --max-steps 200",
    "cifar10-convnet": f"train-convnet {_TORCH} --preset uva-2018 --model preact-resnet "
    "--max-steps 12 --eval-every 6 --augment flip crop randaugment --cutmix 0.5 "
    "--validation-size 200 --eval-splits validation --step-size 4 --schedule step",
}
# Killed where a checkpoint has been written, and taken up: by this version, and by the next one.
KILLED = {
    "killed-modules": "train-mlp-numpy --epochs 40 --hidden-dims 256 --dropout 0.2 --batch-norm "
    "--momentum 0.9 --schedule cosine --augment crop --checkpoint-every 7",
    "killed-graph": "train-mlp-numpy --engine graph --epochs 12 --hidden-dims 256 --dropout 0.2 "
    "--optimizer adamw --schedule step --checkpoint-every 7",
    "killed-torch": f"train-mlp-pytorch {_TORCH} --epochs 12 --dropout 0.2 --batch-norm "
    "--momentum 0.9 --schedule cosine --augment crop --checkpoint-every 7",
}
COMMANDS = (
    "train-mlp-numpy",
    "train-mlp-pytorch",
    "train-convnet",
    "check-gradients",
    "compare-engines",
    "reproduce",
    "plot-runs",
    "benchmark",
)


def _program(name: str) -> list[str]:
    """Return how a command is called: by its own name, or as a subcommand of ``handgrad``."""
    folder = Path(sys.executable).parent
    own = folder / name
    if own.exists():
        return [str(own)]
    return [str(folder / "handgrad"), name]


def _call(words: list[str], data_dir: str | None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    if data_dir is not None:
        environment["HANDGRAD_DATA_DIR"] = data_dir
    return subprocess.Popen(
        [*_program(words[0]), *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def _finish(words: list[str], data_dir: str | None) -> str:
    process = _call(words, data_dir)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(words)} ended with {process.returncode}: {said}")
    return said


def content(folder: Path) -> dict[str, str]:
    """Return the digests of a run's weights and of its metrics but for their times."""
    rows = (folder / "metrics.csv").read_text().splitlines()
    metrics = "\n".join(row.rpartition(",")[0] for row in rows)
    return {
        "model.safetensors": _digest((folder / "model.safetensors").read_bytes()),
        "metrics.csv": _digest(metrics.encode()),
    }


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _words(command: str, folder: Path) -> list[str]:
    words = command.split()
    return [*words, *([] if "--threads" in words else ["--threads", "1"]), "--out", str(folder)]


def run(command: str, folder: Path, data_dir: str | None) -> dict[str, str]:
    """Return the content of a run from beginning to end."""
    _finish([*_words(command, folder), "--quiet"], data_dir)
    return content(folder)


def kill(command: str, folder: Path, data_dir: str | None) -> None:
    """Begin a run and kill it after its third checkpoint."""
    process = _call([*_words(command, folder), "--quiet"], data_dir)
    checkpoint, seen = folder / "checkpoint.safetensors", set[int]()
    while len(seen) < 3 and process.poll() is None:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.001)
    process.kill()
    process.communicate()
    if (folder / "model.safetensors").exists():
        raise SystemExit(f"error: {command} was over before it was killed")


def resume(command: str, folder: Path, data_dir: str | None) -> dict[str, str]:
    """Return the content of a run that is taken up where it was killed."""
    _finish([command.split()[0], "--resume", str(folder)], data_dir)
    return content(folder)


def options(text: str) -> dict[str, str]:
    """Return the help of each option by its name, whatever the order, headings and line breaks."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=  \S)", text):
        name = re.match(r"  (-\S+(?: \S+)*?|\w+)(?:  +|\n|$)", entry)
        if name and not entry.startswith("   "):
            body = entry[name.end(1) :].partition("\n\n")[0]
            # A word broken at its hyphen is one word.
            found[name[1]] = re.sub(r"- (?=\w)", "-", " ".join(body.split()))
    return found


def everything(folder: Path, data_dir: str | None) -> dict[str, dict[str, str]]:
    """Make all runs in ``folder``; return what is to be compared, by name."""
    found: dict[str, dict[str, str]] = {}
    for name in COMMANDS:
        text = _finish([name, "--help"], None)
        found[f"{name} --help"] = options(text)
    chosen = {
        name: command
        for name, command in RUNS.items()
        if data_dir is not None or name.startswith("digits")
    }

    def one(name: str) -> dict[str, str]:
        command = (RUNS | KILLED)[name]
        start = time.monotonic()
        if name in KILLED:
            kill(command, folder / name, data_dir)
            shutil.copytree(folder / name, folder / f"{name}-left")
            result = resume(command, folder / name, data_dir)
        else:
            result = run(command, folder / name, data_dir)
        print(f"{name:22} {time.monotonic() - start:6.1f} s  {command}", flush=True)
        return result

    # One thread each, two at a time: what the neighbours do changes no number.
    with ThreadPoolExecutor(2) as pool:
        names = [*chosen, *KILLED]
        found |= dict(zip(names, pool.map(one, names), strict=True))
    return found


def differences(
    before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]
) -> Iterator[str]:
    """Yield a line for all that is not the same."""
    for name, items in before.items():
        if name not in after:
            yield f"{name}: not made"
            continue
        # What is new is no difference.
        for key, value in items.items():
            if after[name].get(key) != value:
                yield f"{name}: {key}: {value!r} became {after[name].get(key)!r}"


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path, metavar="FILE", help="the record, JSON")
    parser.add_argument("--data-dir", metavar="DIR", help="with CIFAR-10 and MNIST")
    arguments = parser.parse_args()
    # Beside the record: what the version before left behind when it was killed.
    left = arguments.file.with_suffix(".runs")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = everything(folder, arguments.data_dir)
        if arguments.what == "record":
            arguments.file.write_text(json.dumps(found, indent=1) + "\n")
            for name in KILLED:
                shutil.copytree(folder / f"{name}-left", left / name)
            print(f"recorded {len(found)} things in {arguments.file}")
            return 0
        before: dict[str, Any] = json.loads(arguments.file.read_text())
        for name, command in KILLED.items():
            shutil.copytree(left / name, folder / f"{name}-old")
            old = resume(command, folder / f"{name}-old", arguments.data_dir)
            found[f"{name}, left by the version before"] = old
            before[f"{name}, left by the version before"] = before[name]
    lines = list(differences(before, found))
    print("\n".join(lines) or f"all {len(before)} the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
