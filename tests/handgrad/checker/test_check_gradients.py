"""Planted mistakes are named, correct layers pass, and whatever a user's file does is theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from planted_convolutions import CORRECT as CORRECT_CONVOLUTIONS
from planted_convolutions import MISTAKES as MISTAKES_OF_CONVOLUTIONS
from planted_mistakes import CORRECT, MISTAKES
from random_shapes import correct_classes, false_alarms

import numpy_mlp.modules
from handgrad.checker import child, process
from handgrad.checker.check import check
from handgrad.checker.command import main
from handgrad.checker.differences import Case, compare
from handgrad.checker.mistakes import diagnose
from handgrad.checker.plan import check_class
from handgrad.checker.probe import Given, Point, Sizes, draw
from handgrad.checker.subject import Array, Session
from handgrad.user_code import isolated

PLANTED = Path(__file__).with_name("planted_mistakes.py")


def run(
    capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the exit status, the classes by name, and the whole report."""
    status = main([*argv, "--json"])
    report = json.loads(capsys.readouterr().out)
    return status, {result["class"]: result for result in report["classes"]}, report


def wrong(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f["diagnosis"], f["variable"]) for f in result["findings"] if f["verdict"] != "ok"]


def checked(file: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "handgrad", "check-gradients", str(file), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    return {found["class"]: found for found in json.loads(result.stdout)["classes"]}


@pytest.fixture(scope="module")
def planted() -> dict[str, dict[str, Any]]:
    return checked(PLANTED)


@pytest.fixture(scope="module")
def planted_convolutions() -> dict[str, dict[str, Any]]:
    return checked(PLANTED.with_name("planted_convolutions.py"))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(name: str, planted: dict[str, dict[str, Any]]) -> None:
    found = wrong(planted[name])
    assert MISTAKES[name] in found
    assert {diagnosis for diagnosis, _ in found} == {MISTAKES[name][0]}


@pytest.mark.parametrize("name", MISTAKES_OF_CONVOLUTIONS)
def test_a_planted_mistake_of_a_convolution_or_a_pooling_is_named(
    name: str, planted_convolutions: dict[str, dict[str, Any]]
) -> None:
    diagnosis, variable = MISTAKES_OF_CONVOLUTIONS[name]
    found = wrong(planted_convolutions[name])
    assert (diagnosis, variable) in found
    assert {kind for kind, _ in found} == {diagnosis}


def test_right_layers_of_images_are_right(planted_convolutions: dict[str, Any]) -> None:
    assert planted_convolutions.keys() == {*MISTAKES_OF_CONVOLUTIONS, *CORRECT_CONVOLUTIONS}
    for name in CORRECT_CONVOLUTIONS:
        assert wrong(planted_convolutions[name]) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ConvTransposedKernel", "its rows and columns are exchanged"),
        ("ConvPaddingNotCutOff", "whose edges are to be cut off"),
        ("ConvStrideForgotten", "the stride of 2 is forgotten"),
        ("ConvOverwrites", "their gradients have to add up (+=, or np.add.at)"),
        ("ConvLoopsWeightOverwritten", "only the last place of an image counts"),
        ("ConvBiasOverFilters", "summed over its axes (1, 2, 3)"),
        ("ConvBiasMeanOfPixels", "divided by H · W, the number of an image's pixels"),
        ("ConvRowsOfChannels", "by a reshape where a transpose is needed"),
        ("MaxPoolMaskOfTies", "it belongs to one of them, by argmax"),
        ("MaxPoolMinimum", "goes to the smallest entry"),
        ("AvgPoolNoMean", "the factor 1/(kH · kW) of the mean of a window's entries is missing"),
        ("AvgPoolOverSide", "2 times what it should be"),
        ("BatchNorm2dOverTheBatch", "over samples, those of forward over samples and rows"),
    ],
)
def test_the_sentence_of_a_convolution_says_more_than_the_name(
    name: str, says: str, planted_convolutions: dict[str, dict[str, Any]]
) -> None:
    found = planted_convolutions[name]["findings"]
    assert any(says in finding["explanation"] for finding in found), found


def test_every_module_of_numpy_mlp_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    status, classes, _ = run(capsys, "numpy_mlp.modules")
    assert {name: wrong(result) for name, result in classes.items() if wrong(result)} == {}
    assert status == 0 and {*numpy_mlp.modules.__all__} - {*classes} == {
        "BackwardBeforeForwardError",
        "Module",
    }


def test_a_tie_may_be_shared_or_given_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
class Maximum:
    def forward(self, x):
        self.mask = x == x.max(axis=1, keepdims=True)
        return x.max(axis=1)
    def backward(self, dout):
        return self.mask * dout[:, None]
class Shares(Maximum):
    def backward(self, dout):
        return super().backward(dout) / self.mask.sum(axis=1, keepdims=True)
class First(Maximum):
    def backward(self, dout):
        return super().backward(dout) * (self.mask.cumsum(axis=1) == 1)
"""
    _, classes, _ = run(capsys, write(tmp_path, text))
    found = {name: wrong(result) for name, result in classes.items()}
    assert found == {"Maximum": [("tied-entries", "x")], "Shares": [], "First": []}


def test_evaluation_mode_is_looked_at_and_held_against_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
class Scale:
    factor = 2.0
    def eval(self):
        self.factor = 3.0
    def forward(self, x):
        return x * self.factor
    def backward(self, dout):
        return 2 * dout
"""
    status, classes, _ = run(capsys, write(tmp_path, text))
    assert status == 0
    assert any("in evaluation mode" in note for note in classes["Scale"]["notes"])


