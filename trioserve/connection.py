"""One connection: a nursery, and the boundary that nothing a client does gets past."""

from __future__ import annotations

import functools
import ssl
from dataclasses import dataclass
from socket import AF_INET, AF_INET6

import trio

from .context import ServerContext
from .exchange import Address, Endpoint
from .logs import error_log, log_application_error, server_log
from .net.stream_transport import StreamTransport
from .net.tls import PLAIN_HTTP_ANSWER, HandshakeError, describe_tls, handshake
from .types import PlainValues
from .wire.codec_h11 import H11Codec
from .wire.http11 import HTTP11Connection

PLAIN_ANSWER_PATIENCE = 1.0
"""Seconds in which a client that speaks plain HTTP on a TLS port may take its answer."""


@dataclass(frozen=True)
class TLS:
    """What handshakes are made with; ``certificate`` is the server's own in PEM, as applications see it."""

    context: ssl.SSLContext
    certificate: str | None


async def serve_connection(
    stream: trio.abc.Stream, server: ServerContext, tls: TLS | None = None, listener: str = ""
) -> None:
    """Serve a connection until it closes, and close its stream.

    ``listener`` is the listening address in words, for the log. Raises nothing but Cancelled and KeyboardInterrupt.
    """
    counters = server.counters
    counters.connections += 1
    counters.connections_total += 1
    endpoint = _describe_endpoint(stream)
    try:
        if tls is not None:
            secured = await _begin_tls(stream, server, tls, endpoint, listener)
            if secured is None:
                return
            stream = secured
        await _serve_stream(stream, server, endpoint)
    except BaseException as error:
        _sort_out(error)
    finally:
        counters.connections -= 1


async def _serve_stream(stream: trio.abc.Stream, server: ServerContext, endpoint: Endpoint) -> None:
    transport = StreamTransport(stream, server.clock)
    connection = HTTP11Connection(transport, H11Codec(server.config), endpoint, server)
    try:
        # An application can break the task tree so that Trio raises when the task *ends*, beyond every try in it. So the
        # application runs in a child task, and what comes out of that ends here.
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await connection.run()
                nursery.cancel_scope.cancel()

            server.base.copy().run(functools.partial(nursery.start_soon, run, name="trioserve connection"))
            await transport.watch()
    finally:
        await transport.aclose(reset=connection.must_reset)


def _sort_out(error: BaseException) -> None:
    """Log what came out of a connection, and raise again what must pass."""
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
    passing, wrong = group.split((KeyboardInterrupt, GeneratorExit))
    cancelled = None
    if wrong is not None:
        cancelled, wrong = wrong.split(trio.Cancelled)
    if wrong is not None:
        log_application_error("a connection ended in an error: did the application break the task tree?", wrong, "")
    if passing is not None:
        raise passing
    # A broken task tree can let a Cancelled escape its scope. One that is nobody's would travel on and end the server.
    if cancelled is not None and trio.current_effective_deadline() == float("-inf"):
        raise cancelled


# TLS


async def _begin_tls(
    stream: trio.abc.Stream, server: ServerContext, tls: TLS, endpoint: Endpoint, listener: str
) -> trio.SSLStream[trio.abc.Stream] | None:
    """Do the handshake; None if it failed, which has been logged, answered as far as possible, and closed."""
    timeout = server.config.timeout_tls_handshake
    try:
        with trio.fail_after(timeout):
            secured = await handshake(stream, tls.context)
    except (HandshakeError, trio.TooSlowError) as error:
        reason = str(error) if isinstance(error, HandshakeError) else "timed out"
        server.counters.count_handshake_failure(listener, reason)
        client = "a client" if endpoint.client is None else f"{endpoint.client[0]}:{endpoint.client[1]}"
        server_log.info("TLS handshake with %s on %s failed: %s", client, listener or "a stream", reason)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PLAIN_ANSWER_PATIENCE):
            if isinstance(error, HandshakeError) and error.plain_http:
                await _answer_plain_http(stream)
            await stream.aclose()
        return None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    endpoint.scheme = "https"
    endpoint.tls = functools.cache(functools.partial(_describe, secured, tls))
    return secured


def _describe(secured: trio.SSLStream[trio.abc.Stream], tls: TLS) -> PlainValues:
    return describe_tls(secured, tls.context, tls.certificate)


async def _answer_plain_http(stream: trio.abc.Stream) -> None:
    try:
        await stream.send_all(PLAIN_HTTP_ANSWER)
        if isinstance(stream, trio.abc.HalfCloseableStream):
            # Closing at once would reset the connection, as the rest of the request is unread.
            await stream.send_eof()
            while await stream.receive_some():
                pass
    except trio.BrokenResourceError:
        error_log.debug("the client left before it was told to use https")


# Addresses


def _describe_endpoint(stream: trio.abc.Stream) -> Endpoint:
    inner = stream
    scheme = "http"
    while isinstance(inner, trio.SSLStream):
        scheme, inner = "https", inner.transport_stream
    if not isinstance(inner, trio.SocketStream):
        return Endpoint(scheme=scheme)
    sock = inner.socket
    try:
        peer, own = sock.getpeername(), sock.getsockname()
    except OSError:  # the client has already gone
        return Endpoint(scheme=scheme)
    if sock.family in (AF_INET, AF_INET6):
        return Endpoint(client=(peer[0], peer[1]), server=(own[0], own[1]), scheme=scheme)
    return Endpoint(client=None, server=_unix_address(own), scheme=scheme)


def _unix_address(name: str | bytes) -> Address:
    return (name if isinstance(name, str) else name.decode("utf-8", "replace"), None)
