"""A server under test in the caller's own Trio loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from ..exchange import Address
from ..logs import WebSocketRecord
from ..net.binding import bind_all
from ..net.listeners import Listener
from ..net.tls import build_client_context
from ..server import Server, serve_observed
from ..types import AnyValue, ASGIApp, Headers, State
from .clients import RECEIVE_BUFFER, SlowClient, build_request, read_at_least
from .flat_nursery import open_flat_nursery
from .location import Location
from .preparation import Preparation, prepare
from .stuck import ServerStuckError, break_shields
from .verdict import raise_errors, strip, tell_errors
from .witness import FinishedRequest, Witness

if TYPE_CHECKING:
    from .authority import Authority

HANDSHAKE_PATIENCE = 10.0
"""Seconds that a client of ours waits for a handshake, or for its request to begin."""

CLOSE_PATIENCE = 5.0
"""Seconds that a WebSocket of ours waits for the other close frame."""

_TEARDOWN_MARGIN = 1.0
"""Seconds beyond all of the server's own deadlines after which it is stuck."""


class TrioServer:
    """A running server, and clients for it. Made by open_server; all that waits must be called in its Trio loop.

    In one loop a client can have its answer before the server's task has run on: ``await server.wait_idle()`` before
    you look at ``requests`` or ``errors``.
    """

    def __init__(self, preparation: Preparation, witness: Witness) -> None:
        self.witness = witness
        self.grace: float | None = None
        """Seconds that running requests get at the end of ``run``; None: what the options say."""
        self._preparation = preparation
        self._server: Server | None = None
        self._task: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._body = trio.CancelScope()
        self._settled = trio.Event()  # started, or failed to
        self._ended = trio.Event()
        self._failure: Exception | None = None
        self._streams: list[trio.abc.Stream] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    # What it is

    @property
    def server(self) -> Server:
        """The server's own handle, with ``statistics()`` and more."""
        assert self._server is not None  # nobody gets hold of this before the start
        return self._server

    @property
    def location(self) -> Location:
        return Location.of(self.server.addresses[0], uses_tls=self._preparation.config.uses_tls)

    @property
    def url(self) -> str:
        """Such as "http://127.0.0.1:41234", without a slash at the end."""
        return self.location.url

    @property
    def ws_url(self) -> str:
        return self.location.ws_url

    @property
    def host(self) -> str:
        return self.location.host

    @property
    def port(self) -> int:
        """0 for a unix socket and for memory streams."""
        return self.location.port

    @property
    def unix_path(self) -> str | None:
        return self.location.unix_path

    @property
    def ca(self) -> Authority | None:
        """The authority behind the certificate; None without ``tls=True``."""
        return self._preparation.authority

    @property
    def state(self) -> State:
        """What the application's lifespan put into its state."""
        return self.server.state

    # What has happened

    @property
    def requests(self) -> list[FinishedRequest]:
        """Requests that have ended, in that order; may be emptied."""
        return self.witness.requests

    @property
    def websockets(self) -> list[WebSocketRecord]:
        """WebSockets that have closed, in that order; may be emptied."""
        return self.witness.websockets

    @property
    def errors(self) -> list[BaseException]:
        """What the application raised. Take out what was to be expected: what is left fails the test."""
        return self.witness.errors

    @property
    def active(self) -> int:
        """Requests, WebSockets too, whose handler is still running."""
        return len(self.witness.active)

    async def wait_idle(self, timeout: float = 5) -> None:  # noqa: ASYNC109 - its error says more than TooSlowError
        """Wait until no handler is running; raises TimeoutError, which names those that are, after so many seconds."""
        with trio.move_on_after(timeout) as scope:
            await self.witness.wait_until(lambda: not self.witness.active)
        if scope.cancelled_caught:
            running = ", ".join(request.line for request in self.witness.active)
            raise TimeoutError(f"still running after {timeout:g} s: {running}")

    # What can be done to it

    async def shutdown(self, grace: float | None = None) -> None:
        """Stop the server, and wait until it has ended; it may be called again.

        ``grace``: seconds that running requests may still take; None: ``timeout_graceful_shutdown``, which is 1 here.
        Raises LifespanError if the application could not shut down, ServerStuckError if the server does not end.
        """
        await self._stop(grace)
        self._raise_failure()

    def cancel(self) -> None:
        """Cancel the server, as a program does that cancels the task of ``serve()``: handlers are cancelled at once."""
        self._scope.cancel()

    async def drop_connections(self) -> None:
        """Lose every open connection at once, as a network that fails does. New ones are accepted."""
        await self.server.drop_connections()

    # Clients

    async def connect(self) -> trio.abc.Stream:
        """Open a connection, with its TLS handshake done if it has TLS; closed with the server if not before."""
        stream, _ = await self._open()
        self._streams.append(stream)
        return stream

    @asynccontextmanager
    async def websocket(
        self, path: str = "/", *, subprotocols: Iterable[str] = (), headers: Headers = (), **options: AnyValue
    ) -> AsyncIterator[WebSocketConnection]:
        """Open a WebSocket for as long as the block; ``options`` are those of trio_websocket.open_websocket.

        Raises trio_websocket.ConnectionRejected if the application refuses it.
        """
        stream, _ = await self._open()
        try:
            async with open_flat_nursery() as nursery:
                with trio.fail_after(HANDSHAKE_PATIENCE):
                    connection = await wrap_client_stream(
                        nursery,
                        stream,  # type: ignore[arg-type]  # it takes any stream
                        self.location.authority,
                        path,
                        subprotocols=list(subprotocols),
                        extra_headers=list(headers),
                        **options,
                    )
                yield connection
                with trio.move_on_after(CLOSE_PATIENCE):
                    await connection.aclose()
        finally:
            await trio.aclose_forcefully(stream)

    async def client_gone(
        self, path: str, *, method: str = "GET", headers: Headers = (), body: bytes = b"", after: int = 0
    ) -> None:
        """Send a request, and leave without waiting for the response once its handler is running.

        ``after``: first read so many bytes of the response.
        """
        async with self._request(path, method, headers, body) as client:
            await read_at_least(client.stream, after)

    @asynccontextmanager
    async def stall(
        self, path: str, *, method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> AsyncIterator[SlowClient]:
        """A client that sends a request and reads nothing of the response, for as long as the block.

        The kernel still takes some megabytes of the response on a socket; memory streams take nothing.
        """
        async with self._request(path, method, headers, body) as client:
            yield client

    @asynccontextmanager
    async def slow(
        self,
        path: str,
        bytes_per_second: float,
        *,
        method: str = "GET",
        headers: Headers = (),
        body: bytes = b"",
    ) -> AsyncIterator[SlowClient]:
        """A client that reads its response at this pace, head included, for as long as the block.

        ``await client.wait()`` waits for the end of the response.
        """
        async with self._request(path, method, headers, body) as client, open_flat_nursery() as nursery:
            nursery.start_soon(client.read, bytes_per_second)
            yield client

    @asynccontextmanager
    async def _request(self, path: str, method: str, headers: Headers, body: bytes) -> AsyncIterator[SlowClient]:
        """Send a request, and wait until its handler is about to run; the connection is lost at the end."""
        request = build_request(self.location.authority, path, method=method, headers=headers, body=body)
        stream, name = await self._open(reads_little=True)
        try:
            with (
                self.witness.expect(path.encode(), name) as began,
                trio.move_on_after(HANDSHAKE_PATIENCE) as scope,
            ):
                await stream.send_all(request)
                await began.wait()
            if scope.cancelled_caught:
                raise TimeoutError(f"the server has not begun {method} {path} within {HANDSHAKE_PATIENCE:g} s")
            yield SlowClient(stream)
        finally:
            await trio.aclose_forcefully(stream)

    async def _open(self, *, reads_little: bool = False) -> tuple[trio.abc.Stream, Address | None]:
        """Connect; returns the stream and what the server calls this client."""
        stream = await _connect(self.location, reads_little=reads_little)
        name = stream.socket.getsockname()
        client = (name[0], name[1]) if isinstance(name, tuple) else None
        if not self.location.uses_tls:
            return stream, client
        context = build_client_context(None if self.ca is None else self.ca.bundle)
        secured = trio.SSLStream(stream, context, server_hostname=self.host, https_compatible=True)
        try:
            with trio.fail_after(HANDSHAKE_PATIENCE):
                await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured, client

    # Its life

    def started(self, value: Server | None = None) -> None:
        """Take note of the start; this is trio.TaskStatus's method, which may do without a value where none is due."""
        self._server = value
        self._settled.set()

    @asynccontextmanager
    async def run(
        self,
        *,
        bound: Sequence[Listener] = (),
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]] = (),
    ) -> AsyncIterator[None]:
        """Serve for as long as the block; raises what keeps the server from starting, or makes it end."""
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._serve, bound, listeners, name="trioserve.testing")
            try:
                await self._settled.wait()
                if self._failure is None:
                    with self._body:
                        yield
            except BaseException:
                self.cancel()  # nobody needs what still runs
                raise
            finally:
                # Shielded, as it has deadlines of its own, and a handler that does not end must be told of.
                with trio.CancelScope(shield=True):
                    await self._stop(self.grace)
                    # Not before: they may be reading what a drain lets them have.
                    for stream in self._streams:
                        await trio.aclose_forcefully(stream)
        self._raise_failure()

    async def _serve(self, bound: Sequence[Listener], listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]) -> None:
        self._task = trio.lowlevel.current_task()
        app, config = self._preparation.app, self._preparation.config
        try:
            with self._scope:
                await serve_observed(
                    app, config, bound=bound, listeners=listeners, observer=self.witness, task_status=self
                )
        except Exception as error:  # it is raised in the test
            self._failure = error
            self._body.cancel()
        finally:
            self._ended.set()
            self._settled.set()

    async def _stop(self, grace: float | None) -> None:
        if self._ended.is_set():
            return
        seconds = self.seconds_to_end(grace)
        if self._server is not None and not self._scope.cancel_called:
            self._server.shutdown(grace)
        with trio.move_on_after(seconds):
            await self._ended.wait()
        if not self._ended.is_set():
            what = f"the server has not ended {seconds:g} s after it was told to stop"
            stuck = ServerStuckError.of(what, trio.lowlevel.current_root_task(), with_threads=False)
            await self._force_end()
            self._failure = stuck

    def seconds_to_end(self, grace: float | None) -> float:
        """How long a stop may take before the server counts as stuck."""
        config = self._preparation.config
        seconds = config.timeout_graceful_shutdown if grace is None else grace
        return seconds + config.timeout_hard_shutdown + config.timeout_shutdown + _TEARDOWN_MARGIN

    async def _force_end(self) -> None:
        assert self._task is not None
        self.cancel()
        for _ in range(10):  # clean-up that begins now may put up a new shield
            break_shields(self._task, self._scope)
            with trio.move_on_after(0.1):
                await self._ended.wait()

    def _raise_failure(self) -> None:
        __tracebackhide__ = True
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise strip(failure)
        finally:
            failure = None


