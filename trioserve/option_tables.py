"""Options whose value is a table: nothing but what JSON and TOML have, because workers get it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import ConfigError
from .types import AnyValue, PlainValues

LARGEST = (1 << 63) - 1
"""No whole number may be larger: it is TOML's largest, and Python does not write JSON with thousands of digits."""


def show(value: object) -> str:
    """Return what came as an error shows it, whatever it is."""
    try:
        return repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of lists in each other
        return f"a value of type {type(value).__name__} that is too large to be shown"


def check_table(name: str, table: Mapping[AnyValue, AnyValue]) -> PlainValues:
    """Return a copy of the table, all the way down; raises ConfigError that names what is no plain value."""
    try:
        return {_check_key(name, key): _check_value(f"{name}.{key}", value) for key, value in table.items()}
    except RecursionError:
        raise ConfigError(f"{name}: its values are nested too deeply") from None


def _check_key(name: str, key: object) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{name}: the names in it must be texts, not {show(key)}")
    return key


def _check_value(name: str, value: object) -> AnyValue:
    if isinstance(value, Mapping):
        return {_check_key(name, key): _check_value(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_check_value(f"{name}.{place}", inner) for place, inner in enumerate(value)]
    if value is None or type(value) in (str, bool) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is int and abs(value) <= LARGEST:
        return value
    raise ConfigError(
        f"{name} must be a text, a number, true or false, a list or a table, not {show(value)}; "
        "what is none of these can be named, such as 'ext://sys.stdout' or 'ext://package.module.Class'"
    )