def test_enough_are_planted_and_none_goes_unlooked_at(planted: dict[str, Any]) -> None:
    assert len(MISTAKES) >= 50
    assert len({diagnosis for diagnosis, _ in MISTAKES.values()}) >= 25
    assert planted.keys() == {*MISTAKES, *CORRECT}


@pytest.mark.parametrize("name", CORRECT)
def test_what_the_mistakes_are_planted_in_is_right(name: str, planted: dict[str, Any]) -> None:
    assert wrong(planted[name]) == []
    assert planted[name]["findings"]


def test_layers_as_students_write_them_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    status, classes, _ = run(capsys, str(PLANTED.with_name("student_layers.py")))
    assert {name: wrong(result) for name, result in classes.items() if wrong(result)} == {}
    assert status == 0 and len(classes) >= 70
    assert all(result["findings"] for result in classes.values())


def test_the_worst_entry_is_named_with_both_values(planted: dict[str, Any]) -> None:
    (finding,) = (f for f in planted["LinearSign"]["findings"] if f["variable"] == "x")
    assert finding["error"] == pytest.approx(2, rel=1e-6)
    assert finding["analytic"] == pytest.approx(-finding["numerical"], rel=1e-6)
    assert len(finding["where"]) == 2 and finding["verdict"] == "WRONG"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("DropoutOdds", "4 times what it should be (p/(1 - p))"),
        ("DropoutNoMask", "the mask of forward (of a dropout, of a maximum) is missing"),
        ("DropoutNewMask", "do not draw it again"),
        ("TanhKeptInHalf", "computed in half precision"),
        ("TanhKeptInSingle", "computed in float32"),
        ("TanhToFourDecimals", "rounded to 4 decimals"),
        ("SineByDifference", "an approximation"),
        ("SquareEps", "an eps that is missing?"),
        ("GainOfOneStep", "only index 0 of axis 1 of dout counts"),
        ("LinearFirstSampleOnly", "only sample 0 of the batch counts"),
        ("SumTimesX", "multiplied by x, which is too much"),
        ("ReLUWholeNumbers", "whole numbers"),
    ],
)
def test_the_sentence_says_more_than_the_name(
    name: str, says: str, planted: dict[str, dict[str, Any]]
) -> None:
    assert any(says in finding["explanation"] for finding in planted[name]["findings"])


def test_next_to_no_error_is_explained_by_no_missing_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is right but for rounding agrees with every mistake whose effect is small."""
    text = """
import numpy as np
class Linear:
    def __init__(self, in_size, out_size):
        weight, bias = np.ones((out_size, in_size)), np.zeros(out_size)
        self.params, self.grads = {"weight": weight, "bias": bias}, {}
    def forward(self, x):
        self.x = x.astype(np.float32)
        return x @ self.params["weight"].T + self.params["bias"]
    def backward(self, dout):
        self.grads = {"weight": dout.T @ self.x, "bias": dout.sum(0)}
        return dout @ self.params["weight"]
"""
    _, classes, _ = run(capsys, write(tmp_path, text), "--tolerance", "1e-8")
    assert wrong(classes["Linear"]) == [("float32-noise", "weight")]


def test_a_crash_names_the_users_own_line(planted: dict[str, Any]) -> None:
    (finding,) = (f for f in planted["Crashes"]["findings"] if f["verdict"] == "WRONG")
    line = next(
        i for i, text in enumerate(PLANTED.read_text().splitlines(), 1) if "self.nowhere" in text
    )
    assert (
        f"planted_mistakes.py, line {line}, in backward: AttributeError" in finding["explanation"]
    )


def test_correct_layers_at_random_shapes() -> None:
    alarms, checked = false_alarms(len(correct_classes()), seed=1)
    assert alarms == []
    assert len(checked) == len(correct_classes()) >= 45


@pytest.mark.parametrize("found", correct_classes(), ids=lambda found: found.cls.__name__)
def test_an_error_of_a_thousandth_is_found_in_everything_of_ours(found: Any) -> None:
    rng = np.random.default_rng(3)
    (subject, *_) = found.subjects(Given(), Point(Sizes(4, 3, 2)), rng)
    begin = subject.start

    class Spoilt(Session):
        def __init__(self) -> None:
            self.session = begin()
            self.modified = self.session.modified

        def forward(self, variables: Any) -> tuple[Array, ...]:
            return self.session.forward(variables)

        def backward(self, douts: tuple[Array, ...]) -> dict[str, Array | None]:
            gradients = self.session.backward(douts)
            return {n: None if g is None else g * 1.001 for n, g in gradients.items()}

    subject.start = Spoilt
    for finding in check(subject, rng, diagnose):
        assert (finding.verdict, finding.diagnosis) == ("WRONG", "constant-factor"), finding
        assert "1.001 times" in finding.explanation


@pytest.mark.parametrize("spoil", [1e-4, -1e-4])
def test_one_wrong_entry_is_enough(spoil: float) -> None:
    numerical = draw(np.random.default_rng(0), (4, 3))
    analytic = numerical.copy()
    assert compare(analytic, numerical, np.zeros((4, 3)), 1e-6)[2]
    analytic[2, 1] += spoil
    error, where, passed = compare(analytic, numerical, np.zeros((4, 3)), 1e-6)
    assert not passed and where == (2, 1)
    assert error == pytest.approx(1e-4 / abs(numerical[2, 1]), rel=1e-2)
    analytic[2, 1] = np.nan
    assert not compare(analytic, numerical, np.zeros((4, 3)), 1e-6)[2]


def test_a_kink_is_no_mistake() -> None:
    """At 0 the difference of a ReLU is 1/2, and at 2e-5 it is between 0 and 1."""
    from handgrad.checker.kinds import find
    from numpy_mlp.modules import activations

    (found, *_) = find([activations])[0]
    (subject, *_) = found.subjects(Given(), Point(Sizes(4, 3, 2)), np.random.default_rng(0))
    subject.variables["x"][0, 0], subject.variables["x"][1, 1] = 2e-5, 0.0
    (finding,) = check(subject, np.random.default_rng(0), diagnose)
    assert finding.passed
    case = Case(subject, subject.variables, (np.ones((4, 3)),))
    gradient, doubt = case.truth("x")
    assert abs(gradient[0, 0] - 1) > 0.05 and doubt[0, 0] > 0.05 and doubt[2, 2] < 1e-9


def test_values_are_apart_from_zero_and_from_one_another() -> None:
    for seed in range(20):
        values = np.sort(draw(np.random.default_rng(seed), (5, 6)), axis=None)
        assert np.diff(values).min() > 0.01 and np.abs(values).min() > 0.3
        assert (values < 0).sum() == 15


# --- what a user's file may do --------------------------------------------------------------------


def write(folder: Path, text: str, name: str = "modules.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


SQUARE = """
class Square:
    def forward(self, x):
        self.x = x
        return x ** 2
    def backward(self, dout):
        return 2 * self.x * dout
