"""Every file that handgrad reads, as something that can be fed with bytes.

python fuzz_targets.py FOLDER       train the two small runs whose files are damaged
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import io
import json
import pickle
import platform
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

import handgrad
from handgrad import plot_runs
from handgrad.backends.command import train_mlp_numpy
from handgrad.backends.registry import NETWORKS
from handgrad.data import BatchLoader, load_dataset
from handgrad.data.preprocess import Preprocessing
from handgrad.data.sources import cifar10, digits, download, idx, mnist
from handgrad.errors import UserError
from handgrad.runs import overlay, result
from handgrad.runs.folder import read_config
from handgrad.runs.record import read_run
from handgrad.runs.settings import settings_from_dict
from handgrad.training.checkpoint import Checkpoint, load_arrays, save_arrays
from handgrad.training.loop import Loop
from handgrad.training.metrics import MetricsFile, read_metrics
from numpy_mlp.autograd import data as numpy_mlp_data

RUN_FILES = (
    "config.json", "metrics.csv", "summary.json", "model.safetensors", "checkpoint.safetensors",
)  # fmt: skip
NUMPY, TORCH = "mlp-numpy", "mlp-pytorch"


@dataclass(frozen=True)
class Target:
    """A file that is read.

    Attributes:
        read: reads it, given its content.
        seeds: whole files, small.
        whole: says whether what was read is a result to go on with.
        share: of the inputs of a campaign.
        strategy: of inputs that Hypothesis builds; None to let it damage the seeds.
        factor: how many times an input's length may be allocated, beyond 4 MiB.
        refusal: what is raised for a file that is no good.
    """

    read: Callable[[bytes], Any]
    seeds: list[bytes]
    whole: Callable[[Any], bool]
    share: float
    strategy: st.SearchStrategy[bytes] | None = None
    factor: int = 60
    refusal: type[Exception] = UserError


def train_runs(folder: Path) -> None:
    """Train the runs whose files are damaged: one in NumPy, one in PyTorch."""
    for network in (NUMPY, TORCH):
        options: dict[str, Any] = {"device": "cpu"} if network == TORCH else {}
        with mock.patch.object(result, "draw_pictures"), contextlib.redirect_stdout(io.StringIO()):
            handgrad.train(
                network,
                dataset="digits",
                hidden_dims=(3,),
                dropout=0.2,
                momentum=0.9,
                max_steps=4,
                eval_every=2,
                quiet=True,
                threads=1,
                out=str(folder / network),
                **options,
            )


def batch(n: int, protocol: int = 2) -> bytes:
    """Return a pickled batch of CIFAR-10."""
    images = np.random.default_rng(n).integers(0, 256, (n, 3072), dtype=np.uint8)
    # Protocol 5 for what people write themselves: labels out of an array.
    labels = list(np.arange(n)) if protocol == 5 else list(range(n))
    content = {b"data": images, b"labels": labels, b"filenames": [b"a.png"] * n}
    return pickle.dumps(content, protocol=protocol)


def archive(link: str = "", prefix: str = "cifar-10-batches-py/") -> bytes:
    """Return an archive of CIFAR-10, not yet packed; ``link`` is a link out of it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in cifar10._BATCHES:
            content = batch(1)
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            if name == link:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def idx_file(*shape: int) -> bytes:
    """Return an IDX file."""
    header = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape)
    return header + bytes(i % 10 for i in range(int(np.prod(shape))))


def is_bytes(array: Any) -> bool:
    """Say whether an array is one of bytes."""
    return bool(array.dtype == np.uint8)


def idx_targets(folder: Path) -> dict[str, Target]:
    """Return the readers of MNIST's format."""
    plain = [idx_file(3, 4, 5), idx_file(7), idx_file(2, 3)]
    packed = [gzip.compress(data) for data in plain]
    headers = st.builds(
        lambda dims, sizes, rest: (
            bytes([0, 0, 8, dims]) + b"".join(struct.pack(">I", n) for n in sizes) + rest
        ),
        st.integers(0, 6),
        st.lists(st.integers(0, 9) | st.integers(0, 2**32 - 1), max_size=5),
        st.binary(max_size=200),
    )
    name = "train-images-idx3-ubyte"

    def read_numpy_mlp(data: bytes) -> Any:
        (folder / name).write_bytes(data)
        return numpy_mlp_data._read(folder, name)

    def read_packed(data: bytes) -> Any:
        return idx.parse_idx(gzip.compress(data, 1), "file")

    return {
        "IDX": Target(lambda data: idx.parse_idx(data, "file"), plain + packed, is_bytes, 0.21),
        "IDX, packed": Target(read_packed, plain, is_bytes, 0.05, headers),
        "IDX, numpy_mlp": Target(
            read_numpy_mlp, plain + packed, is_bytes, 0.07, headers, refusal=ValueError
        ),
    }


