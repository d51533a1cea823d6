"""One server in a Trio program: from binding to the last handler, and the application's lifespan round it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import trio

from .activity import ConnectionActivity
from .asgi.lifespan import Lifespan
from .config import Config
from .connection import Connections
from .context import ServerContext
from .drain import DrainKind
from .errors import AppLoadError, BindError, ConfigError
from .figures import Figures, figures_of
from .metrics import Statistics, take_statistics
from .net.binding import bind_all
from .net.listeners import Accepted, Listener, RawAddress, Socket, accept_forever, aclose_all
from .net.tls import TLS, load_tls
from .observer import Observer, Phase
from .types import AnyValue, ASGIApp, PlainValues, State
from .wire.codecs import codec_name


class Server:
    """A running server. Exists only after a successful start; ``nursery.start`` returns it."""

    def __init__(self, context: ServerContext, listeners: Sequence[Listener], tls: TLS | None) -> None:
        self._context = context
        self._shared = Connections(context, tls)
        self._drain_began = trio.Event()
        self._grace = context.config.timeout_graceful_shutdown
        self._connections = trio.CancelScope()
        self._timer = context.clock.timer(self._cancel_connections)
        self.urls: tuple[str, ...] = tuple(one.url for one in listeners if one.url is not None)
        """Where it listens, such as "http://127.0.0.1:8000" or "unix:/run/app.sock"."""
        self.addresses: tuple[RawAddress, ...] = tuple(one.raw_address for one in listeners)
        """(host, port) for TCP, the path for a unix socket, None for a listener of another kind."""
        self.listeners: tuple[tuple[str, str | None], ...] = tuple((one.address, one.url) for one in listeners)
        """Each listener's name in the log, and its URL if it has one."""
        context.drain.register(self._begin_drain)

    @property
    def state(self) -> State:
        """What the application's lifespan put into its state."""
        return self._context.state

    def statistics(self) -> Statistics:
        """The figures of this moment."""
        return take_statistics(self._context.counters)

    def counts(self) -> Figures:
        """The same as plain values, and what is measured with metrics_bind; costs the same however many clients are
        there.
        """
        context = self._context
        found = figures_of(context.counters)
        if context.measures is not None:
            found.update(context.measures.figures())
        return found

    def figures(self) -> Figures:
        """The counts, and what has to be looked for. Call it from Trio's thread."""
        found = self.counts()
        for state, count in self._shared.states().items():
            found["connections_open", state] = count
        found["tasks",] = trio.lowlevel.current_statistics().tasks_living
        return found

    def shutdown(self, grace: float | None = None) -> None:
        """Begin to stop: accept nothing more, let running requests finish, then let ``serve()`` return.

        ``grace``: seconds after which what still runs is cancelled; None means ``timeout_graceful_shutdown``. May be
        called again with a shorter grace. Does not wait; call it from Trio's thread.
        """
        self._begin(DrainKind.STOP, grace)

    def _begin(self, kind: DrainKind, grace: float | None) -> None:
        if grace is not None:
            self._grace = grace
        self._context.drain.begin(kind)
        if grace is not None:
            self._timer.set(trio.current_time() + grace)

    def retire(self, grace: float | None = None) -> None:
        """Begin to stop as one that has a successor on the same address: as ``shutdown``, but an idle connection stays
        until its next request or the end of the grace, because closing it races with a request on its way.
        """
        self._begin(DrainKind.RETIRE, grace)

    def reload_certificates(self) -> None:
        """Read the certificates and the key again, from the same paths, for the handshakes from now on.

        Open connections and handshakes in progress keep what they have. Raises CertificateError if the new files cannot
        be used; the old certificates then stay. Does nothing without TLS. Call it from Trio's thread; it reads files.
        """
        self._shared.tls = load_tls(self._context.config)

    async def drop_connections(self) -> None:
        """Lose every open connection at once, as a network that fails does, and serve on.

        Handlers see what they see when their client leaves.
        """
        await self._shared.drop()

    def describe_waiting(self) -> str:
        """What a shutdown would wait for, in words: "3 requests, oldest GET /events 35 s"."""
        return self._context.describe_waiting()

    def activities(self) -> dict[trio.lowlevel.Task, str]:
        """What each connection does, and for how long, in words, by the tasks in which it does; for any thread.

        Such as "10.0.0.1:51234 GET /events, 3.2 s" or "10.0.0.1:51235 idle, 61.0 s".
        """
        return self._shared.activities()

    def look(self) -> Iterator[ConnectionActivity]:
        """What each open connection does, one after the other. For any thread."""
        return self._shared.look()

    def note_loop_lag(self, seconds: float) -> None:
        """Count how late the event loop came to something whose time was known, for ``statistics``."""
        self._context.counters.note_loop_lag(seconds)

    def _begin_drain(self) -> None:
        if not self._drain_began.is_set():
            self._drain_began.set()
            self._context.observer.phase_changed(Phase.DRAINING)
            self._timer.set(trio.current_time() + self._grace)

    def _cancel_connections(self) -> None:
        self._context.observer.phase_changed(Phase.CANCELLING)
        self._connections.cancel()

    async def run(self, listeners: Sequence[Listener], task_status: trio.TaskStatus[Server]) -> None:
        """Accept and serve until the drain has ended. Raises what a listener of another make raises."""
        async with trio.open_nursery() as services:
            connections = self._shared
            services_scope = trio.CancelScope(shield=True)
            services.start_soon(_run_within, services_scope, connections)
            try:
                async with trio.open_nursery() as nursery:
                    self._connections = nursery.cancel_scope
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(_accept, listener, connections, nursery)
                        self._context.observer.phase_changed(Phase.SERVING)
                        task_status.started(self)
                        try:
                            await self._drain_began.wait()
                        finally:
                            if not self._drain_began.is_set():
                                self._context.observer.phase_changed(Phase.CANCELLING)
                        accepting.cancel_scope.cancel()
                    await aclose_all(listeners)
            finally:
                # Last: handlers that clean up after a cancellation may still have to write, with a deadline.
                self._timer.close()
                services_scope.cancel()


