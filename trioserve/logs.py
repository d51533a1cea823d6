"""What is logged.

The library only emits, on the loggers below; neither importing this module nor ``serve()`` configures anything.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from .foreign_loop import tell_of_asyncio
from .types import AnyValue, PlainValues

server_log = logging.getLogger("trioserve")
error_log = logging.getLogger("trioserve.error")
access_log = logging.getLogger("trioserve.access")
slow_log = logging.getLogger("trioserve.slow")

current_request_id: ContextVar[str | None] = ContextVar("trioserve.request_id", default=None)
"""The id of the request that the current context is of; None outside of requests, or without the option request_id."""


class Outcome(StrEnum):
    """How an exchange ended."""

    OK = "ok"
    CLIENT_LEFT = "client left"
    DEADLINE = "deadline"
    ERROR = "error"
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class ExchangeRecord:
    """What is told of an exchange once it has ended.

    ``status`` is None if no response was begun; ``received`` and ``sent`` are bytes of body; ``duration`` and
    ``first_byte`` are seconds, the latter until the response head went out, None if it never did.
    """

    client: str
    method: str
    target: str
    http_version: str
    status: int | None
    received: int
    sent: int
    duration: float
    first_byte: float | None
    outcome: Outcome
    request_id: str | None = None

    def to_plain(self) -> PlainValues:
        return {
            "client": self.client,
            "method": self.method,
            "target": self.target,
            "http_version": self.http_version,
            "status": self.status,
            "received": self.received,
            "sent": self.sent,
            "duration": round(self.duration, 6),
            "first_byte": None if self.first_byte is None else round(self.first_byte, 6),
            "outcome": self.outcome.value,
            **_id_as_plain(self.request_id),
        }


@dataclass(slots=True)
class WebSocketRecord:
    """What is told of a WebSocket once it has closed; its handshake has a record of its own, with status 101.

    ``code`` and ``reason`` are the application's if it closed, else what it was told: the client's, the server's, or
    1006 if the client vanished. ``received`` and ``sent`` are bytes of messages, inflated; ``duration`` is seconds from
    the accept.
    """

    client: str
    target: str
    code: int = 1006
    reason: str = ""
    received_messages: int = 0
    received: int = 0
    sent_messages: int = 0
    sent: int = 0
    duration: float = 0
    outcome: Outcome = Outcome.OK
    request_id: str | None = None

    def to_plain(self) -> PlainValues:
        return {
            "client": self.client,
            "target": self.target,
            "code": self.code,
            "reason": self.reason,
            "received_messages": self.received_messages,
            "received": self.received,
            "sent_messages": self.sent_messages,
            "sent": self.sent,
            "duration": round(self.duration, 6),
            "outcome": self.outcome.value,
            **_id_as_plain(self.request_id),
        }


@dataclass(slots=True)
class SlowRecord:
    """What is told of a request that takes long, while it runs, or of one that took long if ``ended``.

    ``age`` is seconds from its head; ``status`` is None if no response was begun. ``place`` is where the application's
    code is, else that of a library, "file:line in function", and ``waits_for`` what it waits for there; None if nobody
    can tell. ``more``: so many others take long, too, and are not told of.
    """

    client: str
    method: str
    target: str
    http_version: str
    status: int | None
    age: float
    place: str | None
    waits_for: str | None
    more: int
    ended: bool = False
    request_id: str | None = None

    def to_plain(self) -> PlainValues:
        return {
            "client": self.client,
            "method": self.method,
            "target": self.target,
            "http_version": self.http_version,
            "status": self.status,
            "age": round(self.age, 6),
            "place": self.place,
            "waits_for": self.waits_for,
            "more": self.more,
            "ended": self.ended,
            **_id_as_plain(self.request_id),
        }


def _id_as_plain(request_id: str | None) -> PlainValues:
    return {} if request_id is None else {"request_id": request_id}


def _printable(text: str) -> str:
    # The wire lets only printable ASCII through; a log line must not depend on that, because a raw line feed or escape
    # sequence from a client forges lines and drives terminals.
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def quotable(text: str) -> str:
    """As it may stand in a line between quotes: clients do send quotes, and one would end the field for its reader."""
    if '"' in text or "\\" in text or not text.isascii() or not text.isprintable():
        return text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return text


def log_exchange(record: ExchangeRecord, line: str | None = None) -> None:
    """Write the access line of an exchange that has ended: this one, or ours. The record travels along as
    ``exchange``.
    """
    if line is not None:
        contain(record.request_id, access_log.info, "%s", line, extra={"exchange": record})
        return
    contain(
        record.request_id,
        access_log.info,
        '%s "%s" %s %d bytes %.1f ms first byte %s %s',
        _printable(record.client),
        quotable(f"{record.method} {record.target} HTTP/{record.http_version}"),
        "-" if record.status is None else record.status,
        record.sent,
        record.duration * 1000,
        "-" if record.first_byte is None else f"{record.first_byte * 1000:.1f} ms",
        record.outcome.value,
        extra={"exchange": record},
    )


def log_websocket(record: WebSocketRecord) -> None:
    """Write the access line of a WebSocket that has closed; the record travels along as ``websocket``."""
    contain(
        record.request_id,
        access_log.info,
        '%s "WebSocket %s" closed %d after %.1f s received %d messages %d bytes sent %d messages %d bytes %s',
        _printable(record.client),
        quotable(record.target),
        record.code,
        record.duration,
        record.received_messages,
        record.received,
        record.sent_messages,
        record.sent,
        record.outcome.value,
        extra={"websocket": record},
    )


def log_slow(record: SlowRecord) -> None:
    """Write the line of a request that takes long; the record travels along as ``slow_request``."""
    if record.ended:
        told = f"has taken {record.age:.1f} s, unseen: the event loop may have been blocked (see the option watchdog)"
    else:
        response = "no response yet" if record.status is None else "response begun"
        place = "" if record.place is None else f"{record.place} "
        wait = record.waits_for or "what nobody can tell"
        told = f"has run for {record.age:.1f} s, {response}: {place}waits for {wait}"
    contain(
        record.request_id,
        slow_log.warning,
        '%s "%s" %s%s',
        _printable(record.client),
        quotable(f"{record.method} {record.target} HTTP/{record.http_version}"),
        told,
        f"; and {record.more} more" if record.more else "",
        extra={"slow_request": record},
    )


def log_client_error(message: str, *arguments: object) -> None:
    """Write what a client has done wrong, and what became of it."""
    contain(None, server_log.info, message, *arguments)


def log_application_error(message: str, error: BaseException | None, request_line: str) -> None:
    """Write one record with the error's trace and the request it belongs to."""
    line = _printable(request_line)
    contain(None, error_log.error, "%s: %s", message, line, exc_info=error, extra={"request_line": line})
    tell_of_asyncio(error)


def contain(request_id: str | None, write: Callable[..., None], *arguments: object, **keywords: AnyValue) -> None:
    """Write a record of a request, whoever may be the one that runs now; None: of the one that does.

    What a handler or a filter raises is shown, and ends no request.
    """
    before = current_request_id.set(request_id) if request_id is not None else None
    try:
        write(*arguments, **keywords)
    except Exception:  # noqa: BLE001 - foreign code; logging catches only what its own handlers raise
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()
    finally:
        if before is not None:
            current_request_id.reset(before)
