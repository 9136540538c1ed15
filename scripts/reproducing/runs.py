"""One run of an experiment: begun, taken up again or found finished, and what it cost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import scripts
from scripts.reproducing.experiments import Experiment
from training.data import cifar10
from training.data.download import default_data_dir, find_file
from training.errors import UserError
from training.files import write_atomically
from training.metrics import Row, read_metrics

# MD5 of the official files, as torchvision's CIFAR10 has them too.
_OFFICIAL = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_OFFICIAL_ARCHIVE = "c58f30108f718f92721af3b95e74349a"
# What may differ between a run and its row: where things are and how they are shown.
_FREE = {"data_dir", "out", "threads", "quiet", "target_accuracy"}


@dataclass
class Cost:
    """What the commands of a run took, over all the times it was begun and taken up again.

    Attributes:
        begun: commands that were started.
        ended: those whose time is counted here; a killed ``reproduce`` leaves it one behind.
        finished: whether the last ended well.
        wall_seconds: from start to end.
        cpu_seconds: of the processor, all cores together; None where the system does not tell.
        date: of the last end.
        official_data: whether CIFAR-10 was the official files; None for other data.
    """

    begun: int = 0
    ended: int = 0
    finished: bool = False
    wall_seconds: float = 0.0
    cpu_seconds: float | None = 0.0
    date: str = ""
    official_data: bool | None = None


@dataclass(frozen=True)
class Result:
    """A finished run: its curves, its ``summary.json`` and ``config.json``, and its cost."""

    rows: list[Row]
    summary: dict[str, Any]
    config: dict[str, Any]
    cost: Cost

    @property
    def test(self) -> float:
        """Test accuracy of the weights that were kept."""
        return float(self.summary["test_accuracy"])

    @property
    def validation(self) -> float | None:
        """Validation accuracy after the last step."""
        values = [row.accuracy for row in self.rows if row.split == "validation"]
        return values[-1] if values else None


@dataclass(frozen=True)
class Run:
    """An experiment with one seed, in its folder ``<runs>/<experiment>/seed-<n>``."""

    experiment: Experiment
    seed: int
    runs: Path
    quick: bool

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.experiment.name / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.folder.with_suffix(".log")

    @property
    def _cost_path(self) -> Path:
        # Beside the folder: a run begins in an empty one.
        return self.folder.with_suffix(".json")

    def check(self) -> None:
        """Look at what is in the folder.

        Raises:
            UserError: it holds something else than this run.
        """
        config = _read_json(self.folder / "config.json")
        if config is None:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UserError(
                    f"{self.folder} is not a run folder; move it away, or choose another place "
                    f"with --runs"
                )
            return
        found = config.get("settings", {})
        for name, value in asdict(self.experiment.settings(self.seed, self.quick)).items():
            expected = list(value) if isinstance(value, tuple) else value
            # What the row leaves to be decided on the spot was decided in the run.
            if name not in _FREE and expected != "auto" and found.get(name) != expected:
                raise UserError(
                    f"the run in {self.folder} has {name} {found.get(name)}, the row "
                    f"{self.experiment.name} {expected}; move it away, or choose another place "
                    f"with --runs"
                )

    def cost(self) -> Cost:
        """Return what the run has cost so far."""
        try:
            return Cost(**(_read_json(self._cost_path) or {}))
        except TypeError:  # of another version
            return Cost()

    def result(self) -> Result | None:
        """Return what a finished run gave, None of any other."""
        cost, summary = self.cost(), _read_json(self.folder / "summary.json")
        config = _read_json(self.folder / "config.json")
        if not cost.finished or summary is None or config is None:
            return None
        return Result(read_metrics(self.folder / "metrics.csv"), summary, config, cost)

    def execute(self, data_dir: Path | None, commands: Commands) -> int:
        """Train, from the last checkpoint if there is one, and return the command's status."""
        if (self.folder / "checkpoint.safetensors").is_file():
            arguments = ["--resume", str(self.folder)]
        else:
            if self.folder.is_dir():  # killed before its first checkpoint
                shutil.rmtree(self.folder)
            arguments = self.experiment.arguments(self.seed, self.quick)
            arguments += ["--out", str(self.folder)]
        if data_dir is not None:
            arguments += ["--data-dir", str(data_dir)]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        cost = self.cost()
        cost.begun += 1
        self._write(cost)
        start, cpu = time.perf_counter(), _cpu_seconds_of_children()
        status = commands.run(
            [sys.executable, "-P", "-m", self.experiment.module, *arguments], self.log
        )
        cost.wall_seconds += time.perf_counter() - start
        cpu_end = _cpu_seconds_of_children()
        if cpu is None or cpu_end is None or cost.cpu_seconds is None:
            cost.cpu_seconds = None
        else:
            cost.cpu_seconds += cpu_end - cpu
        cost.ended += 1
        cost.finished = status == 0
        cost.date = time.strftime("%Y-%m-%d")
        if self.experiment.settings(self.seed, self.quick).dataset == "cifar10":
            cost.official_data = official_cifar10(data_dir)
        self._write(cost)
        return status

    def _write(self, cost: Cost) -> None:
        write_atomically(self._cost_path, (json.dumps(asdict(cost), indent=2) + "\n").encode())

    def last_line(self) -> str:
        """Return the last line that the command printed."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Commands:
    """Starts one command after another, and hands on to it the signals that ask to stop."""

    def __init__(self) -> None:
        self.stop_signal: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def signals_caught(self) -> Iterator[None]:
        """Turn Ctrl-C, SIGTERM and SIGHUP into a request that the command stops at a checkpoint."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stop_signal = number
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        numbers = [getattr(signal, name) for name in names]
        # What nohup ignores stays ignored.
        numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(self, command: list[str], log: Path) -> int:
        """Run ``command``, all that it prints going to ``log``, and return its status."""
        root = str(Path(scripts.__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        log.unlink(missing_ok=True)  # a command that outlived its parent may still write to it
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches it once, through us.
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            if self.stop_signal is not None:  # came while it was started
                self._process.send_signal(signal.SIGTERM)
            shows = sys.stderr.isatty()
            while True:
                try:
                    status = self._process.wait(timeout=1 if shows else None)
                    break
                except subprocess.TimeoutExpired:
                    last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
                    width = shutil.get_terminal_size().columns - 1
                    print(f"\r{last[:width]:<{width}}", end="", file=sys.stderr, flush=True)
            if shows:
                print(
                    f"\r{'':<{shutil.get_terminal_size().columns - 1}}\r", end="", file=sys.stderr
                )
        self._process = None
        return status


def official_cifar10(data_dir: Path | None) -> bool | None:
    """Say whether the CIFAR-10 files are the official ones, by their MD5; None without files."""
    root = data_dir or default_data_dir()
    first = find_file(root, ("data_batch_1",))
    if first is not None:
        return all(_md5(first.with_name(name)) == md5 for name, md5 in _OFFICIAL.items())
    archive = find_file(root, (cifar10.ARCHIVE,))
    return None if archive is None else _md5(archive) == _OFFICIAL_ARCHIVE


def _md5(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; move it and its run away") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no settings; move it and its run away")
    return content


def _cpu_seconds_of_children() -> float | None:
    """Return the processor time of all commands that have ended."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