async def _accept(listener: Listener, connections: Connections, nursery: trio.Nursery) -> None:
    def start(accepted: Accepted) -> None:
        connections.start(nursery, accepted, listener.tls, listener.address)

    await accept_forever(listener, start, connections.door)


async def _run_within(scope: trio.CancelScope, connections: Connections) -> None:
    with scope:
        await connections.run()


async def serve(
    app: ASGIApp,
    config: Config | None = None,
    *,
    sockets: Iterable[Socket] = (),
    listeners: Iterable[trio.abc.Listener[trio.abc.Stream]] = (),
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: AnyValue,
) -> None:
    """Serve an ASGI application until ``Server.shutdown`` is called or this is cancelled.

    ``await nursery.start(partial(trioserve.serve, app, port=0))`` returns a Server once the application has started and
    connections are accepted.

    config: a Config, or None for the defaults; ``options`` are fields of Config and go before it. Nothing is read from
        the environment or from files but certificates.
    sockets: bound stream sockets to serve on; they speak TLS if ``ssl_certfile`` is given.
    listeners: any Trio listeners; their streams are served as they come, without TLS of ours.

    With sockets or listeners, ``host`` and ``port`` are not bound. All are closed at the end.

    Resource handling: nothing is left when this ends: no task, no socket, no file of a unix socket. Cancelling it
    cancels the handlers at once, waits for them, and then lets the application's lifespan shut down within
    ``timeout_shutdown``. No signal, no logging set-up, no environment, no working directory is touched.

    Error handling: a start that fails raises that error: ConfigError, BindError, CertificateError or LifespanError. A
    lifespan that ends while serving makes the server drain and raise LifespanError.
    """
    config = merge_options(config, options)
    if config.for_processes is not None:
        raise ConfigError(
            f"{config.for_processes} is for the command line and run(): serve() is one server in this process"
        )
    await serve_observed(
        app,
        config,
        sockets=sockets,
        listeners=listeners,
        observer=Observer(),
        task_status=task_status,
    )