async def _connect(location: Location, *, reads_little: bool) -> trio.SocketStream:
    if location.unix_path is not None:
        return await trio.open_unix_socket(location.unix_path)
    family = socket.AF_INET6 if ":" in location.host else socket.AF_INET
    made = trio.socket.socket(family)
    try:
        if reads_little:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)  # before connect: the window's scale
        await made.connect((location.host, location.port))
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)


@asynccontextmanager
async def open_server(
    app: ASGIApp | str, *, tls: bool = False, allow_errors: bool = False, **options: AnyValue
) -> AsyncIterator[TrioServer]:
    """Serve an application, in this Trio loop, for as long as the block.

    ``app``: an ASGI application, or "module:attribute". ``tls``: with a certificate made for this server.
    ``options`` are fields of Config; the port is chosen by the system, and stops are shorter, if they say nothing.

    Raises what keeps the server from starting: AppLoadError, BindError, ConfigError or LifespanError. At the end it
    raises what the application raised in requests, unless the block raised, or ``allow_errors``; ServerStuckError if
    the server does not end.
    """
    __tracebackhide__ = True
    preparation = prepare(app, tls=tls, options=options)
    with preparation.resources:
        server = TrioServer(preparation, Witness())
        with tell_errors(server.witness):
            async with server.run(bound=await bind_all(preparation.config)):
                yield server
        if not allow_errors:
            raise_errors(server.witness.take_errors())
