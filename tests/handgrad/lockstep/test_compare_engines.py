"""Engines in lockstep: they agree, and of a user's modules the wrong one is named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from handgrad.lockstep import command as compare_engines
from handgrad.lockstep import compare as comparing
from handgrad.lockstep.engines import GraphEngine, Place
from handgrad.lockstep.user_engine import UserEngine
from handgrad.user_code.blame import is_theirs
from handgrad.user_code.importing import import_file
from handgrad.user_code.isolated import Ending
from numpy_mlp import MLP
from numpy_mlp.learner import NumpyLearner
from numpy_mlp.modules import CrossEntropyModule, ReLUModule, SoftMaxCrossEntropyModule
from numpy_mlp.optim import SGD

# As a student writes them for the course of 2020 and later; every planted fault replaces a line.
MODULES = """
import numpy as np


class LinearModule(object):
    def __init__(self, in_features, out_features, input_layer=False):
        self.params = {"weight": None, "bias": None}
        self.grads = {"weight": None, "bias": None}
        std = np.sqrt((1 if input_layer else 2) / in_features)
        self.params["weight"] = np.random.randn(out_features, in_features) * std
        self.params["bias"] = np.zeros((1, out_features))

    def forward(self, x):
        self.x = x
        out = x @ self.params["weight"].T + self.params["bias"]
        return out

    def backward(self, dout):
        self.grads["weight"] = dout.T @ self.x
        self.grads["bias"] = dout.sum(axis=0, keepdims=True)
        dx = dout @ self.params["weight"]
        return dx


class ReLUModule(object):
    def forward(self, x):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dout):
        dx = dout * self.mask
        return dx


class ELUModule(object):
    def __init__(self, alpha):
        self.alpha = alpha

    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.alpha * (np.exp(np.minimum(x, 0)) - 1))

    def backward(self, dout):
        return dout * np.where(self.x > 0, 1, self.alpha * np.exp(np.minimum(self.x, 0)))


class SoftMaxModule(object):
    def forward(self, x):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        self.y = e / e.sum(axis=1, keepdims=True)
        return self.y

    def backward(self, dout):
        dx = self.y * (dout - (dout * self.y).sum(axis=1, keepdims=True))
        return dx


class CrossEntropyModule(object):
    def forward(self, x, y):
        return -np.log(x[np.arange(len(x)), y]).mean()

    def backward(self, x, y):
        dx = np.zeros_like(x)
        dx[np.arange(len(x)), y] = -1 / x[np.arange(len(x)), y] / len(x)
        return dx
"""

# The course of 2018: no input_layer, one-hot targets, ELU without an argument, bias (out,).
MODULES_2018 = MODULES
for _ours, _theirs in (
    (", input_layer=False", ""),
    ("1 if input_layer else 2", "2"),
    ("np.zeros((1, out_features))", "np.zeros(out_features)"),
    (", keepdims=True)\n        dx = dout @", ")\n        dx = dout @"),
    ("self, alpha):\n        self.alpha = alpha", "self):\n        self.alpha = 1.0"),
    ("-np.log(x[np.arange(len(x)), y]).mean()", "-np.mean(np.sum(y * np.log(x), axis=1))"),
    ("dx[np.arange(len(x)), y] = -1 / x[np.arange(len(x)), y] / len(x)", "dx = -y / x / len(x)"),
):
    assert _ours in MODULES_2018, _ours
    MODULES_2018 = MODULES_2018.replace(_ours, _theirs)

SMALL = ["--hidden-dims", "12", "12", "--steps", "4", "--seed", "1"]


Compare = Callable[..., tuple[int, str, Any]]


@pytest.fixture
def compare(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Compare:
    """Run the command on digits, a student's modules among the engines; return what it said."""

    def run(text: str, *options: str) -> tuple[int, str, Any]:
        path, out = tmp_path / "modules.py", tmp_path / "out"
        path.write_text(text)
        argv = ["--modules", str(path), "--engines", "modules", "--out", str(out), *SMALL]
        status = compare_engines.main([*argv, *options])
        said = capfd.readouterr()
        report = out / "engines.json"
        return (
            status,
            said.out + said.err,
            json.loads(report.read_text()) if report.exists() else {},
        )

    return run