"""


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("import sys\nsys.exit(3)", "crash", "SystemExit"),
        ("import os\nos._exit(3)", "crash", "ended its process with exit status 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "crash", "signal SIGSEGV"),
        ("class A(:\n  pass", "crash", "modules.py, line 1: SyntaxError"),
        ("import nowhere_at_all", "crash", "modules.py, line 1, in <module>: ModuleNotFoundError"),
        ("while True: pass", "time-out", "did not finish within 1 s"),
    ],
)
def test_a_file_that_cannot_be_imported(
    text: str, kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ["--time-limit", "1"] if kind == "time-out" else []
    status, classes, report = run(capsys, write(tmp_path, text), *limit)
    assert status == 1 and not report["passed"]
    (finding,) = classes["modules.py"]["findings"]
    assert finding["diagnosis"] == kind and says in finding["explanation"]


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("while True: pass", "time-out", "endless loop"),
        ("import os; os._exit(7)", "crash", "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", "crash", "signal SIGKILL"),
        ("raise RuntimeError('mine')", "crash", "line 7, in backward: RuntimeError: mine"),
        ("return self.backward(dout)", "crash", "RecursionError"),
        ("raise SystemExit(0)", "crash", "SystemExit"),
        ("return 'dx'", "wrong-type", "not numbers"),
        ("return dout[None]", "wrong-shape", "shape (1, 5, 4), expected (5, 4)"),
    ],
)
def test_a_class_that_misbehaves_leaves_the_others_checked(
    body: str, kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import numpy as np\nclass Bad:\n def forward(self, x):\n  print('noise')\n  return x\n"
    text += f" def backward(self, dout):\n  {body}\n{SQUARE}"
    limit = ["--time-limit", "2"] if kind == "time-out" else []
    status, classes, _ = run(capsys, write(tmp_path, text), *limit)
    assert status == 1
    found = wrong(classes["Bad"])
    assert kind in {diagnosis for diagnosis, _ in found}
    assert any(says in f["explanation"] for f in classes["Bad"]["findings"])
    assert wrong(classes["Square"]) == [] and classes["Square"]["findings"]


def test_what_a_file_does_beside_its_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It parses arguments, leaves a thread behind, reads what is typed, and cannot be copied."""
    text = """
import argparse, sys, threading, time
argparse.ArgumentParser().parse_args()
threading.Thread(target=lambda: time.sleep(60)).start()
assert sys.stdin.read() == ""
"""
    text += SQUARE.replace("def forward", "lock = None\n    def forward", 1).replace(
        "self.x = x", "self.x, self.lock = x, threading.Lock()"
    )
    text += SQUARE.replace("Square", "Locked").replace(
        "    def forward",
        "    def __init__(self):\n        self.lock = threading.Lock()\n    def forward",
        1,
    )
    status, classes, _ = run(capsys, write(tmp_path, text), "--time-limit", "20")
    assert status == 0 and list(classes) == ["Square", "Locked"]


def test_two_classes_of_one_name_and_a_file_that_cannot_be_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    dies = "import os\nclass Dies:\n def forward(self, x):\n  return x\n"
    write(folder, SQUARE + dies + " def backward(self, d):\n  os._exit(5)\n", "a.py")
    write(folder, SQUARE.replace("2 *", "3 *"), "b.py")
    write(folder, "import nowhere_at_all", "c.py")
    status, _, report = run(capsys, str(folder))
    found = [(r["class"], Path(r["file"]).name, wrong(r)) for r in report["classes"]]
    assert sorted(found) == [
        ("Dies", "a.py", [("crash", "")]),
        ("Square", "a.py", []),
        ("Square", "b.py", [("constant-factor", "x")]),
        ("c.py", "c.py", [("crash", "")]),
    ]
    assert status == 1


