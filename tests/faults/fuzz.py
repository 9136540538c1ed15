"""Feed every file that is read with a million damaged ones.

    python tests/faults/fuzz.py                                   1,000,000 inputs
    python tests/faults/fuzz.py --count 20000 --jobs 2            fewer, two processes
    python tests/faults/fuzz.py --again 1f3a5b7c                  one that was found, once more

What comes out is an error of the one type, with one line to say, or a result that is whole: never
another exception, a crash, a hang, a command that runs, a file that appears, or memory out of
proportion. Seven inputs in ten are led by the code that they reach (atheris: pip install atheris,
on Linux and macOS, Python 3.11 to 3.14), one is built by Hypothesis, two are damaged at random.

Every piece of work is a line of --results, and so is every fault. Begun again with the same file,
the campaign goes on where it was, however it ended.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import itertools
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import campaign
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

try:
    import atheris
except ImportError:
    atheris = None
else:
    # Python's own reader of pickles, of which ours is made.
    if "fuzz_targets" not in sys.modules:
        for _code, _load in pickle._Unpickler.dispatch.items():
            pickle._Unpickler.dispatch[_code] = atheris.instrument_func(_load)
with contextlib.ExitStack() as _stack:
    if atheris:
        _stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # it tells of each module
        _stack.enter_context(
            atheris.instrument_imports(include=["handgrad", "numpy_mlp", "tarfile"])
        )
    import fuzz_targets
    from fuzz_targets import Target

ENGINES = {"atheris": 0.7, "hypothesis": 0.1, "random": 0.2}
PIECE = 4000  # inputs, of most targets; of one that is slow, as many as its share is smaller
SECONDS = 5  # of the processor, for one input
MEMORY = 1 << 29  # bytes that an input may take; every MEASURED-th is looked at closely
MEASURED = 50
LONGEST_LINE = 1000
# What no file has business to cause, as the interpreter calls it.
FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.kill", "os.putenv",
    "subprocess.Popen", "socket.connect", "socket.bind", "shutil.rmtree", "pty.spawn",
    "webbrowser.open",
}  # fmt: skip
WRITING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}


class Caught(BaseException):
    """An input did what no input may do; readers catch Exception at most."""


class Enough(BaseException):
    """As many inputs as were asked for."""


@dataclass
class State:
    """What is known of a piece of work even when its process dies: memory that both see."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1 << 20))

    def begin(self, data: bytes) -> None:
        """Note the input that comes now."""
        count, read, _ = self.counts()
        kept = data[: len(self.memory) - 24]
        self.memory[:24] = struct.pack("<QQQ", count + 1, read, len(kept))
        self.memory[24 : 24 + len(kept)] = kept

    def count_read(self) -> None:
        """Note that it was read."""
        count, read, length = self.counts()
        self.memory[:24] = struct.pack("<QQQ", count, read + 1, length)

    def counts(self) -> tuple[int, int, int]:
        """Return how many inputs there were, how many were read, and the last one's length."""
        count, read, length = struct.unpack("<QQQ", self.memory[:24])
        return count, read, length

    def last(self) -> bytes:
        """Return the last input."""
        return self.memory[24 : 24 + self.counts()[2]]


