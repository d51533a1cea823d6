"""Which exchanges have an access line, and what it says."""

from __future__ import annotations

import fnmatch
import logging
import re

from .access_format import AccessFormat, Ended
from .config import Config
from .exchange import Request
from .logs import ExchangeRecord, Outcome, WebSocketRecord, access_log, contain, log_exchange, log_websocket

_FAILURES = (Outcome.ERROR, Outcome.DEADLINE)


class AccessLog:
    """What one server writes of exchanges and WebSockets that have ended."""

    def __init__(self, config: Config) -> None:
        text = config.access_log_format
        self._format = None if text is None else AccessFormat(text)
        self.shows_response_fields = self._format is not None and self._format.shows_response_fields
        patterns = config.access_log_exclude
        self._excluded = re.compile("|".join(map(fnmatch.translate, patterns))) if patterns else None

    @classmethod
    def from_config(cls, config: Config) -> AccessLog | None:
        """None if nothing is to be written."""
        return cls(config) if config.access_log else None

    def exchange_ended(self, record: ExchangeRecord, request: Request, head: bytes) -> None:
        """``head`` is the response head as it was sent, or empty."""
        has_failed = record.outcome in _FAILURES or (record.status is not None and record.status >= 500)
        if not self._shows(record.target, has_failed):
            return
        if self._format is None:
            log_exchange(record)
        else:
            # An application may have put anything among the request's fields.
            contain(record.request_id, self._log_formatted, self._format, Ended(record, request, head))

    def websocket_closed(self, record: WebSocketRecord) -> None:
        if self._shows(record.target, record.outcome in _FAILURES):
            log_websocket(record)

    def _log_formatted(self, form: AccessFormat, ended: Ended) -> None:
        log_exchange(ended.record, form.line(ended))

    def _shows(self, target: str, has_failed: bool) -> bool:
        if not access_log.isEnabledFor(logging.INFO):
            return False
        return has_failed or self._excluded is None or self._excluded.match(target.partition("?")[0]) is None
