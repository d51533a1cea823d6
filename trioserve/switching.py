"""Takes the command lines and variables of uvicorn, and the flags of Hypercorn, for people who switch by one word.

What means the same is taken; of the rest one line says what to use in its place. None of it stands in ``--help``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from .config import options
from .errors import ConfigError
from .foreign_flags import FOREIGN_FLAGS, UVICORN, ForeignFlag
from .foreign_names import RENAMED
from .process.settings import DEFAULT

_OWN_WITH_VALUE = frozenset({"--config"} | {one.flag for one in options() if one.kind is not bool})
_OWN_SWITCHES = frozenset(one.flag for one in options() if one.kind is bool)
_DEFLATE = "--ws-per-message-deflate"  # a switch here, while uvicorn's takes true or false
_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")
_DASHES = ("\N{EN DASH}", "\N{EM DASH}")  # what text processors make of two hyphens
_HINTS = {name: flag.hint for flag in UVICORN for name in flag.names if flag.hint}


def translate(arguments: Sequence[str]) -> list[str]:
    """Put our flags in the place of theirs.

    Ours, and what is neither, stay as they are. Raises ConfigError with a line for each flag that there is nothing
    like, or that cannot be meant so.
    """
    rest = deque(arguments)
    translated: list[str] = []
    wrong: list[str] = []
    while rest:
        argument = rest.popleft()
        if argument == "--":
            translated += [argument, *rest]
            break
        try:
            translated += _translate_one(argument, rest)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    return translated


def _translate_one(argument: str, rest: deque[str]) -> Sequence[str]:
    """What one argument becomes; takes its value from ``rest``, if that is where it stands."""
    if argument.startswith(_DASHES):
        raise ConfigError(f"{argument!r} begins with a dash, and not with two hyphens")
    if not argument.startswith("-"):
        return [argument]
    name, value = _split(argument)
    flag = FOREIGN_FLAGS.get(name)
    if flag is not None:
        return _rewrite(flag, name, value, rest)
    if name in _OWN_SWITCHES:
        if name == _DEFLATE and value is None and rest and rest[0].lower() in _TRUE + _FALSE:
            value = rest.popleft()
        return [name if value is None else _switch(name, value)]
    if name in _OWN_WITH_VALUE and value is None and rest:
        return [name, rest.popleft()]
    return [argument]


def _split(argument: str) -> tuple[str, str | None]:
    """Take ``--name=value``, ``-nvalue`` and ``-n`` apart."""
    if argument.startswith("--"):
        name, equals, value = argument.partition("=")
        return name, value if equals else None
    meant = f"-{argument}".partition("=")[0]
    if meant in _OWN_WITH_VALUE | _OWN_SWITCHES | FOREIGN_FLAGS.keys():
        raise ConfigError(f"there is no option {argument!r}; did you mean '{meant}'?")
    return argument[:2], argument[2:] or None


def _rewrite(flag: ForeignFlag, name: str, value: str | None, rest: deque[str]) -> Sequence[str]:
    if flag.takes_value and value is None:
        if not rest:
            raise ConfigError(f"{name} needs a value")
        value = rest.popleft()
    ours = flag.rewrite(value or "")
    if ours is None:
        raise ConfigError(f"{name} {value}: {flag.hint}" if flag.takes_value else f"{name}: {flag.hint}")
    return ours


def _switch(name: str, value: str) -> str:
    """``--reload=true`` as it is written here."""
    if value.lower() in _TRUE:
        return name
    if value.lower() in _FALSE:
        return f"--no-{name[2:]}"
    raise ConfigError(f"{name} takes no value, so not {value!r}; say {name} or --no-{name[2:]}")


def find_foreign_variables(sources: Mapping[str, str]) -> Iterator[str]:
    """A warning for each of uvicorn's variables that is set, and says what nothing of ours says.

    ``sources`` says where each option came from.
    """
    ours = {"app": "TRIOSERVE_APP", **{one.name: one.variable for one in options()}}
    for variable in sorted(os.environ):
        prefix, _, last = variable.partition("_")
        if prefix != "UVICORN" or not os.environ[variable]:
            continue
        name = RENAMED.get(last.lower(), last.lower())
        flag = "--" + name.replace("_", "-")
        if name in ours:
            if sources[name] == DEFAULT:
                yield f"environment variable {variable} is not read; use {ours[name]}"
        elif flag in _HINTS:
            yield f"environment variable {variable} is not read: {_HINTS[flag]}"
