"""HTTP/1.1: one connection's requests, one after the other, in one task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import inf

import trio

from ..activity import Activity
from ..asgi.handle import handle_http, handle_websocket
from ..clock import Timer
from ..context import ServerContext
from ..drain import DrainKind
from ..errors import ClientDisconnected, ProtocolError, Refusal
from ..exchange import Endpoint, Request
from ..linger import linger
from ..logs import Outcome, log_client_error
from ..transport import Transport, Wake
from .codec import Codec
from .discard import discard_body
from .http11_exchange import HTTP11Exchange
from .request_reader import Head
from .upgrade import UPGRADE_FIELDS, check_upgrade, upgrade_fields, wants_websocket

TAKEN_OVER_AT_ONCE = 16
"""Requests of one connection that are answered and whose handlers still run; then its next one waits for the last."""

# A stop closes idle connections at once; a head that has begun may still come to its end and be answered.
HEAD_PATIENCE_AT_STOP = 1.0

UPGRADE_REQUIRED = 426


class HTTP11Connection:
    """Serves one transport until it closes: first ``run``, then ``end``.

    ``scope`` is round ``run`` alone: it is cancelled to stop the application. ``nursery`` is for what must not outlive
    the connection.

    An application may run on after its response, for its background tasks. When the client then sends its next request,
    the connection goes on in a successor, in a task of its own: nobody waits for another request's background task.
    """

    __slots__ = (
        "_codec",
        "_endpoint",
        "_exchange",
        "_family",
        "_grace_deadline",
        "_looks_for_successor",
        "_must_reset",
        "_nursery",
        "_reads_since",
        "_request_deadline",
        "_scope",
        "_served",
        "_server",
        "_succeeded",
        "_task",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        codec: Codec,
        endpoint: Endpoint,
        server: ServerContext,
        nursery: trio.Nursery,
        scope: trio.CancelScope,
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._endpoint = endpoint
        self._server = server
        self._nursery = nursery
        self._exchange: HTTP11Exchange | None = None
        self._served = 0
        self._succeeded = False
        self._family: set[HTTP11Connection] = set()  # those that run, once there is a successor
        self._looks_for_successor = False
        self._scope = scope
        self._timer: Timer | None = None
        self._task: trio.lowlevel.Task | None = None  # while it runs
        self._reads_since: float | None = None  # None unless it reads a head, or waits for one
        self._request_deadline = inf
        self._grace_deadline = inf
        # The client could mistake an ordinary close for the end of the response.
        self._must_reset = False

    async def run(self, finished: HTTP11Exchange | None = None) -> None:
        """Serve requests until the connection cannot carry another.

        ``finished`` is the exchange after which a successor takes over.
        """
        self._task = trio.lowlevel.current_task()
        self._transport.tell(left=self._client_left, unread=self._find_successor)
        self._server.drain.register(self._tell_drain)
        if finished is None or await self._make_reusable(finished):
            await self._serve_requests()

    async def run_and_end(self, finished: HTTP11Exchange | None = None) -> None:
        """As run and end, within a scope that nobody has entered yet."""
        try:
            with self._scope:
                await self.run(finished)
        finally:
            await self.end()

    async def end(self) -> None:
        """Say what is still to be said, and close the transport, which a predecessor leaves alone."""
        self._reads_since = None
        try:
            if not self._succeeded:
                if self._scope.cancelled_caught:
                    await self._answer_for_stopped()
                with contextlib.suppress(ClientDisconnected):
                    await self._transport.flush()
        finally:
            if self._timer is not None:
                self._timer.close()
            self._server.drain.unregister(self._tell_drain)
            if self._exchange is not None:
                self._finish_exchange(self._exchange)
            self._task = None
            self._leave_family()
            if not self._succeeded:
                await self._transport.aclose(reset=self._must_reset)

    async def _serve_requests(self) -> None:
        reusable = self._transport.has_waited = True
        while reusable:
            try:
                head = await self._read_head()
            except ProtocolError as error:
                await self._refuse_head(error)
                return
            if not self._transport.has_waited:
                await trio.lowlevel.checkpoint()
            if head is None:
                return
            exchange = self._begin_exchange(head)
            await self._handle(exchange, head)
            if self._succeeded:
                return
            reusable = self._is_reusable(exchange) or await self._make_reusable(exchange)
            # The next call of the application finds fresh context variables only if this task is suspended in between;
            # and a client that pipelines must not keep all others waiting.
            self._server.reset_context_variables()
            self._transport.has_waited = False
            # While it is idle a connection holds nothing of its last request.
            del head, exchange

    # The head

    async def _read_head(self) -> Head | None:
        """Read the next request head.

        Returns None if the client stays idle too long, leaves, or the server is draining. Raises ProtocolError for a
        malformed or late one (400, 408, 414, 431, 501, 505). Source: RFC 9112 §2.2, §9.3.
        """
        config, codec, drain, transport = self._server.config, self._codec, self._server.drain, self._transport
        # The first head has one clock from accept to its end; a later one has its own from its first byte.
        begun = self._served == 0
        self._reads_since = now = self._server.clock.now()
        deadline = now + (config.timeout_request_head if begun else config.timeout_keep_alive)
        while True:
            if codec.has_begun:
                head = codec.next_head()
                if head is not None:
                    return head
                if not begun:
                    begun, deadline = True, trio.current_time() + config.timeout_request_head
            if drain.kind is DrainKind.STOP:
                # A request that the client has sent already may still be on its way through the kernel.
                patience = HEAD_PATIENCE_AT_STOP if codec.has_begun else 0
                deadline = min(deadline, trio.current_time() + patience)
            came = await transport.receive(deadline)
            if isinstance(came, bytes):
                if not came:
                    return None
                codec.feed(came)
            elif came is Wake.DEADLINE:
                if codec.has_begun:
                    raise ProtocolError(408, "The request head did not come in time.")
                return None

    async def _refuse_head(self, error: ProtocolError) -> None:
        self._reads_since = None
        client = "a client" if self._endpoint.client is None else self._endpoint.client_name
        exchange = self._make_exchange(Request("-", b"-", [], "1.1", self._endpoint))
        log_client_error("refused a request from %s: %s", client, error.reason)
        await exchange.refuse(error.status, error.reason, why=error.why)
        await linger(self._transport)

    # What it does

    def activities(self) -> Iterator[Activity]:
        """What each task of the connection does. For any thread."""
        for one in list(self._family) or [self]:
            task, client, since = one._task, one._endpoint.client_name, one._reads_since
            if task is not None:
                yield Activity(task, client, one._exchange, since, one._codec.has_begun, one._served)

    @property
    def state(self) -> str:
        """In a word, for counting: "active", "websocket", "reading" (a head has begun) or "idle"."""
        running = [one._exchange.request for one in self._family or (self,) if one._exchange is not None]
        if running:
            return "active" if running[0].protocol is None else "websocket"
        return "reading" if self._codec.has_begun else "idle"

    # The exchange

    def _make_exchange(self, request: Request) -> HTTP11Exchange:
        if self._server.admit is not None:
            self._server.admit(request)
        return HTTP11Exchange(request, self._transport, self._codec, self._server, self._exchange_ended)

    def _begin_exchange(self, head: Head) -> HTTP11Exchange:
        config, server = self._server.config, self._server
        request = Request(head.method, head.target, head.headers.copy(), head.http_version, self._endpoint)
        if head.has_upgrade and config.ws == "on" and wants_websocket(head):
            request.protocol = "websocket"
        exchange = self._exchange = self._make_exchange(request)
        server.exchange_began(exchange, self._task)
        self._served += 1
        if self._served == config.limit_requests_per_connection:
            exchange.must_close = True
        if config.timeout_request is not None and request.protocol is None:
            self._request_deadline = exchange.started + config.timeout_request
            self._set_timer()
        if self._transport.has_left:
            self._client_left()
        return exchange

    async def _handle(self, exchange: HTTP11Exchange, head: Head) -> None:
        config = self._server.config
        if config.limit_concurrency is not None and self._server.counters.requests > config.limit_concurrency:
            await exchange.refuse(503, "The server is busy.", (b"retry-after", b"1"), why=Refusal.CONCURRENCY)
        elif config.limit_request_body is not None and (head.length or 0) > config.limit_request_body:
            await exchange.refuse(413, f"The request body is larger than {config.limit_request_body} bytes.")
        else:
            if exchange.request.protocol is None:
                fine = await handle_http(exchange, self._server)
            else:
                fine = await self._handle_websocket(exchange, head)
            if not fine and exchange.outcome is None and not exchange.has_left:
                exchange.outcome = Outcome.ERROR
        self._finish_exchange(exchange)

    async def _handle_websocket(self, exchange: HTTP11Exchange, head: Head) -> bool:
        try:
            check_upgrade(head)
            exchange.upgrade = upgrade_fields(head.headers)  # the request's the application may change
            return await handle_websocket(exchange, self._server)
        except ProtocolError as error:
            log_client_error("refused a WebSocket from %s: %s", self._endpoint.client_name, error.reason)
            # The connection may go on, in HTTP.
            fields = (*error.fields, *UPGRADE_FIELDS) if error.status == UPGRADE_REQUIRED else error.fields
            await exchange.refuse(error.status, error.reason, *fields, closes=False)
            return True

    def _finish_exchange(self, exchange: HTTP11Exchange) -> None:
        """The application is no longer running."""
        self._exchange = None
        self._server.exchange_left(exchange)
        if not exchange.ended:
            exchange.cut_short()
        if self._server.wants_records:
            exchange.report()
        if self._timer is not None:
            self._disarm(self._timer)
        # What a stalled client does not take would stay in the kernel for minutes after an ordinary close.
        has_stalled = self._transport.is_broken and exchange.outcome is Outcome.DEADLINE
        if exchange.has_aborted and (self._codec.ends_by_close or has_stalled):
            self._must_reset = True

    def _exchange_ended(self) -> None:
        """Once the response is complete nothing is cancelled for the client's sake: background tasks may run on."""
        exchange = self._exchange
        if exchange is not None and exchange.is_refused and exchange.must_close:
            # The handler runs on without anyone to answer: as if its client had left.
            self._client_left()
            return
        if self._timer is not None:
            self._disarm(self._timer)
        self._look_for_next()

    def _look_for_next(self) -> None:
        if self._codec.has_begun or (self._transport.has_unread and not self._transport.has_left):
            self._find_successor()

    def _disarm(self, timer: Timer) -> None:
        self._request_deadline = self._grace_deadline = inf
        timer.set(inf)

    async def _make_reusable(self, exchange: HTTP11Exchange) -> bool:
        """Make ready for the next request; False if the connection must close, which has then been prepared."""
        codec, self._reads_since = self._codec, None
        if not codec.body_read and not self._transport.has_left:
            keep = codec.keeps_alive and not exchange.must_close and await discard_body(codec, self._transport)
            if not keep:
                await linger(self._transport)
                return False
        if self._is_reusable(exchange):
            return True
        if codec.has_begun:
            await linger(self._transport)
        return False

    def _is_reusable(self, exchange: HTTP11Exchange) -> bool:
        """Make ready for the next request, if nothing is in its way."""
        if exchange.must_close or not self._codec.can_reuse or self._server.drain.kind is DrainKind.STOP:
            return False
        self._codec.start_next()
        return True

    # The successor

    def _find_successor(self) -> None:
        """The client has sent something that nobody waits for: a next request, if the response is complete."""
        exchange = self._exchange
        if len(self._family) > TAKEN_OVER_AT_ONCE or self._looks_for_successor:
            return
        if exchange is not None and exchange.ended and not exchange.must_close:
            self._looks_for_successor = True
            self._server.base.copy().run(self._nursery.start_soon, self._succeed, exchange)

    async def _succeed(self, exchange: HTTP11Exchange) -> None:
        # Most applications return at once, and then no successor is needed.
        await trio.lowlevel.checkpoint()
        self._looks_for_successor = False
        if self._exchange is exchange:
            self._server.drain.unregister(self._tell_drain)
            self._succeeded = True
            successor = HTTP11Connection(
                self._transport, self._codec, self._endpoint, self._server, self._nursery, trio.CancelScope()
            )
            successor._served, successor._family = self._served, self._family
            self._family.update((self, successor))
            await successor.run_and_end(exchange)

    def _leave_family(self) -> None:
        self._family.discard(self)
        for one in self._family:
            if not one._succeeded:  # for which there may have been no room
                one._look_for_next()

    # What stops the application

    def _client_left(self) -> None:
        grace = self._server.config.timeout_disconnect_grace
        exchange = self._exchange
        if exchange is None or grace is None or (exchange.ended and not exchange.is_refused):
            return
        if self._grace_deadline == inf:
            self._grace_deadline = trio.current_time() + grace
            self._set_timer()

    def _set_timer(self) -> None:
        # Made late: most connections never need it.
        timer = self._timer = self._timer or self._server.clock.timer(self._stop_application)
        timer.set(min(self._request_deadline, self._grace_deadline))

    def _stop_application(self) -> None:
        exchange = self._exchange
        assert exchange is not None  # the timer is disarmed when the exchange ends
        if exchange.outcome is None:
            late = self._request_deadline <= self._grace_deadline
            exchange.outcome = Outcome.DEADLINE if late else Outcome.CLIENT_LEFT
        self._scope.cancel()

    async def _answer_for_stopped(self) -> None:
        """Say what must still be said for an application that was stopped: 504, if nothing was said yet."""
        exchange = self._exchange
        if exchange is not None and exchange.outcome is Outcome.DEADLINE and not exchange.ended:
            await exchange.refuse(504, "The request took too long.")
            await linger(self._transport)

    def _tell_drain(self) -> None:
        self._transport.wake(Wake.DRAIN)
