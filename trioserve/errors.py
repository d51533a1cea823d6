"""The errors trioserve raises, and the one it raises in applications."""

from __future__ import annotations

from enum import StrEnum


class TrioserveError(Exception):
    """Base of every error that is trioserve's own."""


class ConfigError(TrioserveError, ValueError):
    """An option has a value it cannot take; the text names the option, what it expects and what came."""


class StartupError(TrioserveError):
    """The server cannot start; nothing is left behind when this is raised."""


class AppLoadError(StartupError):
    """The application named by ``module:attribute`` cannot be loaded.

    If importing it raised, that error is the ``__cause__``.
    """


class BindError(StartupError, OSError):
    """An address cannot be bound or listened on; ``errno`` is the operating system's, ``address`` what was asked
    for.
    """

    def __init__(self, errno: int | None, reason: str, address: str) -> None:
        # OSError fills errno and strerror only from two positional arguments.
        super().__init__(errno, f"cannot listen on {address}: {reason}")
        self.reason = reason
        self.address = address

    def __str__(self) -> str:
        return str(self.strerror)


class CertificateError(StartupError):
    """The TLS options do not make a usable context: a file is missing, unreadable, or the pair does not match."""


class LifespanError(TrioserveError):
    """The application's lifespan failed: at start-up, while serving, or at shutdown.

    If the application raised, that error is the ``__cause__``.
    """


class ClientDisconnected(OSError):
    """Raised by an application's ``send()`` once the response can no longer reach the client.

    Source: ASGI HTTP §"Disconnected Client - send exception" (spec_version 2.4 wants a subclass of OSError).
    """


class WriteTimeout(ClientDisconnected):
    """The client took nothing of the response for ``timeout_write`` seconds."""


class MessageError(TrioserveError, RuntimeError):
    """Raised in the application that sent an ASGI message that is wrong in itself or wrong at this point."""


class Refusal(StrEnum):
    """Why the server answers in the application's place: the option that makes it, or what else is the matter."""

    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"
    DRAINING = "draining"
    NO_DESCRIPTORS = "no_descriptors"
    CONCURRENCY = "limit_concurrency"
    HEAD_SIZE = "limit_request_head"
    FIELDS = "limit_request_fields"
    BODY_SIZE = "limit_request_body"
    BODY_RATE = "limit_request_body_rate"
    HEAD_TIME = "timeout_request_head"
    BODY_TIME = "timeout_request_body"
    REQUEST_TIME = "timeout_request"
    PROXY_TIME = "timeout_proxy_protocol"
    WEBSOCKET_TIME = "timeout_ws_handshake"


_USUAL = {
    408: Refusal.HEAD_TIME,
    413: Refusal.BODY_SIZE,
    414: Refusal.HEAD_SIZE,
    431: Refusal.HEAD_SIZE,
    501: Refusal.UNSUPPORTED,
    503: Refusal.DRAINING,
    504: Refusal.REQUEST_TIME,
    505: Refusal.UNSUPPORTED,
}


def usual_refusal(status: int) -> Refusal:
    """Why an answer of this status is given, where nothing more special is said."""
    return _USUAL.get(status, Refusal.MALFORMED)


class ProtocolError(Exception):
    """A client broke HTTP; ``status`` is the answer it gets, with these fields. Never leaves the connection.

    ``why`` is what it is counted by, None for what is usual with this status.
    """

    def __init__(self, status: int, reason: str, *fields: tuple[bytes, bytes], why: Refusal | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.fields = fields
        self.why = why