def test_the_report_is_json_whatever_the_gradient_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SQUARE.replace("2 * self.x * dout", "dout * float('inf')")
    assert main([write(tmp_path, text), "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    (finding,) = report["classes"][0]["findings"]
    assert finding["diagnosis"] == "not-finite" and finding["analytic"] is None


def test_an_endless_loop_that_prints_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_MOST_SAID", 2_000)
    file = write(
        tmp_path,
        "import sys, time\nwhile True:\n    print('x' * 99, file=sys.stderr)\n    time.sleep(1e-4)",
    )
    order = {"init": "", "shapes": [], "range": None, "tolerance": 1e-6, "path": file, "done": []}
    ending = isolated.run_isolated(child.main, order, 1.5, quiet=True)
    assert ending.late and ending.events[-1]["class"] == "modules.py"
    assert len(ending.said) < 50_000
    (finding,) = process.check(Path(file), {**order, "names": []}, 1.5).results[0]["findings"]
    assert finding["diagnosis"] == "time-out"
    assert "It was at modules.py, line " in finding["explanation"]


def test_the_process_of_a_users_code_ends_with_the_command(tmp_path: Path) -> None:
    text = (
        f"import os, pathlib\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    )
    file = write(tmp_path, f"{text}\nwhile True: pass")
    command = [sys.executable, "-m", "handgrad", "check-gradients", file]
    parent = subprocess.Popen(command, cwd=ROOT)
    _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    child = int((tmp_path / "pid").read_text())
    _until(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # one that has ended, and that nobody has asked about
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def _until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 180
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_arguments_keep_their_types_and_ranges_their_signs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SQUARE.replace(
        "    def forward(self, x):",
        "    def __init__(self, size):\n        assert size == (3, {1: 2}), size\n"
        "    def forward(self, x):\n        assert (abs(x) < 0.5).all() and (x < 0).any()",
    )
    given = ["--init", "size=(3, {1: 2})", "--input-range", "-0.5,0.5"]
    assert run(capsys, write(tmp_path, text), *given)[0] == 0


@pytest.mark.parametrize("name", ["shift", "drift", "gradient_free"])
def test_arrays_in_no_params_are_noted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import numpy as np\n" + SQUARE.replace(
        "    def forward",
        "    def __init__(self):\n        self.shift = np.ones(4)\n    def forward",
    ).replace("x ** 2", "x ** 2 + self.shift")
    status, classes, _ = run(capsys, write(tmp_path, text.replace("shift", name)))
    (note,) = classes["Square"]["notes"]
    text = "changes the output and has no gradient: taken for a constant"
    assert status == 0 and note == f"{name} {text}"


@pytest.mark.parametrize("name", ["W", "bias", "b1", "W_xh", "_gamma"])
def test_a_parameter_without_a_gradient_is_not_passed_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import numpy as np\n" + SQUARE.replace(
        "    def forward",
        f"    def __init__(self):\n        self.{name} = np.ones(4)\n    def forward",
    ).replace("x ** 2", f"x ** 2 + self.{name}")
    status, classes, _ = run(capsys, write(tmp_path, text))
    assert status == 1
    verdicts = {
        f["variable"]: (f["verdict"], f["diagnosis"]) for f in classes["Square"]["findings"]
    }
    assert verdicts == {name: ("NOT CHECKED", "no-gradient"), "x": ("ok", "")}


def test_parameters_that_forward_makes_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
class Lazy:
    W = None
    def forward(self, x):
        if self.W is None:
            self.W = np.ones((x.shape[1], 3))
        self.x = x
        return x @ self.W
    def backward(self, dout):
        self.dW = self.x.T @ dout
        return dout @ self.W.T
"""
    status, classes, _ = run(capsys, write(tmp_path, "import numpy as np\n" + text))
    assert status == 0
    (note,) = classes["Lazy"]["notes"]
    assert note.startswith("W is made by forward and was not checked")


@pytest.mark.parametrize("variant", ["float32", "weight in float32"])
def test_float32_is_allowed_by_who_asks_for_few_digits(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
import numpy as np
class Dense:
    def __init__(self, n_in, n_out):
        self.params = {"W": np.ones((n_in, n_out), np.float32)}
        self.grads = {}
    def forward(self, x):
        self.x = x.astype(np.float32)
        return self.x @ self.params["W"]
    def backward(self, dout):
        dout = dout.astype(np.float32)
        self.grads["W"] = self.x.T @ dout
        return dout @ self.params["W"].T
"""
    if variant == "float32":
        text = text.replace('self.params["W"]', 'self.params["W"].astype(np.float32)')
    file = write(tmp_path, text)
    status, classes, _ = run(capsys, file)
    assert status == 1 and {kind for kind, _ in wrong(classes["Dense"])} == {"float32-noise"}
    assert run(capsys, file, "--tolerance", "1e-3")[0] == 0


LAYER = """
class {name}:
    def __init__(self, {words}):
        {init}
    def forward(self, x):
        self.x = x
        return {forward}
    def backward(self, {takes}):
        {before}
        return {backward}
"""
COLUMNS = {
    "words": "n_in, n_out",
    "init": "self.W, self.b = np.random.randn(n_out, n_in), np.zeros((n_out, 1))",
    "forward": "self.W @ x + self.b",
    "before": "self.dW, self.db = dout @ self.x.T, dout.sum(1, keepdims=True)",
    "backward": "self.W.T @ dout",
}
ROWS = {
    "words": "W, b",
    "init": "self.W, self.b = W, b",
    "forward": "x @ self.W + self.b",
    "before": "self.dW, self.db = self.x.T @ dout, dout.sum(0)",
    "backward": "dout @ self.W.T",
}
SCALE = {
    "words": "gamma, beta",
    "init": "self.gamma, self.beta = gamma, beta",
    "forward": "self.gamma * x + self.beta",
    "before": "self.dgamma, self.dbeta = (dout * self.x).sum(0), dout.sum(0)",
    "backward": "dout * self.gamma",
}
PLAIN = {"words": "rate=0.5", "init": "pass", "forward": "x**2", "before": "pass"}
BY_GUESSES: list[tuple[dict[str, str], list[tuple[str, str]]]] = [
    # Samples are columns.
    (
        COLUMNS | {"before": COLUMNS["before"].replace(", dout", " / dout.shape[1], dout")},
        [("extra-1/N", "W")],
    ),
    (COLUMNS | {"before": "self.dW = dout.T @ self.x"}, [("crash", "")]),
    (COLUMNS | {"backward": "-self.W.T @ dout"}, [("sign", "x")]),
    # Arrays are given.
    (
        ROWS | {"before": "self.dW, self.db = self.x.T @ dout, dout[0]"},
        [("missing-batch-sum", "b")],
    ),
    (
        ROWS | {"before": "self.dW, self.db = dout.T @ self.x, dout.sum(0)"},
        [("transposed-gradient", "W")],
    ),
    (ROWS | {"backward": "dout @ self.W"}, [("transposed-factor", "")]),
    (
        SCALE | {"before": "self.dgamma, self.dbeta = -(dout * self.x).sum(0), dout.sum()"},
        [("sign", "gamma"), ("wrong-sum-axis", "beta")],
    ),
    (
        {**SCALE, "words": "b", "init": "self.b = b", "forward": "x + self.b",
         "before": "self.db = dout", "backward": "dout"},
        [("missing-batch-sum", "b")],
    ),
    # One sample, an image or a sequence excuses nothing that rows do not.
    (PLAIN | {"backward": "2 * self.x.T * dout"}, [("transposed-factor", "")]),
    (PLAIN | {"backward": "2 * self.x * dout[:, :, :, None]"}, [("crash", "")]),
    (PLAIN | {"forward": "x.reshape(len(x), -1)", "backward": "dout"}, [("wrong-shape", "x")]),
    # What backward takes.
    (PLAIN | {"takes": "dout, lr", "backward": "self.x * dout"}, [("constant-factor", "x")]),
    (PLAIN | {"takes": "", "backward": "2 * self.x"}, [("crash", "")]),
    (
        PLAIN | {"takes": "", "forward": "(x**2).sum()", "backward": "self.x"},
        [("constant-factor", "x")],
    ),
    (PLAIN | {"backward": "exit(3)"}, [("crash", "")]),
]  # fmt: skip


def test_mistakes_where_inputs_and_arguments_have_to_be_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [{"takes": "dout", **part} for part, _ in BY_GUESSES]
    layers = [LAYER.format(name=f"Layer{i}", **part) for i, part in enumerate(parts)]
    text = "import numpy as np\nfrom sys import exit\n" + "".join(layers)
    _, classes, _ = run(capsys, write(tmp_path, text))
    for i, (part, expected) in enumerate(BY_GUESSES):
        findings = classes[f"Layer{i}"]["findings"]
        assert {f["verdict"] for f in findings} <= {"ok", "WRONG"}, (part, findings)
        assert wrong(classes[f"Layer{i}"]) == expected, (part, findings)


ACTIVATION = {"words": "f, f_prime", "init": "self.f = f", "forward": "self.f(x)"}
INSIDE = {"words": "act", "init": "self.act = act", "backward": "self.act.slope(dout)"}
UNCHECKED: list[tuple[dict[str, str], list[str], str, str]] = [
    (ACTIVATION, [], "no-input", "what f and f_prime should be was guessed: give --init"),
    (INSIDE, [], "crash", "what act should be was guessed: give --init"),
    ({"forward": "np.arccosh(x)"}, [], "no-input", "give --input-range"),
    ({"forward": "np.sqrt(x)"}, ["--input-range", "-1,1"], "no-input", "give --input-range"),
    ({"before": "raise NotImplementedError"}, [], "not-written", "NotImplementedError"),
    ({"takes": "x, dout"}, [], "crash", "backward(dout) is expected"),
    ({"words": "n, m", "init": "pass"}, ["--init", "3"], "crash", "missing 1 required"),
]


@pytest.mark.parametrize(("parts", "argv", "kind", "says"), UNCHECKED)
def test_what_cannot_be_judged_says_what_to_do(
    parts: dict[str, str],
    argv: list[str],
    kind: str,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = {"takes": "dout", **PLAIN, "backward": "2 * self.x * dout", **parts}
    text = "import numpy as np\n" + LAYER.format(name="Layer", **whole)
    _, classes, _ = run(capsys, write(tmp_path, text), *argv)
    (finding,) = classes["Layer"]["findings"]
    assert (finding["verdict"], finding["diagnosis"]) == ("NOT CHECKED", kind)
    assert says in finding["explanation"]
    if "--init" in argv:
        assert classes["Layer"]["settings"] == {"0": 3}


def test_lists_that_are_given_may_be_arrays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import numpy as np\n" + LAYER.format(name="Layer", takes="dout", **ROWS)
    for init in ("[[1, 2], [3, 4], [5, 6]], [0.5, 0.6]", "b=[0.5, 0.6], W=[[1, 2], [3, 4]]"):
        status, classes, _ = run(capsys, write(tmp_path, text), "--init", init)
        assert status == 0 and [f["variable"] for f in classes["Layer"]["findings"]] == [*"xWb"]


def test_an_update_inside_backward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sample, as a column, as its bias has to have it."""
    parts = COLUMNS | {
        "takes": "dout, learning_rate",
        "before": "dx = self.W.T @ dout; self.W -= learning_rate * dout @ self.x.T; "
        "self.b -= learning_rate * dout",
    }
    text = "import numpy as np\n" + LAYER.format(name="Layer", **{**parts, "backward": "dx"})
    text += LAYER.format(name="Wrong", **{**parts, "backward": "-dx"})
    _, classes, _ = run(capsys, write(tmp_path, text))
    for name, kind in (("Layer", ""), ("Wrong", "sign")):
        (finding,) = (f for f in classes[name]["findings"] if f["variable"] == "x")
        assert finding["diagnosis"] == kind
        notes = " ".join(classes[name]["notes"])
        assert "given a learning_rate of 0" in notes and "judged at (4, 1)" in notes


def test_losses_of_large_differences_and_of_targets_of_another_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
import numpy as np

class Huber:
    def forward(self, x, y):
        d = np.abs(x - y)
        return np.where(d < {delta}, 0.5 * d**2, {delta} * (d - 0.5 * {delta})).sum()
    def backward(self, x, y):
        return x - y

class Mapped:
    def __init__(self, n_in, n_out):
        self.W = np.random.randn(n_in, n_out)
    def forward(self, x, y):
        assert x.shape == (7, 4) and y.shape == (7, 3)
        return ((x @ self.W - y) ** 2).sum()
    def backward(self, x, y):
        return 2 * (x @ self.W - y) @ self.W.T
"""
    for delta in ("1", "2", "5"):
        file = write(tmp_path, text.replace("{delta}", delta))
        _, classes, _ = run(capsys, f"{file}:Huber")
        assert [variable for _, variable in wrong(classes["Huber"])] == ["x"]
    shapes = ["--input-shape", "7,4", "--input-shape", "7,3"]
    status, classes, _ = run(capsys, f"{file}:Mapped", *shapes)
    assert status == 0, classes


def test_passes_of_other_names_are_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = SQUARE.replace("Square", "Called").replace("forward", "__call__")
    file = write(tmp_path, SQUARE + called + called.replace("Called", "No").replace("back", "un"))
    assert run(capsys, file)[2]["skipped"] == {
        "Called": "it has __call__ and backward, where forward and backward are looked for"
    }


def test_a_network_of_wrong_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SQUARE.replace("Square", "Layer").replace(
        "    def forward",
        "    params, grads = {'a': np.ones(1)}, {'a': np.zeros(1)}\n    def forward",
    )
    text += """
class Net:
    def __init__(self):
        self.layers = [Layer(), Layer()]
    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x
    def backward(self, dout):
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return dout
"""
    file = write(tmp_path, "import numpy as np\n" + text.replace("        return dout", ""))
    assert run(capsys, file)[0] == 0  # a network may keep the gradient of its input to itself
    file = write(tmp_path, "import numpy as np\n" + text.replace("2 * self.x", "self.x"))
    assert main([file]) == 1
    out = capsys.readouterr().out
    assert "note: it is made of Layer, which is wrong by itself" in out


def test_code_written_for_vugrad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(tmp_path, "from vugrad.core import Op", "ops.py")]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "numpy_mlp.autograd stands in for it" in out and "not checked: ops.py" in out


def test_a_large_layer_is_looked_at_in_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(PLANTED.with_name("planted_mistakes.py"))
    init = ["--init", "64, 8", "--input-shape", "7,64"]
    assert run(capsys, f"{file}:Layer", *init)[0] == 0
    _, classes, _ = run(capsys, f"{file}:LinearHalf", *init)
    (finding,) = (f for f in classes["LinearHalf"]["findings"] if f["variable"] == "x")
    assert finding["diagnosis"] == "constant-factor"
    assert "by 400 of its 448 entries" in finding["explanation"]


def test_names_of_our_packages_and_relative_imports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with a training.py of its own, and a package whose files import one another."""
    write(tmp_path, "factor = 2\n", "training.py")
    beside = SQUARE.replace("2 * self", "training.factor * self")
    assert run(capsys, write(tmp_path, f"import training\n{beside}"))[0] == 0
    package = tmp_path / "layers"
    package.mkdir()
    write(package, "", "__init__.py")
    write(package, "factor = 2\n", "numbers.py")
    write(package, f"from .numbers import factor\n{SQUARE.replace('2 * s', 'factor * s')}")
    write(package, "raise RuntimeError('never')", "test_layers.py")
    status, classes, _ = run(capsys, str(package))
    assert status == 0 and list(classes) == ["Square"]


def test_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, SQUARE + SQUARE.replace("Square", "Wrong").replace("2 *", "3 *"))
    assert run(capsys, file)[0] == 1
    status, classes, _ = run(capsys, f"{file}:Square")
    assert status == 0 and list(classes) == ["Square"]
    status, classes, _ = run(capsys, "numpy_mlp.modules.softmax")
    assert status == 0 and list(classes) == ["SoftMaxModule"]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, SQUARE + SQUARE.replace("Square", "Wrong").replace("2 *", "-2 *"))
    assert main([file]) == 1
    out = capsys.readouterr().out
    assert "Square()  [module]\n  x       ok     worst relative error " in out
    assert "sign: the sign is wrong [x (5, 4)]" in out
    assert out.endswith("\n\n1 of 2 right; wrong: Wrong\n")


def test_arguments_and_shapes_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
class Weird:
    def __init__(self, mystery, *, power):
        assert mystery == "yes", "say yes"
        self.power = power
    def forward(self, x):
        assert x.shape == (2, 3, 4) and (x > 5).all(), "not for me"
        self.x = x
        return x ** self.power
    def backward(self, dout):
        return self.power * self.x ** (self.power - 1) * dout
"""
    file = write(tmp_path, text)
    status, classes, _ = run(capsys, file)
    (finding,) = classes["Weird"]["findings"]
    assert status == 1 and finding["verdict"] == "NOT CHECKED"
    assert "say yes" in finding["explanation"] and "--init" in finding["explanation"]
    given = ["--init", "'yes', power=3.0"]
    status, classes, _ = run(capsys, file, *given)
    (finding,) = classes["Weird"]["findings"]
    assert status == 1 and "--input-shape" in finding["explanation"]
    given += ["--input-shape", "2,3,4", "--input-range", "6,7"]
    status, classes, _ = run(capsys, file, *given)
    assert status == 0 and wrong(classes["Weird"]) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere.py"], "nowhere.py does not exist; TARGET is a .py file"),
        ([str(ROOT / "README.md")], "README.md is no Python file"),
        (["FILE:Sqare"], "has no class Sqare with forward and backward; did you mean Square?"),
        (["FILE:Base"], "Base in FILE cannot be checked: it is a base class"),
        (["EMPTY"], "holds nothing to check"),
        (["FILE", "--init", "x)"], "--init 'x)' is not a list of plain arguments"),
        (["FILE", "--init", "print(1)"], "is not a list of plain arguments"),
        (["FILE", "--init", "4)+f(3"], "is not a list of plain arguments"),
        (["FILE", "--init", "**{'a': 1}"], "is not a list of plain arguments"),
        ([""], "TARGET is empty"),
        (["FILE", "--input-shap", "1", "--bogus"], "unknown option --bogus; --help lists them all"),
        (["FILE", "--input-shape", "a,b"], "--input-shape 'a,b' is not a shape"),
        (["FILE", "--input-shape", "1000,1000"], "has 1,000,000 entries"),
        (["FILE", "--input-range", "2,1"], "--input-range '2,1' is not a range"),
        (["FILE", "--tolerance", "0"], "--tolerance 0 is out of range"),
        (["FILE", "--time-limit", "nan"], "--time-limit nan is out of range"),
    ],
)
def test_bad_usage_ends_in_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "\nclass Base:\n def forward(self, x):\n  raise NotImplementedError\n"
    base += " def backward(self, dout):\n  raise NotImplementedError\n"
    file = write(tmp_path, base + SQUARE.replace("class Square", "class Square(Base)"))
    empty = write(tmp_path, "x = 1\n", "empty.py")
    argv = [a.replace("FILE", file).replace("EMPTY", empty) for a in argv]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert says.replace("FILE", file) in captured.err and captured.out == ""


