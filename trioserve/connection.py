"""One connection: a nursery, and the boundary that nothing a client does gets past."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterable, Iterator
from functools import partial

import trio

from .activity import ConnectionActivity, State, sum_up
from .context import ServerContext
from .errors import ClientDisconnected, ProtocolError, Refusal
from .exchange import Address, Endpoint
from .lanes import Lanes
from .linger import linger
from .logs import log_application_error, log_client_error, server_log
from .net.door import Door
from .net.listeners import Accepted, Socket
from .net.proxy_protocol import receive_header
from .net.reactor import SUPPORTED as REACTOR_SUPPORTED
from .net.reactor import Reactor
from .net.socket_transport import SocketTransport
from .net.stream_transport import StreamTransport
from .net.tls import TLS, describe_tls
from .net.tls_handshake import PLAIN_HTTP_ANSWER, HandshakeError, handshake
from .net.tls_transport import TLSTransport
from .transport import Transport
from .trust import Trust
from .wire.codecs import codec_maker
from .wire.http11 import HTTP11Connection

GOODBYE_PATIENCE = 1.0
"""Seconds in which a client whose handshake failed may read why."""


class _Connection:
    """One connection of any kind, from its beginning to its end."""

    __slots__ = (
        "accepted",
        "began",
        "endpoint",
        "ends_itself",
        "http",
        "is_secured",
        "listener",
        "phase",
        "task",
        "transport",
    )

    def __init__(self, accepted: Accepted, is_secured: bool, listener: str, began: float) -> None:
        self.accepted: Accepted | None = accepted
        """None once its transport owns it."""
        self.is_secured = is_secured
        self.listener = listener
        self.began = began
        self.endpoint = Endpoint()
        self.task: trio.lowlevel.Task | None = None
        self.phase: State | None = None
        """What it does before it speaks HTTP."""
        self.transport: Transport | None = None
        self.http: HTTP11Connection | None = None
        self.ends_itself = False
        """Else ``http`` is to be ended once nothing else of the connection runs."""

    def activities(self, now: float) -> Iterable[tuple[trio.lowlevel.Task, str]]:
        if self.http is not None:
            return [(one.task, one.describe(now)) for one in self.http.activities()]
        if self.task is None:
            return []
        return [(self.task, f"{self.endpoint.client_name} {self.phase or State.BEGINS}, {now - self.began:.1f} s")]

    def look(self) -> ConnectionActivity:
        """What it does. For any thread."""
        http, began = self.http, self.began
        parts = [] if http is None else list(http.activities())
        if parts:
            state, since = sum_up(parts, began)
        else:
            state, since = (self.phase or State.BEGINS) if http is None else State.CLOSES, began
        client = self.endpoint.client_name
        return ConnectionActivity(client, self.listener, self.is_secured, began, since, state, self.task, parts)


class Connections:
    """What makes served connections of streams: all that the connections of one server share.

    ``tls`` is replaced as a whole when certificates change; handshakes take what is there. ``run`` must run in a task
    of its own, for as long as any connection does.
    """

    def __init__(self, server: ServerContext, tls: TLS | None = None) -> None:
        self._server = server
        self.tls = tls
        self._make_codec = codec_maker(server.config)
        counters = server.counters
        count_refused = partial(counters.count_rejected, 503, Refusal.NO_DESCRIPTORS)
        self.door = Door(server.config.limit_connections, lambda: counters.connections, count_refused)
        self._reactor = Reactor() if REACTOR_SUPPORTED else None
        config = server.config
        self._trust = Trust(config.forwarded_allow_ips) if config.forwarded_allow_ips else None
        self._hears_proxies = config.proxy_protocol
        self._open: set[_Connection] = set()
        self._transports: set[Transport] = set()
        self._handshaking: set[Transport] = set()
        self._lanes = Lanes(server, self._serve_alone, self._end, self._sort_out)

    async def run(self) -> None:
        """Keep the deadlines of the connections, and watch their sockets, until cancelled."""
        clock, reactor = self._server.clock, self._reactor
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock.run, name="trioserve clock")
            if reactor is not None:
                clock.look = reactor.poll
                try:
                    await reactor.run()
                finally:
                    reactor.close()

    async def drop(self) -> None:
        """Lose every connection, in a way its client cannot mistake for an end."""
        transports = [*self._handshaking, *self._transports]
        self._handshaking.clear()
        for transport in transports:
            await transport.lose()

    def activities(self) -> dict[trio.lowlevel.Task, str]:
        """What each connection does, and for how long, in words, by the tasks in which it does. For any thread."""
        now = self._server.clock.now()
        # A copy, made without running Python code, so that no other thread can change it in between.
        return dict(activity for connection in list(self._open) for activity in connection.activities(now))

    def look(self) -> Iterator[ConnectionActivity]:
        """What each open connection does, one after the other. For any thread."""
        return (connection.look() for connection in list(self._open))

    def states(self) -> dict[str, int]:
        """How many connections do what; "opening" is all before HTTP begins."""
        found: dict[str, int] = dict.fromkeys(("opening", "idle", "reading", "active", "websocket"), 0)
        for connection in self._open:
            found["opening" if connection.http is None else connection.http.state] += 1
        return found

    def start(self, nursery: trio.Nursery, accepted: Accepted, is_secured: bool, listener: str) -> None:
        """As serve, in a task of this nursery, which is the same each time."""
        self._lanes.start(nursery, self._begin(accepted, is_secured, listener))

    async def serve(self, accepted: Accepted, is_secured: bool = False, listener: str = "") -> None:
        """Serve a connection until it closes, and close its socket or stream.

        ``is_secured``: it begins with a TLS handshake. ``listener`` is the listening address in words, for the log.
        Raises nothing but Cancelled and KeyboardInterrupt.
        """
        await self._lanes.serve_one(self._begin(accepted, is_secured, listener))

    def _begin(self, accepted: Accepted, is_secured: bool, listener: str) -> _Connection:
        counters = self._server.counters
        counters.connections += 1
        counters.connections_total += 1
        connection = _Connection(accepted, is_secured, listener, self._server.clock.now())
        self._open.add(connection)
        return connection

    async def _end(self, connection: _Connection) -> None:
        """Nothing of it runs any more: let it say its last words, and close it."""
        try:
            if connection.http is not None and not connection.ends_itself:
                await connection.http.end()
        finally:
            try:
                if connection.transport is not None:
                    await connection.transport.aclose()
                else:
                    assert isinstance(connection.accepted, socket.socket)  # that cannot be watched
                    connection.accepted.close()
            finally:
                if connection.transport is not None:
                    self._transports.discard(connection.transport)
                self._open.discard(connection)
                self._server.counters.connections -= 1
                self.door.left()

    async def _serve_alone(self, connection: _Connection, nursery: trio.Nursery) -> None:
        connection.task = trio.lowlevel.current_task()
        accepted = connection.accepted
        assert accepted is not None
        endpoint = connection.endpoint = describe_endpoint(accepted)
        if self._reactor is not None and isinstance(accepted, trio.SocketStream):
            accepted = connection.accepted = _as_socket(accepted)
        try:
            transport: Transport = self._make_transport(accepted)
        except OSError as error:  # epoll watches only so many, of all processes of a user
            server_log.warning("closed a connection that cannot be watched: %s", error)
            return
        connection.transport, connection.accepted = transport, None
        watched = transport if isinstance(transport, StreamTransport) else None
        if watched is not None:
            nursery.start_soon(watched.watch)
        begun = b""
        if self._trust is not None:
            connection.phase = State.PROXY
            heard = await self._hear_proxy(self._trust, transport, endpoint)
            if heard is None:
                await transport.aclose()  # which also ends the task that watches a stream
                return
            begun = heard
        if connection.is_secured and self.tls is not None:
            connection.phase = State.TLS
            secured = await self._secure(transport, self.tls, endpoint, connection.listener, nursery, begun)
            if secured is None:
                return
            connection.transport = transport = secured
            begun = b""
        self._transports.add(transport)
        codec = self._make_codec()
        if begun:
            codec.feed(begun)
        # A stream's own tasks are in the nursery, too, and must outlive an application that is stopped.
        connection.ends_itself = watched is not None
        scope = trio.CancelScope() if connection.ends_itself else nursery.cancel_scope
        http = connection.http = HTTP11Connection(transport, codec, endpoint, self._server, nursery, scope)
        await (http.run_and_end() if connection.ends_itself else http.run())

    def _make_transport(self, accepted: Accepted) -> StreamTransport | SocketTransport:
        """Raises OSError if epoll watches no more; then the stream is still its owner's."""
        clock = self._server.clock
        if self._reactor is None:
            return StreamTransport(_as_stream(accepted), clock)
        if isinstance(accepted, socket.socket):
            return SocketTransport(accepted, self._reactor, clock)
        return StreamTransport(accepted, clock)

    async def _hear_proxy(self, trust: Trust, transport: Transport, endpoint: Endpoint) -> bytes | None:
        """Hear from a trusted proxy whose connection it passes on; returns what came behind that, None if nothing."""
        endpoint.is_proxy = trust.covers_peer(endpoint)
        if not self._hears_proxies:
            return b""
        if endpoint.server is None and isinstance(transport, SocketTransport):
            return None  # it has gone already, as a balancer's check does, and nobody can tell who it was
        if not endpoint.is_proxy:
            return b""
        deadline = trio.current_time() + self._server.config.timeout_proxy_protocol
        self._handshaking.add(transport)
        try:
            heard = await receive_header(transport, deadline=deadline, drain=self._server.drain)
        except ProtocolError as error:
            self._server.counters.count_rejected(error.status, error.why)
            log_client_error("closed a connection from %s: %s", endpoint.client_name, error.reason)
            return None
        finally:
            self._handshaking.discard(transport)
        if heard is None:
            return None
        passed, rest = heard
        if not passed.is_own:
            # What stands in the requests counts no more, unless the one who sent them is a proxy, too.
            endpoint.client, endpoint.server = passed.client, passed.server or endpoint.server
            endpoint.is_proxy = passed.client is not None and trust.names(passed.client[0])
        if passed.is_secured:
            endpoint.scheme = "https"
        return rest

    async def _secure(
        self,
        transport: Transport,
        tls: TLS,
        endpoint: Endpoint,
        listener: str,
        nursery: trio.Nursery,
        begun: bytes,
    ) -> TLSTransport | None:
        """Do the handshake; one that fails is logged, answered as far as possible, and closed."""
        config, clock, drain = self._server.config, self._server.clock, self._server.drain
        if isinstance(transport, SocketTransport):
            # A client that closes with something of TLS's own unread resets without meaning to: the rest of a handshake
            # when it refuses our certificate, and says so; the tickets, when it wants no answer to what it has sent.
            transport.hears_last_words = True
        else:
            transport.write_in(nursery)
        deadline = trio.current_time() + config.timeout_tls_handshake
        self._handshaking.add(transport)
        try:
            session = await handshake(transport, tls.context, deadline=deadline, drain=drain, begun=begun)
        except HandshakeError as error:
            reason = error.reason if transport in self._handshaking else "the connection was dropped"
            self._server.counters.count_handshake_failure(listener, reason)
            client = "a client" if endpoint.client is None else endpoint.client_name
            log_client_error("TLS handshake with %s on %s failed: %s", client, listener or "a stream", reason)
            await _say_goodbye(transport, PLAIN_HTTP_ANSWER if error.plain_http else b"")
            return None
        except BaseException:
            # Now: what writes for it may be shielded, and the nursery waits for that.
            await transport.aclose()
            raise
        finally:
            self._handshaking.discard(transport)
        self._server.counters.count_handshake(listener)
        endpoint.scheme = "https"
        endpoint.tls = functools.cache(partial(describe_tls, session.tls, tls))
        return TLSTransport(transport, session, clock, config.timeout_write)

    def _sort_out(self, error: BaseException) -> None:
        _sort_out(error, self._server)