@pytest.fixture
def compare_here(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """The same without a process of its own, which takes longer to start than all the rest."""

    def here(target: Callable[..., None], settings: Any, limit: float) -> Ending:
        events: list[dict[str, Any]] = []

        def tell(event: str, **about: Any) -> None:
            events.append({"event": event, **about})

        guard = SimpleNamespace(running=str, tell=tell)
        target(settings, guard)
        return Ending(events)

    monkeypatch.setattr(compare_engines.report, "_draw", lambda path, comparison: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "modules", raising=False)
    monkeypatch.setattr(compare_engines, "run_isolated", here)
    return compare


@pytest.mark.parametrize(
    "options",
    [
        "--steps 100",
        "--activation elu --momentum 0.9 --nesterov --weight-decay 0.001 --lr 0.02 --schedule step",
        "--batch-norm --hidden-dims 20,15 --activation tanh",
        "--optimizer adamw --activation leaky_relu --neg-slope 0.1 --hidden-dims",
        "--activation sigmoid --dtype float32 --steps 30 --augment crop",
    ],
)
def test_the_engines_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    argv = ["--out", str(tmp_path), *SMALL, *options.split()]
    assert compare_engines.main(argv) == 0
    out = capsys.readouterr().out
    assert "graph agrees with modules" in out and "pytorch agrees with modules" in out
    report = json.loads((tmp_path / "engines.json").read_text())
    bound = 1e-4 if "float32" in options else 1e-10
    for name in ("graph", "pytorch"):
        steps = report["engines"][name]["steps"]
        assert len(steps) == report["settings"]["steps"] == len(report["losses"])
        assert max(max(s["loss"], s["parameter"]) for s in steps) <= bound
    assert any(s["parameter"] > 0 for s in report["engines"]["pytorch"]["steps"])
    assert (tmp_path / "engines.png").stat().st_size > 10_000


def test_the_engines_agree_on_cifar10(real_data: Path, tmp_path: Path) -> None:
    options = "--hidden-dims 50 --batch-size 50 --momentum 0.9 --lr 0.01 --validation-size 49000"
    argv = ["--data-dir", str(real_data), "--out", str(tmp_path), *options.split()]
    assert compare_engines.main(argv) == 0
    report = json.loads((tmp_path / "engines.json").read_text())
    assert report["tolerance"] == 1e-10 and len(report["losses"]) == 100
    assert report["settings"]["dataset"] == "cifar10"
    assert report["losses"][-1] < report["losses"][0]


def test_correct_modules_pass_in_a_process_of_their_own(compare: Compare) -> None:
    status, said, _ = compare(MODULES)
    assert status == 0, said
    assert "yours agrees with modules" in said


@pytest.mark.parametrize("text", [MODULES, MODULES_2018], ids=["2020", "2018"])
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_correct_modules_pass(compare_here: Compare, text: str, activation: str) -> None:
    status, said, report = compare_here(text, "--activation", activation, "--momentum", "0.9")
    assert status == 0, said
    assert "yours agrees with modules" in said
    assert 0 < report["engines"]["yours"]["steps"][-1]["parameter"] < 1e-14


def test_one_layer_among_ours(compare_here: Compare) -> None:
    text = (
        "from numpy_mlp.modules import LinearModule\n"
        + MODULES[MODULES.index("class ReLU") : MODULES.index("class ELU")]
    )
    status, said, _ = compare_here(text)
    assert status == 0 and "modules.py: ReLUModule\n" in said
    status, said, report = compare_here(text.replace("dout * self.mask", "dout * ~self.mask"))
    assert status == 1
    assert report["engines"]["yours"]["finding"]["layer"] == 3


# The line, what it is replaced by, and the first place that must be named: (layer, what), with the
# layers 0 linear, 1 ReLU, 2 linear, 3 ReLU, 4 linear, 5 softmax, 6 the loss.
FAULTS = {
    "ReLU's mask in backward": ("dx = dout * self.mask", "dx = dout * ~self.mask", (3, "dx")),
    "ReLU's mask of one layer": (
        "dx = dout * self.mask",
        "dx = dout * (self.mask if dout[0, 0] == 0 or id(self) != FIRST[0] else 1)",
        (1, "dx"),
    ),
    "ReLU's forward": ("return x * self.mask", "return np.abs(x)", (1, "output")),
    "dx by the transposed weight": (
        'dx = dout @ self.params["weight"]',
        'w = self.params["weight"]; dx = dout @ (w.T if len(w) == w.shape[1] else w)',
        (2, "dx"),
    ),
    "mean instead of sum": (
        "dout.sum(axis=0, keepdims=True)",
        "dout.mean(axis=0, keepdims=True)",
        (4, "bias"),
    ),
    "1/N twice": ("dout.T @ self.x", "dout.T @ self.x / len(dout)", (4, "weight")),
    "no bias, which begins as 0": (' + self.params["bias"]', "", (0, "output")),
    "softmax's diagonal only": (
        "(dout - (dout * self.y).sum(axis=1, keepdims=True))",
        "dout * (1 - self.y)",
        (5, "dx"),
    ),
    "softmax of the wrong axis": ("e.sum(axis=1, keepdims=True)", "e.sum()", (5, "output")),
    "the loss without 1/N": (").mean()", ").sum()", (6, "output")),
    "the gradient of the loss without 1/N": (" / len(x)", "", (6, "dx")),
    "a little off": ("dout.T @ self.x", "dout.T @ self.x * (1 + 1e-7)", (4, "weight")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(compare_here: Compare, fault: str) -> None:
    right, wrong, (layer, what) = FAULTS[fault]
    assert MODULES.count(right) == 1
    text = MODULES.replace(right, wrong)
    if "FIRST" in wrong:  # the first ReLU that is made in each network
        text = text.replace(
            "class ReLUModule(object):\n",
            "MADE, FIRST = [], [0]\n\nclass ReLUModule(object):\n    def __init__(self):\n"
            "        MADE.append(self)\n        if len(MADE) % 2:\n"
            "            FIRST[0] = id(self)\n\n",
        )
    status, said, report = compare_here(text)
    assert status == 1, said
    finding = report["engines"]["yours"]["finding"]
    assert (finding["kind"], finding["layer"], finding["what"]) == ("layer", layer, what), said
    method = "forward" if what == "output" else "backward"
    kind = finding["text"].partition("(")[2].partition(")")[0]
    start = text.index(f"def {method}", text.index(f"class {kind}"))
    assert f"your modules.py, line {text[:start].count(chr(10)) + 1}: yours " in said
    expected_step = 2 if "begins as 0" in fault else 1
    assert report["engines"]["yours"]["first_step_beyond"] == expected_step


def test_gradients_that_add_up_over_steps(compare_here: Compare) -> None:
    text = MODULES.replace(
        'self.grads["weight"] = dout.T @ self.x',
        'self.grads["weight"] = dout.T @ self.x + (0 if self.grads["weight"] is None '
        'else self.grads["weight"])',
    )
    status, said, report = compare_here(text)
    finding = report["engines"]["yours"]["finding"]
    assert status == 1 and report["engines"]["yours"]["first_step_beyond"] == 2
    assert (finding["kind"], finding["layer"], finding["what"]) == ("state", 4, "weight"), said
    assert "kept from the passes before" in said


def test_what_is_too_small_to_explain_it_is_not_blamed(compare_here: Compare) -> None:
    """An epsilon in the logarithm differs first; the mask that is missing is what matters."""
    text = MODULES.replace("np.log(", "np.log(1e-12 + ").replace(
        "dx = dout * self.mask", "dx = 1.0 * dout"
    )
    assert "np.log(1e-12 + " in text
    status, said, report = compare_here(text)
    finding = report["engines"]["yours"]["finding"]
    assert status == 1 and (finding["layer"], finding["what"]) == (3, "dx"), said
    assert "too small to explain this" in said


def test_a_layer_that_errs_late(compare_here: Compare) -> None:
    text = MODULES.replace(
        "dx = dout * self.mask",
        "self.n = getattr(self, 'n', 0) + 1; dx = dout * self.mask * (1 if self.n < 3 else 2)",
    )
    status, said, report = compare_here(text)
    finding = report["engines"]["yours"]["finding"]
    assert status == 1 and report["engines"]["yours"]["first_step_beyond"] == 3
    assert (finding["kind"], finding["layer"], finding["what"]) == ("state", 3, "dx"), said


def test_what_does_not_happen_again_is_not_called_rounding(compare_here: Compare) -> None:
    text = MODULES.replace(
        "dx = dout * self.mask",
        "self.n = getattr(self, 'n', 0) + 1; dx = dout * self.mask * (1 if self.n != 3 else 2)",
    )
    status, said, report = compare_here(text)
    assert status == 1
    assert report["engines"]["yours"]["finding"]["kind"] == "unexplained", said


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("dout.T @ self.x", "dout @ self.x", "line 19, in backward of layers.4 (LinearModule): V"),
        (
            "return x * self.mask",
            "return x * mask",
            "in forward of layers.1 (ReLUModule): NameError",
        ),
        (
            "out_features, in_features) *",
            "in_features) *",
            "params['weight'] has shape (64,), expected (12, 64)",
        ),
        (
            "import numpy as np",
            "import numpy as np\nimport nosuch",
            "line 3, in the import: ModuleNotFoundError",
        ),
        ("import numpy as np", "import numpy as np)", "line 2, in the import: SyntaxError"),
        ("import numpy as np", "raise SystemExit(0)", "in the import: SystemExit: 0"),
        (
            "in_features, out_features, input_layer=False",
            "n",
            "construction of LinearModule: TypeError",
        ),
        ("        return out\n", "", "forward of layers.0 (LinearModule) returns None"),
        ("return out\n", "return out.T\n", "returns shape (12, 32), expected (32, 12)"),
        ("return out\n", "return out.tolist()\n", "returns a list, expected an array"),
        (
            "dx = dout * self.mask",
            "dx = self.mask",
            "backward of layers.3 (ReLUModule) returns an array of bool",
        ),
        (
            "return x * self.mask",
            "x[~self.mask] = 0; return x",
            "forward of layers.1 (ReLUModule) changes its argument",
        ),
        (
            "dx = dout * self.mask",
            "dout[~self.mask] = 0; dx = dout",
            "backward of layers.3 (ReLUModule) changes its argument",
        ),
        (
            "dx = dout @ self",
            "self.x[:] = 0; dx = dout @ self",
            "backward of layers.4 (LinearModule) changes",
        ),
        (
            "dx = dout @ self",
            "self.params['bias'] += 1; dx = dout @ self",
            "changes params['bias']",
        ),
        (
            'self.grads["bias"] = dout.sum(axis=0, keepdims=True)',
            "pass",
            "layers.4 (LinearModule) leaves no gradient in grads['bias']",
        ),
        (
            "dout.sum(axis=0, keepdims=True)",
            "dout",
            "grads['bias'] an array of shape (32, 10), expected (10,)",
        ),
        (").mean()", ")", "forward of CrossEntropyModule returns an array of float64, shape (32,)"),
    ],
)
def test_what_user_code_does_is_reported_as_theirs(
    compare_here: Compare, right: str, wrong: str, named: str
) -> None:
    assert right in MODULES
    status, said, report = compare_here(MODULES.replace(right, wrong, 1))
    assert status == 1, said
    assert named in said and "Traceback" not in said
    assert report == {}
    assert len([line for line in said.splitlines() if "modules.py" in line or named in line]) <= 2


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("import numpy as np", "import os; os._exit(0)", "process ended with exit status 0"),
        (
            "self.mask = x > 0",
            "import ctypes; ctypes.string_at(0)",
            "in forward of layers.1 (ReLUModule): the process ended with signal SIGSEGV",
        ),
        ("dout.T @ self.x", "dout @ self.x", "line 19, in backward of layers.4 (LinearModule): V"),
    ],
)
def test_a_process_that_ends(compare: Compare, right: str, wrong: str, named: str) -> None:
    status, said, report = compare(MODULES.replace(right, wrong, 1))
    assert (status, report) == (1, {}), said
    assert named in said and "Traceback" not in said and said.count("modules.py") <= 2