TORCH = """
import torch

class {name}(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, gamma, beta, eps=1e-5):
        mean = input.mean(0)
        inv_std = (input.var(0, unbiased=False) + eps).rsqrt()
        x_hat = (input - mean) * inv_std
        ctx.save_for_backward(x_hat, gamma, inv_std)
        return gamma * x_hat + beta

    @staticmethod
    def backward(ctx, grad_output):
        x_hat, gamma, inv_std = ctx.saved_tensors
        d = grad_output * gamma
        dx = inv_std * (d - d.mean(0) - x_hat * (d * x_hat).mean(0))
        dgamma, dbeta = (grad_output * x_hat).sum(0), grad_output.sum(0)
        {mistake}
        return dx, dgamma, dbeta, None
"""


TORCH_MISTAKES = {
    "pass": [],
    "dx = grad_output * gamma * inv_std": [("off-diagonal-missing", "input")],
    "dgamma = dgamma / len(x_hat)": [("extra-1/N", "gamma")],
    "dbeta = grad_output[0]": [("missing-batch-sum", "beta")],
    "dgamma, dbeta = dbeta, dgamma": [
        ("swapped-gradients", "gamma"),
        ("swapped-gradients", "beta"),
    ],
    "dbeta = None": [("no-gradient", "beta")],
    "grad_output.mul_(0)": [("upstream-modified", "")],
    "return dx, dgamma": [("crash", "")],
    "dgamma = dgamma if all(ctx.needs_input_grad[:3]) else 2 * dgamma": [
        ("needs-input-grad", "gamma")
    ],
}


