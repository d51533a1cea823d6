"""Options whose value is a table."""

from __future__ import annotations

import sys
from types import MappingProxyType

import pytest

from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.option_tables import check_table


def test_the_table_is_a_copy_of_plain_values() -> None:
    """What the caller does to its table later changes nothing, and what looks like a table or a list becomes one."""
    given = {"a": {"b": [1, ("x", None)]}, "c": MappingProxyType({"d": 1.5})}
    checked = check_table("t", given)
    given["a"]["b"].append(2)
    assert checked == {"a": {"b": [1, ["x", None]]}, "c": {"d": 1.5}}
    assert type(checked["c"]) is dict


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"handlers": {"console": {"stream": sys.stdout}}}, "log_config.handlers.console.stream must be a text"),
        ({"filters": [{"x": float("inf")}]}, "log_config.filters.0.x must be a text, .* not inf"),
        ({"a": {"b": 1 << 64}}, "log_config.a.b must be a text, .* not 18446744073709551616"),
        ({"a": -(10**5000)}, "log_config.a must be a text, .* not a value of type int that is too large to be shown"),
        ({1: 2}, "log_config: the names in it must be texts, not 1"),
        ({"a": {None: 2}}, "log_config.a: the names in it must be texts, not None"),
    ],
)
def test_what_is_no_plain_value_is_named(table: dict[object, object], said: str) -> None:
    """An object, a number that JSON lacks, and a name that is no text are refused, with the place."""
    with pytest.raises(ConfigError, match=said):
        Config(log_config=table)


def test_a_table_in_itself() -> None:
    """A table without a bottom is refused."""
    table: dict[str, object] = {}
    table["again"] = table
    with pytest.raises(ConfigError, match="nested too deeply"):
        check_table("t", table)
