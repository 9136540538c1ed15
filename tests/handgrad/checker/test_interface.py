"""``check_gradients`` says what the command says, and leaves everything of the caller's alone."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import planted_mistakes
import pytest
from planted_mistakes import MISTAKES

from handgrad.checker.command import main
from handgrad.checker.interface import check_gradients
from handgrad.errors import UserError
from numpy_mlp.autograd import ops
from numpy_mlp.mlp import MLP
from numpy_mlp.modules.batchnorm import BatchNormModule
from numpy_mlp.modules.dropout import DropoutModule
from numpy_mlp.modules.linear import LinearModule
from numpy_mlp.modules.losses import CrossEntropyModule

PLANTED = Path(planted_mistakes.__file__)


@pytest.mark.parametrize("name", [*MISTAKES][::9])
def test_it_says_what_the_command_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_gradients(getattr(planted_mistakes, name))
    assert main([f"{PLANTED}:{name}"]) == 1
    assert capsys.readouterr().out == f"{report}\n"
    main([f"{PLANTED}:{name}", "--json"])
    (entry,) = json.loads(capsys.readouterr().out)["classes"]
    ours = json.loads(json.dumps(report.to_dict()))
    assert ours | {"seconds": 0} == entry | {"seconds": 0}
    assert not report.passed
    assert MISTAKES[name] in [(f.diagnosis, f.variable) for f in report.findings]


def test_a_finding_has_both_values() -> None:
    report = check_gradients(planted_mistakes.LinearSign)
    (finding,) = (f for f in report.findings if f.variable == "x")
    assert (finding.verdict, finding.diagnosis) == ("WRONG", "sign")
    assert finding.explanation == "the sign is wrong" and finding.where is not None
    assert finding.error == pytest.approx(2) and len(finding.where) == 2
    assert finding.analytic == pytest.approx(-finding.numerical)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (LinearModule, "module"),
        (CrossEntropyModule, "module"),
        (CrossEntropyModule(), "module"),
        (ops.MatrixMultiply, "op"),
        (LinearModule(7, 2), "module"),
        (BatchNormModule(6), "module"),
        (DropoutModule(0.4, rng=np.random.default_rng(3)), "module"),
        (MLP(6, [5], 3), "module"),
    ],
)
def test_classes_and_objects_of_ours_are_right(target: Any, kind: str) -> None:
    report = check_gradients(target)
    assert report.passed, report
    assert report.findings and report.to_dict()["kind"] == kind


class Scaled:
    """With all that a check could leave behind."""

    calls: ClassVar[list[int]] = []
    made: ClassVar[dict[str, Any]] = {"grid": np.ones(2)}
    rng = np.random.default_rng(5)

    def __init__(self, n: int, scale: float = 2.0) -> None:
        self.params, self.grads = {"weight": np.full(n, scale)}, {"weight": np.zeros(n)}
        self.cache: list[Any] = [None]

    def forward(self, x: Any) -> Any:
        np.random.rand()  # noqa: NPY002 (as students write)
        random.random(), np.random.default_rng().random(), self.rng.random()
        print("forward")
        self.calls.append(1)
        Scaled.made["grid"] *= 1.5
        Scaled.late = 1
        self.cache[0] = x
        return x * self.params["weight"]

    def backward(self, dout: Any) -> Any:
        self.grads["weight"] = (dout * self.cache[0]).sum(0)
        return dout * self.params["weight"]


class Broken(Scaled):
    def backward(self, dout: Any) -> Any:
        raise KeyboardInterrupt


def _states() -> Any:
    torch = pytest.importorskip("torch")
    ours = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    return ours, random.getstate(), torch.get_rng_state().tolist(), np.random.default_rng


@pytest.mark.parametrize("target", [Scaled, Scaled(6), Broken, Broken(6)])
def test_nothing_of_the_callers_changes(target: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before, own = _states(), Scaled.rng.bit_generator.state
    if target is Broken or isinstance(target, Broken):
        with pytest.raises(KeyboardInterrupt):
            check_gradients(target)
    else:
        assert check_gradients(target).passed
    assert _states() == before
    assert Scaled.rng.bit_generator.state == own
    assert Scaled.calls == [] and not hasattr(Scaled, "late")
    assert Scaled.made["grid"].tolist() == [1, 1]
    if not isinstance(target, type):
        assert target.cache == [None] and target.grads["weight"].tolist() == [0] * 6
        assert target.params["weight"].tolist() == [2] * 6
    assert capsys.readouterr().out == ""


SQUARE = """
class Square:
    def __init__(self, a=2.0):
        self.a = a
    def forward(self, x):
        self.x = x
        return self.a * x**2
    def backward(self, dout):
        return {} * self.a * self.x * dout