def test_autograd_functions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    texts = [TORCH.format(name=f"Norm{i}", mistake=m) for i, m in enumerate(TORCH_MISTAKES)]
    status, classes, _ = run(capsys, write(tmp_path, "\n".join(texts)))
    assert status == 1
    found = [wrong(classes[f"Norm{i}"]) for i in range(len(texts))]
    assert dict(zip(TORCH_MISTAKES, found, strict=True)) == TORCH_MISTAKES


def test_arguments_of_functions_that_are_no_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    text = """
import torch

class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, constant):
        ctx.constant = constant
        return tensor * constant

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.constant, None

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        return scale * x**3

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * ctx.scale * 3 * x**2, None

class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.clamp_(min=0))
        return x

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * (y > 0)

class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias=None):
        ctx.save_for_backward(input, weight)
        return input @ weight.T + (0 if bias is None else bias)

    @staticmethod
    def backward(ctx, g):
        input, weight = ctx.saved_tensors
        return g @ weight, g.T @ input, g.mean(0)
"""
    status, classes, _ = run(capsys, write(tmp_path, text))
    assert [wrong(classes[name]) for name in ("Scaled", "Cube", "InPlace")] == [[], [], []]
    assert wrong(classes["Linear"]) == [("extra-1/N", "bias")] and status == 1
    _, classes, _ = run(capsys, f"{tmp_path / 'modules.py'}:Cube", "--init", "2.0")
    assert "needs names" in classes["Cube"]["findings"][0]["explanation"]


