"""Servers under test that end hard: handlers that nothing can end, threads that cannot start, awkward interrupts."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import threading

import pytest
import trio

from trioserve import LifespanError, TrioserveError
from trioserve.testing import ServerStuckError, TrioServer, open_server, running, thread_server
from trioserve.testing.preparation import prepare
from trioserve.testing.thread_server import ThreadServer
from trioserve.testing.trio_server import LAST_WORDS
from trioserve.testing.verdict import raise_errors
from trioserve.testing.watch import Watch
from trioserve.testing.witness import Witness

from .programs import start, wait_until
from .support import http_app, plain_lifespan, respond

pytestmark = pytest.mark.timeout(40)

HASTE = {"timeout_graceful_shutdown": 0, "timeout_hard_shutdown": 0.1, "timeout_shutdown": 0.1}


class Stubborn:
    """An application that waits in a thread, out of Trio's reach, until it is freed."""

    def __init__(self, waits_in: str) -> None:
        self._waits_in = waits_in
        self.freed = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == self._waits_in:
            await trio.to_thread.run_sync(self.freed.wait)
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)


@pytest.fixture
def stubborn_handler():
    app = Stubborn("http")
    yield app
    app.freed.set()
    wait_until(lambda: not server_threads(), "the end of the server's thread")


def server_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "trioserve.testing"]


def refuse(stuck: ServerStuckError) -> None:
    pytest.fail(f"told of {stuck}")


# Handlers that nothing can end


def test_a_handler_in_a_thread_fails_its_test_soon(stubborn_handler):
    """The end of a handler that cannot be cancelled is not waited for as long as that of a loop that is blocked."""
    with (
        pytest.raises(ServerStuckError, match=r"(?s)has not ended .*wait"),
        running(stubborn_handler, **HASTE) as server,
    ):
        server.client_gone("/")
    assert server_threads()  # it still waits, and nobody for it


def test_a_server_that_was_given_up_is_not_waited_for_again(stubborn_handler):
    """The second shutdown() returns at once."""
    server = ThreadServer.start(stubborn_handler, **HASTE)
    server.client_gone("/")
    with pytest.raises(ServerStuckError):
        server.shutdown()
    server.shutdown()
    assert not server.is_running


def test_a_start_up_in_a_thread_says_what_is_true():
    """A start-up that cannot be cancelled does not block the loop, and is not said to."""
    app = Stubborn("lifespan")
    try:
        with pytest.raises(ServerStuckError, match="has not started, and cannot be stopped"):
            ThreadServer.start(app, **HASTE, timeout_startup=0.1)
    finally:
        app.freed.set()
        wait_until(lambda: not server_threads(), "the end of the server's thread")


FOR_EVER = """
import trio
from functools import partial

async def app(scope, receive, send):
    while scope["type"] != "lifespan":
        try:
            await trio.sleep(600)
        except trio.Cancelled:
            await trio.lowlevel.cancel_shielded_checkpoint()
    raise RuntimeError

OPTIONS = dict(timeout_graceful_shutdown=0, timeout_hard_shutdown=0.1)
"""

IN_A_PROGRAM = """
from trioserve.testing import open_server

async def main():
    async with open_server(app, **OPTIONS) as server:
        await server.client_gone("/")

trio.run(main)
"""

IN_A_TEST = """
async def test_it(trio_server):
    server = await trio_server(app, **OPTIONS)
    await server.client_gone("/")
"""


@pytest.mark.parametrize("is_test", [True, False])
def test_a_handler_that_lives_for_ever_in_the_loop_of_its_test_is_shown(tmp_path, is_test):
    """No error can be raised where Trio waits for ever: what it waits for is printed, past all capturing."""
    (tmp_path / "test_it.py").write_text(FOR_EVER + (IN_A_TEST if is_test else IN_A_PROGRAM))
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    command = ("-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider") if is_test else ("test_it.py",)
    with start(*command, cwd=tmp_path) as program:
        wait_until(lambda: "Only the end of the process helps." in program.errors, "the last words")
        assert "the server has not ended" in program.errors
        assert "in app" in program.errors
        program.signal(signal.SIGKILL)