"""


def _defined(factor: str, name: str = "__main__") -> Any:
    namespace: dict[str, Any] = {"__name__": name}
    exec(SQUARE.format(factor), namespace)
    return namespace["Square"]


@pytest.mark.parametrize("name", ["__main__", "builtins", "of_no_module"])
def test_a_class_without_a_source(name: str) -> None:
    assert check_gradients(_defined("2", name)).passed
    (finding,) = check_gradients(_defined("3", name)).findings
    assert finding.diagnosis == "constant-factor" and "1.5 times" in finding.explanation
    (finding,) = check_gradients(_defined("nowhere", name)).findings
    assert finding.explanation.startswith("<string>, line 9, in backward: NameError")
    assert check_gradients(_defined("2", name)(0.7)).passed


@pytest.mark.parametrize(
    ("init", "settings"),
    [
        ((4, 3), {"0": 4, "1": 3}),
        ({"in_features": 4, "out_features": 3}, {"in_features": 4, "out_features": 3}),
        ("4, out_features=3", {"0": 4, "out_features": 3}),
    ],
)
def test_arguments_of_the_constructor(init: Any, settings: dict[str, int]) -> None:
    report = check_gradients(LinearModule, init=init, input_shape=(5, 4))
    assert report.passed and report.to_dict()["settings"] == settings
    assert str(report).startswith("LinearModule(")


def test_arguments_that_no_text_can_give() -> None:
    report = check_gradients(planted_mistakes.Layer, init=(np.int64(4), 3), input_shape=[(2, 4)])
    assert report.passed and report.to_dict()["settings"]["1"] == 3


def test_shapes_and_ranges() -> None:
    assert check_gradients(ops.Multiply, input_shape=[(2, 3), (3,)]).passed
    cls, seen = _defined("2"), []
    forward = cls.forward
    cls.forward = lambda self, x: seen.append(x) or forward(self, x)
    assert check_gradients(cls, input_shape=(3, 2), input_range=(5, 6)).passed
    assert {x.shape for x in seen} == {(3, 2), (4, 2)}  # after a larger batch as well
    assert 4.9 < seen[0].min() < seen[0].max() < 6.1


@pytest.mark.parametrize(
    ("target", "given", "says"),
    [
        (3, {}, "3 has no forward and backward; expected a class or an object"),
        (dict, {}, "has no forward and backward"),
        (np.ones((30, 30)), {}, "has no forward and backward"),
        ("nowhere.py", {}, "nowhere.py does not exist"),
        (f"{PLANTED}:LinearSgn", {}, "did you mean LinearSign?"),
        (str(PLANTED), {"init": (np.ones(2),)}, "more than plain values"),
        (LinearModule, {"init": "4)"}, "init '4)' is no arguments of a constructor"),
        (LinearModule, {"init": [4, 3]}, "expected a tuple such as (4, 3)"),
        (LinearModule(4, 3), {"init": (4, 3)}, "an object is checked as it was made"),
        (LinearModule, {"input_shape": (5, 0)}, "input_shape (5, 0) is not a shape"),
        (LinearModule, {"input_shape": "5,4"}, "input_shape '5,4' is not a shape"),
        (LinearModule, {"input_shape": [(5, 4.5)]}, "is not a shape"),
        (LinearModule, {"input_shape": (1000, 1000)}, "has 1,000,000 entries"),
        (LinearModule, {"input_range": (2, 1)}, "input_range (2, 1) is not a range"),
        (LinearModule, {"tolerance": 0}, "tolerance 0 is out of range"),
        (LinearModule, {"tolerance": "tiny"}, "tolerance tiny is out of range"),
    ],
)
def test_a_bad_argument_is_one_sentence(target: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        check_gradients(target, **given)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_object_that_cannot_be_copied() -> None:
    layer = _defined("2")()
    layer.lock = threading.Lock()
    with pytest.raises(
        UserError, match=r"this Square cannot be copied .*; give its class, and init"
    ):
        check_gradients(layer)


def test_a_file_in_processes_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "layers.py"
    file.write_text(SQUARE.format("2") + SQUARE.format("3").replace("Square", "Wrong"))
    report = check_gradients(file, init={"a": 3.0})
    assert not report.passed and [f.diagnosis for f in report.findings] == ["", "constant-factor"]
    assert report.to_dict().keys() == {"passed", "tolerance", "classes", "skipped"}
    assert str(report).endswith("\n\n1 of 2 right; wrong: Wrong")
    assert check_gradients(f"{file}:Square").passed


def test_code_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    from custom_modules.custom_batchnorm import CustomBatchNormManualFunction

    assert check_gradients(CustomBatchNormManualFunction).passed
    net = torch.nn.Sequential(torch.nn.Linear(7, 3), torch.nn.BatchNorm1d(3), torch.nn.Tanh())
    net[0].bias.requires_grad_(False)  # frozen, and no mistake
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    with torch.no_grad():
        report = check_gradients(net)
    assert report.passed and {f.variable for f in report.findings} >= {"0.weight", "1.bias"}
    assert not net.training and net[0].weight.grad is None and net[0].weight.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