def several(folder: Path, files: dict[str, bytes], read: Callable[[], Any]) -> tuple[Any, Any]:
    """Return a reader of several files, the first byte saying which is the input, and its seeds."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names = list(files)

    def read_one(data: bytes) -> Any:
        path = folder / names[data[0] % len(names) if data else 0]
        path.write_bytes(data[1:])
        try:
            return read()
        finally:
            path.write_bytes(files[path.name])

    return read_one, [bytes([number]) + files[name] for number, name in enumerate(names)]


def dataset_targets(folder: Path) -> dict[str, Target]:
    """Return the readers of whole datasets."""
    for name in ("mnist", "cifar", "digits", "archive"):
        (folder / name).mkdir()
    mnist_files = {
        f"{prefix}-{kind}-ubyte": idx_file(*shape)
        for prefix in ("train", "t10k")
        for kind, shape in (("images-idx3", (1, 28, 28)), ("labels-idx1", (1,)))
    }
    read_mnist, mnist_seeds = several(
        folder / "mnist", mnist_files, lambda: mnist.load(folder / "mnist", download=False)
    )
    digit_files = {
        "digits-images-idx3-ubyte.gz": gzip.compress(idx_file(1797, 8, 8), 9),
        "digits-labels-idx1-ubyte.gz": gzip.compress(idx_file(1797), 9),
    }

    def load_digits() -> Any:
        with mock.patch.object(digits.resources, "files", lambda _: folder / "digits"):
            return digits.load()

    read_digits, digit_seeds = several(folder / "digits", digit_files, load_digits)
    cifar_files = {name: batch(1) for name in cifar10._BATCHES}
    read_cifar, cifar_seeds = several(
        folder / "cifar", cifar_files, lambda: cifar10.load(folder / "cifar", download=False)
    )
    path = folder / "archive" / cifar10.ARCHIVE

    def read_archive(data: bytes) -> Any:
        path.write_bytes(data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 1))
        return cifar10._assemble(cifar10._read_archive(path))

    def are_images(found: Any) -> bool:
        images, labels, test_images, test_labels = found
        return (
            images.ndim == test_images.ndim == 4
            and images.dtype == test_images.dtype == np.uint8
            and labels.shape == images.shape[:1]
            and test_labels.shape == test_images.shape[:1]
            and all(((of >= 0) & (of < 10)).all() for of in (labels, test_labels))
        )

    def is_batch(found: Any) -> bool:
        images, labels = found
        return bool(
            images.shape == (len(labels), 3072)
            and images.dtype == np.uint8
            and ((labels >= 0) & (labels < 10)).all()
        )

    def read_batch(data: bytes) -> Any:
        return cifar10._parse_batch(io.BytesIO(data), "batch")

    pickles = [batch(n, protocol) for n in (1, 2) for protocol in (0, 2, 4, 5)]
    # A small one shows a fuzzer the format; its array is no image, and is refused.
    small = {b"data": np.zeros((1, 4), np.uint8), b"labels": [1], b"more": ({"a": 1.5}, None)}
    pickles += [pickle.dumps(small, protocol=protocol) for protocol in (0, 2, 5)]
    archives = [archive(), gzip.compress(archive(), 9)]
    return {
        "MNIST folder": Target(read_mnist, mnist_seeds, are_images, 0.05),
        "bundled digits": Target(read_digits, digit_seeds, are_images, 0.04),
        "CIFAR-10 pickle": Target(read_batch, pickles, is_batch, 0.12),
        "CIFAR-10 folder": Target(read_cifar, cifar_seeds, are_images, 0.01),
        "CIFAR-10 archive": Target(read_archive, archives, are_images, 0.01, factor=100),
    }


@dataclass
class Served:
    """What a mirror answers: the rest of a file, from where it is asked to begin."""

    content: bytes

    def __call__(self, url: str, headers: dict[str, str], **options: Any) -> Served:
        """Answer a request."""
        start = int(headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        if start:
            self.status_code = 206 if start < len(self.content) else 416
        else:
            self.status_code = 200
        self.rest = self.content[start:]
        self.headers = {"Content-Length": str(len(self.rest))}
        return self

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def raise_for_status(self) -> None:
        """Nothing went wrong."""

    def iter_content(self, size: int) -> list[bytes]:
        """Return the pieces."""
        return [self.rest]


def download_targets(folder: Path) -> dict[str, Target]:
    """Return the download that goes on from what an earlier one left."""
    content = gzip.compress(idx_file(7), 1)
    known = f"md5:{hashlib.md5(content).hexdigest()}"
    target = folder / "labels.gz"

    def go_on(data: bytes) -> bytes:
        (folder / "labels.gz.part").write_bytes(data)
        try:
            with mock.patch.object(download.requests, "get", Served(content)):
                urls = ["https://mirror/labels.gz"]
                return download.fetch("mnist", urls, target, known, folder).read_bytes()
        finally:
            target.unlink(missing_ok=True)

    seeds = [content[:n] for n in (1, len(content) // 2, len(content))]
    return {"download, half": Target(go_on, seeds, lambda found: found == content, 0.005)}


def picture_targets(folder: Path, run: Path) -> dict[str, Target]:
    """Return the prediction for a picture in a file."""
    trained = handgrad.load_run(run)
    path = folder / "picture"
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    seeds = []
    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", "WEBP"):
        for mode in ("L", "RGB"):
            file = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(file, form)
            seeds.append(file.getvalue())

    def predict(data: bytes) -> Any:
        path.write_bytes(data)
        return trained.predict(path)

    def is_class(found: Any) -> bool:
        return found.shape == (1,) and bool(0 <= found[0] < 10)

    # A decoder has buffers of its own size.
    return {"picture": Target(predict, seeds, is_class, 0.02, factor=5000)}


def without_checksum(path: Path) -> bytes:
    """Return a file of arrays as another library would write it: what is damaged gets further."""
    arrays, texts = load_arrays(path)
    return save(arrays, {"handgrad": json.dumps(texts)})


def new_loop(network: str, run: Path, checkpoint: Path) -> Loop:
    """Return a loop that could take up the checkpoint of a run."""
    dataset = load_dataset("digits")
    plain = Preprocessing(np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.float32)
    backend = NETWORKS[network].backend()
    saved = read_config(run)["settings"]
    settings = settings_from_dict(NETWORKS[network].settings, saved, "config.json")
    return Loop(
        learner=backend.build(settings, dataset),
        train_loader=BatchLoader(dataset.train, 2, plain),
        eval_loaders={},
        schedule=lambda step: 0.1,
        total_steps=4,
        eval_every=2,
        checkpoint_path=checkpoint,
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def like(draw: st.DrawFn, content: Any) -> Any:
    """Draw what looks like ``content``, but at a place or two."""

    def change(value: Any) -> Any:
        if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
            return draw(anything)
        key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        if draw(st.integers(0, 4)) == 0:
            del value[key]
        else:
            value[key] = change(value[key])
        return value

    changed = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 2))):
        changed = change(changed)
    return changed


def encoded(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy of their JSON."""
    return values.map(lambda value: json.dumps(value).encode())