def test_the_last_words_are_printed_past_all_capturing(monkeypatch):
    """Outside pytest they go to the process's own standard error."""
    printed = io.StringIO()
    monkeypatch.setattr("sys.__stderr__", printed)
    server = TrioServer(prepare(respond(), tls=False, options={}), Witness())
    server.on_hopeless(ServerStuckError("tasks"))
    assert printed.getvalue() == f"tasks\n\n{LAST_WORDS}\n"


@pytest.mark.parametrize("options", [(), ("-p", "no:capture")])
def test_the_last_words_are_shown_on_the_terminal(pytester, options):
    """The plugin shows them whatever pytest captures."""
    pytester.makepyfile(
        """
        from trioserve.pytest_plugin import _watch
        from trioserve.testing import ServerStuckError

        def test_it(pytestconfig):
            _watch(pytestconfig)._on_hopeless(ServerStuckError("tasks"))
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1)
    assert f"tasks\n\n{LAST_WORDS}" in result.stderr.str()
    assert LAST_WORDS not in result.stdout.str()


# Errors that cannot be shown, or are no Exception


class Mute(BaseException):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise TypeError("no words")


def test_an_error_that_cannot_be_shown():
    """Whatever an error of the application does when it is shown, the test is told of it."""
    error = Mute()
    with pytest.raises(TrioserveError, match=r"^the application raised .*Mute: <exception str\(\) failed>$") as caught:
        raise_errors([error])
    assert caught.value.__cause__ is error


def test_an_interrupt_in_the_lifespan():
    """KeyboardInterrupt out of the lifespan comes out of the start; there is no half-built server."""

    async def app(scope, receive, send):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ThreadServer.start(app)
    server = TrioServer(prepare(respond(), tls=False, options={}), Witness())
    assert repr(server) == "<TrioServer not started>"


def test_an_exit_in_the_lifespan_is_no_refusal():
    """sys.exit() at start-up is a start that fails, and not an application that knows no lifespan."""

    async def app(scope, receive, send):
        raise SystemExit("no database")

    with pytest.raises(LifespanError, match="raised before lifespan.startup was received: SystemExit: no database$"):
        ThreadServer.start(app)


def test_an_error_of_the_lifespan_that_cannot_be_shown():
    """A start-up whose error cannot be shown fails like any other, and does not hang."""

    class Bad(Exception):
        def __str__(self) -> str:
            raise TypeError("no words")

    async def app(scope, receive, send):
        await receive()
        raise Bad

    with pytest.raises(LifespanError, match="^the application's lifespan raised during start-up: Bad$"):
        ThreadServer.start(app)


async def test_a_client_over_tls_that_leaves_amid_its_upload():
    """It is gone at once, though the rest of its body can never be sent, and the server has no room to notice."""

    async def handler(scope, receive, send):
        await trio.sleep_forever()

    async with open_server(http_app(handler), tls=True, timeout_graceful_shutdown=0) as server:
        with trio.fail_after(10):
            await server.client_gone("/", method="POST", body=bytes(20_000_000))
        assert server.active == 1


def test_a_second_shutdown_waits_with_the_first():
    """Without a grace of its own it changes nothing, and returns when the server has ended."""
    freed = threading.Event()

    async def handler(scope, receive, send):
        await trio.to_thread.run_sync(freed.wait)

    server = ThreadServer.start(http_app(handler), timeout_graceful_shutdown=30, timeout_disconnect_grace=None)
    server.client_gone("/")
    first = threading.Thread(target=server.shutdown)
    first.start()
    wait_until(server._stop_asked.is_set, "the first shutdown")
    second = threading.Thread(target=server.shutdown)
    second.start()
    server._loop.call(trio.lowlevel.checkpoint)  # after what the second has asked for
    freed.set()
    for thread in (first, second):
        thread.join(20)
        assert not thread.is_alive()
    assert not server.is_running


async def test_an_answer_after_others():
    """What the server sends before the answer, such as early hints, is not the answer."""

    async def handler(scope, receive, send):
        await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async with open_server(http_app(handler)) as server:
        answer = await server.request()
    assert (answer.status, answer.text) == (200, "hello")


async def test_asyncio_in_a_handler():
    """Who takes asyncio for the loop is told in which one the handler runs."""
    import asyncio

    async def handler(scope, receive, send):
        await asyncio.sleep(1)

    with pytest.raises(RuntimeError, match="no running event loop") as caught:
        async with open_server(http_app(handler)) as server:
            await server.request()
    assert caught.value.__notes__ == [
        "raised in the application by GET / HTTP/1.1; it runs on Trio, so use trio or anyio in it, not asyncio"
    ]


# Threads


def test_the_port_is_bound_before_there_is_a_thread(monkeypatch):
    """Nobody can take the port between its choice and the start."""
    taken = []

    class Thread(threading.Thread):
        def start(self):
            server = self._target.__self__
            with contextlib.closing(socket.socket()) as other, contextlib.suppress(OSError):
                other.bind(server._bound[0].raw_address)
                taken.append("bound")
            taken.append("tried")
            super().start()

    monkeypatch.setattr(thread_server.threading, "Thread", Thread)
    with running(respond()):
        assert taken == ["tried"]


def test_a_thread_that_cannot_start(monkeypatch):
    """What keeps the thread from starting comes out at once, and the port is free again."""
    made = []

    class Thread(threading.Thread):
        def start(self):
            made.append(self._target.__self__)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread_server.threading, "Thread", Thread)
    monkeypatch.setattr(thread_server, "_MARGIN", 1000)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ThreadServer.start(respond())
    with contextlib.closing(socket.socket()) as other:
        other.bind(made[0]._bound[0].raw_address)


def test_a_server_that_never_comes_to_rest_is_looked_at_quickly(monkeypatch):
    """The first look at the records waits for rest, those after it only a moment."""
    monkeypatch.setattr(thread_server, "_QUIET", 0.5)

    async def restless(scope, receive, send):
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        with trio.CancelScope() as scope_of_work:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def work():
                    while True:
                        await trio.lowlevel.checkpoint()

                await receive()
                scope_of_work.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def app(scope, receive, send):
        await (restless if scope["type"] == "lifespan" else respond())(scope, receive, send)

    with running(app) as server:
        assert server._quiet == 0.5
        assert server.requests == []
        assert server._quiet == 0.01
        assert server.requests == []


# The watch


def test_ctrl_c_while_servers_are_stopped(monkeypatch):
    """It is raised once the other servers have been cancelled, too."""
    ended = []

    async def app(scope, receive, send):
        try:
            await plain_lifespan(receive, send)
        finally:
            ended.append(scope["type"])

    watch = Watch(refuse)
    with pytest.raises(KeyboardInterrupt), watch.threads() as serve:
        serve(app)
        second = serve(app)

        def interrupted(grace=None):
            second.abandon()
            raise KeyboardInterrupt

        monkeypatch.setattr(second, "shutdown", interrupted)
    assert watch.is_interrupted
    assert len(ended) == 2
    assert not server_threads()


def test_servers_that_have_ended_are_forgotten():
    """A long run does not collect the servers of all its tests."""
    watch = Watch(refuse)
    with watch.threads() as serve:
        serve(respond())
        assert watch.take_errors() == []
        assert (len(watch._threads), len(watch._witnesses)) == (1, 1)
    assert watch.take_errors() == []
    assert (watch._threads, watch._witnesses) == ([], [])


def test_a_server_that_dies_is_told_of_at_once():
    """A lifespan that ends while serving is an error of the next look, not only of the end of the session."""
    dies = threading.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await trio.to_thread.run_sync(dies.wait)
        raise ValueError("pool lost")

    watch = Watch(refuse)
    with watch.threads() as serve:
        serve(app, allow_errors=True)
        assert watch.take_errors() == []
        dies.set()
        wait_until(lambda: not server_threads(), "the end of the server")
        (failure,) = watch.take_errors()
        assert isinstance(failure, LifespanError)
    assert watch.take_errors() == []


async def test_servers_in_a_loop_stop_in_reverse_order():
    """The first one started is the last to be stopped."""
    ended = []

    def app_named(name):
        async def app(scope, receive, send):
            await plain_lifespan(receive, send)
            ended.append(name)

        return app

    async with Watch(refuse).tasks(open_server) as serve:
        await serve(app_named("first"))
        await serve(app_named("second"))
    assert ended == ["second", "first"]


async def test_a_start_that_is_cancelled_is_stopped_with_the_others():
    """A test may give up waiting for a server: that server is stopped at the end like all."""
    begun, ended = [], []

    async def app(scope, receive, send):
        begun.append(True)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    watch = Watch(refuse)
    async with watch.tasks(open_server) as serve:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, app)
                while not begun:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert not ended
    assert ended
    assert watch.take_errors() == []