def test_torch_is_not_imported_for_numpy() -> None:
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom handgrad.checker.child import main\n"
        "order = dict(path='numpy_mlp/modules/softmax.py', names=[], init='', shapes=[],"
        "range=None, done=[], tolerance=1e-6)\n"
        "main(order, SimpleNamespace(tell=lambda event, **about: None))\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PLANTED.parents[3])


def test_every_size_of_a_variable_is_looked_at() -> None:
    """The same class passes at several points; the report keeps the worst."""
    from handgrad.checker.kinds import find
    from numpy_mlp.modules import linear

    ((found, *_), _) = find([linear])
    checked = check_class(found, Given(), 1e-6)
    assert list(checked.findings) == ["x", "weight", "bias"]
    assert checked.settings["in_features"] == 4 and not checked.notes
    assert all(finding.passed for finding in checked.findings.values())


def test_every_kind_of_wrong_is_on_its_page() -> None:
    sources = [*(ROOT / "handgrad/checker").rglob("*.py")]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    page = (ROOT / "docs/mistakes.md").read_text(encoding="utf-8")
    first_cells = "".join(re.findall(r"^\|(.*?)\|", page, flags=re.M))
    listed = set(re.findall(r"`([^`]+)`", first_cells))
    named = set(re.findall(r'"([a-z]+(?:-[A-Za-z0-9/]+)+)"', code)) - {"utf-8", "check-gradients"}
    named -= {"one-hot"}  # a kind of target
    assert named | {"feature-factor", "sample-factor"} <= listed
    assert {kind for kind, _ in MISTAKES.values()} <= listed
    for kind in listed - {"feature-factor", "sample-factor"}:
        # Those of a number of entries are put together: f"missing-1/({entries})".
        assert f'"{kind.partition("(")[0]}' in code, kind


