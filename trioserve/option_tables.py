"""Options whose value is a table: nothing but what JSON and TOML have, because workers get it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import ConfigError
from .types import AnyValue, PlainValues


def check_table(name: str, table: Mapping[AnyValue, AnyValue]) -> PlainValues:
    """Return a copy of the table, all the way down; raises ConfigError that names what is no plain value."""
    try:
        return {_check_key(name, key): _check_value(f"{name}.{key}", value) for key, value in table.items()}
    except RecursionError:
        raise ConfigError(f"{name}: its values are nested too deeply") from None


def _check_key(name: str, key: object) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{name}: the names in it must be texts, not {key!r}")
    return key


def _check_value(name: str, value: object) -> AnyValue:
    if isinstance(value, Mapping):
        return {_check_key(name, key): _check_value(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_check_value(f"{name}.{place}", inner) for place, inner in enumerate(value)]
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise ConfigError(
        f"{name} must be a text, a number, true or false, a list or a table, not {value!r}; "
        "what is none of these can be named, such as 'ext://sys.stdout' or 'ext://package.module.Class'"
    )
