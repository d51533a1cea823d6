"""One connection: a nursery, and the boundary that nothing a client does gets past."""

from __future__ import annotations

import contextlib
import functools
import socket
from functools import partial

import trio

from .context import ServerContext
from .errors import ClientDisconnected
from .exchange import Address, Endpoint
from .linger import linger
from .logs import log_application_error, server_log
from .net.listeners import Accepted, Socket
from .net.reactor import SUPPORTED as REACTOR_SUPPORTED
from .net.reactor import Reactor
from .net.socket_transport import SocketTransport
from .net.stream_transport import StreamTransport
from .net.tls import TLS, describe_tls
from .net.tls_handshake import PLAIN_HTTP_ANSWER, HandshakeError, handshake
from .net.tls_transport import TLSTransport
from .transport import Transport
from .wire.codecs import codec_maker
from .wire.http11 import HTTP11Connection

TASK_NAME = "trioserve connection"
"""The same text for every connection: Trio would make one for each."""

GOODBYE_PATIENCE = 1.0
"""Seconds in which a client whose handshake failed may read why."""


class _CannotWatch(Exception):
    """A socket could not be registered, and has been closed."""


class Connections:
    """What makes served connections of streams: all that the connections of one server share.

    ``tls`` is replaced as a whole when certificates change; handshakes take what is there. ``run`` must run in a task
    of its own, for as long as any connection does.
    """

    def __init__(self, server: ServerContext, tls: TLS | None = None) -> None:
        self._server = server
        self.tls = tls
        self._make_codec = codec_maker(server.config)
        self._reactor = Reactor() if REACTOR_SUPPORTED else None
        self._transports: set[Transport] = set()
        self._handshaking: set[Transport] = set()

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

    async def serve(self, accepted: Accepted, is_secured: bool = False, listener: str = "") -> None:
        """Serve a connection until it closes, and close its socket or stream.

        ``is_secured``: it begins with a TLS handshake. ``listener`` is the listening address in words, for the log.
        Raises nothing but Cancelled and KeyboardInterrupt.
        """
        counters = self._server.counters
        counters.connections += 1
        counters.connections_total += 1
        endpoint = describe_endpoint(accepted)
        try:
            if is_secured and self.tls is not None:
                await self._serve_tls(self._make_transport(accepted), self.tls, endpoint, listener)
            else:
                await self._serve_http(self._make_transport(accepted), endpoint)
        except _CannotWatch as error:
            server_log.warning("closed a connection that cannot be watched: %s", error.__cause__)
        except BaseException as error:
            _sort_out(error, self._server)
        finally:
            counters.connections -= 1

    async def _serve_http(self, transport: Transport, endpoint: Endpoint) -> None:
        server = self._server
        self._transports.add(transport)
        try:
            # An application can break the task tree so that Trio raises when the task *ends*, beyond every try in it.
            # So the application runs in a child task, and what comes out of that ends here.
            async with trio.open_nursery() as nursery:
                connection = HTTP11Connection(transport, self._make_codec(), endpoint, server, nursery)
                _start(connection, nursery, server)
                if isinstance(transport, StreamTransport):
                    await transport.watch()
        finally:
            self._transports.remove(transport)
            await transport.aclose()

    def _make_transport(self, accepted: Accepted) -> StreamTransport | SocketTransport:
        clock = self._server.clock
        if self._reactor is None:
            return StreamTransport(_as_stream(accepted), clock)
        if isinstance(accepted, trio.SocketStream):
            accepted = socket.socket(fileno=accepted.socket.detach())
            accepted.setblocking(False)
        if isinstance(accepted, socket.socket):
            try:
                return SocketTransport(accepted, self._reactor, clock)
            except OSError as error:  # epoll watches only so many, of all processes of a user
                accepted.close()
                raise _CannotWatch from error
        return StreamTransport(accepted, clock)

    async def _serve_tls(
        self, transport: StreamTransport | SocketTransport, tls: TLS, endpoint: Endpoint, listener: str
    ) -> None:
        if isinstance(transport, SocketTransport):
            # A client that closes with something of TLS's own unread resets without meaning to: the rest of a handshake
            # when it refuses our certificate, and says so; the tickets, when it wants no answer to what it has sent.
            transport.hears_last_words = True
            await self._serve_https(transport, tls, endpoint, listener)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.watch)
            transport.write_in(nursery)
            await self._serve_https(transport, tls, endpoint, listener)

    async def _serve_https(self, transport: Transport, tls: TLS, endpoint: Endpoint, listener: str) -> None:
        """Do the handshake and serve; one that fails is logged, answered as far as possible, and closed."""
        config, clock, drain = self._server.config, self._server.clock, self._server.drain
        deadline = trio.current_time() + config.timeout_tls_handshake
        self._handshaking.add(transport)
        try:
            session = await handshake(transport, tls.context, deadline=deadline, drain=drain)
        except HandshakeError as error:
            reason = error.reason if transport in self._handshaking else "the connection was dropped"
            self._server.counters.count_handshake_failure(listener, reason)
            client = "a client" if endpoint.client is None else endpoint.client_name
            server_log.info("TLS handshake with %s on %s failed: %s", client, listener or "a stream", reason)
            await _say_goodbye(transport, PLAIN_HTTP_ANSWER if error.plain_http else b"")
            return
        except BaseException:
            await transport.aclose()
            raise
        finally:
            self._handshaking.discard(transport)
        endpoint.scheme = "https"
        endpoint.tls = functools.cache(partial(describe_tls, session.tls, tls))
        await self._serve_http(TLSTransport(transport, session, clock, config.timeout_write), endpoint)


def _as_stream(accepted: Accepted) -> trio.abc.Stream:
    if isinstance(accepted, socket.socket):
        return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
    return accepted


def _start(connection: HTTP11Connection, nursery: trio.Nursery, server: ServerContext) -> None:
    # In a function of its own, so that an idle connection does not hold what this makes.
    server.base.copy().run(lambda: nursery.start_soon(connection.run, name=TASK_NAME))


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
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return Endpoint(client=(peer[0], peer[1]), server=(own[0], own[1]), scheme=scheme)
    return Endpoint(client=None, server=_unix_address(own), scheme=scheme)


def _unix_address(name: str | bytes) -> Address:
    return (name if isinstance(name, str) else name.decode("utf-8", "replace"), None)
