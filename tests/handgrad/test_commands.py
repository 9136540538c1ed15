"""The command ``handgrad`` and its subcommands."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import handgrad
from handgrad.commands import _COMMANDS, main

NAMES = [name for group in _COMMANDS.values() for name in group]


def test_help_lists_every_command_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for title, group in _COMMANDS.items():
        assert f"\n{title}:\n" in said
        for name in group:
            assert f"\n  {name} " in said
    assert max(map(len, said.splitlines())) <= 80
    assert main([]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_subcommand_is_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert said.startswith("usage: ") and name in said.partition("\n")[0]
    assert max(map(len, said.splitlines())) <= 80, "fits a terminal"
    with pytest.raises(SystemExit) as ended:
        main([name, "--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"handgrad {handgrad.__version__}\n"


def test_telling_names_are_console_commands_and_generic_ones_are_not() -> None:
    scripts = metadata.entry_points(group="console_scripts")
    ours = {entry.name for entry in scripts if entry.value.startswith("handgrad.")}
    assert ours == {"handgrad", *NAMES} - {"reproduce", "benchmark"}


def test_mistyped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-gradient"]) == 2
    assert "'check-gradient'; did you mean check-gradients?" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"handgrad {handgrad.__version__}\n"


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "handgrad", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"handgrad {handgrad.__version__}\n"
