"""What the texts of some options must look like. All of these raise ConfigError."""

from __future__ import annotations

import re

from .bind import TCPBind, UnixBind, parse_bind
from .errors import ConfigError

_FIELD_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")  # RFC 9110 §5.1: a token
_FIELD_VALUE = re.compile(r"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")  # RFC 9110 §5.5


def parse_header(text: str) -> tuple[bytes, bytes]:
    """Read ``Name: value``; raises ConfigError."""
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    if not colon or not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise ConfigError(f"header must be 'Name: value', not {text!r}")
    if name.lower() in ("connection", "content-length", "transfer-encoding", "upgrade", "trailer"):
        raise ConfigError(f"header {name!r} belongs to the connection, and the server sets it")
    return name.encode("ascii"), value.encode("latin-1")


def check_dotted_name(text: str) -> None:
    module, colon, attribute = text.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"ssl_context_factory must be module:attribute, not {text!r}")


def check_log_config(text: str) -> None:
    if not text.lower().endswith((".json", ".toml")):
        raise ConfigError(f"log_config must be a table, or a file of JSON or TOML (.json, .toml), not {text!r}")


def check_path_pattern(text: str) -> None:
    if not text.startswith(("/", "*")):
        raise ConfigError(f"access_log_exclude must begin with / or *, as a path does, not {text!r}")


def check_root_path(text: str) -> None:
    if text and not text.startswith("/"):
        raise ConfigError(f"root_path must begin with a slash, or be empty, not {text!r}")


_FORWARDED_HEADERS = (
    *(f"x-forwarded-{what}" for what in ("for", "proto", "host", "port", "prefix")),
    "forwarded",
)


def check_forwarded_header(text: str) -> None:
    if text not in _FORWARDED_HEADERS:
        raise ConfigError(f"forwarded_headers must be among {', '.join(_FORWARDED_HEADERS)}, not {text!r}")


def check_metrics_bind(text: str) -> None:
    try:
        bind = parse_bind(text)
    except ConfigError:
        bind = None
    if not isinstance(bind, TCPBind | UnixBind):
        raise ConfigError(f"metrics_bind must be HOST:PORT, [v6]:PORT or unix:PATH, not {text!r}")
