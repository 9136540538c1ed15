"""The benchmark: what it writes is what it measured. Nothing here asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from scripts import benchmark


def test_calls_take_turns() -> None:
    order: list[str] = []
    timings = benchmark.interleave({n: (lambda n=n: order.append(n)) for n in "abc"}, repeats=3)
    assert "".join(order) == "abc" + "abcbcacab"
    assert timings.keys() == set("abc")
    assert all(t.lower <= t.median <= t.upper for t in timings.values())


def test_the_report_has_table_numbers_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = benchmark.Timing
    results = {"w": {"first": timing(2.0, 1.0, 3.0), "second": timing(5.0, 4.0, 6.0)}}
    monkeypatch.setitem(benchmark._COMMANDS, "norm", lambda arguments: results)
    assert benchmark.main(["norm", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2.50" in out and "5000.000 ms" in out
    content = json.loads((tmp_path / "norm.json").read_text())
    assert content["ratios"]["w"] == {"first": 1.0, "second": 2.5}
    assert "processor" in content
    assert imread(tmp_path / "norm.png")[..., :3].std() > 0.01


@pytest.mark.parametrize("value", ["0", "-3", "2.5", "many"])
def test_a_count_that_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["norm", "--repeats", value])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "--repeats" in message and value in message