def test_an_endless_loop_ends(compare: Compare) -> None:
    text = MODULES.replace("dx = dout * self.mask", "while True: pass")
    status, said, _ = compare(text, "--time-limit", "1.5")
    assert status == 1
    assert "--time-limit 1.5 seconds" in said  # which line, only if it was reached by then


def test_what_does_not_end_is_named(tmp_path: Path) -> None:
    path, trace = tmp_path / "modules.py", tmp_path / "trace"
    path.write_text(
        "import faulthandler\n\n\ndef backward(f):\n    faulthandler.dump_traceback(f)\n"
    )
    with trace.open("w") as file:
        print("Timeout (0:00:02)!", file=file, flush=True)
        import_file(path).backward(file)
    running = "backward of layers.3 (ReLUModule)"
    ending = Ending([], late=True, status=1, running=running, trace=trace.read_text())
    said = compare_engines._unfinished(ending, path, 2)
    assert said.startswith("your modules.py, line 5, in backward of layers.3 (ReLUModule): did not")
    assert "within --time-limit 2 seconds" in said


def test_an_engine_that_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours are not above suspicion: a graph whose update is wrong, and one whose layer is."""
    step = GraphEngine.step
    argv = ["--engines", "modules,graph", "--out", str(tmp_path), *SMALL]
    with monkeypatch.context() as context:
        context.setattr(GraphEngine, "step", lambda self, x, y, lr: step(self, x, y, 1.01 * lr))
        assert compare_engines.main(argv) == 1
    assert "the update differs, not a layer" in capsys.readouterr().out
    monkeypatch.setattr(
        "numpy_mlp.autograd.learner._ACTIVATIONS",
        {ReLUModule: lambda x: x * 1.001},
    )
    assert compare_engines.main(argv) == 1
    assert "the output of layers.1 (ReLUModule)" in capsys.readouterr().out


def test_a_loss_that_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = SoftMaxCrossEntropyModule.loss_and_gradient

    def wrong(self: SoftMaxCrossEntropyModule, x: Any, y: Any) -> tuple[float, Any]:
        loss, dx = right(self, x, y)
        return loss, dx * 1.001

    monkeypatch.setattr(SoftMaxCrossEntropyModule, "loss_and_gradient", wrong)
    assert compare_engines.main(["--out", str(tmp_path), *SMALL]) == 1
    said = capsys.readouterr().out
    assert said.count("what backward of the loss (softmax with cross-entropy) returns") == 2, said


@pytest.mark.parametrize(
    "options",
    [
        "--hidden-dims 12 12 --lr 30 --steps 20 --tolerance 1e-13",
        "--weight-std 30 --tolerance 1e-15 --steps 3",
        "--engines pytorch,modules --lr 1e30 --steps 20",
        "--engines pytorch,modules --lr 1e30 --steps 20 --hidden-dims",
    ],
)
def test_a_softmax_that_saturates_is_no_error(tmp_path: Path, options: str) -> None:
    assert compare_engines.main(["--seed", "42", "--out", str(tmp_path), *options.split()]) == 1
    engines = json.loads((tmp_path / "engines.json").read_text())["engines"].values()
    findings = [engine["finding"] for engine in engines if engine["finding"]]
    assert findings and {finding["kind"] for finding in findings} == {"rounding"}, findings


@pytest.mark.parametrize("text", [MODULES, MODULES_2018], ids=["2020", "2018"])
def test_softmax_and_loss_apart_lose_what_saturates(compare_here: Compare, text: str) -> None:
    status, said, report = compare_here(text, "--lr", "30")
    assert status == 1
    assert report["engines"]["yours"]["finding"]["kind"] == "saturated", said
    assert "a softmax and a loss that are apart, ours too, lose" in said


def test_a_loss_that_is_wrong_is_told_from_saturation(compare_here: Compare) -> None:
    right = "-1 / x[np.arange(len(x)), y] / len(x)"
    assert right in MODULES
    options = ("--weight-std", "1.5", "--batch-size", "128")
    status, said, report = compare_here(MODULES, *options)
    finding = report["engines"]["yours"]["finding"]
    assert (status, finding["kind"]) == (1, "saturated"), said
    assert "so do the other images" in finding["text"]
    _, said, report = compare_here(MODULES.replace(right, f"1.001 * {right}"), *options)
    finding = report["engines"]["yours"]["finding"]
    assert (finding["kind"], finding["layer"], finding["what"]) == ("layer", 6, "dx"), said


def test_layers_without_a_loss_train_with_ours(compare_here: Compare) -> None:
    """Softmax and loss are in one then, for the user's layers as for ours."""
    text = MODULES[: MODULES.index("class SoftMax")]
    status, said, report = compare_here(text, "--weight-std", "5")
    assert status == 0, said
    assert report["losses"][0] > 1000  # saturated