@dataclass
class Feeder:
    """Feed a target, and note what is wrong.

    Args:
        target: what reads.
        found: told of each kind of fault once: its description and the input.
        state: the counts.
        limit: :meth:`feed` raises Enough after as many inputs.
    """

    target: Target
    found: Callable[[str, bytes], None]
    state: State
    limit: int

    def __post_init__(self) -> None:
        self._kinds: set[str] = set()

    def feed(self, data: bytes) -> None:
        """Feed one input."""
        self.state.begin(data)
        count = self.state.counts()[0]
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        try:
            self._look(data, measured=count % MEASURED == 0)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            kind, text = _described(error)
            if kind not in self._kinds and len(self._kinds) < 20:
                self._kinds.add(kind)
                self.found(text, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if count >= self.limit:
            raise Enough

    def _look(self, data: bytes, measured: bool) -> None:
        if measured:
            tracemalloc.start()
        try:
            found = self.target.read(data)
        except self.target.refusal as error:
            line = " ".join(str(error).split())
            assert len(line) > 10, f"nothing said but {line!r}"
            assert len(line) <= LONGEST_LINE, f"{len(line)} characters said: {line[:200]} ..."
        else:
            assert self.target.whole(found), "what was read is not whole"
            self.state.count_read()
        finally:
            if measured:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
        if measured:
            allowed = self.target.factor * len(data) + (4 << 20)
            assert peak < allowed, f"{peak >> 20} MiB for {len(data):,} bytes"


def _described(error: BaseException) -> tuple[str, str]:
    """Return the kind of a fault, and a description with the place."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(campaign.ROOT / "handgrad")]
    frame = (ours or frames)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__} {place}", f"{type(error).__name__} at {place}: {text}"


def guard(*writable: Path) -> None:
    """Let this process write below ``writable`` only, and run nothing."""

    places = (os.devnull, *map(str, writable))

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            raise Caught(f"a file made us call {event}{arguments!r:.100}")
        if event in WRITING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            path = arguments[0]
            if isinstance(path, int):
                return
            where = str(Path(os.fsdecode(path)).absolute())
            if not where.startswith(places):
                raise Caught(f"a file made us write: {event} {where}")

    sys.addaudithook(look)


def damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of ``seeds``, damaged in one to three ways."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        # Headers are short and matter most: half of the damage is near the beginning.
        at = min(at, rng.randrange(64)) if rng.random() < 0.5 else at
        length = rng.choice((1, 2, 4, 8, rng.randint(1, 300)))
        kind = rng.randrange(8)
        if kind == 0 and data:
            at %= len(data)
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif kind == 6:
            form, value = rng.choice(
                (("<I", 2**32 - 1), (">I", 2**31), ("<Q", 2**62), (">Q", 2**40))
            )
            number = struct.pack(form, value)
            data[at : at + len(number)] = number
        else:
            word = rng.choice(
                (b"", b"\x00" * 8, b"\xff" * 8, b"nan", b"-1", b"1e999", b"{[", b"\n")
            )
            data[at : at + len(word)] = word
    return bytes(data)


def edited(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy of ``seeds`` with some bytes replaced, taken out or put in."""

    def apply(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for at, length, new in edits:
            at %= len(data) + 1
            data = data[:at] + new + data[at + length :]
        return data

    edit = st.tuples(st.integers(0, 1 << 14), st.integers(0, 16), st.binary(max_size=16))
    return st.builds(apply, st.sampled_from(seeds), st.lists(edit, max_size=4))


def by_random(feeder: Feeder, number: int, corpus: Path) -> None:
    """Feed seeds with random damage."""
    rng = random.Random(number)
    while True:
        feeder.feed(damaged(rng, feeder.target.seeds))


def by_hypothesis(feeder: Feeder, number: int, corpus: Path) -> None:
    """Feed what Hypothesis builds."""
    strategy = feeder.target.strategy or edited(feeder.target.seeds)
    for again in itertools.count():  # it may end early where it sees nothing new

        @seed(number + again)
        @settings(
            max_examples=feeder.limit,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def test(data: bytes) -> None:
            feeder.feed(data)

        test()


def by_atheris(feeder: Feeder, number: int, corpus: Path) -> None:
    """Feed what atheris makes of the seeds and of what other pieces of work have found."""
    corpus.mkdir(parents=True, exist_ok=True)
    for data in feeder.target.seeds:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

    def test(data: bytes) -> None:
        try:
            feeder.feed(data)
        except Enough:
            os._exit(0)  # libFuzzer never returns

    longest = max(4096, 2 * max(map(len, feeder.target.seeds)))
    options = f"-seed={number} -max_len={longest} -rss_limit_mb=0 -timeout=0"
    options += f" -verbosity=0 -print_final_stats=0 -reload=0 -artifact_prefix={corpus}/"
    atheris.Setup(["fuzz", *options.split(), str(corpus)], test)
    atheris.Fuzz()


RUN = {"atheris": by_atheris, "hypothesis": by_hypothesis, "random": by_random}


@dataclass(frozen=True)
class Piece:
    """A piece of work: so many inputs for a target, by an engine."""

    target: str
    engine: str
    number: int
    inputs: int


class Fuzzing:
    """The campaign.

    Args:
        results: where its lines go.
        work: an empty folder.
        corpus: where atheris keeps what leads to new code.
        engines: of :data:`ENGINES`.
    """

    def __init__(
        self, results: campaign.Results, work: Path, corpus: Path, engines: Sequence[str]
    ) -> None:
        self.results, self.work, self.corpus = results, work, corpus
        parts = {engine: ENGINES[engine] for engine in engines}
        self.parts = {engine: part / sum(parts.values()) for engine, part in parts.items()}
        self._process: int | None = None
        self.runs = work / "runs"

    def begin(self) -> None:
        """Train the runs whose files are damaged, and look how many inputs each target gets."""
        self.runs.mkdir()
        subprocess.run(
            [sys.executable, fuzz_targets.__file__, str(self.runs)],
            check=True,
            env=campaign.environment(),
        )

    def targets(self) -> dict[str, Target]:
        """Return the targets, with files of this process's own."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.folder = self.work / str(os.getpid())
            self.folder.mkdir()
            self._targets = fuzz_targets.targets(self.folder, self.runs)
        return self._targets

    def do(self, piece: Piece) -> None:
        """Do a piece in a process of its own, and add its line."""
        target, state = self.targets()[piece.target], State()
        start = time.monotonic()
        log = self.folder / "log"
        process = os.fork()
        if not process:
            status = 1
            campaign.end_with_parent()
            try:
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                os.dup2(2, 1)
                self._feed(piece, target, state)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(process, 0)
        status = os.waitstatus_to_exitcode(status)
        count, read, _ = state.counts()
        if status:
            names = {-signal.SIGPROF: f"more than {SECONDS} s of the processor"}
            said = log.read_text(errors="replace")
            said = said if len(said) < 1000 else f"{said[:700]} … {said[-300:]}"
            self._add_fault(piece, names.get(status, f"it died: {status}, {said}"), state.last())
            count = max(count, 1)
        self.results.add(
            target=piece.target,
            engine=piece.engine,
            number=piece.number,
            inputs=count,
            read=read,
            seconds=round(time.monotonic() - start, 2),
        )

    def _feed(self, piece: Piece, target: Target, state: State) -> None:
        text = f"{self.results.seed} {piece.target} {piece.engine} {piece.number}"
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        warnings.simplefilter("error", RuntimeWarning)
        corpus = self.corpus / "".join(c for c in piece.target if c.isalnum())
        corpus.mkdir(parents=True, exist_ok=True)
        set_hypothesis_home_dir(self.folder)
        guard(self.folder, self.results.path.absolute(), corpus.absolute())
        feeder = Feeder(target, functools.partial(self._add_fault, piece), state, piece.inputs)
        with contextlib.suppress(Enough):
            RUN[piece.engine](feeder, zlib.crc32(text.encode()) or 1, corpus)

    def _add_fault(self, piece: Piece, text: str, data: bytes) -> None:
        about = {"target_of_fault": piece.target, "engine": piece.engine}
        name = hashlib.sha1(piece.target.encode() + data).hexdigest()[:8]
        content = base64.b64encode(data).decode()
        self.results.add(fault=name, text=text, input=content, **about)

    def plan(self, count: int) -> list[Piece]:
        """Return what is left of ``count`` inputs."""
        done: Counter[tuple[str, str]] = Counter()
        numbers: Counter[tuple[str, str]] = Counter()
        for line in self.results.lines("target"):
            key = line["target"], line["engine"]
            done[key] += line["inputs"]
            numbers[key] = max(numbers[key], line["number"] + 1)
        targets = self.shares()
        pieces = []
        for target, share in targets.items():
            for engine, part in self.parts.items():
                key = target, engine
                left = round(count * share * part) - done[key]
                most = max(20, round(PIECE * min(1, share / 0.05)))
                while left > 0:
                    pieces.append(Piece(target, engine, numbers[key], min(left, most)))
                    left -= most
                    numbers[key] += 1
        random.Random(count).shuffle(pieces)
        return pieces

    def shares(self) -> dict[str, float]:
        """Return which part of the inputs each target gets."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            shares = {t: x.share for t, x in fuzz_targets.targets(Path(folder), self.runs).items()}
        return {target: share / sum(shares.values()) for target, share in shares.items()}

    def done(self) -> int:
        """Return how many inputs there were."""
        return sum(line["inputs"] for line in self.results.lines("target"))

    def tables(self) -> str:
        """Return the counts for docs/reliability.md."""
        lines = self.results.lines("target")
        rows = []
        total: Counter[str] = Counter()
        for target in dict.fromkeys(sorted(line["target"] for line in lines)):
            counts: Counter[str] = Counter()
            for line in lines:
                if line["target"] == target:
                    counts[line["engine"]] += line["inputs"]
                    counts["read"] += line["read"]
                    counts["all"] += line["inputs"]
            total += counts
            rows.append([target, counts["all"], *(counts[e] for e in ENGINES), counts["read"]])
        rows.append(["all", total["all"], *(total[e] for e in ENGINES), total["read"]])
        return campaign.table(["file", "inputs", *ENGINES, "read all the same"], rows)

    def faults(self) -> list[dict[str, str]]:
        """Return what was found, each kind once, and how to see it again."""
        kinds = {}
        for line in self.results.lines("fault"):
            kind = line["target_of_fault"], line["text"].partition(": ")[0]
            kinds.setdefault(kind, line)
        return [
            {
                "what": f"{line['target_of_fault']}, by {line['engine']}: {line['text']}",
                "again": f"python {Path(__file__).name} --seed {self.results.seed} "
                f"--results {self.results.path} --again {line['fault']}",
            }
            for line in kinds.values()
        ]

    def again(self, name: str) -> int:
        """Feed an input that was found once more, and let its error through."""
        (line, *_) = [line for line in self.results.lines("fault") if line["fault"] == name]
        target = self.targets()[line["target_of_fault"]]
        data = base64.b64decode(line["input"])
        print(f"{line['target_of_fault']}, {len(data):,} bytes: {data[:200]!r}")
        try:
            found = target.read(data)
        except target.refusal as error:
            print(f"refused: {error}")
            return 0
        print(f"read, {'whole' if target.whole(found) else 'but NOT WHOLE'}: {found!r:.500}")
        return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 where something was found, or is left."""
    parser = campaign.parser(__doc__, 1_000_000, "inputs", "fuzz.jsonl")
    parser.add_argument("--again", metavar="NAME", help="feed one that was found once more")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="of atheris (beside --results)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    arguments = parser.parse_args(argv)
    if atheris is None and not arguments.again and "atheris" in arguments.engines:
        hint = "python -m pip install atheris (or go without: --engines hypothesis random)"
        print(f"atheris is not installed: {hint}", file=sys.stderr)
        return 2
    results = campaign.Results(arguments.results, arguments.seed)
    results.tell_machine(["numpy", "torch", "hypothesis"] + ["atheris"] * bool(atheris))
    with campaign.work_folder(results, memory=True) as folder:
        corpus = arguments.corpus or results.path.with_suffix(".corpus")
        fuzzing = Fuzzing(results, folder, corpus, arguments.engines)
        fuzzing.begin()
        if arguments.again:
            return fuzzing.again(arguments.again)
        whole = True
        for _ in range(3):  # a piece that died is made up for
            if whole and (pieces := fuzzing.plan(arguments.count)):
                total = max(arguments.count, fuzzing.done())
                whole = campaign.work(
                    pieces, fuzzing.do, arguments.jobs, fuzzing.done, total, " inputs"
                )
        again = " ".join(["python", *sys.argv])
        return campaign.finish(results, whole, fuzzing.tables(), fuzzing.faults(), again)


if __name__ == "__main__":
    sys.exit(main())
