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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

from handgrad.console import let_go_of_lost_terminals
from handgrad.data.sources import cifar10
from handgrad.data.sources.download import default_data_dir, find_file
from handgrad.errors import DataError, UserError
from handgrad.files import locked, read_json, write_atomically
from handgrad.reproduction.rows import Experiment
from handgrad.runs.folder import remove_stillborn, stillborn_files
from handgrad.runs.record import read_run
from handgrad.runs.settings import LOOKING, TrainSettings, settings_from_dict
from handgrad.training.metrics import Row

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
_FREE = LOOKING | {"data_dir", "threads"}


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
    """A finished run: its curves, its ``summary.json`` and ``config.json``, and its cost.

    ``settings`` are those of ``config``; ``cost`` is None where it was not recorded.
    """

    rows: Sequence[Row]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    settings: TrainSettings
    cost: Cost | None

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
            DataError: ``config.json`` is damaged.
        """
        path = self.folder / "config.json"
        if not path.exists():
            if self._foreign_files():
                raise UserError(
                    f"{self.folder} is not a run folder; move it away, or choose another place "
                    f"with --runs"
                )
            return
        row = self.experiment.settings(self.seed, self.quick)
        found = self._settings()
        for name, expected in asdict(row).items():
            value = getattr(found, name)
            # What the row leaves to be decided on the spot was decided in the run.
            if name not in _FREE and expected not in ("auto", value):
                raise UserError(
                    f"the run in {self.folder} has {name} {value}, the row "
                    f"{self.experiment.name} {expected}; move it away, or choose another place "
                    f"with --runs"
                )

    def _settings(self) -> TrainSettings:
        path = self.folder / "config.json"
        kind = type(self.experiment.settings(self.seed, self.quick))
        try:
            return settings_from_dict(kind, read_json(path).get("settings"), str(path))
        except DataError:
            raise
        except UserError as error:
            raise DataError(str(error)) from None

    def _foreign_files(self) -> list[Path]:
        """Return what is in the folder beside what a run writes before its first checkpoint."""
        if self.folder.exists() and not self.folder.is_dir():
            return [self.folder]
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(set(files) - set(stillborn_files(self.folder)))

    def cost(self) -> Cost | None:
        """Return what the run has cost so far, None where there is no record of it.

        Raises:
            DataError: the record is damaged.
        """
        if not self._cost_path.exists():
            return None
        record, kinds = read_json(self._cost_path), get_type_hints(Cost)
        for name, value in record.items():
            if name not in kinds or not isinstance(value, kinds[name]):
                raise DataError(
                    f"{self._cost_path} is damaged: its {name} is {value!r}; without the file, "
                    "what the run has cost is unknown"
                )
        return Cost(**record)

    def result(self) -> Result | None:
        """Return what a finished run gave, None of any other.

        Raises:
            UserError: the folder holds something else than this run.
            DataError: the run is damaged.
        """
        self.check()
        cost = self.cost()
        if not (self.folder / "summary.json").exists() or (cost and not cost.finished):
            return None
        run = read_run(self.folder)
        if run.summary is None:
            return None
        path = self.folder / "config.json"
        config = read_json(path)
        versions, blas = config.get("versions", {}), config.get("blas", [])
        if not isinstance(versions, dict) or not (
            isinstance(blas, list) and all(isinstance(pool, dict) for pool in blas)
        ):
            raise DataError(f"{path} is damaged: its versions are no names and values")
        return Result(run.rows, run.summary, config, self._settings(), cost)

    def execute(self, data_dir: Path | None, commands: Commands) -> int:
        """Train, from the last checkpoint if there is one, and return the command's status.

        Raises:
            UserError: the run cannot be begun or taken up again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder))
            except UserError:
                raise UserError(
                    f"another process is still training in {self.folder}; wait until it ends, then "
                    "give the same command again"
                ) from None
            resumed = (self.folder / "checkpoint.safetensors").is_file()
            if not resumed:
                if self._foreign_files():
                    raise UserError(
                        f"{self.folder} holds an unfinished run without a checkpoint to go on from;"
                        " move it away"
                    )
                remove_stillborn(self.folder)
        if resumed:
            arguments = ["--resume", str(self.folder)]
        else:
            arguments = self.experiment.arguments(self.seed, self.quick)
            arguments += ["--out", str(self.folder)]
        if data_dir is not None:
            arguments += ["--data-dir", str(data_dir)]
        cost = self.cost() or Cost(begun=int(resumed))
        cost.begun += 1
        self._write(cost)
        start, cpu = time.perf_counter(), _cpu_seconds_of_children()
        status = commands.run(self.experiment.network.command, arguments, self.log)
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
        lines = self.log.read_text("utf-8", "replace").split("\n") if self.log.is_file() else []
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
            let_go_of_lost_terminals()
            if self.stop_signal is not None and number == getattr(signal, "SIGHUP", None):
                return  # kernel and shell send it; a second SIGTERM would end the command at once
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

    def run(self, command: str, arguments: Sequence[str], log: Path) -> int:
        """Run a command, all that it prints going to ``log``, and return its status."""
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        environment["PYTHONIOENCODING"] = "utf-8"
        log.unlink(missing_ok=True)  # a command that outlived its parent may still write to it
        child = [sys.executable, "-P", "-m", "handgrad.reproduction.child", command, *arguments]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches it once, through us.
            self._process = subprocess.Popen(
                child,
                stdin=subprocess.PIPE,  # closed, even by a kill of ours, it stops the child
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        with self._process as process:  # however this is left, its input is closed
            try:
                if self.stop_signal is not None:  # came while it was started
                    process.send_signal(signal.SIGTERM)
                return self._wait(process, log)
            finally:
                self._process = None

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> int:
        """Return the status of ``process``, showing meanwhile what it printed last."""
        # There is no sys.stderr where standard error is closed.
        if sys.stderr is None or not sys.stderr.isatty():
            return process.wait()
        while True:
            try:
                status = process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                last = log.read_text("utf-8", "replace").rstrip().rpartition("\n")[2]
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{last[:width]:<{width}}", end="", file=sys.stderr, flush=True)
        print(f"\r{'':<{shutil.get_terminal_size().columns - 1}}\r", end="", file=sys.stderr)
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


def _cpu_seconds_of_children() -> float | None:
    """Return the processor time of all commands that have ended."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