def test_a_wrong_dx_that_no_layer_reads_is_named(compare_here: Compare) -> None:
    right = 'dx = dout @ self.params["weight"]'
    options = ("--hidden-dims", "")
    status, said, report = compare_here(MODULES.replace(right, f"{right} * 7"), *options)
    yours = report["engines"]["yours"]
    assert status == 1 and yours["first_step_beyond"] is None and not yours["agrees"], said
    assert (yours["finding"]["layer"], yours["finding"]["what"]) == (0, "dx")
    assert "though losses and weights agree" in said and not report["agrees"]
    status, said, _ = compare_here(MODULES.replace(right, "dx = None"), *options)
    assert status == 0, said  # not to compute it is no error


def test_single_precision_is_named(compare_here: Compare) -> None:
    text = MODULES.replace("return x * self.mask", "return (x * self.mask).astype(np.float32)")
    status, said, _ = compare_here(text)
    assert status == 1 and "yours returns float32, modules float64" in said
    assert compare_here(text, "--dtype", "float32")[0] == 0


def test_weights_under_another_name(compare_here: Compare) -> None:
    def text(dtype: str) -> str:
        return MODULES.replace(
            'self.params["bias"] = np',
            f'self.params["weight"] = self.params["weight"].astype(np.{dtype})\n'
            '        self.W = self.params["weight"]\n        self.params["bias"] = np',
        ).replace('x @ self.params["weight"].T', "x @ self.W.T")

    assert compare_here(text("float64"))[0] == 0
    status, said, _ = compare_here(text("float32"))
    assert status == 1 and "self.W is params['weight'] under another name" in said