def checkpoint_targets(folder: Path, runs: Path) -> dict[str, Target]:
    """Return the readers of checkpoints."""
    targets = {}
    for network, share in ((NUMPY, 0.1), (TORCH, 0.03)):
        source = runs / network / "checkpoint.safetensors"
        path = folder / f"{network}.safetensors"
        loop = new_loop(network, runs / network, path)

        def read(data: bytes, path: Path = path, loop: Loop = loop) -> Loop:
            path.write_bytes(data)
            loop.resume(Checkpoint.load(path))
            return loop

        seeds = [source.read_bytes(), without_checksum(source)]
        name = "checkpoint" if network == NUMPY else "checkpoint, PyTorch"
        targets[name] = Target(read, seeds, is_resumed, share, factor=100)
        arrays, texts = load_arrays(source)
        damaged = folder / f"{network}-texts.safetensors"

        def read_texts(
            data: bytes,
            path: Path = damaged,
            loop: Loop = loop,
            arrays: Any = arrays,
            texts: Any = texts,
        ) -> Loop:
            learner, _, progress = data.decode("utf-8", "replace").partition("\n")
            save_arrays(path, arrays, {**texts, "learner": learner, "progress": progress})
            loop.resume(Checkpoint.load(path))
            return loop

        seed = f"{texts['learner']}\n{texts['progress']}".encode()
        contents = [json.loads(texts[part]) for part in ("learner", "progress")]
        strategy = st.tuples(*(encoded(like(part)) for part in contents)).map(b"\n".join)
        targets[f"{name}, its texts"] = Target(
            read_texts, [seed], is_resumed, share / 2, strategy, factor=100
        )
    return targets