@pytest.fixture
def no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that run a user's code find no PyTorch."""
    folder = tmp_path / "without" / "torch"
    folder.mkdir(parents=True)
    text = "No module named 'torch'"
    (folder / "__init__.py").write_text(f"raise ModuleNotFoundError({text!r}, name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))


@pytest.mark.usefixtures("no_torch")
def test_without_torch_the_rest_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["numpy_mlp", "custom_modules"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "PyTorch" in line] == [
        "custom_modules  not checked; PyTorch cannot be imported (No module named 'torch'); "
        f"install it with: {sys.executable} -m pip install 'handgrad[torch]'"
    ]
    match = re.fullmatch(r"(\d+) of (\d+) right; not checked: custom_modules", lines[-1])
    assert match is not None and int(match[1]) == int(match[2]) - 1 > 30


@pytest.mark.usefixtures("no_torch")
def test_without_torch_a_file_that_imports_it_is_not_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layers"
    path.mkdir()
    (path / "mine.py").write_text("import torch\n\nclass Mine(torch.nn.Module):\n    pass\n")
    assert main([str(path / "mine.py:Mine")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("mine.py  not checked; PyTorch cannot be imported")
    (path / "plain.py").write_text(
        "class Twice:\n"
        "    def forward(self, x):\n        return 2 * x\n"
        "    def backward(self, dout):\n        return 2 * dout\n"
    )
    status, results, report = run(capsys, str(path))
    assert status == 1 and not report["passed"]
    assert wrong(results["Twice"]) == [] and wrong(results["layers"]) == [("needs-torch", "")]
    assert main([str(path)]) == 1
    assert "layers  not checked; mine.py: PyTorch cannot be" in capsys.readouterr().out
