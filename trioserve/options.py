"""One option, declared once: how its text is read, which values it takes, and how it is shown.

The command line, the environment, configuration files and the worker's JSON are all made from these declarations.
"""

from __future__ import annotations

import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from enum import Enum
from typing import TypeVar

from .errors import ConfigError
from .option_tables import LARGEST, check_table, show
from .types import AnyValue

T = TypeVar("T")


class Group(Enum):
    """The headings of ``--help``, in order."""

    WHERE = "Where to listen"
    APP = "Application"
    TLS = "TLS"
    HTTP = "HTTP"
    WEBSOCKETS = "WebSockets"
    PROXIES = "Behind proxies"
    LIMITS = "Limits"
    CLOCKS = "Clocks (seconds)"
    LOGS = "Logs"
    PROCESSES = "Processes"
    RELOAD = "Reload (for development)"


def option(
    default: T,
    group: Group,
    help: str,
    *,
    minimum: float | None = None,
    maximum: int | None = None,
    above: float | None = None,
    metavar: str | None = None,
    octal: bool = False,
    separator: str = ",",
    check: Callable[[str], object] | None = None,
) -> T:
    """Declare a field of Config.

    ``minimum`` and ``maximum`` are the least and the greatest number it takes, ``above`` one it must exceed;
    ``separator`` stands between several values in one text; ``check`` raises ConfigError for a bad text.
    """
    made: T = field(
        default=default,
        metadata={
            "group": group,
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "above": above,
            "metavar": metavar,
            "octal": octal,
            "separator": separator,
            "check": check,
        },
    )
    return made


@dataclass(frozen=True)
class Option:
    """What is known of one option.

    ``kind`` is the type of its value, or of one of its values when ``repeatable``; ``choices`` is empty unless the
    option takes one of a few words; ``optional`` options take None, written ``none`` in text; ``takes_table``: a table
    may stand where a text does.
    """

    name: str
    kind: type
    default: object
    group: Group
    help: str
    optional: bool = False
    repeatable: bool = False
    takes_table: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: int | None = None
    above: float | None = None
    metavar: str | None = None
    octal: bool = False
    separator: str = ","
    check_text: Callable[[str], object] | None = None

    @classmethod
    def from_field(cls, declared: Field[AnyValue], annotation: object) -> Option:
        takes_table, annotation = _take_table(annotation)
        kind, optional, repeatable, choices = _read_annotation(annotation)
        data = declared.metadata
        return cls(
            name=declared.name,
            kind=kind,
            default=declared.default,
            group=data["group"],
            help=data["help"],
            optional=optional,
            repeatable=repeatable,
            takes_table=takes_table,
            choices=choices,
            minimum=data["minimum"],
            maximum=data["maximum"],
            above=data["above"],
            metavar=data["metavar"],
            octal=data["octal"],
            separator=data["separator"],
            check_text=data["check"],
        )

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable that sets this option."""
        return "TRIOSERVE_" + self.name.upper()

    def parse(self, text: str) -> AnyValue:
        """Read the option from text, as an environment variable or a command line gives it.

        Several values stand one per line, or else between separators. Raises ConfigError.
        """
        if self.repeatable:
            separator = "\n" if "\n" in text else self.separator
            return self.check([part.strip() for part in text.split(separator) if part.strip()])
        if self.optional and text.strip().lower() == "none":
            return None
        return self.check(self._from_text(text))

    def check(self, value: object) -> AnyValue:
        """Return the value as the field holds it (a list becomes a tuple, a whole number a float); raises
        ConfigError.
        """
        if self.repeatable:
            if isinstance(value, str) or not isinstance(value, list | tuple):
                raise self._wrong(value, "a list of texts")
            return tuple(self._check_one(one) for one in value)
        if value is None and self.optional:
            return None
        return self._check_one(value)

    def _check_one(self, value: object) -> object:
        if self.takes_table and isinstance(value, Mapping):
            return check_table(self.name, value)
        if self.kind is float and value == "inf":
            value = math.inf  # as Config.to_plain writes it
        if self.kind is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                raise self._wrong(value, self.expects) from None
        # bool is a subclass of int, and `port = true` in a file is a mistake.
        if type(value) is not self.kind:
            raise self._wrong(value, self.expects)
        if self.choices and value not in self.choices:
            raise self._wrong(value, self.expects)
        if isinstance(value, int | float) and not self._in_range(value):
            raise self._wrong(value, self.expects)
        if type(value) is int and abs(value) > LARGEST:
            raise self._wrong(value, f"{self.expects}, of 64 bits at most")
        if self.check_text is not None and isinstance(value, str):
            self._check_text(self.check_text, value)
        return value

    def _check_text(self, check: Callable[[str], object], text: str) -> None:
        try:
            check(text)
        except ConfigError as error:
            if str(error).startswith(self.name):
                raise
            # Two options may be texts of one kind, which knows the name of the first.
            raise ConfigError(f"{self.name}: {error}") from None

    def _in_range(self, number: float) -> bool:
        # Written this way round so that NaN, which compares false with everything, is refused.
        high_enough = self.minimum is None or number >= self.minimum
        low_enough = self.maximum is None or number <= self.maximum
        above_enough = self.above is None or number > self.above
        return high_enough and low_enough and above_enough and number == number

    def _from_text(self, text: str) -> object:
        if self.kind is bool:
            return _BOOLEANS.get(text.strip().lower(), text)
        if self.kind is int or self.kind is float:
            try:
                return int(text, 8) if self.octal else self.kind(text)
            except ValueError:
                return text
        return text

    @property
    def expects(self) -> str:
        """What the option takes, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        if self.octal:
            return f"an octal number such as 660 (0o660 in TOML), at most {self.maximum:o}"
        words = {int: "a whole number", float: "a number of seconds", str: "a text"}[self.kind]
        if self.maximum is not None:
            words += f" from {self.minimum} to {self.maximum}"
        elif self.minimum is not None:
            words += f" of at least {self.minimum:g}"
        if self.above is not None:
            words += f" above {self.above:g}"
        words += " or a table" if self.takes_table else ""
        return words + (" or none" if self.optional else "")

    def _wrong(self, value: object, expects: str) -> ConfigError:
        return ConfigError(f"{self.name} must be {expects}, not {show(value)}")


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _take_table(annotation: object) -> tuple[bool, object]:
    """Whether a field's type has a table in it, and the type without that."""
    parts = typing.get_args(annotation)
    others = [part for part in parts if typing.get_origin(part) is not Mapping]
    if len(others) == len(parts):
        return False, annotation
    return True, functools.reduce(operator.or_, others)


def _read_annotation(annotation: object) -> tuple[type, bool, bool, tuple[str, ...]]:
    """Take a field's type apart: (kind, optional, repeatable, choices)."""
    if typing.get_origin(annotation) is typing.Literal:
        return str, False, False, typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], False, True, ()
    if isinstance(annotation, types.UnionType):
        (kind,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
        inner = _read_annotation(kind)
        return inner[0], True, False, inner[3]
    assert isinstance(annotation, type)
    return annotation, False, False, ()
