"""One connection: a nursery, and the boundary that nothing a client does gets past."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

from .context import ServerContext
from .drain import DrainKind
from .exchange import Address, Endpoint
from .logs import log_application_error, server_log
from .net.listeners import Accepted, Socket
from .net.reactor import SUPPORTED as REACTOR_SUPPORTED
from .net.reactor import Reactor
from .net.socket_transport import SocketTransport
from .net.stream_transport import StreamTransport, close_by_reset
from .net.tls import PLAIN_HTTP_ANSWER, TLS, HandshakeError, describe_tls, handshake
from .transport import Transport
from .wire.codecs import codec_maker
from .wire.http11 import HTTP11Connection

HANDSHAKE_PATIENCE_AT_STOP = 1.0
"""Seconds that a handshake in progress still has when a stop begins."""

TASK_NAME = "trioserve connection"
"""The same text for every connection: Trio would make one for each."""

GOODBYE_PATIENCE = 1.0
"""Seconds in which a client whose handshake failed may read why."""


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
        self._handshaking: set[trio.abc.Stream] = set()

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
        for stream in list(self._handshaking):
            await close_by_reset(stream)
        for transport in list(self._transports):
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
                secured = await self._begin_tls(_as_stream(accepted), self.tls, endpoint, listener)
                if secured is None:
                    return
                accepted = secured
            await self._serve_http(accepted, endpoint)
        except BaseException as error:
            _sort_out(error, self._server)
        finally:
            counters.connections -= 1

    async def _serve_http(self, accepted: Accepted, endpoint: Endpoint) -> None:
        server = self._server
        transport = self._make_transport(accepted)
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
            return SocketTransport(accepted, self._reactor, clock)
        return StreamTransport(accepted, clock)

    async def _begin_tls(
        self, stream: trio.abc.Stream, tls: TLS, endpoint: Endpoint, listener: str
    ) -> trio.SSLStream[trio.abc.Stream] | None:
        """Do the handshake; None if it failed, which has been logged, answered as far as possible, and closed."""
        self._handshaking.add(stream)
        try:
            with self._handshake_deadline():
                secured = await handshake(stream, tls.context)
        except (HandshakeError, trio.TooSlowError, trio.ClosedResourceError) as error:
            reasons = {trio.TooSlowError: "timed out", trio.ClosedResourceError: "the connection was dropped"}
            reason = reasons.get(type(error)) or str(error)
            self._server.counters.count_handshake_failure(listener, reason)
            client = "a client" if endpoint.client is None else endpoint.client_name
            server_log.info("TLS handshake with %s on %s failed: %s", client, listener or "a stream", reason)
            await _say_goodbye(stream, PLAIN_HTTP_ANSWER if getattr(error, "plain_http", False) else b"")
            return None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        finally:
            self._handshaking.remove(stream)
        endpoint.scheme = "https"
        endpoint.tls = functools.cache(partial(describe_tls, secured, tls.context, tls.certificate))
        return secured

    @contextmanager
    def _handshake_deadline(self) -> Iterator[None]:
        """Raise trio.TooSlowError after ``timeout_tls_handshake``, or a moment after a stop."""
        drain = self._server.drain
        with trio.fail_after(self._server.config.timeout_tls_handshake) as scope:

            def hurry() -> None:
                if drain.kind is DrainKind.STOP:
                    scope.deadline = min(scope.deadline, trio.current_time() + HANDSHAKE_PATIENCE_AT_STOP)

            hurry()
            drain.register(hurry)
            try:
                yield
            finally:
                drain.unregister(hurry)


def _as_stream(accepted: Accepted) -> trio.abc.Stream:
    if isinstance(accepted, socket.socket):
        return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
    return accepted


def _start(connection: HTTP11Connection, nursery: trio.Nursery, server: ServerContext) -> None:
    # In a function of its own, so that an idle connection does not hold what this makes.
    server.base.copy().run(lambda: nursery.start_soon(connection.run, name=TASK_NAME))


async def _say_goodbye(stream: trio.abc.Stream, answer: bytes) -> None:
    """End a connection whose handshake failed, so that the client can still read why."""
    lost = (trio.BrokenResourceError, trio.ClosedResourceError)
    patience = trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_PATIENCE)
    with patience, contextlib.suppress(*lost):
        await stream.send_all(answer)
        if isinstance(stream, trio.abc.HalfCloseableStream):
            # Closing with bytes unread would reset the connection, and take OpenSSL's alert or the answer with it.
            await stream.send_eof()
            while await stream.receive_some():
                pass
    await trio.aclose_forcefully(stream)


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