def test_whose_file_it_is(tmp_path: Path) -> None:
    library = Path(random.__file__)
    ours = Path(compare_engines.__file__).parents[2]
    assert is_theirs(str(tmp_path / "helpers" / "maths.py"), tmp_path / "modules.py")
    assert not is_theirs(str(tmp_path / "x.py"), tmp_path / "a" / "modules.py")
    assert not is_theirs(str(library), library.parents[1] / "modules.py")
    assert not is_theirs(json.__file__, library.parents[2] / "modules.py")
    for name in ("custom_modules", "torch_models", "numpy_mlp"):
        assert not is_theirs(str(ours / name / "x.py"), ours.parent / "modules.py")
    (tmp_path / "link").symlink_to(ours)
    assert not is_theirs(str(tmp_path / "link" / "handgrad" / "x.py"), tmp_path / "modules.py")


def test_out_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparing, "load_dataset", None)  # not so far
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert compare_engines.main(["--out", str(out)]) == 2
        assert "file is a file; a folder is expected" in capsys.readouterr().err


def test_ctrl_c_speaks_of_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "load_dataset", interrupt)
    assert compare_engines.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_rounding_that_grows_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--dtype", "float32", "--tolerance", "1e-7", "--steps", "30", "--out", str(tmp_path)]
    assert compare_engines.main([*argv, "--hidden-dims", "30", "--seed", "0"]) == 1
    findings = {
        name: engine["finding"]
        for name, engine in json.loads((tmp_path / "engines.json").read_text())["engines"].items()
        if engine["finding"]
    }
    assert findings and {finding["kind"] for finding in findings.values()} == {"rounding"}
    assert "no layer is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--dropout 0.1", "unknown option --dropout"),
        ("--epochs 3", "unknown option --epochs"),
        ("--resume runs/x", "unknown option --resume"),
        ("--engines modules", "nothing to compare"),
        ("--engines modules,tensorflow", "--engines 'tensorflow' is unknown"),
        ("--modules nowhere.py", "nowhere.py does not exist"),
        ("--modules nowhere.py --engines graph,pytorch", "add modules to --engines"),
        ("--lr 1e300 --engines modules,graph", "a smaller --lr"),
        ("--tolerance 0", "--tolerance 0.0 is out of range"),
        ("--preset best", "--preset 'best' is unknown"),
        ("--model vgg --batch-norm", "--batch-norm is for --model mlp, not vgg"),
        ("--model vgg --hidden-dims 5", "--hidden-dims is for --model mlp, not vgg"),
        ("--model fast", "--model fast is for images of at least 26×26 pixels"),
    ],
)
def test_bad_usage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: str, named: str
) -> None:
    assert compare_engines.main([*argv.split(), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err


def test_a_file_without_layers(compare_here: Compare) -> None:
    status, said, _ = compare_here("class Linear:\n    pass\n")
    assert status == 2 and "has only Linear; expected one or more of LinearModule" in said
    status, said, _ = compare_here(
        MODULES[: MODULES.index("class Linear")] + "class ELUModule: pass"
    )
    assert status == 2 and "choose another --activation" in said


def test_without_pytorch_the_others_are_compared(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from handgrad.lockstep.command import main"
    code += f"; sys.exit(main({['--steps', '3', '--out', str(tmp_path)]}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "pytorch is left out" in result.stdout and "graph agrees" in result.stdout


def test_a_weight_of_the_other_layout(tmp_path: Path) -> None:
    """(in, out), as lectures write it, is no error."""

    class Transposed:
        def __init__(self, in_features: int, out_features: int) -> None:
            self.params = {
                "weight": np.zeros((in_features, out_features)),
                "bias": np.zeros(out_features),
            }
            self.grads: dict[str, np.ndarray] = {}

        def forward(self, x: np.ndarray) -> np.ndarray:
            self.x = x
            return x @ self.params["weight"] + self.params["bias"]

        def backward(self, dout: np.ndarray) -> np.ndarray:
            self.grads = {"weight": self.x.T @ dout, "bias": dout.sum(axis=0)}
            return dout @ self.params["weight"].T

    model = MLP(4, [5], 3, rng=np.random.default_rng(0))
    learner = NumpyLearner(model, SGD(list(model.params.values()), 0.1))
    engine = UserEngine(learner, {"LinearModule": Transposed}, tmp_path / "modules.py")
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    trace = engine.trace(x, labels)
    model.backward(CrossEntropyModule().backward(model.forward(x), labels))
    np.testing.assert_allclose(
        trace[Place(0, "weight")], model.grads["layers.0.weight"], rtol=1e-12
    )
