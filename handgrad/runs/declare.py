"""Settings that are declared once, as fields of a dataclass: the rest follows from the field.

Default, help text and bounds stand in the field's metadata. The command line, the presets,
``config.json``, :func:`handgrad.train` and all checks are made from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from handgrad.errors import UserError

_LARGEST = 10**9  # of whole numbers without a bound of their own


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """Declare a setting: its default, its help text and the values it may take."""
    metadata = {"help": help, "choices": tuple(choices)}
    bounds = {"above": above, "least": least, "below": below, "most": most}
    return dataclasses.field(default=default, metadata={**metadata, **bounds})


def option_of(name: str) -> str:
    """Return the option of a setting: ``--hidden-dims``."""
    return f"--{name.replace('_', '-')}"


def unpack_type(hint: Any) -> tuple[Any, bool, bool]:
    """Return the element type of ``hint``, whether it is a tuple, and whether None is allowed."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True, optional
    return hint, False, optional


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of: {', '.join(known)}"


def text_of(value: Any) -> str:
    """Return a setting as one would type it."""
    if isinstance(value, tuple):
        return " ".join(map(text_of, value)) or "none"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def check_types(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Check that values are of their settings' types; 1 is a float, but True is not 1.

    Raises:
        UserError: one is not; the message begins with ``where``.
    """
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        element, is_tuple, optional = unpack_type(hints[name])
        items = value if is_tuple and isinstance(value, tuple) else (value,)
        if value is None and optional:
            continue
        allowed = (int, float) if element is float else (element,)
        if isinstance(value, tuple) != is_tuple or any(type(i) not in allowed for i in items):
            raise UserError(f"{where}{name} is {value!r}, expected {element.__name__}")


def check_bounds(kind: type, values: Mapping[str, Any]) -> None:
    """Check values against their declarations.

    Raises:
        UserError: one is out of range or not among the choices.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in values.items():
        option, declared = option_of(name), fields[name].metadata
        items = value if isinstance(value, tuple) else () if value is None else (value,)
        for item in items:
            if (choices := declared["choices"]) and item not in choices:
                raise UserError(f"{option} {item!r} is unknown{nearest(str(item), choices)}")
            if not isinstance(item, str | bool):
                _check_number(option, item, declared)


def _check_number(option: str, number: float, declared: Mapping[str, Any]) -> None:
    above, least, below, most = (declared[name] for name in ("above", "least", "below", "most"))
    if most is None and isinstance(number, int) and below is None:
        most = _LARGEST
    bounds = [f"above {above:g}"] if above is not None else []
    bounds += [f"at least {least:g}"] if least is not None else []
    bounds += [f"below {below:g}"] if below is not None else []
    bounds += [f"at most {text_of(most)}"] if most is not None else []
    if (
        (isinstance(number, float) and not math.isfinite(number))
        or (above is not None and not number > above)
        or (least is not None and not number >= least)
        or (below is not None and not number < below)
        or (most is not None and not number <= most)
    ):
        expected = " and ".join(bounds) or "a finite number"
        raise UserError(f"{option} {number} is out of range; expected {expected}")