def _as_socket(stream: trio.SocketStream) -> socket.socket:
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


def _as_stream(accepted: Accepted) -> trio.abc.Stream:
    if isinstance(accepted, socket.socket):
        return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
    return accepted


async def _say_goodbye(transport: Transport, answer: bytes) -> None:
    """End a connection whose handshake failed, so that the client can still read why."""
    patience = trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_PATIENCE)
    with patience, contextlib.suppress(ClientDisconnected):
        await transport.send(answer, GOODBYE_PATIENCE)
        await linger(transport)
    await transport.aclose()


def _sort_out(error: BaseException, server: ServerContext) -> None:
    """Log what came out of a connection, and raise again what must pass."""
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
    passing, wrong = group.split((KeyboardInterrupt, GeneratorExit))
    cancelled = None
    if wrong is not None:
        cancelled, wrong = wrong.split(trio.Cancelled)
    if wrong is not None:
        server.counters.application_errors += 1
        server.observer.application_failed(wrong, None)
        log_application_error("a connection ended in an error: did the application break the task tree?", wrong, "")
    if passing is not None:
        raise passing
    # A broken task tree can let a Cancelled escape its scope. One that is nobody's would travel on and end the server.
    if cancelled is not None and trio.current_effective_deadline() == float("-inf"):
        raise cancelled


def describe_endpoint(accepted: Accepted) -> Endpoint:
    if isinstance(accepted, socket.socket):
        return _describe_socket(accepted, "http")
    scheme = "http"
    inner = accepted
    while isinstance(inner, trio.SSLStream):
        scheme, inner = "https", inner.transport_stream
    return _describe_socket(inner.socket, scheme) if isinstance(inner, trio.SocketStream) else Endpoint(scheme=scheme)


def _describe_socket(sock: Socket, scheme: str) -> Endpoint:
    try:
        peer, own = sock.getpeername(), sock.getsockname()
    except OSError:  # the client has already gone
        return Endpoint(scheme=scheme)
    if isinstance(own, tuple):
        return Endpoint(client=(peer[0], peer[1]), server=(own[0], own[1]), scheme=scheme)
    return Endpoint(client=None, server=_unix_address(own), scheme=scheme)


def _unix_address(name: str | bytes) -> Address:
    return (name if isinstance(name, str) else name.decode("utf-8", "replace"), None)
