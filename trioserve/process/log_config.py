"""A logging configuration of the user's: read, and handed to ``logging.config.dictConfig``."""

from __future__ import annotations

import copy
import difflib
import json
import logging.config
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import ConfigError
from ..logs import server_log
from ..option_tables import show
from ..types import AnyValue, PlainValues

_KEYS = {"version", "formatters", "filters", "handlers", "loggers", "root", "incremental", "disable_existing_loggers"}


def apply_log_config(given: str | Mapping[str, AnyValue]) -> None:
    """Configure logging with a table, or with a file, whose path is relative to the current folder.

    ``disable_existing_loggers`` is False unless it says otherwise: the modules that have loggers already are those of
    the application's libraries, and would fall silent. Raises ConfigError that names the file and the key.
    """
    # A copy, because dictConfig takes things out of what it is given.
    table = _read_file(Path(given)) if isinstance(given, str) else copy.deepcopy(dict(given))
    where = f"log_config {given}" if isinstance(given, str) else "log_config"
    table.setdefault("disable_existing_loggers", False)
    for key in table.keys() - _KEYS:
        # Others are left alone, as dictConfig does: somebody may keep notes of his own there.
        if near := difflib.get_close_matches(str(key), _KEYS, 1):
            raise ConfigError(f"{where}: there is no {key!r}; did you mean {near[0]!r}?")
    try:
        logging.config.dictConfig(table)
    except Exception as error:  # noqa: BLE001 - it calls what the table names, which may raise anything
        raise ConfigError(f"{where}: {': '.join(_texts_of(error))}") from None


def warn_if_silent(given: str | Mapping[str, AnyValue]) -> None:
    """Say so if nothing of what trioserve logs is shown anywhere, once it is applied; Python shows this by itself."""
    if server_log.hasHandlers():
        return
    hint = ""
    loggers = (_read_file(Path(given)) if isinstance(given, str) else given).get("loggers")
    if isinstance(loggers, dict) and any(str(name).startswith("uvicorn") for name in loggers):
        hint = "; what uvicorn calls 'uvicorn', 'uvicorn.error' and 'uvicorn.access' begins with 'trioserve' here"
    server_log.warning("log_config has no handler for the logger 'trioserve' or the root: nothing is shown%s", hint)


def _texts_of(error: BaseException) -> Iterator[str]:
    """What went wrong, from the key that dictConfig names down to the reason."""
    cause: BaseException | None = error
    said = ""
    while cause is not None:
        text = str(cause)
        if not text or text not in said:
            yield text if text and isinstance(cause, ValueError) else f"{type(cause).__name__}: {text}".rstrip(": ")
        cause, said = cause.__cause__, text


def _read_file(path: Path) -> PlainValues:
    kind, parse = ("JSON", json.loads) if path.suffix.lower() == ".json" else ("TOML", tomllib.loads)
    try:
        table: AnyValue = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"log_config {path}: cannot read it: {error.strerror}") from None
    except ValueError as error:  # also what is not UTF-8
        raise ConfigError(f"log_config {path}: not {kind}: {error}") from None
    except RecursionError:
        raise ConfigError(f"log_config {path}: its values are nested too deeply") from None
    if not isinstance(table, dict):
        raise ConfigError(f"log_config {path}: must be a table of names and values, not {show(table)}")
    return table
