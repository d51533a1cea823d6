"""The flags of uvicorn and Hypercorn that trioserve has not, or that take other values there.

README.md, "Coming from uvicorn" and "Coming from Hypercorn", lists all of their flags; a test holds the two together,
and both to what the servers themselves declare. Flags of the same name and with the same values need no row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Rewrite = Callable[[str], Sequence[str] | None]
"""From the text of their value to our arguments; None where there is nothing like it, so that the hint is shown."""


def _nothing_like_it(value: str) -> None:
    return None


def _in_any_case(value: str) -> Sequence[str]:
    return []


def _renamed(flag: str, words: Mapping[str, str] | None = None) -> Rewrite:
    """Theirs is ``flag``, and some of their words are ours."""
    known = words or {}
    return lambda value: [flag, known.get(value, value)]


def _left_out(*words: str) -> Rewrite:
    """With these words it says what is so here in any case."""
    return lambda value: [] if value in words else None


def _only(words: Mapping[str, Sequence[str]]) -> Rewrite:
    return words.get


def _each(flag: str) -> Rewrite:
    """Theirs takes a list with commas; ours is repeated."""
    return lambda value: [text for one in value.split(",") if one.strip() for text in (flag, one.strip())]


def _bind(flag: str) -> Rewrite:
    return lambda value: [flag, f"fd:{value.removeprefix('fd://')}" if value.startswith("fd://") else value]


def _log_level(value: str) -> Sequence[str]:
    return ["--log-level", "debug" if value.lower() == "trace" else value.lower()]


def _log_config(value: str) -> Sequence[str] | None:
    path = value.removeprefix("json:").removeprefix("toml:")
    return None if path.lower().endswith((".yaml", ".yml", ".ini", ".conf", ".cfg")) else ["--log-config", path]


def _config(value: str) -> Sequence[str] | None:
    return None if value.startswith(("python:", "file:")) else ["--config", value]


@dataclass(frozen=True)
class ForeignFlag:
    """A flag of theirs: its names, what becomes of it, and what to do where there is nothing like it.

    ``hint`` also stands in README.md, word for word.
    """

    names: tuple[str, ...]
    rewrite: Rewrite
    hint: str = ""
    takes_value: bool = True


_VERIFY_MODES = {"0": "none", "1": "optional", "2": "required"} | {
    f"CERT_{word.upper()}": word for word in ("none", "optional", "required")
}
_ALWAYS_TRIO = "it always runs on Trio; leave this out"
_REDIRECT = "redirect it, or use --log-config"

UVICORN = (
    ForeignFlag(("--loop",), _left_out("auto", "trio"), _ALWAYS_TRIO),
    ForeignFlag(
        ("--http2",),
        _nothing_like_it,
        "HTTP/2 is not there yet; a proxy in front can speak it",
        takes_value=False,
    ),
    ForeignFlag(
        ("--ws",),
        _renamed("--ws", dict.fromkeys(("auto", "websockets", "websockets-sansio", "wsproto"), "on") | {"none": "off"}),
    ),
    ForeignFlag(("--ws-ping-interval",), _renamed("--ws-ping-interval", {"0": "none"})),
    ForeignFlag(
        ("--interface",),
        _left_out("auto", "asgi3"),
        "only ASGI 3 is served; wrap the application: asgi2 in asgiref.compatibility.double_to_single_callable, wsgi in"
        " hypercorn.middleware.TrioWSGIMiddleware",
    ),
    ForeignFlag(
        ("--log-config",),
        _log_config,
        "JSON and TOML are read, not YAML and INI; YAML becomes JSON by python -c 'import json, sys, yaml; "
        "print(json.dumps(yaml.safe_load(sys.stdin)))' < log.yaml > log.json",
    ),
    ForeignFlag(("--log-level",), _log_level),
    ForeignFlag(("--forwarded-allow-ips",), _each("--forwarded-allow-ips")),
    ForeignFlag(
        ("--ssl-version",),
        _left_out("2", "17"),  # PROTOCOL_TLS and PROTOCOL_TLS_SERVER: whatever is safe
        "use --ssl-min-version TLSv1.2 or TLSv1.3",
    ),
    ForeignFlag(("--ssl-cert-reqs",), _renamed("--ssl-cert-reqs", _VERIFY_MODES)),
    ForeignFlag(("--h11-max-incomplete-event-size",), _nothing_like_it, "use --limit-request-head N"),
    ForeignFlag(("--reset-contextvars",), _in_any_case, takes_value=False),
)

HYPERCORN = (
    ForeignFlag(("--access-logfile",), _only({"-": ["--access-log"]}), f"access lines go to stdout: {_REDIRECT}"),
    ForeignFlag(("--access-logformat",), _renamed("--access-log-format")),
    ForeignFlag(("-b", "--bind"), _bind("--bind")),
    ForeignFlag(("--ca-certs",), _renamed("--ssl-ca-certs")),
    ForeignFlag(("--certfile",), _renamed("--ssl-certfile")),
    ForeignFlag(("--cert-reqs", "--verify-mode"), _renamed("--ssl-cert-reqs", _VERIFY_MODES)),
    ForeignFlag(("--ciphers",), _renamed("--ssl-ciphers")),
    ForeignFlag(("-c", "--config"), _config, "only TOML is read, and the keys are trioserve's own"),
    ForeignFlag(
        ("-D", "--daemon"),
        _nothing_like_it,
        "it stays in the foreground, where a service manager keeps it; leave this out",
        takes_value=False,
    ),
    ForeignFlag(("--debug",), _nothing_like_it, "use --log-level debug, and --watchdog 1", takes_value=False),
    ForeignFlag(
        ("--error-log", "--error-logfile", "--log-file"),
        _left_out("-"),
        f"all but access lines goes to stderr: {_REDIRECT}",
    ),
    ForeignFlag(("--graceful-timeout",), _renamed("--timeout-graceful-shutdown")),
    ForeignFlag(("-g", "--group", "-u", "--user"), _nothing_like_it, "let systemd open the socket, --bind fd:NAME"),
    ForeignFlag(("--insecure-bind",), _bind("--insecure-bind")),
    ForeignFlag(("-k", "--worker-class"), _left_out("trio"), _ALWAYS_TRIO),
    ForeignFlag(("--keep-alive",), _renamed("--timeout-keep-alive")),
    ForeignFlag(("--keyfile",), _renamed("--ssl-keyfile")),
    ForeignFlag(("--keyfile-password",), _renamed("--ssl-keyfile-password")),
    ForeignFlag(("--max-requests",), _renamed("--limit-max-requests")),
    ForeignFlag(("--max-requests-jitter",), _renamed("--limit-max-requests-jitter")),
    ForeignFlag(("-m", "--umask"), _nothing_like_it, "use --uds-permissions MODE, which is what the mask leaves"),
    ForeignFlag(("--pid",), _renamed("--pid-file")),
    # In other programs the same letter is the port, so nothing is taken for granted.
    ForeignFlag(("-p",), _nothing_like_it, "use --port N for a port, --pid-file FILE for Hypercorn's -p"),
    ForeignFlag(("--quic-bind",), _nothing_like_it, "HTTP/3 is not there; a proxy in front can speak it"),
    ForeignFlag(
        ("--read-timeout",),
        _nothing_like_it,
        "use --timeout-request-head, --timeout-request-body, --timeout-keep-alive",
    ),
    ForeignFlag(
        ("--server-name",), _nothing_like_it, "let the proxy check names, or Starlette's TrustedHostMiddleware"
    ),
    ForeignFlag(
        ("--statsd-host", "--statsd-prefix"), _nothing_like_it, "use --metrics-bind, where metrics are fetched"
    ),
    ForeignFlag(("--websocket-ping-interval",), _renamed("--ws-ping-interval")),
    ForeignFlag(("-w", "--workers"), _renamed("--workers")),
)

GUNICORN = (
    ForeignFlag(("-t", "--timeout"), _nothing_like_it, "use --timeout-worker-healthcheck SECONDS for gunicorn's"),
)
"""Of what is often seen before a worker class of uvicorn's; what else is so is Hypercorn's, too."""

FOREIGN_FLAGS = {name: flag for flag in (*GUNICORN, *HYPERCORN, *UVICORN) for name in flag.names}
"""By each of their names. Of a name that both have the row is uvicorn's, which also serves Hypercorn's."""
