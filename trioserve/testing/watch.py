"""Servers that belong to a test run: started on request, watched for errors, stopped in reverse order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Generic, Protocol, TypeVar

import trio

from ..types import AnyValue, ASGIApp
from .flat_nursery import open_flat_nursery
from .memory_server import MemoryServer
from .stuck import ServerStuckError
from .thread_server import ThreadServer
from .trio_server import TrioServer
from .verdict import describe_errors, raise_errors, strip
from .witness import Witness

ServerT = TypeVar("ServerT", bound=TrioServer)


class ServeApp(Protocol):
    """The fixtures ``serve_app`` and ``serve_app_session``; arguments as those of running."""

    def __call__(
        self, app: ASGIApp | str, *, tls: bool = False, allow_errors: bool = False, **options: AnyValue
    ) -> ThreadServer: ...


class OpenTrioServer(Protocol):
    """The fixture ``trio_server``; arguments as those of open_server."""

    def __call__(
        self, app: ASGIApp | str, *, tls: bool = False, allow_errors: bool = False, **options: AnyValue
    ) -> Awaitable[TrioServer]: ...


class OpenMemoryServer(Protocol):
    """The fixture ``memory_server``; arguments as those of memory_server."""

    def __call__(
        self, app: ASGIApp | str, *, allow_errors: bool = False, **options: AnyValue
    ) -> Awaitable[MemoryServer]: ...


class Watch:
    """Knows the servers of a test run, and what has gone wrong in them since it was last asked.

    ``on_hopeless`` is told of a server that no test can be told of, because the event loop of its test cannot end.
    """

    def __init__(self, on_hopeless: Callable[[ServerStuckError], None]) -> None:
        self._on_hopeless = on_hopeless
        self._witnesses: list[Witness] = []
        self._threads: list[ThreadServer] = []
        self._failures: list[BaseException] = []
        self.is_interrupted = False
        """Ctrl-C was pressed: what still runs is of no interest."""

    def take_errors(self) -> list[BaseException]:
        for server in self._threads:
            if server.has_news:
                # A framework may answer 500 first, and then raise: the error belongs to the test that got the answer.
                server.settle()
        died = [server.take_failure() for server in self._threads]
        self._failures += [failure for failure in died if failure is not None]
        self._threads = [server for server in self._threads if server.is_running]
        found = [error for witness in self._witnesses for error in witness.take_errors()]
        found += self._failures
        self._failures.clear()
        self._witnesses = [witness for witness in self._witnesses if not witness.has_ended]
        return found

    def raise_errors(self) -> None:
        """Raise what has gone wrong, if anything has."""
        __tracebackhide__ = True
        raise_errors(self.take_errors())

    def describe_errors(self) -> str:
        """The same as text, "" if nothing has."""
        return describe_errors(self.take_errors())

    @contextmanager
    def threads(self) -> Iterator[ServeApp]:
        """A function that starts a server in a thread; the block's end stops all that it started."""
        servers: list[ThreadServer] = []

        def serve(
            app: ASGIApp | str, *, tls: bool = False, allow_errors: bool = False, **options: AnyValue
        ) -> ThreadServer:
            __tracebackhide__ = True
            server = ThreadServer.start(app, tls=tls, **options)
            servers.append(server)
            if not allow_errors:
                self._witnesses.append(server.witness)
            self._threads.append(server)
            return server

        yield serve
        interrupt: BaseException | None = None
        for server in reversed(servers):
            if self.is_interrupted:
                server.abandon()
                continue
            try:
                server.shutdown()
            except Exception as failure:  # raised once all have been stopped
                self._failures.append(failure)
            except BaseException as error:  # Ctrl-C
                self.is_interrupted, interrupt = True, error
        if interrupt is not None:
            raise interrupt

    @asynccontextmanager
    async def tasks(
        self, opener: Callable[..., AbstractAsyncContextManager[ServerT]]
    ) -> AsyncIterator[Callable[..., Awaitable[ServerT]]]:
        """As threads, in this Trio loop; ``opener`` is open_server or memory_server."""
        runners: list[_Runner[ServerT]] = []
        async with open_flat_nursery() as nursery:

            async def serve(app: ASGIApp | str, *, allow_errors: bool = False, **options: AnyValue) -> ServerT:
                __tracebackhide__ = True
                runner = _Runner(opener(app, allow_errors=True, **options))
                runners.append(runner)
                nursery.start_soon(runner.run)
                server = await runner.wait_started()
                server.on_hopeless = self._on_hopeless
                if not allow_errors:
                    self._witnesses.append(server.witness)
                return server

            yield serve
            for runner in reversed(runners):
                await runner.stop()
        self._failures += [runner.failure for runner in runners if runner.failure is not None and runner.has_started]


class _Runner(Generic[ServerT]):
    """A task that keeps a server open, because a test and its fixtures may be tasks of their own."""

    def __init__(self, opening: AbstractAsyncContextManager[ServerT]) -> None:
        self._opening = opening
        self._server: ServerT | None = None
        self._settled = trio.Event()
        self._scope = trio.CancelScope()
        self._stop = trio.Event()
        self._ended = trio.Event()
        self.failure: Exception | None = None

    async def run(self) -> None:
        try:
            with self._scope:
                async with self._opening as self._server:
                    self._settled.set()
                    await self._stop.wait()
        except Exception as failure:  # raised where the server is waited for, or once it has ended
            self.failure = strip(failure)
        finally:
            self._ended.set()
            self._settled.set()

    async def wait_started(self) -> ServerT:
        """Wait until the server has started; raises why it cannot."""
        __tracebackhide__ = True
        await self._settled.wait()
        if self._server is None:
            raise self.failure or RuntimeError("the server was cancelled before it had started")
        return self._server

    @property
    def has_started(self) -> bool:
        return self._server is not None

    async def stop(self) -> None:
        self._stop.set()
        if not self.has_started:
            self._scope.cancel()  # nobody waits for it any more
        await self._ended.wait()
