"""What the connections of one server share, and the context variables each request starts from."""

from __future__ import annotations

import contextvars
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate

import trio

from .access_log import AccessLog
from .clock import Clock
from .config import Config
from .drain import Drain, DrainKind
from .exchange import Request
from .figures import Measures
from .forwarded import Forwarded
from .logs import ExchangeRecord, WebSocketRecord
from .metrics import Counters
from .observer import Observer
from .request_ids import give_id
from .slow_requests import ActiveExchange, SlowRequests
from .types import ASGIApp, Headers, State


@dataclass(slots=True)
class DefaultHeaders:
    """The fields that go into every response; made again once a second, for Date."""

    config: Config
    second: float = -1.0
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)

    def current(self) -> Headers:
        """The fields of this moment: the same object until they change."""
        now = time.time()
        if not 0 <= now - self.second < 1:  # clocks can be set back
            now = self.second = float(int(now))
            self.fields = [(name.lower(), value) for name, value in self.config.extra_headers]
            names = {name for name, _ in self.fields}
            if self.config.server_header and b"server" not in names:
                self.fields.append((b"server", b"trioserve"))
            if self.config.date_header and b"date" not in names:
                self.fields.append((b"date", formatdate(now, usegmt=True).encode("ascii")))
        return self.fields


class ServerContext:
    """One server's shared things; lives from the end of its start-up to the end of its last connection."""

    def __init__(self, app: ASGIApp, config: Config, *, observer: Observer) -> None:
        self.app = app
        self.config = config
        self.observer = observer
        self.state: State = {}
        self.clock = Clock()
        self.drain = Drain()
        self.counters = Counters()
        self.measures = None if config.metrics_bind is None else Measures()
        self.default_headers = DefaultHeaders(config)
        self.admit = _choose_admission(config)
        """What is done to every request before anything else; None: nothing."""
        self._max_requests = _choose_max_requests(config)
        # What nobody hears need not be told: of small requests that is a twentieth of all they cost.
        self._tells_exchanges = config.slow_request is not None or observer.hears("exchange_began", "exchange_left")
        self._tells_records = observer.hears("exchange_ended", "websocket_closed")
        self._access = AccessLog.from_config(config)
        self.wants_records = config.access_log or self._tells_records or self.measures is not None
        keeps_heads = self._access is not None and self._access.shows_response_fields
        self.marks_heads = config.request_id or keeps_heads
        """Response heads are kept, and get the request's id, if it has one."""
        self.active: dict[ActiveExchange, trio.lowlevel.Task | None] = {}
        """Each with the task that calls the application."""
        limit = config.slow_request
        self.slow = None if limit is None else SlowRequests(limit, self.clock, self.active)
        """Whom to tell of each response that has ended; None: nobody."""
        self.base = contextvars.copy_context()

    def reset_context_variables(self) -> None:
        """Give the current task fresh context variables, as they were after lifespan start-up.

        Takes effect when the task next suspends: a wait or a checkpoint must follow before the application runs.
        """
        trio.lowlevel.current_task().context = self.base.copy()

    def exchange_began(self, exchange: ActiveExchange, task: trio.lowlevel.Task | None) -> None:
        self.active[exchange] = task
        if self._tells_exchanges:
            self.observer.exchange_began(exchange.request)
            if self.slow is not None:
                self.slow.began(exchange)
        counters = self.counters
        counters.requests += 1
        counters.requests_total += 1
        if counters.requests_total == self._max_requests and not self.observer.limit_reached():
            self.drain.begin(DrainKind.STOP)

    def exchange_left(self, exchange: ActiveExchange) -> None:
        """The application has returned."""
        del self.active[exchange]
        self.counters.requests -= 1
        if self._tells_exchanges:
            self.observer.exchange_left(exchange.request)

    def exchange_ended(self, record: ExchangeRecord, request: Request, head: bytes) -> None:
        """``head`` is the response head as it was sent if ``marks_heads``, else empty."""
        self.observer.exchange_ended(record)
        if self.measures is not None:
            self.measures.exchange_ended(record)
        if self._access is not None:
            self._access.exchange_ended(record, request, head)

    def describe_waiting(self) -> str:
        """What a drain waits for, in words."""
        if not self.active:
            open_now = self.counters.connections
            return f"{open_now} connection{'s' * (open_now != 1)}" if open_now else "nothing"
        oldest = next(iter(self.active))
        request = oldest.request
        kinds = ((len(self.active) - self.counters.websockets, "request"), (self.counters.websockets, "WebSocket"))
        counts = " and ".join(f"{count} {kind}{'s' * (count != 1)}" for count, kind in kinds if count)
        target = request.target.decode("ascii")
        age = trio.current_time() - oldest.started
        return f"{counts}, oldest {request.method} {target} {age:.0f} s"

    def websocket_opened(self) -> None:
        self.counters.websockets += 1
        self.counters.websockets_total += 1

    def websocket_closed(self, record: WebSocketRecord) -> None:
        self.counters.websockets -= 1
        if self.wants_records:
            self.observer.websocket_closed(record)
            if self.measures is not None:
                self.measures.websocket_closed(record)
            if self._access is not None:
                self._access.websocket_closed(record)


def _choose_admission(config: Config) -> Callable[[Request], None] | None:
    forwarded = Forwarded.from_config(config)
    if forwarded is None:
        return give_id if config.request_id else None
    apply = forwarded.apply
    if not config.request_id:
        return apply

    def admit(request: Request) -> None:
        give_id(request)  # first: it asks who the peer is
        apply(request)

    return admit


def _choose_max_requests(config: Config) -> int | None:
    if config.limit_max_requests is None:
        return None
    # Workers that were started together must not all stop together.
    return config.limit_max_requests + random.randint(0, config.limit_max_requests_jitter)  # noqa: S311 - no secret