def is_resumed(loop: Loop) -> bool:
    """Say whether a loop can go on."""
    return loop.progress.step >= 0 and all(
        np.isfinite(array).all() for array in loop.learner.weights().values()
    )


def run_targets(folder: Path, runs: Path) -> dict[str, Target]:
    """Return the readers of the files in the folder of a run."""
    for network in (NUMPY, TORCH):
        shutil.copytree(runs / network, folder / network)
    run = folder / NUMPY
    files = {name: (run / name).read_bytes() for name in RUN_FILES}
    config, summary = (json.loads(files[name]) for name in ("config.json", "summary.json"))
    small = {"commands": ["a"], "settings": {"lr": 0.1, "hidden_dims": [3, 4], "seed": 1}}
    configs = [files["config.json"], json.dumps(small).encode()]
    alone = folder / "alone"
    alone.mkdir()

    def read_settings(data: bytes) -> Any:
        (alone / "config.json").write_bytes(data)
        found = read_config(alone)
        kinds = [network.settings for network in NETWORKS.values()]
        refusals, settings = [], []
        for kind in kinds:
            try:
                settings.append(settings_from_dict(kind, found.get("settings"), "config.json"))
            except UserError as error:
                refusals.append(error)
        if not settings:
            raise refusals[0]
        return settings

    def are_settings(found: Any) -> bool:
        return all(
            0 < one.lr < float("inf")
            and settings_from_dict(type(one), vars(one), "config.json") == one
            for one in found
        )

    def read_rows(data: bytes) -> Any:
        path = run / "metrics.csv"
        path.write_bytes(data)
        try:
            record = read_run(run)
            return [*record.rows, *MetricsFile.reopen(path, 2).rows, *read_metrics(path)]
        finally:
            path.write_bytes(files["metrics.csv"])

    def are_rows(rows: Any) -> bool:
        return all(type(row.step) is int and type(row.loss) is float for row in rows)

    def read_summary(data: bytes) -> Any:
        path = run / "summary.json"
        path.write_bytes(data)
        try:
            result.measured_before(run, 4)
            return read_run(run)
        finally:
            path.write_bytes(files["summary.json"])

    targets = {
        "config.json": Target(
            read_settings, configs, are_settings, 0.12, encoded(like(config)), factor=200
        ),
        "metrics.csv": Target(read_rows, [files["metrics.csv"]], are_rows, 0.1, factor=200),
        "summary.json": Target(
            read_summary,
            [files["summary.json"]],
            lambda record: record.summary is None or record.summary["steps"] <= 2**63,
            0.05,
            encoded(like(summary)),
            factor=200,
        ),
    }
    return targets | loading_targets(folder, files) | command_targets(folder, files)


