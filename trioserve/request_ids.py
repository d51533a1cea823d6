"""The id of a request: taken from a trusted proxy or made, and carried by every log record of the request.

A context variable brings it to whatever works for the request: its task, child tasks and threads.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable

from .exchange import Request
from .logs import current_request_id
from .types import AnyValue, Headers

FIELD = b"x-request-id"

# A token (RFC 9110 §5.6.2), and what base64 has besides. No blank, quote, comma or bracket: it stands in log lines.
_ACCEPTABLE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z/=:@]{1,128}")


def give_id(request: Request) -> None:
    """Give a request its id, and the current context, which must be the request's own.

    To be called before ``Forwarded.apply``, after which nobody knows whether the peer is a proxy.
    """
    taken = None
    if request.endpoint.is_proxy:
        # Where there are two, one may be the client's.
        values = [value for name, value in request.headers if name == FIELD]
        if len(values) == 1 and _ACCEPTABLE.fullmatch(values[0]):
            taken = values[0].decode("ascii")
    # Not from the module random: from what is made public of it its state could be told, and it is the application's.
    request.id = taken or os.urandom(16).hex()
    current_request_id.set(request.id)


def names_id(fields: Headers) -> bool:
    """Whether the field is among these."""
    for name, _ in fields:  # noqa: SIM110 - any() takes twice as long
        if len(name) == len(FIELD) and name.lower() == FIELD:
            return True
    return False


class _Fallback:
    """An attribute that the instance's own, if there is one, goes before."""

    def __get__(self, record: RequestLogRecord, owner: object) -> str:
        return record.found_request_id


class RequestLogRecord(logging.LogRecord):
    """A record with ``request_id``: that of the request in whose context it was made, "-" outside of requests.

    An application may give its own records a ``request_id`` in ``extra``, which logging refuses for what the record has
    already. So it is put among the values that a format can name only when the message is made.
    """

    request_id = _Fallback()

    def __init__(self, *arguments: AnyValue, **keywords: AnyValue) -> None:
        super().__init__(*arguments, **keywords)
        self.found_request_id = current_request_id.get() or "-"

    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        self.__dict__.setdefault("request_id", self.found_request_id)
        return super().getMessage()


class _Wrapped:
    """A factory of somebody else's, whose records get a ``request_id``, too."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *arguments: AnyValue, **keywords: AnyValue) -> logging.LogRecord:
        record = self._make(*arguments, **keywords)
        record.__dict__.setdefault("request_id", current_request_id.get() or "-")
        return record


def tag_records() -> None:
    """Give every log record of the process a ``request_id``. For the command line and ``run()`` only."""
    make = logging.getLogRecordFactory()
    if make is logging.LogRecord:
        logging.setLogRecordFactory(RequestLogRecord)
    elif make is not RequestLogRecord and not isinstance(make, _Wrapped):
        logging.setLogRecordFactory(_Wrapped(make))


class RequestIdFilter(logging.Filter):
    """Gives the records of a handler or a logger a ``request_id``, and lets all of them pass.

    For programs that call serve(), which touches no logging.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = current_request_id.get() or "-"
        return True
