"""The table of networks: presets that say what they reached, and commands made from it."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from handgrad.backends.registry import NETWORKS
from handgrad.runs.command_line import parse_command_line

RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
PRESETS = [(network, name) for network in NETWORKS for name in NETWORKS[network].presets]


@pytest.mark.parametrize(("network", "name"), PRESETS)
def test_a_preset_says_what_it_reached(network: str, name: str) -> None:
    row = NETWORKS[network]
    command = f"{row.command} --preset {name} --data-dir DATA"
    lines = [re.sub(" --precision float32", "", line) for line in RESULTS.splitlines()]
    (line,) = (line for line in lines if f"`{command} --seed" in line)
    cells = [cell.strip() for cell in line.split("|")]
    reached = row.presets[name].reached
    assert re.fullmatch(r"0\.\d{4}", reached)
    assert any(
        cell == reached or cell.startswith((f"{reached} (", f"{reached};")) for cell in cells
    ), cells


@pytest.mark.parametrize("network", NETWORKS)
def test_help_is_grouped_and_says_what_the_presets_are(
    network: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = NETWORKS[network]
    with pytest.raises(SystemExit):
        parse_command_line(row.settings, row.presets, row.about, row.command, ["--help"])
    said = capsys.readouterr().out
    groups = re.findall(r"^([a-z]+):$", said, flags=re.M)
    assert groups == ["options", "data", "network", "optimisation", "evaluation", "output"]
    assert max(map(len, said.splitlines())) <= 80
    for name, preset in row.presets.items():
        assert f"  {name} " in said and preset.reached in said