def loading_targets(folder: Path, files: dict[str, bytes]) -> dict[str, Target]:
    """Return what reads a finished run from Python."""
    targets = {}
    image = np.zeros((1, 8, 8), np.uint8)
    for network, share in ((NUMPY, 0.02), (TORCH, 0.01)):
        run = folder / network
        weights = run / "model.safetensors"
        whole = weights.read_bytes()

        def read_weights(
            data: bytes, run: Path = run, weights: Path = weights, whole: bytes = whole
        ) -> Any:
            weights.write_bytes(data)
            try:
                return handgrad.load_run(run)
            finally:
                weights.write_bytes(whole)

        def predicts(found: Any) -> bool:
            if found.image_shape != image.shape:
                return True
            return bool(found.predict(image).shape == (1,))

        arrays, texts = load_arrays(weights)
        name = "weights" if network == NUMPY else "weights, PyTorch"
        targets[name] = Target(
            read_weights, [whole, without_checksum(weights)], predicts, share, factor=200
        )
        source = folder / f"{network}-texts.safetensors"

        def read_texts(
            data: bytes,
            arrays: Any = arrays,
            texts: Any = texts,
            source: Path = source,
            read: Callable[[bytes], Any] = read_weights,
        ) -> Any:
            model, _, fitted = data.decode("utf-8", "replace").partition("\n")
            save_arrays(source, arrays, {**texts, "model": model, "preprocessing": fitted})
            return read(source.read_bytes())

        seed = f"{texts['model']}\n{texts['preprocessing']}".encode()
        contents = [json.loads(texts[part]) for part in ("model", "preprocessing")]
        strategy = st.tuples(*(encoded(like(part)) for part in contents)).map(b"\n".join)
        targets[f"{name}, their texts"] = Target(
            read_texts, [seed], predicts, share / 2, strategy, factor=200
        )
    run = folder / "loaded"
    shutil.copytree(folder / NUMPY, run)
    read, seeds = several(run, files, lambda: handgrad.load_run(run))
    targets["run, loaded"] = Target(read, seeds, lambda found: found.model is not None, 0.02)
    return targets


def command_targets(folder: Path, files: dict[str, bytes]) -> dict[str, Target]:
    """Return the commands that read the folder of a run: resumed, plotted, reported."""
    resumed, plotted = folder / "resumed", folder / "plotted"
    shutil.copytree(folder / NUMPY, resumed)
    shutil.copytree(folder / NUMPY, plotted)

    def call(command: Callable[[list[str]], int], arguments: list[str], lines: int = 1) -> int:
        error = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            status = command(arguments)
        said = error.getvalue()
        assert status in (0, 2), f"exit status {status}"
        assert said.count("\n") <= lines, f"more than {lines} lines: {said!r}"
        if status:
            raise UserError(said)
        return status

    def resume() -> int:
        # Not trained: a damaged number of steps may ask for any.
        with (
            mock.patch.object(result, "draw_pictures"),
            mock.patch.object(Loop, "run", lambda self: True),
        ):
            return call(train_mlp_numpy, ["--resume", str(resumed), "--report", "--quiet"])

    def plot() -> int:
        with mock.patch.object(overlay, "plot_panels"):
            # What is left out, and that nothing is left.
            return call(plot_runs.main, [str(plotted), "--out", str(folder / "runs.png")], 2)

    read_resumed, resume_seeds = several(resumed, files, resume)

    def read_again(data: bytes) -> Any:
        try:
            return read_resumed(data)
        finally:  # a resumed run writes its files anew
            for name, content in files.items():
                (resumed / name).write_bytes(content)

    read_plotted, plot_seeds = several(plotted, files, plot)
    return {
        "--resume --report": Target(read_again, resume_seeds, is_done, 0.002, factor=10_000),
        "plot-runs": Target(read_plotted, plot_seeds, is_done, 0.02, factor=1000),
    }


def is_done(status: Any) -> bool:
    """Say whether a command has done what it was told."""
    return bool(status == 0)


def targets(folder: Path, runs: Path) -> dict[str, Target]:
    """Return all of them.

    Args:
        folder: an empty one for their files.
        runs: where :func:`train_runs` has been.
    """
    platform.processor()  # which asks another program, once
    for name in ("idx", "data", "downloads", "pictures", "checkpoints", "runs"):
        (folder / name).mkdir()
    return {
        **idx_targets(folder / "idx"),
        **dataset_targets(folder / "data"),
        **download_targets(folder / "downloads"),
        **picture_targets(folder / "pictures", runs / NUMPY),
        **checkpoint_targets(folder / "checkpoints", runs),
        **run_targets(folder / "runs", runs),
    }


if __name__ == "__main__":
    train_runs(Path(sys.argv[1]))