async def serve_observed(
    app: ASGIApp,
    config: Config,
    *,
    sockets: Iterable[Socket] = (),
    listeners: Iterable[trio.abc.Listener[trio.abc.Stream]] = (),
    bound: Sequence[Listener] = (),
    observer: Observer,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As serve, for one who wants to hear what happens.

    ``bound``: listeners that are ready; if there are any, no address of ``config`` is bound.
    """
    observer.phase_changed(Phase.STARTING)
    given = list(sockets)
    own = [*bound, *(Listener.from_listener(one, tls=False) for one in listeners)]
    try:
        codec_name(config)
        tls = load_tls(config)
        if config.factory:
            app = _call_factory(app)
        if not bound:
            own += await bind_all(config, given, bind_default=not (own or given))
        await _serve_started(app, config, own, tls, observer, task_status)
    finally:
        # First what needs no checkpoint, which a cancellation could cut; bind_all may not have been reached.
        for one in given:
            one.close()
        try:
            await aclose_all(own)
        finally:
            observer.phase_changed(Phase.STOPPED)


async def _serve_started(
    app: ASGIApp,
    config: Config,
    listeners: Sequence[Listener],
    tls: TLS | None,
    observer: Observer,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Run the application's lifespan, and between its start-up and its shutdown the server."""
    context = ServerContext(app, config, observer=observer)
    # A lifespan that ends too early stops the server, which then raises why.
    lifespan = Lifespan(app, config, on_failure=lambda: context.drain.begin(DrainKind.STOP))
    failure: BindError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifespan.run, name="trioserve lifespan")
        try:
            if await lifespan.wait_started():
                context.state, context.base = lifespan.state, lifespan.base
                try:
                    for listener in listeners:
                        listener.listen(config.backlog)
                except BindError as error:
                    failure = error
                else:
                    await Server(context, listeners, tls).run(listeners, task_status)
        finally:
            observer.phase_changed(Phase.STOPPING)
            await lifespan.shutdown()
    # Here and not above, where the nursery would wrap it in a group.
    if failure is not None:
        raise failure
    if lifespan.error is not None:
        raise lifespan.error


async def serve_stream(
    app: ASGIApp,
    stream: trio.abc.Stream,
    config: Config | None = None,
    *,
    state: State | None = None,
    **options: AnyValue,
) -> None:
    """Serve the HTTP requests of one connection on any stream, until it closes; then close the stream.

    There is no lifespan: ``state`` is what each request's scope gets a copy of. The stream is served as it comes,
    without TLS of ours; ``config`` and ``options`` as for serve(). Raises ConfigError; an error of the application is
    logged, one of the client answered.
    """
    context = ServerContext(app, merge_options(config, options), observer=Observer())
    context.state = {} if state is None else state
    async with trio.open_nursery() as services:
        connections = Connections(context)
        scope = trio.CancelScope(shield=True)
        services.start_soon(_run_within, scope, connections)
        try:
            await connections.serve(stream)
        finally:
            scope.cancel()


def merge_options(config: Config | None, options: PlainValues) -> Config:
    """Return a Config with these options changed; raises ConfigError for one that does not exist."""
    return Config.from_plain(options) if config is None else config.replace(**options)


def find_misfit(function: AnyValue, *arguments: object) -> str | None:
    """Why it cannot be called with these arguments; None if it can, or if nobody can tell."""
    try:
        # Not what it wraps: a decorator may change what a function takes.
        signature = inspect.signature(function, follow_wrapped=False)
    except Exception:  # noqa: BLE001 - reading a signature may evaluate annotations (Python 3.14), the user's code
        return None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return str(error)
    return None


def _call_factory(factory: AnyValue) -> ASGIApp:
    misfit = find_misfit(factory)
    if misfit is not None:
        is_app = find_misfit(factory, "scope", "receive", "send") is None
        hint = "; if it is the application itself, leave the option factory out" if is_app else ""
        raise AppLoadError(f"the application factory must take no arguments: {misfit}{hint}")
    try:
        app: AnyValue = factory()
    # Foreign code at start-up, like the import of an application: whatever it raises is why the server cannot start.
    except (Exception, SystemExit) as error:
        raise AppLoadError(f"the application factory raised {type(error).__name__}: {error}") from error
    if inspect.iscoroutine(app):
        app.close()
        raise AppLoadError("the application factory must not be async: the application is needed before anything runs")
    if not callable(app):
        raise AppLoadError(f"the application factory must return an application, not {app!r}")
    return cast("ASGIApp", app)
