"""Every option, declared once.

A Config is plain values and survives JSON: file paths, never an SSLContext, a socket, a logger or a callable.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .access_format import AccessFormat
from .bind import Bind, DescriptorBind, TCPBind, UnixBind, parse_bind
from .errors import ConfigError
from .foreign_names import hint_at
from .option_rules import check_together
from .option_texts import (
    check_dotted_name,
    check_forwarded_header,
    check_log_config,
    check_metrics_bind,
    check_path_pattern,
    check_root_path,
    parse_header,
)
from .options import Group, Option, option
from .trust import parse_network
from .types import AnyValue, PlainValues

_FOR_PROCESSES = ("watchdog", "metrics_bind", "drain_delay", "pid_file", "log_config")
"""Options that mean nothing to a server within another's program, besides those that start processes."""


def _to_plain(value: AnyValue) -> AnyValue:
    if value == math.inf:
        return "inf"  # JSON has no such number
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of a server. Names, defaults and units are the command line's.

    Only the command line and ``run()`` read the environment and files; ``Config(...)`` never does. Raises ConfigError
    for a value an option cannot take.
    """

    host: str = option("127.0.0.1", Group.WHERE, "Address or name to listen on; a name may mean several addresses.")
    port: int = option(8000, Group.WHERE, "TCP port; 0 lets the system choose.", minimum=0, maximum=65535)
    uds: str | None = option(None, Group.WHERE, "Listen on this unix socket instead of host and port.", metavar="PATH")
    fd: int | None = option(
        None,
        Group.WHERE,
        "Listen on this inherited descriptor instead of host and port.",
        minimum=0,
        maximum=2**31 - 1,  # of a larger one Python would take the lower 32 bits
        metavar="N",
    )
    bind: tuple[str, ...] = option(
        (),
        Group.WHERE,
        "Listen here instead of host and port: HOST:PORT, [v6]:PORT, unix:PATH, fd:N or fd:NAME. Repeatable.",
        metavar="ADDRESS",
        check=parse_bind,
    )
    insecure_bind: tuple[str, ...] = option(
        (), Group.WHERE, "Also listen here without TLS. Repeatable.", metavar="ADDRESS", check=parse_bind
    )
    backlog: int = option(
        2048, Group.WHERE, "Connections the kernel queues before they are accepted.", minimum=1, maximum=2**31 - 1
    )
    uds_permissions: int | None = option(
        None,
        Group.WHERE,
        "Mode of unix sockets in octal, such as 660; default: by the umask.",
        minimum=0,
        maximum=0o777,
        octal=True,
        metavar="MODE",
    )
    reuse_port: bool = option(
        False, Group.WHERE, "Share TCP ports by SO_REUSEPORT; with several workers each listens for itself."
    )

    factory: bool = option(False, Group.APP, "The attribute is a function that returns the application.")
    app_dir: str | None = option(
        None, Group.APP, "Folder to import the application from; default: the current folder.", metavar="FOLDER"
    )
    lifespan: Literal["auto", "on", "off"] = option(
        "auto", Group.APP, "Lifespan events: on requires them, auto does without if the application does not know them."
    )
    root_path: str = option(
        "",
        Group.APP,
        "Path under which a proxy mounts the application.",
        metavar="PATH",
        check=check_root_path,
    )
    env_file: str | None = option(
        None, Group.APP, "Read environment variables from this file first (needs python-dotenv).", metavar="FILE"
    )

    ssl_certfile: str | None = option(None, Group.TLS, "Certificate chain in PEM; turns TLS on.", metavar="FILE")
    ssl_keyfile: str | None = option(
        None, Group.TLS, "Private key in PEM; default: inside the certificate file.", metavar="FILE"
    )
    ssl_keyfile_password: str | None = option(None, Group.TLS, "Password of an encrypted private key.", metavar="TEXT")
    ssl_ca_certs: str | None = option(
        None, Group.TLS, "Authorities in PEM that client certificates are checked against.", metavar="FILE"
    )
    ssl_cert_reqs: Literal["none", "optional", "required"] = option("none", Group.TLS, "Ask clients for a certificate.")
    ssl_ciphers: str | None = option(
        None, Group.TLS, "Ciphers for TLS 1.2 in OpenSSL's syntax; default: OpenSSL's.", metavar="LIST"
    )
    ssl_min_version: Literal["TLSv1.2", "TLSv1.3"] = option("TLSv1.2", Group.TLS, "Oldest TLS version accepted.")
    ssl_context_factory: str | None = option(
        None,
        Group.TLS,
        "module:function that is called with (config, default) and returns the SSLContext; default() builds ours.",
        metavar="NAME",
        check=check_dotted_name,
    )

    http: Literal["auto", "h11", "httptools"] = option(
        "auto", Group.HTTP, "HTTP/1.1 implementation: auto takes httptools if it is installed, else h11."
    )
    server_header: bool = option(True, Group.HTTP, "Send a Server field.")
    date_header: bool = option(True, Group.HTTP, "Send a Date field.")
    header: tuple[str, ...] = option(
        (),
        Group.HTTP,
        "Field added to every response, as 'Name: value'. Repeatable; in TRIOSERVE_HEADER one per line.",
        metavar="FIELD",
        separator="\n",  # a field's value may contain commas
        check=parse_header,
    )

    ws: Literal["on", "off"] = option("on", Group.WEBSOCKETS, "WebSockets; off ignores requests to upgrade.")
    ws_max_size: int = option(
        16 * 1024 * 1024, Group.WEBSOCKETS, "Bytes of a message, once inflated; more closes with 1009.", minimum=1
    )
    ws_max_queue: int = option(
        16, Group.WEBSOCKETS, "Messages that wait for the application before reading stops.", minimum=1
    )
    ws_ping_interval: float | None = option(
        20, Group.WEBSOCKETS, "Seconds between pings; none = never.", above=0, metavar="SECONDS"
    )
    ws_ping_timeout: float | None = option(
        20, Group.WEBSOCKETS, "Wait for the pong, then close with 1011; none = for ever.", above=0, metavar="SECONDS"
    )
    ws_per_message_deflate: bool = option(True, Group.WEBSOCKETS, "Compress messages where the client offers it.")

    forwarded_allow_ips: tuple[str, ...] = option(
        (),
        Group.PROXIES,
        "Proxies whose word about clients counts: an address, a network, unix or * (all). Repeatable.",
        metavar="NETWORK",
        check=parse_network,
    )
    proxy_headers: bool | None = option(
        None, Group.PROXIES, "Take client, scheme and so on from what they say; default: if any are named."
    )
    forwarded_headers: tuple[str, ...] = option(
        ("x-forwarded-for", "x-forwarded-proto"),
        Group.PROXIES,
        "Fields that they set: x-forwarded-for, -proto, -host, -port, -prefix, or forwarded. Repeatable.",
        metavar="NAME",
        check=check_forwarded_header,
    )
    proxy_protocol: bool = option(
        False, Group.PROXIES, "Their connections begin with a header of the PROXY protocol, version 1 or 2."
    )

    limit_concurrency: int | None = option(
        None, Group.LIMITS, "Requests in progress at once; one more gets 503.", minimum=1, metavar="N"
    )
    limit_connections: int | None = option(
        None, Group.LIMITS, "Open connections at once; more wait to be accepted.", minimum=1, metavar="N"
    )
    limit_max_requests: int | None = option(
        None, Group.LIMITS, "Stop after so many requests; one of several workers is replaced.", minimum=1, metavar="N"
    )
    limit_max_requests_jitter: int = option(
        0, Group.LIMITS, "Add up to this many to limit_max_requests, chosen at random.", minimum=0
    )
    limit_requests_per_connection: int | None = option(
        None, Group.LIMITS, "Close a connection after this many requests.", minimum=1, metavar="N"
    )
    limit_request_head: int = option(65536, Group.LIMITS, "Bytes of a request line and its fields.", minimum=256)
    limit_request_fields: int = option(100, Group.LIMITS, "Field lines of a request.", minimum=1)
    limit_request_body: int | None = option(
        None, Group.LIMITS, "Bytes of a request body; more gets 413.", minimum=0, metavar="N"
    )
    limit_request_body_rate: int | None = option(
        240,
        Group.LIMITS,
        "Least bytes per second of a request body, after 30 s of waiting, or timeout_request_body.",
        minimum=1,
        metavar="N",
    )

    timeout_keep_alive: float = option(75, Group.CLOCKS, "Wait for the next request on a connection.", minimum=0)
    timeout_request_head: float = option(10, Group.CLOCKS, "From the first byte of a head to its end.", above=0)
    timeout_request_body: float = option(30, Group.CLOCKS, "Wait for more of a body.", above=0)
    timeout_write: float = option(30, Group.CLOCKS, "Wait for a client to take more of a response.", above=0)
    timeout_request: float | None = option(
        None, Group.CLOCKS, "From the head to the end of the response; then 504. Not for WebSockets.", above=0
    )
    timeout_disconnect_grace: float | None = option(
        3, Group.CLOCKS, "Handlers are cancelled this long after their client left; none = never.", minimum=0
    )
    timeout_tls_handshake: float = option(10, Group.CLOCKS, "TLS handshake.", above=0)
    timeout_proxy_protocol: float = option(5, Group.CLOCKS, "The header of the PROXY protocol.", above=0)
    timeout_ws_handshake: float = option(
        10, Group.CLOCKS, "The application accepts or refuses a WebSocket; then 504.", above=0
    )
    timeout_graceful_shutdown: float = option(
        30, Group.CLOCKS, "Requests may finish after a stop; 2 with --reload, if not given.", minimum=0
    )
    timeout_hard_shutdown: float = option(
        5, Group.CLOCKS, "Cancelled requests may clean up; then the process ends.", above=0
    )
    timeout_startup: float = option(60, Group.CLOCKS, "The application's start-up.", above=0)
    timeout_shutdown: float = option(30, Group.CLOCKS, "The application's shutdown.", above=0)

    log_level: Literal["critical", "error", "warning", "info", "debug"] = option(
        "info", Group.LOGS, "Least level that is logged."
    )
    log_config: str | Mapping[str, AnyValue] | None = option(
        None,
        Group.LOGS,
        "Set logging up by logging.config.dictConfig: a file of JSON or TOML; in trioserve.toml or run() also a table.",
        metavar="FILE",
        check=check_log_config,
    )
    log_format: Literal["text", "json"] = option("text", Group.LOGS, "Lines for people or JSON lines.")
    access_log: bool = option(True, Group.LOGS, "One line per finished exchange, and one per closed WebSocket.")
    access_log_format: str | None = option(
        None,
        Group.LOGS,
        "The line of an exchange, such as '%(h)s %(t)s \"%(r)s\" %(s)s %(b)s'; default: ours.",
        metavar="FORMAT",
        check=AccessFormat,
    )
    access_log_exclude: tuple[str, ...] = option(
        (),
        Group.LOGS,
        "Paths that have no line unless they fail, such as '/healthz' or '/static/*'. Repeatable.",
        metavar="PATTERN",
        check=check_path_pattern,
    )
    slow_request: float | None = option(
        None, Group.LOGS, "Log where a request waits that runs for longer.", above=0, metavar="SECONDS"
    )
    request_id: bool = option(
        False, Group.LOGS, "Give each request an id (X-Request-ID, from trusted proxies) that its log lines have."
    )
    use_colors: bool | None = option(None, Group.LOGS, "Colour the log; default: on a terminal.")

    workers: int = option(1, Group.PROCESSES, "Processes that serve; $WEB_CONCURRENCY is the fall-back.", minimum=1)
    timeout_worker_healthcheck: float = option(
        10, Group.PROCESSES, "A worker whose event loop is blocked for longer is killed and replaced.", above=0
    )
    pid_file: str | None = option(
        None, Group.PROCESSES, "Keep the number of the process to signal in this file, while it serves.", metavar="FILE"
    )

    watchdog: float | None = option(
        None,
        Group.PROCESSES,
        "Log where the event loop is blocked, and by which request, after so long.",
        minimum=0.1,
        metavar="SECONDS",
    )

    inspector: bool | None = option(
        None,
        Group.PROCESSES,
        "Show what the server does: to `trioserve inspect` of the same user, and on metrics_bind at /inspect, there "
        "by default only if that is a loopback address or a unix socket.",
    )
    metrics_bind: str | None = option(
        None,
        Group.PROCESSES,
        "Serve /metrics, /livez and /readyz here: HOST:PORT or unix:PATH (needs prometheus-client).",
        metavar="ADDRESS",
        check=check_metrics_bind,
    )
    drain_delay: float = option(
        0, Group.PROCESSES, "After a stop signal /readyz says no, and all else goes on for so long.", minimum=0
    )

    reload: bool = option(False, Group.RELOAD, "Start anew when a file changes.")
    reload_dir: tuple[str, ...] = option(
        (), Group.RELOAD, "Folder to watch; default: app_dir, else the current one. Repeatable.", metavar="FOLDER"
    )
    reload_include: tuple[str, ...] = option(
        (), Group.RELOAD, "Files to watch besides *.py, such as '*.html'. Repeatable.", metavar="PATTERN"
    )
    reload_exclude: tuple[str, ...] = option(
        (), Group.RELOAD, "Files or folders not to watch, such as 'build'. Repeatable.", metavar="PATTERN"
    )
    reload_delay: float = option(
        0.25, Group.RELOAD, "Files are looked at this often, and changes collected for so long.", minimum=0.01
    )

    def __post_init__(self) -> None:
        for one in options():
            # A frozen dataclass is set through object; the checked form differs only in tuple for list, float for int.
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))
        check_together(vars(self))

    @property
    def uses_tls(self) -> bool:
        return self.ssl_certfile is not None or self.ssl_context_factory is not None

    @property
    def has_inspector(self) -> bool:
        """Whether the same user can ask what the server does; for the page beside the metrics there is more to it."""
        return self.inspector is not False

    @property
    def uses_proxy_headers(self) -> bool:
        return bool(self.forwarded_allow_ips) and self.proxy_headers is not False

    @property
    def needs_supervisor(self) -> bool:
        """Whether the application runs in processes of its own."""
        return self.workers > 1 or self.reload

    @property
    def for_processes(self) -> str | None:
        """What is asked that a server within another's program does not do, in words; None for nothing."""
        if self.reload:
            return "reload"
        if self.workers > 1:
            return f"workers={self.workers}"
        return next((name for name in _FOR_PROCESSES if getattr(self, name)), None)

    @property
    def names_address(self) -> bool:
        """Whether an address was named beside host and port."""
        return bool(self.bind or self.uds is not None or self.fd is not None or self.insecure_bind)

    @property
    def binds(self) -> tuple[tuple[Bind, bool], ...]:
        """What to listen on, each with whether it speaks TLS."""
        named: list[Bind] = [parse_bind(text) for text in self.bind]
        if self.uds is not None:
            named.append(UnixBind(self.uds))
        if self.fd is not None:
            named.append(DescriptorBind(self.fd))
        if not named:
            named.append(TCPBind(self.host, self.port))
        plain = [parse_bind(text) for text in self.insecure_bind]
        return tuple((bind, self.uses_tls) for bind in named) + tuple((bind, False) for bind in plain)

    @property
    def extra_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return tuple(parse_header(text) for text in self.header)

    def to_plain(self) -> PlainValues:
        """Every option by name, as values that JSON can carry."""
        return {name: _to_plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_plain(cls, values: Mapping[str, AnyValue]) -> Config:
        """The reverse of to_plain; raises ConfigError for a name or a value that is none of ours."""
        known = {one.name for one in options()}
        for name in values:
            if name not in known:
                raise ConfigError(f"there is no option {name!r}{hint_at(name, known)}")
        return cls(**values)

    def replace(self, **changes: AnyValue) -> Config:
        """A copy with some options changed; raises ConfigError for an unknown name or a wrong value."""
        return Config.from_plain({**self.to_plain(), **changes})


@functools.cache
def options() -> tuple[Option, ...]:
    """What is known of each option, in the order of declaration."""
    annotations = typing.get_type_hints(Config)
    return tuple(Option.from_field(declared, annotations[declared.name]) for declared in dataclasses.fields(Config))
