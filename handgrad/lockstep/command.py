"""Train one network on several engines in lockstep, and name the first layer that differs.

The hand-written modules, the computation graph and PyTorch begin with the same weights and see the
same batches; after each step the losses and all parameters are compared. --modules puts a user's
modules beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from handgrad.backends.mlp_numpy import PRESETS
from handgrad.console import command
from handgrad.errors import UserError
from handgrad.lockstep import report
from handgrad.lockstep.compare import blaming, compare, compare_isolated
from handgrad.lockstep.subject import CompareSettings
from handgrad.runs.command_line import parse_command_line
from handgrad.user_code.blame import UserCodeError, locate
from handgrad.user_code.isolated import Ending, run_isolated

# Masks of dropout are drawn from generators of each engine's own.
_PRESETS = {n: preset for n, preset in PRESETS.items() if "--dropout" not in preset.options}


def _main(argv: Sequence[str]) -> int:
    asked = parse_command_line(CompareSettings, _PRESETS, __doc__ or "", "compare-engines", argv)
    settings = asked.settings
    report.check_out(settings.folder)
    path = settings.users
    if path is None:
        return compare(settings)
    if "modules" not in settings.engines:
        raise UserError("--modules is compared with our modules: add modules to --engines")
    if not path.exists():
        raise UserError(f"--modules {path} does not exist; give a Python file")
    first = ("modules", *(name for name in settings.engines if name != "modules"))
    settings = dataclasses.replace(settings, engines=first)
    ending = run_isolated(compare_isolated, dataclasses.asdict(settings), settings.time_limit)
    for event in ending.events:
        if event["event"] == "ended":
            return int(event["status"])
    raise UserCodeError(_unfinished(ending, path, settings.time_limit))


def _unfinished(ending: Ending, path: Path, limit: float) -> str:
    """Return why there is no result of the user's code in ``path``."""
    at = ending.place(path)
    place = locate(*at, ending.running or "the comparison") if at else ""
    if ending.late:
        if place:
            return (
                f"{place}: did not come to an end within --time-limit {limit:g} seconds; if it is "
                f"only slow, raise the limit, or take fewer --steps"
            )
        return (
            f"the comparison took longer than --time-limit {limit:g} seconds; raise it, or take "
            f"fewer --steps"
        )
    where = place or f"{ending.running or 'the comparison'}, of your {path.name}"
    return f"{where}: the process ended with {ending.cause}, and without a result"


@command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status: 0 where all agree, 1 where one differs."""
    return blaming(lambda: _main(argv))()
