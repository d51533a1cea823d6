"""running(): a server in a thread of its own, for tests that block."""

from __future__ import annotations

import errno
import gc
import http.client
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from types import FrameType

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected

from trioserve import AppLoadError, BindError, CertificateError, ConfigError, LifespanError
from trioserve.testing import (
    FinishedRequest,
    ServerStuckError,
    ThreadServer,
    blocking,
    running,
    thread_server,
    trio_clients,
)
from trioserve.testing import trio_server as trio_server_module
from trioserve.testing.preparation import prepare
from trioserve.types import ASGIApp

from .programs import start, wait_until
from .real.clients import curl_program
from .support import http_app, open_descriptors, plain_lifespan, read_body, respond, send_text

pytestmark = pytest.mark.timeout(40)

PATIENCE = 20.0  # seconds; every wait in here ends by then
HASTE = {"timeout_graceful_shutdown": 0, "timeout_hard_shutdown": 0.1, "timeout_shutdown": 0.1}
LARGE = b"x" * 2_000_000


class Hall:
    """An application with a path for each thing that a test may want of it. ``begun`` is set by what does not end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.blocked = threading.Event()
        self.freed = threading.Event()
        self.ended = threading.Event()
        self.seen: list[object] = []
        self._release = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self._talk(scope, receive, send)
        else:
            await getattr(self, "serve_" + scope["path"].strip("/"))(scope, receive, send)

    async def _talk(self, scope, receive, send):
        """Echo, but for what is to be refused or left open."""
        await receive()
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close"})
            return
        if scope["path"] == "/undecided":
            await trio.sleep_forever()
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        while (message := await receive())["type"] == "websocket.receive":
            self.begun.set()
            await send({**message, "type": "websocket.send"})
        self.seen.append(message["code"])

    async def serve_(self, scope, receive, send):
        await send_text(send, "Hello")

    async def serve_echo(self, scope, receive, send):
        await send_text(send, await read_body(receive))

    async def serve_large(self, scope, receive, send):
        await send_text(send, LARGE)

    async def serve_fail(self, scope, receive, send):
        raise ValueError("wrong")

    async def serve_hold(self, scope, receive, send):
        """Wait for a request to /release."""
        self.begun.set()
        try:
            await self._release.wait()
            await send_text(send, "held")
        finally:
            self.ended.set()

    async def serve_release(self, scope, receive, send):
        self._release.set()
        await send_text(send, "released")

    async def serve_await_disconnect(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        self.begun.set()
        while (message := await receive())["type"] == "http.request":
            self.seen.append(message["body"])
        self.ended.set()

    async def serve_endless(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            self.begun.set()

    async def serve_shield(self, scope, receive, send):
        self.begun.set()
        try:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        finally:
            self.ended.set()

    async def serve_defiant(self, scope, receive, send):
        """Take no notice of cancellations until it is freed."""
        self.begun.set()
        while not self.freed.is_set():
            try:
                await trio.sleep(0.01)
            except trio.Cancelled:
                continue

    async def serve_block(self, scope, receive, send):
        """Keep the whole event loop from running."""
        self.begun.set()
        self.blocked.set()
        self.freed.wait(PATIENCE)

    async def serve_spin(self, scope, receive, send):
        """Always have something to do."""
        self.begun.set()
        while not self.freed.is_set():
            await trio.lowlevel.checkpoint()


@pytest.fixture
def hall() -> Hall:
    return Hall()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Each test ends with the threads and the descriptors that were there before."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        thread.join(1)  # after Ctrl-C nobody has waited for its last steps
    assert [thread for thread in left if thread.is_alive()] == []
    assert open_descriptors() == descriptors


@pytest.fixture
def short_margins(monkeypatch) -> None:
    """What is stuck is found to be so after a moment."""
    monkeypatch.setattr(thread_server, "_MARGIN", 0.4)
    monkeypatch.setattr(trio_server_module, "_TEARDOWN_MARGIN", 0.1)


def ask(server: ThreadServer, path: str = "/", method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own, and the whole answer."""
    client = http.client.HTTPConnection(server.host)
    client.sock = server.connect(PATIENCE)
    with closing(client):
        client.request(method, path, body)
        response = client.getresponse()
        return response.status, response.read()


def begin(server: ThreadServer, path: str) -> socket.socket:
    """Send a request, and do not wait for anything. The server closes the client at its end."""
    client = server.connect(PATIENCE)
    client.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
    return client


class InThread(threading.Thread):
    """A function in a thread of its own; ``result`` waits for what it returns or raises."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            self._error = error

    def result(self) -> object:
        self.join(PATIENCE)
        assert not self.is_alive()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            error = None
        return self._value


@contextmanager
def interrupted_in(function: str, after: threading.Event | None = None) -> Iterator[None]:
    """Expect the Ctrl-C that comes, after an event, once the main thread waits for a lock in a function so named."""
    main = threading.main_thread().ident

    def interrupt() -> None:
        assert after is None or after.wait(PATIENCE)
        wait_until(lambda: waits_in(main, function), f"the wait in {function}")
        signal.pthread_kill(main, signal.SIGINT)

    # Under nohup, or in the background of a shell, Ctrl-C may be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter = InThread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield
        interrupter.result()
    finally:
        signal.signal(signal.SIGINT, before)


def waits_in(thread: int | None, function: str) -> bool:
    stack = traceback.extract_stack(sys._current_frames()[thread])
    starts = any(frame.name == "start" and frame.filename == threading.__file__ for frame in stack)
    waits = stack[-1].filename == threading.__file__ and any(frame.name == function for frame in stack)
    return waits and not starts


def thread_of_server() -> threading.Thread:
    """The thread of a server that nobody has a handle of."""
    return next(thread for thread in threading.enumerate() if thread.name == "trioserve.testing")


def functions_in(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def files_in(error: BaseException) -> set[str]:
    return {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)}


@contextmanager
def module_file(folder: Path, name: str, text: str) -> Iterator[str]:
    """A module to import an application from; forgotten at the end."""
    (folder / f"{name}.py").write_text(text)
    try:
        yield name
    finally:
        sys.modules.pop(name, None)


APP_MODULE = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"imported"})

def create():
    return app
"""


# What it is


def test_server_answers_on_a_port_of_the_systems_choice(hall):
    """Inside the block the server answers on 127.0.0.1, at a port that was free; url and ws_url say where."""
    with running(hall) as server:
        assert isinstance(server, ThreadServer)
        assert server.host == "127.0.0.1"
        assert server.port != 0
        assert server.unix_path is None
        assert server.ca is None
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.ws_url == f"ws://127.0.0.1:{server.port}"
        assert repr(server) == f"<ThreadServer {server.url}>"
        assert httpx.get(server.url + "/", trust_env=False).text == "Hello"


def test_server_has_ended_after_the_block(hall):
    """After the block nobody listens, and the thread has ended; what has happened can still be asked for."""
    with running(hall) as server:
        ask(server, "/echo", "POST", b"abc")
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    assert [request.path for request in server.requests] == ["/echo"]
    assert (server.websockets, server.errors, server.active) == ([], [], 0)
    server.wait_idle()
    server.shutdown()
    assert server.url.startswith("http://127.0.0.1:")


def test_calls_after_the_end_say_that_the_server_has_ended(hall):
    """What needs the server's loop raises RuntimeError once that has ended, at once."""
    with running(hall) as server:
        pass
    with pytest.raises(RuntimeError, match="the server has ended"):
        server.drop_connections()
    with pytest.raises(RuntimeError, match="the server has ended"):
        server.client_gone("/")
    with pytest.raises(RuntimeError, match="the server has ended"), server.websocket("/"):
        pass
    with pytest.raises(RuntimeError, match="the server has ended"), server.stall("/"):
        pass
    with pytest.raises(RuntimeError, match="the server has ended"), server.slow("/", 1):
        pass


def test_state_is_what_the_lifespan_left():
    """server.state has what the application put there at its start."""

    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        scope["state"]["answer"] = 42
        await plain_lifespan(receive, send)

    with running(app) as server:
        assert server.state == {"answer": 42}
        assert server.server.state is server.state


def test_lifespan_runs_round_the_block():
    """The application has started before the block, and has shut down after it, all in one other thread."""
    seen = []

    async def app(scope, receive, send):
        for kind in ("startup", "shutdown"):
            seen.append((await receive())["type"])
            await send({"type": f"lifespan.{kind}.complete"})
        seen.append(threading.current_thread())

    with running(app):
        assert seen == ["lifespan.startup"]
    assert seen[:2] == ["lifespan.startup", "lifespan.shutdown"]
    assert seen[2] is not threading.current_thread()


def test_several_servers_run_at_once(hall):
    """Servers do not know of each other: each has its port, its application and its records."""
    with running(hall) as one, running(respond(b"two")) as two, running(hall) as three:
        assert len({one.port, two.port, three.port}) == 3
        assert ask(one)[1] == b"Hello"
        assert ask(two)[1] == b"two"
        three.shutdown()
        assert ask(one)[1] == b"Hello"
        assert [len(server.requests) for server in (one, two, three)] == [2, 1, 0]


def test_running_decorates_a_function():
    """As each context manager made of a generator, running() decorates functions, with a new server per call."""
    seen = []

    @running(respond())
    def test() -> None:
        seen.append(thread_of_server())

    test()
    test()
    assert len(set(seen)) == 2


async def test_server_runs_beside_an_event_loop(hall):
    """In an async test the server does not need the test's loop, which may call it as any other server."""
    with running(hall) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(server.url + "/")).text == "Hello"
        assert len(server.requests) == 1


def test_nothing_global_is_touched(hall, monkeypatch):
    """Signals, logging, environment, folder, import path, warnings and hooks stay as they are, during and after."""
    hooks = ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr", "stdin")

    def snapshot() -> list[object]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        mask = os.umask(0)
        os.umask(mask)
        loggers = [logging.getLogger(name) for name in (None, "trioserve", "trioserve.error", "trioserve.access")]
        return [
            {number: signal.getsignal(number) for number in signal.valid_signals()},
            wakeup,
            mask,
            [(one.level, list(one.handlers), list(one.filters), one.propagate, one.disabled) for one in loggers],
            logging.root.manager.disable,
            dict(os.environ),
            os.getcwd(),
            list(sys.path),
            list(sys.meta_path),
            list(warnings.filters),
            threading.excepthook,
            [getattr(sys, name) for name in hooks],
            sys.get_asyncgen_hooks(),
            sys.gettrace(),
            socket.getdefaulttimeout(),
            gc.get_threshold(),
        ]

    before = snapshot()
    with running(hall, allow_errors=True, tls=True) as server:
        assert ask(server, "/fail")[0] == 500
        with server.websocket("/") as websocket:
            websocket.send_message("during")
            assert snapshot() == before
    assert snapshot() == before


# Where it listens


def test_unix_socket(hall, tmp_path):
    """With uds the server listens there: unix_path says where, the port is 0, and every client goes that way."""
    path = tmp_path / "s"
    with running(hall, uds=str(path)) as server:
        assert (server.unix_path, server.port, server.host) == (str(path), 0, "localhost")
        assert (server.url, server.ws_url) == ("http://localhost", "ws://localhost")
        assert ask(server) == (200, b"Hello")
        with server.websocket("/") as websocket:
            websocket.send_message("over a file")
            assert websocket.get_message() == "over a file"
        server.client_gone("/await_disconnect")
        assert hall.ended.wait(PATIENCE)
        transport = httpx.HTTPTransport(uds=server.unix_path)
        with httpx.Client(transport=transport, trust_env=False) as client:
            assert client.get(server.url + "/").text == "Hello"
    assert not path.exists()


def test_unix_socket_with_tls(hall, tmp_path):
    """TLS goes over a unix socket as well, with a certificate for localhost."""
    with running(hall, uds=str(tmp_path / "s"), tls=True) as server:
        assert (server.url, server.ws_url) == ("https://localhost", "wss://localhost")
        assert ask(server) == (200, b"Hello")
        with server.slow("/", 1e6) as slow:
            assert slow.wait().endswith(b"Hello")


def test_unix_socket_that_is_gone_leaves_no_socket_open(hall, tmp_path):
    """A connection to a server that has ended is refused, and leaves nothing to warn of."""
    with running(hall, uds=str(tmp_path / "s")) as server:
        pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(FileNotFoundError):
            server.connect()
        gc.collect()
    assert [str(one.message) for one in caught] == []


def test_ipv6(hall):
    """An IPv6 address stands in brackets in URLs; every client reaches it."""
    with running(hall, host="::1") as server:
        assert (server.host, server.url) == ("::1", f"http://[::1]:{server.port}")
        assert ask(server) == (200, b"Hello")
        assert httpx.get(server.url + "/", trust_env=False).text == "Hello"
        server.client_gone("/await_disconnect")
        assert hall.ended.wait(PATIENCE)


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_all_interfaces_are_reached_by_the_loopback(hall, host, reached):
    """A server on all interfaces is told as one of the loopback, and its certificate is good there."""
    with running(hall, host=host, tls=True) as server:
        assert server.host == reached
        assert ask(server) == (200, b"Hello")
        server.client_gone("/await_disconnect")
        assert hall.ended.wait(PATIENCE)


def test_host_name_is_resolved(hall):
    """With a name as host, the server says the address that it got."""
    with running(hall, host="localhost", tls=True) as server:
        assert server.host in ("127.0.0.1", "::1")
        assert ask(server) == (200, b"Hello")


def test_first_of_several_addresses_is_the_servers_own(hall, tmp_path):
    """With several binds, url is that of the first."""
    with running(hall, bind=["127.0.0.1:0", f"unix:{tmp_path / 's'}"]) as server:
        assert server.unix_path is None
        assert ask(server) == (200, b"Hello")
        assert server.server.urls[1].startswith("unix:")


def test_port_may_be_chosen(hall):
    """A port that is asked for is used; once the server has ended it may be used again."""
    with running(hall) as server:
        port = server.port
    with running(hall, port=port) as server:
        assert server.port == port
        assert ask(server) == (200, b"Hello")


# TLS


def test_tls_is_trusted_by_whoever_loads_the_bundle(hall):
    """With tls=True Python's ssl, httpx and curl verify the server by its authority, at the address and by name."""
    with running(hall, tls=True) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        assert server.ws_url == f"wss://127.0.0.1:{server.port}"
        assert server.ca is not None
        context = ssl.create_default_context(cafile=server.ca.bundle)
        for name in ("127.0.0.1", "localhost"):
            with (
                socket.create_connection((server.host, server.port)) as plain,
                context.wrap_socket(plain, server_hostname=name) as secured,
            ):
                assert secured.version() == "TLSv1.3"
        for trusting in (context, server.ca.client_context()):
            assert httpx.get(server.url + "/", verify=trusting, trust_env=False).text == "Hello"
        answer = curl_program("--cacert", server.ca.bundle, server.url + "/")
        assert (answer.code, answer.body) == (0, b"Hello")


def test_tls_is_not_trusted_by_others(hall):
    """Without the authority the certificate is refused, and each server has an authority of its own."""
    with running(hall, tls=True) as server, running(hall, tls=True) as other:
        for context in (ssl.create_default_context(), other.ca.client_context()):
            with (
                socket.create_connection((server.host, server.port)) as plain,
                pytest.raises(ssl.SSLCertVerificationError),
            ):
                context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_tls_of_the_servers_own_clients(hall):
    """connect(), websocket(), client_gone(), stall() and slow() speak TLS by themselves."""
    with running(hall, tls=True) as server:
        connected = server.connect()
        assert isinstance(connected, ssl.SSLSocket)
        assert connected.getpeercert() is not None
        with server.websocket("/") as websocket:
            websocket.send_message(b"secret")
            assert websocket.get_message() == b"secret"
        with server.slow("/", 1e6) as slow:
            assert slow.wait().endswith(b"Hello")
        with server.stall("/hold"):
            assert server.active == 1
            ask(server, "/release")
        server.client_gone("/await_disconnect", after=1000)
        assert hall.ended.wait(PATIENCE)


def test_certificates_are_gone_after_the_end(hall):
    """The files of the authority lie in a folder of their own, which ends with the server."""
    with running(hall, tls=True) as server:
        bundle = Path(server.ca.bundle)
        assert sorted(path.name for path in bundle.parent.iterdir()) == ["ca.pem", "server.pem"]
    assert not bundle.parent.exists()


def test_certificates_of_ones_own(hall, tmp_path):
    """With ssl_certfile there is no authority, and the server's clients trust what they get."""
    with running(hall, tls=True) as server:
        own = tmp_path / "own.pem"
        own.write_bytes((Path(server.ca.bundle).parent / "server.pem").read_bytes())
    with running(hall, ssl_certfile=str(own)) as server:
        assert server.ca is None
        assert server.url.startswith("https://")
        assert ask(server) == (200, b"Hello")
        server.client_gone("/await_disconnect")
        assert hall.ended.wait(PATIENCE)


def test_certificate_is_good_at_each_bind(hall):
    """The certificate of tls=True names every address that is listened on, not only host."""
    with running(hall, tls=True, bind=["127.0.0.2:0"]) as server:
        assert ask(server) == (200, b"Hello")


def test_tls_with_a_certificate_is_contradictory(hall):
    """tls=True makes a certificate, so another one beside it is a ConfigError, and nothing is left."""
    with pytest.raises(ConfigError, match="tls=True makes a certificate"), running(hall, tls=True, ssl_certfile="a"):
        pytest.fail("it started")


def test_tls_needs_trustme(hall, monkeypatch):
    """Without trustme tls=True is a ConfigError that says what to install."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    monkeypatch.delitem(sys.modules, "trioserve.testing.authority", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'trioserve\[testing\]'"), running(hall, tls=True):
        pytest.fail("it started")


# How the application is named


def test_application_is_imported_by_name(tmp_path, monkeypatch):
    """Text is module:attribute, looked for in the current folder first; sys.path is as before at once."""
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with module_file(tmp_path, "named_here", APP_MODULE), running("named_here:app") as server:
        assert sys.path == before
        assert ask(server) == (200, b"imported")


def test_application_is_imported_from_app_dir(tmp_path):
    """app_dir is where the module is looked for; sys.path is as before at once."""
    before = list(sys.path)
    with (
        module_file(tmp_path, "named_there", APP_MODULE),
        running("named_there:app", app_dir=str(tmp_path)) as server,
    ):
        assert sys.path == before
        assert ask(server) == (200, b"imported")


def test_app_dir_that_was_in_the_path_stays_where_it_was(tmp_path, monkeypatch):
    """A folder that is in sys.path already stays there, in its place."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for position in (0, 3):
        path = [one for one in sys.path if one != str(tmp_path)]
        path.insert(position, str(tmp_path))
        monkeypatch.setattr(sys, "path", list(path))
        with module_file(tmp_path, "in_path", APP_MODULE), running("in_path:app", app_dir=str(tmp_path)):
            assert sys.path == path


def test_what_the_application_adds_to_the_path_stays(tmp_path, monkeypatch):
    """Only the folder put in front for the import is taken out again, not what the application puts there."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = f"import sys\nsys.path.insert(0, {str(tmp_path / 'more')!r})\n{APP_MODULE}"
    before = list(sys.path)
    with module_file(tmp_path, "adding", text), running("adding:app", app_dir=str(tmp_path)):
        assert sys.path == [str(tmp_path / "more"), *before]


@pytest.mark.parametrize("by_name", [True, False])
def test_factory_makes_the_application(tmp_path, by_name):
    """With factory=True, a name or a function is called for the application."""
    with module_file(tmp_path, "with_factory", APP_MODULE):
        target = "with_factory:create" if by_name else lambda: respond(b"imported")
        with running(target, factory=True, app_dir=str(tmp_path)) as server:
            assert ask(server) == (200, b"imported")


def test_import_that_fails_shows_the_applications_own_trace(tmp_path):
    """A module that raises is an AppLoadError whose cause begins in that module, and which has no server's frame."""
    before = list(sys.path)
    with (
        module_file(tmp_path, "raising", "def fail():\n    raise ValueError('at import')\nfail()\n"),
        pytest.raises(AppLoadError, match="importing it raised ValueError: at import") as caught,
        running("raising:app", app_dir=str(tmp_path)),
    ):
        pytest.fail("it started")
    assert sys.path == before
    assert isinstance(caught.value.__cause__, ValueError)
    assert functions_in(caught.value.__cause__) == ["<module>", "fail"]
    assert files_in(caught.value).isdisjoint({"loader.py", "server.py"})


@pytest.mark.parametrize("name", ["no_such_module:app", "tests.support:no_such_attribute", "tests/support.py"])
def test_name_that_leads_nowhere(name):
    """What cannot be found is an AppLoadError, raised where the server was to start."""
    with pytest.raises(AppLoadError), running(name):
        pytest.fail("it started")


def test_what_is_no_application():
    """What cannot be called as an application is an AppLoadError before anything is bound."""
    with pytest.raises(AppLoadError, match="cannot be called with"), running(lambda: None):
        pytest.fail("it started")


def test_current_folder_does_not_matter_to_an_application_at_hand(hall, tmp_path, monkeypatch):
    """An application that need not be imported is served even where the current folder has been removed."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with running(hall) as server:
        assert ask(server) == (200, b"Hello")


def test_import_from_a_folder_that_is_gone(tmp_path, monkeypatch):
    """A name cannot be looked for in a current folder that was removed: an AppLoadError."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(AppLoadError, match="current folder"), running("some:app"):
        pytest.fail("it started")


# What keeps it from starting


def test_start_up_that_fails_is_raised_with_its_cause():
    """A lifespan that raises is a LifespanError at the with statement; its cause begins with the application."""

    async def app(scope, receive, send):
        await receive()
        raise ValueError("no database")

    with pytest.raises(LifespanError, match="ValueError: no database") as caught, running(app):
        pytest.fail("it started")
    assert isinstance(caught.value.__cause__, ValueError)
    assert functions_in(caught.value.__cause__) == ["app"]
    assert files_in(caught.value).isdisjoint({"server.py", "lifespan.py", "trio_server.py"})


def test_start_up_that_is_refused():
    """lifespan.startup.failed is a LifespanError with the application's words."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "not today"})

    with pytest.raises(LifespanError, match="not today"), running(app):
        pytest.fail("it started")


def test_start_up_has_a_deadline():
    """A lifespan that only waits is a LifespanError after timeout_startup."""

    async def app(scope, receive, send):
        await trio.sleep_forever()

    with pytest.raises(LifespanError, match=r"did not start within 0\.05 s"), running(app, timeout_startup=0.05):
        pytest.fail("it started")


def test_factory_that_fails():
    """A factory that raises is an AppLoadError with that as its cause, whose trace begins with the factory."""

    def create():
        raise ValueError("no settings")

    with pytest.raises(AppLoadError, match="ValueError: no settings") as caught, running(create, factory=True):
        pytest.fail("it started")
    assert functions_in(caught.value.__cause__) == ["create"]


def test_address_that_is_taken(hall):
    """A port that is taken is a BindError at the with statement, and the application is not even started."""
    started = []

    async def app(scope, receive, send):
        started.append(scope)

    with running(hall) as server, pytest.raises(BindError) as caught, running(app, port=server.port):
        pytest.fail("it started")
    assert caught.value.errno == errno.EADDRINUSE
    assert started == []


def test_second_address_that_is_taken(hall):
    """A BindError at a later address closes the earlier ones."""
    with running(hall) as server:
        binds = ["127.0.0.1:0", f"127.0.0.1:{server.port}"]
        with pytest.raises(BindError), running(hall, bind=binds):
            pytest.fail("it started")


def test_unix_path_that_is_taken(hall, tmp_path):
    """Two servers cannot have the same path; the first keeps it."""
    path = str(tmp_path / "s")
    with running(hall, uds=path) as server:
        with pytest.raises(BindError), running(hall, uds=path):
            pytest.fail("it started")
        assert ask(server) == (200, b"Hello")


def test_host_that_is_unknown(hall):
    """A host that has no address here is a BindError."""
    with pytest.raises(BindError), running(hall, host="192.0.2.1"):
        pytest.fail("it started")


def test_certificate_that_is_missing(hall, tmp_path):
    """A certificate that cannot be read is a CertificateError, and the address is free again."""
    with pytest.raises(CertificateError, match="no such file"), running(hall, ssl_certfile=str(tmp_path / "none.pem")):
        pytest.fail("it started")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 2}, "workers=2 is for the command line"),
        ({"reload": True}, "reload is for the command line"),
        ({"prot": 1}, "there is no option 'prot'; did you mean 'port'"),
        ({"port": "many"}, "port"),
        ({"timeout_startup": -1}, "timeout_startup"),
    ],
)
def test_options_that_cannot_be(hall, options, words):
    """An option that does not exist, is wrong, or would need processes is a ConfigError."""
    with pytest.raises(ConfigError, match=words), running(hall, **options):
        pytest.fail("it started")


def test_start_up_that_blocks_the_loop(monkeypatch):
    """An event loop that is blocked while starting is a ServerStuckError that shows where; the thread then ends."""
    monkeypatch.setattr(thread_server, "_MARGIN", 0.2)
    freed = threading.Event()

    async def app(scope, receive, send):
        await receive()
        block_here(freed)
        await send({"type": "lifespan.startup.complete"})

    try:
        with pytest.raises(ServerStuckError) as caught, running(app, timeout_startup=0.1):
            pytest.fail("it started")
        assert "the server has not started, as its event loop is blocked, after" in str(caught.value)
        assert "trioserve lifespan" in str(caught.value)
        assert "in block_here: freed.wait(" in str(caught.value)
    finally:
        freed.set()
        thread_of_server().join(PATIENCE)


def block_here(freed: threading.Event) -> None:
    freed.wait(PATIENCE)


def test_start_up_that_shields_itself(short_margins):
    """A lifespan that puts up a shield while starting is stuck as well; the thread ends nevertheless."""

    async def app(scope, receive, send):
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    with (
        pytest.raises(ServerStuckError, match="has not started, and cannot be stopped, after 0.3 s"),
        running(app, **HASTE, timeout_startup=0.1),
    ):
        pytest.fail("it started")


def test_ctrl_c_while_starting_ends_the_server():
    """Ctrl-C does not wait for the start: it is raised once the server has given up."""
    starting = threading.Event()

    async def app(scope, receive, send):
        await receive()
        starting.set()
        await trio.sleep_forever()

    with interrupted_in("_start", after=starting), running(app):
        pytest.fail("it started")


def test_ctrl_c_before_the_loop_is_there(monkeypatch):
    """Ctrl-C before the server's thread has an event loop keeps it from starting the application."""
    monkeypatch.setattr(thread_server, "_MARGIN", 0.1)
    freed, called = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        called.set()
        await trio.sleep_forever()

    def hold_up(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is ThreadServer._main.__code__:
            freed.wait(PATIENCE)

    threading.setprofile(hold_up)
    try:
        with interrupted_in("_start"), running(app, timeout_startup=0.5):
            pytest.fail("it started")
    finally:
        threading.setprofile(None)
        thread = thread_of_server()
        freed.set()
        thread.join(PATIENCE)
    assert not called.is_set()


def test_ctrl_c_while_the_start_blocks(monkeypatch):
    """Ctrl-C does not wait for a loop that is blocked, but for a moment."""
    monkeypatch.setattr(thread_server, "_MARGIN", 0.1)
    starting, freed = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        starting.set()
        freed.wait(PATIENCE)

    try:
        with interrupted_in("_start", after=starting), running(app):
            pytest.fail("it started")
    finally:
        freed.set()
        thread_of_server().join(PATIENCE)


# What has happened


def test_records_tell_what_clients_did(hall):
    """Each request has a record of its method, path, query, status and sizes, in the order in which they ended."""
    with running(hall) as server:
        ask(server, "/echo?a=%20b", "POST", b"abc")
        ask(server)
        first, second = server.requests
        assert isinstance(first, FinishedRequest)
        assert (first.method, first.path, first.query, first.status) == ("POST", "/echo", "a=%20b", 200)
        assert (first.bytes, first.received, first.outcome) == (3, 3, "ok")
        assert first.client.startswith("127.0.0.1:")
        assert first.duration >= 0
        assert (second.method, second.path, second.query, second.bytes) == ("GET", "/", "", 5)
        server.requests.clear()
        ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/large", 200), ("/fail", 500), ("/echo", 200)])
def test_record_is_there_once_the_client_has_its_answer(hall, path, status, tls):
    """A client that has its whole answer finds its request on record, at once and every time."""
    body = LARGE[:100_000] if path == "/echo" else None
    with running(hall, allow_errors=True, tls=tls) as server:
        for count in range(1, 41):
            assert ask(server, path, "POST", body)[0] == status
            assert len(server.requests) == count
        assert len(server.errors) == (40 if path == "/fail" else 0)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("path", ["/", "/large"])
def test_record_is_there_for_each_request_of_a_connection(hall, path, tls):
    """The same holds on a connection that stays open."""
    with running(hall, tls=tls) as server:
        client = http.client.HTTPConnection(server.host)
        client.sock = server.connect(PATIENCE)
        for count in range(1, 201):
            client.request("GET", path)
            assert len(client.getresponse().read()) == (5 if path == "/" else len(LARGE))
            assert len(server.requests) == count


def test_record_is_there_for_each_of_many_clients(hall):
    """The same holds for each of several clients at once."""

    def many() -> None:
        for _ in range(50):
            before = len(server.requests)
            ask(server)
            assert len(server.requests) > before

    with running(hall) as server:
        for thread in [InThread(many) for _ in range(4)]:
            thread.result()
        assert len(server.requests) == 200


def test_websocket_has_a_record_too(hall):
    """A closed WebSocket is among websockets, and its handshake among requests with status 101, once it has closed."""
    with running(hall) as server:
        for count in range(1, 51):
            with server.websocket("/?a") as websocket:
                websocket.send_message("one")
                websocket.get_message()
            assert len(server.websockets) == count
        assert {request.status for request in server.requests} == {101}
        record = server.websockets[0]
        assert (record.target, record.code, record.received_messages, record.sent_messages) == ("/?a", 1000, 1, 1)


def test_active_counts_handlers(hall):
    """active is the number of handlers that run; wait_idle waits for their end."""
    with running(hall) as server:
        assert server.active == 0
        waiting = InThread(lambda: ask(server, "/hold"))
        assert hall.begun.wait(PATIENCE)
        assert server.active == 1
        idle = InThread(server.wait_idle)
        assert ask(server, "/release")[0] == 200
        assert waiting.result() == (200, b"held")
        idle.result()
        assert server.active == 0


def test_wait_idle_names_those_that_run(hall):
    """wait_idle raises TimeoutError, which names what still runs."""
    with (
        running(hall, **HASTE) as server,
        server.stall("/hold?a"),
        pytest.raises(TimeoutError, match=r"still running after 0.05 s: GET /hold\?a HTTP/1.1"),
    ):
        server.wait_idle(0.05)


def test_wait_idle_of_a_blocked_loop(hall, monkeypatch):
    """A loop that does not even answer is a ServerStuckError that shows what it does."""
    monkeypatch.setattr(thread_server, "PATIENCE", 0.1)
    with running(hall, allow_errors=True) as server:
        begin(server, "/block")
        try:
            assert hall.begun.wait(PATIENCE)
            with pytest.raises(ServerStuckError, match=r"serve_block: self\.freed\.wait"):
                server.wait_idle(0.1)
        finally:
            hall.freed.set()


@pytest.mark.parametrize("path", ["/spin", "/block"])
def test_look_at_a_busy_server_does_not_wait_for_ever(hall, monkeypatch, path):
    """A server that never comes to rest is looked at nevertheless, after a moment."""
    monkeypatch.setattr(thread_server, "_QUIET", 0.1)
    with running(hall, allow_errors=True) as server:
        ask(server)
        begin(server, path)
        try:
            assert hall.begun.wait(PATIENCE)
            assert len(server.requests) == 1
            assert server.errors == []
            assert server.active == 1
        finally:
            hall.freed.set()


def test_calls_from_the_servers_own_thread(hall):
    """An application may look at what has happened; what would wait for its own thread is refused."""
    refused = []

    async def handler(scope, receive, send):
        await send_text(send, f"{len(server.requests)} {server.active} {server.errors}")
        for call in (server.wait_idle, server.shutdown, server.drop_connections, lambda: server.client_gone("/")):
            with pytest.raises(RuntimeError, match="own thread|own end") as caught:
                call()
            refused.append(caught.value)
        with pytest.raises(RuntimeError, match="own thread"), server.stall("/"):
            pass
        with pytest.raises(RuntimeError, match="own thread"), server.websocket("/"):
            pass

    with running(http_app(handler)) as server:
        assert ask(server) == (200, b"0 1 []")
    assert len(refused) == 4


def test_calls_from_another_thread(hall):
    """A server may be used, and stopped, in another thread than that which has started it."""
    with running(hall) as server:
        assert InThread(lambda: ask(server)).result() == (200, b"Hello")
        InThread(server.shutdown).result()
        assert len(server.requests) == 1


# Errors of the application


def test_error_in_the_application_is_raised_at_the_end(hall):
    """What a handler raises is raised after the block: the same error, its trace cut to the application."""
    with pytest.raises(ValueError, match="wrong") as caught, running(hall) as server:
        assert ask(server, "/fail")[0] == 500
    assert caught.value is server.errors[0]
    assert caught.value.__notes__ == ["raised in the application by GET /fail HTTP/1.1"]
    assert functions_in(caught.value)[-2:] == ["__call__", "serve_fail"]
    assert files_in(caught.value).isdisjoint({"handle.py", "http11.py"})


def test_response_that_is_missing_is_an_error():
    """A handler that returns without a response has broken ASGI, which fails the test as well."""

    async def handler(scope, receive, send):
        pass

    with pytest.raises(RuntimeError, match="returned without a response"), running(http_app(handler)) as server:
        assert ask(server)[0] == 500


def test_errors_may_be_allowed(hall):
    """With allow_errors nothing is raised at the end; the errors are still on record."""
    with running(hall, allow_errors=True) as server:
        ask(server, "/fail")
    assert [str(error) for error in server.errors] == ["wrong"]


def test_error_that_is_taken_out_was_expected(hall):
    """An error that the test takes out of errors is not raised; one that it only looks at is."""
    with running(hall) as server:
        ask(server, "/fail")
        assert isinstance(server.errors.pop(), ValueError)
    with pytest.raises(ValueError, match="wrong"), running(hall) as server:
        ask(server, "/fail")
        assert isinstance(server.errors[0], ValueError)


def test_several_errors_come_as_a_group(hall):
    """Several errors are raised together."""
    with pytest.raises(ExceptionGroup, match="2 errors in the application") as caught, running(hall) as server:
        ask(server, "/fail")
        ask(server, "/fail?again")
    assert [type(error) for error in caught.value.exceptions] == [ValueError, ValueError]
    assert list(caught.value.exceptions) == server.errors


def test_failing_block_is_raised_with_the_applications_error_as_a_note(hall):
    """If the block raises, that is raised, and a note tells what the application raised."""
    with pytest.raises(AssertionError, match="no answer") as caught, running(hall) as server:
        assert ask(server, "/fail")[0] == 200, "no answer"
    (note,) = caught.value.__notes__
    assert note.endswith("ValueError: wrong\nraised in the application by GET /fail HTTP/1.1")
    assert "serve_fail" in note


def test_failing_block_has_notes_even_where_errors_are_allowed(hall):
    """The note is a help, not a verdict: allow_errors does not keep it away."""
    with pytest.raises(ZeroDivisionError) as caught, running(hall, allow_errors=True) as server:
        ask(server, "/fail")
        ask(server, "/fail")
        raise ZeroDivisionError
    assert len(caught.value.__notes__) == 2


def test_test_that_is_failed_has_the_note_too(hall):
    """pytest.fail() raises what is no Exception; the note comes nevertheless."""
    with pytest.raises(pytest.fail.Exception) as caught, running(hall) as server:
        ask(server, "/fail")
        pytest.fail("no answer")
    assert any("ValueError: wrong" in note for note in getattr(caught.value, "__notes__", ()))


def test_error_that_takes_no_note():
    """An error that cannot be changed, as that of a frozen dataclass, is reported, and answered with 500."""

    class FrozenError(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(f"cannot assign to {name}")

    async def handler(scope, receive, send):
        raise FrozenError("as dataclass(frozen=True) does")

    with running(http_app(handler), allow_errors=True) as server:
        assert ask(server)[0] == 500
        assert [type(error) for error in server.errors] == [FrozenError]


def test_error_that_is_raised_twice_is_told_once():
    """An application that raises one and the same object for two requests has one error."""
    error = ValueError("the only one")

    async def handler(scope, receive, send):
        raise error

    with pytest.raises(ValueError, match="the only one"), running(http_app(handler)) as server:
        ask(server)
        ask(server)


def test_end_of_a_client_is_no_error(hall):
    """A client that leaves while its response is sent is no error of the application."""
    with running(hall) as server:
        server.client_gone("/endless", after=1)
        server.wait_idle()
        assert [request.outcome for request in server.requests] == ["client left"]


def test_shutdown_that_fails_is_raised_at_the_end():
    """A lifespan that raises while it shuts down is a LifespanError after the block, with its cause."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError("cannot close")

    with pytest.raises(LifespanError, match="raised during shutdown: ValueError: cannot close") as caught, running(app):
        pass
    assert functions_in(caught.value.__cause__) == ["app"]
    assert files_in(caught.value).isdisjoint({"server.py", "trio_server.py"})


def test_shutdown_that_fails_is_raised_by_the_call():
    """shutdown() raises what keeps the application from shutting down, once."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "cannot close"})

    with running(app) as server:
        with pytest.raises(LifespanError, match="could not shut down: cannot close"):
            server.shutdown()
        server.shutdown()


def test_shutdown_that_fails_is_told_together_with_errors_of_requests():
    """A LifespanError at the end has notes of what requests raised."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            raise ZeroDivisionError
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError

    with pytest.raises(LifespanError) as caught, running(app) as server:
        ask(server)
    assert "ZeroDivisionError" in "".join(caught.value.__notes__)


def collapsing_app() -> ASGIApp:
    """A lifespan that raises while serving, once a request has come."""
    called = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            called.set()
            await send_text(send, "last words")
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await called.wait()
        raise ValueError("background task failed")

    return app


def test_lifespan_that_ends_while_serving_is_raised_at_the_end():
    """A lifespan that raises while serving stops the server; the LifespanError comes after the block."""
    with (
        pytest.raises(LifespanError, match="while serving: ValueError: background task failed") as caught,
        running(collapsing_app()) as server,
    ):
        ask(server)
        wait_until(lambda: not server._thread.is_alive(), "the end of the thread")
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        with pytest.raises(RuntimeError, match="the server has ended"):
            server.drop_connections()
    assert functions_in(caught.value.__cause__) == ["app"]


def test_lifespan_that_ends_while_serving_explains_a_failing_block():
    """If the block fails because the server has ended, a note says why that is."""
    with pytest.raises(ConnectionRefusedError) as caught, running(collapsing_app()) as server:
        ask(server)
        wait_until(lambda: not server._thread.is_alive(), "the end of the thread")
        server.connect()
    assert "background task failed" in "".join(getattr(caught.value, "__notes__", ()))


# Its end


def test_shutdown_lets_requests_finish(hall):
    """shutdown() waits for running requests, refuses new ones, and returns once the server has ended."""
    with running(hall, timeout_graceful_shutdown=PATIENCE) as server:
        release = server.connect()
        waiting = InThread(lambda: ask(server, "/hold"))
        assert hall.begun.wait(PATIENCE)
        release.sendall(b"GET /release HTTP/1.1\r\nHost: a\r\n")  # not complete, so it is a request on its way
        stopping = InThread(server.shutdown)
        wait_until(lambda: not is_listening(server), "the end of listening")
        assert stopping.is_alive()
        release.sendall(b"\r\n")
        assert waiting.result() == (200, b"held")
        stopping.result()
        assert {request.outcome for request in server.requests} == {"ok"}


def is_listening(server: ThreadServer) -> bool:
    try:
        socket.create_connection((server.host, server.port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_grace_cuts_requests_short(hall):
    """shutdown(grace=0) cancels what runs; its client gets no answer, and the record says shutdown."""
    with running(hall, timeout_graceful_shutdown=1000) as server:
        waiting = InThread(lambda: ask(server, "/hold"))
        assert hall.begun.wait(PATIENCE)
        server.shutdown(grace=0)
        assert hall.ended.is_set()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            waiting.result()
        assert [request.outcome for request in server.requests] == ["shutdown"]


def test_failing_block_does_not_wait_for_requests(hall):
    """If the block raises, running requests are cancelled at once."""
    with pytest.raises(ZeroDivisionError), running(hall, timeout_graceful_shutdown=1000) as server:
        waiting = InThread(lambda: ask(server, "/hold"))
        assert hall.begun.wait(PATIENCE)
        raise ZeroDivisionError
    assert hall.ended.is_set()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        waiting.result()


def test_second_shutdown_may_be_more_hasty(hall, short_margins):
    """A shutdown in another thread that takes its time is cut short by one with less grace."""
    with running(hall, timeout_hard_shutdown=0.1, timeout_shutdown=0.1) as server:
        waiting = InThread(lambda: ask(server, "/hold"))
        assert hall.begun.wait(PATIENCE)
        stopping = InThread(lambda: server.shutdown(grace=1000))
        wait_until(lambda: not is_listening(server), "the end of listening")
        server.shutdown(grace=0)
        stopping.result()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            waiting.result()


@pytest.mark.parametrize("option", ["timeout_startup", "timeout_graceful_shutdown", "timeout_shutdown"])
def test_deadline_may_be_infinite(hall, option):
    """Config takes infinite deadlines, and so does the wait for a start or an end."""
    with running(hall, **{option: inf}) as server:
        assert ask(server) == (200, b"Hello")


def test_patience_may_be_infinite(hall):
    """Where a test gives a time-out it may give an infinite one, as in Trio."""
    with running(hall) as server, server.websocket("/") as websocket, server.slow("/", 1e6) as slow:
        websocket.send_message("a")
        assert websocket.get_message(timeout=inf) == "a"
        websocket.close(timeout=inf)
        slow.wait(timeout=inf)
        server.wait_idle(timeout=inf)
        server.shutdown(grace=inf)


def test_shutdown_closes_what_connect_has_opened(hall):
    """Connections that the test did not close are closed with the server."""
    with running(hall) as server:
        opened = server.connect()
        assert opened.fileno() != -1
    assert opened.fileno() == -1


def test_shielded_handler_is_stuck_and_ended_nevertheless(hall, short_margins):
    """A handler that shields itself for ever is a ServerStuckError that shows where it waits; it is then ended."""
    with (
        pytest.raises(ServerStuckError, match="the server has not ended") as caught,
        running(hall, **HASTE) as server,
        server.stall("/shield"),
    ):
        pass
    assert "in Hall.serve_shield" in str(caught.value)
    assert hall.ended.is_set()


def test_shielded_handler_of_a_failing_block_is_told_as_a_note(hall, short_margins):
    """If the block raises, that the server was stuck is a note."""
    with pytest.raises(ZeroDivisionError) as caught, running(hall, **HASTE) as server, server.stall("/shield"):
        raise ZeroDivisionError
    assert hall.ended.is_set()
    assert "in Hall.serve_shield" in "".join(getattr(caught.value, "__notes__", ()))


def test_shielded_lifespan_is_stuck_and_ended_nevertheless(short_margins):
    """The same holds for a lifespan that shields itself at its end."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    with pytest.raises(ServerStuckError, match="has not ended"), running(app, **HASTE):
        pass


def test_defiant_handler_is_stuck(hall, short_margins):
    """A handler that swallows each cancellation cannot be ended; the test is told, and goes on."""
    with (
        pytest.raises(ServerStuckError, match="thread has not ended") as caught,
        running(hall, **HASTE) as server,
        server.stall("/defiant"),
    ):
        pass
    assert "serve_defiant" in str(caught.value)
    hall.freed.set()
    server._thread.join(PATIENCE)


def test_blocked_loop_is_stuck_at_the_end(hall, short_margins):
    """A blocked event loop is a ServerStuckError whose text has the line; once it runs on, the thread ends."""
    with running(hall, **HASTE, allow_errors=True) as server:
        begin(server, "/block")
        assert hall.begun.wait(PATIENCE)
        try:
            with pytest.raises(ServerStuckError, match="thread has not ended") as caught:
                server.shutdown()
        finally:
            hall.freed.set()
        server._thread.join(PATIENCE)
    assert "serve_block: self.freed.wait(PATIENCE)" in str(caught.value)


def test_blocked_loop_of_a_failing_block_is_told_as_a_note(hall, short_margins):
    """If the block raises, that the loop is blocked is a note."""
    with pytest.raises(ZeroDivisionError) as caught, running(hall, **HASTE) as server:
        begin(server, "/block")
        assert hall.begun.wait(PATIENCE)
        raise ZeroDivisionError
    hall.freed.set()
    server._thread.join(PATIENCE)
    assert "serve_block: self.freed.wait(PATIENCE)" in "".join(caught.value.__notes__)


def test_ctrl_c_while_waiting_for_the_end(hall):
    """Ctrl-C in shutdown() ends the server without more ado, and is raised."""
    with running(hall, timeout_graceful_shutdown=1000) as server:
        begin(server, "/hold")
        assert hall.begun.wait(PATIENCE)
        with interrupted_in("_stop"):
            server.shutdown()
        assert hall.ended.is_set()
        assert server._ended.is_set()


def test_ctrl_c_while_waiting_for_the_loop(hall):
    """Ctrl-C in a call is raised there, and the call is given up; the server goes on."""
    with running(hall, **HASTE) as server:
        begin(server, "/hold")
        assert hall.begun.wait(PATIENCE)
        with interrupted_in("wait_idle"):
            server.wait_idle(PATIENCE)
        assert ask(server) == (200, b"Hello")


def test_ctrl_c_in_the_block_ends_the_server(hall):
    """Ctrl-C in the block is raised after a stop without grace."""

    def block_of_the_test() -> None:
        begin(server, "/hold")
        assert hall.begun.wait(PATIENCE)
        hall.freed.wait(PATIENCE)

    with interrupted_in("block_of_the_test"), running(hall, timeout_graceful_shutdown=1000) as server:
        block_of_the_test()
    assert server._ended.is_set()


CTRL_C_PROGRAM = """
import os, threading
from trioserve.testing import running

async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("lifespan shutdown", flush=True)
    await send({"type": "lifespan.shutdown.complete"})

with running(app):
    print("ready", flush=True)
    threading.Event().wait()
"""


def test_ctrl_c_ends_a_program(tmp_path):
    """A program that gets Ctrl-C in the block ends by KeyboardInterrupt, after the application's shutdown."""
    with start("-c", CTRL_C_PROGRAM, cwd=tmp_path) as program:
        program.wait_for("ready")
        program.signal(signal.SIGINT)
        assert program.wait() == -signal.SIGINT
        assert "lifespan shutdown" in program.output
        assert program.errors.rstrip().endswith("KeyboardInterrupt")


def test_server_that_was_never_started():
    """What is not running has no event loop, and cannot be stopped; it can be told so."""
    preparation = prepare(respond(), tls=False, options=HASTE)
    server = ThreadServer(preparation, [])
    with pytest.raises(RuntimeError, match="the server has not started"):
        server.drop_connections()


def test_keyboard_interrupt_of_the_application_is_raised():
    """An application that raises KeyboardInterrupt ends its server, and the test is told."""

    async def handler(scope, receive, send):
        raise KeyboardInterrupt

    with (
        pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught,
        running(http_app(handler)) as server,
        pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)),
    ):
        ask(server)
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, KeyboardInterrupt)


def test_server_that_stops_by_itself(hall):
    """A server with limit_max_requests ends by itself, which is no failure."""
    with running(hall, limit_max_requests=1) as server:
        assert ask(server) == (200, b"Hello")
        wait_until(lambda: not is_listening(server), "the end of listening")
        assert len(server.requests) == 1


# Clients


def test_connect_gives_a_socket(hall):
    """connect() gives a plain socket with a time-out, for whatever a test wants to send."""
    with running(hall) as server:
        with server.connect(timeout=7) as client:
            assert client.gettimeout() == 7
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            received = b""
            while data := client.recv(4096):
                received += data
        assert received.endswith(b"Hello")


def test_websocket_blocks(hall):
    """A blocking WebSocket sends, receives, pings and closes; messages are text or bytes."""
    with running(hall) as server, server.websocket("/", subprotocols=["chat", "other"]) as websocket:
        assert websocket.subprotocol == "chat"
        assert websocket.connection.subprotocol == "chat"
        for message in ("text", b"bytes", "", "ä" * 100_000):
            websocket.send_message(message)
            assert websocket.get_message() == message
        websocket.ping()
        websocket.ping(b"payload")
        websocket.close(4000, "enough")
        with pytest.raises(ConnectionClosed):
            websocket.get_message()
        with pytest.raises(ConnectionClosed):
            websocket.send_message("too late")
        server.wait_idle()
        assert hall.seen == [4000]
        assert [(record.code, record.reason) for record in server.websockets] == [(4000, "enough")]


def test_websocket_closes_with_its_block(hall):
    """The end of the block closes the WebSocket with 1000, whether the block fails or not."""
    with running(hall) as server:
        with server.websocket("/"):
            pass
        with pytest.raises(ZeroDivisionError), server.websocket("/"):
            raise ZeroDivisionError
        server.wait_idle()
        assert hall.seen == [1000, 1000]


def test_websocket_fields_and_options(hall):
    """headers go with the handshake, options to trio-websocket."""
    with running(hall) as server, server.websocket("/", headers=[(b"x-a", b"1")], max_message_size=10) as websocket:
        websocket.send_message("x" * 11)
        with pytest.raises(ConnectionClosed) as caught:
            websocket.get_message()
        assert caught.value.reason.code == 1009


def test_websocket_that_is_refused(hall):
    """A WebSocket that the application refuses is a ConnectionRejected with its status, on either way of opening."""
    with running(hall) as server:
        with pytest.raises(ConnectionRejected) as caught, server.websocket("/refuse"):
            pytest.fail("it was accepted")
        assert caught.value.status_code == 403


def test_websocket_that_is_not_decided(hall):
    """A WebSocket that the application neither accepts nor refuses is refused by the server's clock."""
    with running(hall, timeout_ws_handshake=0.05) as server:
        with pytest.raises(ConnectionRejected) as caught, server.websocket("/undecided"):
            pytest.fail("it was accepted")
        assert caught.value.status_code == 504


def test_websocket_waits_have_deadlines(hall):
    """A message that does not come is a TimeoutError that says so; the WebSocket can be used on."""
    with running(hall) as server, server.websocket("/") as websocket:
        with pytest.raises(TimeoutError, match=r"get_message took longer than 0\.05 s"):
            websocket.get_message(timeout=0.05)
        websocket.send_message("still there")
        assert websocket.get_message() == "still there"


async def test_websocket_in_ones_own_loop(hall):
    """With async with, a WebSocket is a trio-websocket connection of the caller's loop."""
    with running(hall) as server:
        async with server.websocket("/", subprotocols=["a"]) as connection:
            await connection.send_message("from another loop")
            assert await connection.get_message() == "from another loop"
        with pytest.raises(ConnectionRejected):
            async with server.websocket("/refuse"):
                pytest.fail("it was accepted")
        server.wait_idle()
        assert len(server.websockets) == 1


def test_websocket_hears_of_a_shutdown(hall):
    """A WebSocket of the test is told of a shutdown as those of other clients are: 1012, restart."""
    with running(hall, timeout_graceful_shutdown=PATIENCE) as server, server.websocket("/") as websocket:
        websocket.send_message("a")
        websocket.get_message()
        waiting = InThread(websocket.get_message)
        server.shutdown()
        assert hall.seen == [1012]
        with pytest.raises(ConnectionClosed):
            waiting.result()


def test_client_gone_leaves_while_the_handler_runs(hall):
    """client_gone() sends a request, and leaves once its handler runs, which sees the disconnect."""
    with running(hall) as server:
        server.client_gone("/await_disconnect?a", method="POST", headers=[(b"x-a", b"1")], body=b"abc")
        assert hall.ended.wait(PATIENCE)
        assert b"".join(hall.seen) == b"abc"
        server.wait_idle()
        (record,) = server.requests
        assert (record.method, record.query, record.outcome) == ("POST", "a", "client left")


def test_client_gone_reads_first(hall):
    """With after, client_gone() leaves once it has read so many bytes, or all that there are."""
    with running(hall) as server:
        server.client_gone("/await_disconnect", after=1000)
        assert hall.begun.is_set()
        assert hall.ended.wait(PATIENCE)
        server.client_gone("/", after=1_000_000)
        server.wait_idle()
        assert [request.outcome for request in server.requests] == ["client left", "ok"]


@pytest.mark.parametrize("path", ["a", "", "/ä", "/a b", "/a\n"])
def test_path_that_cannot_be_sent(hall, path):
    """A path that is no part of a request is a ValueError where it is asked for."""
    with running(hall) as server:
        with pytest.raises(ValueError, match="path must begin with /"):
            server.client_gone(path)
        with pytest.raises(ValueError, match="path must begin with /"), server.stall(path):
            pass


def test_request_that_never_begins(hall, monkeypatch):
    """A request that the server does not hand to the application is a TimeoutError that names it."""
    monkeypatch.setattr(trio_clients, "HANDSHAKE_PATIENCE", 0.05)
    with running(hall) as server, pytest.raises(TimeoutError, match=r"the beginning of GET / took longer than 0\.05 s"):
        server.client_gone("/", headers=[(b"content-length", b"none")])


def test_stalled_client_reads_nothing(hall):
    """stall() keeps a response from being taken; the server's clock for writes then ends it."""
    with running(hall, timeout_write=0.1) as server, server.stall("/endless") as client:
        server.wait_idle()
        assert client.received == b""
        assert [request.outcome for request in server.requests] == ["deadline"]


def test_slow_client_reads_at_its_pace(hall):
    """slow() reads a response bit by bit; received is what it has, wait() the whole."""
    with running(hall) as server, server.slow("/", 1e5) as client:
        whole = client.wait()
        assert whole.endswith(b"Hello")
        assert client.received == whole


def test_slow_client_has_a_deadline(hall):
    """A response that is not whole in time is a TimeoutError."""
    with running(hall, **HASTE) as server, server.slow("/large", 10) as client:
        with pytest.raises(TimeoutError, match=r"the response took longer than 0\.05 s"):
            client.wait(timeout=0.05)
        assert len(client.received) < 10_000


@pytest.mark.parametrize("pace", [0, -1])
def test_pace_must_be_positive(hall, pace):
    """A pace at which nothing can be read is a ValueError before anything is sent."""
    with running(hall) as server:
        with pytest.raises(ValueError, match="bytes_per_second"), server.slow("/", pace):
            pytest.fail("it began")
        assert server.requests == []


def test_slow_client_hears_of_an_end(hall):
    """wait() returns what came once the connection is lost."""
    with running(hall) as server, server.slow("/await_disconnect", 1e6) as client:
        assert hall.begun.wait(PATIENCE)
        wait_until(lambda: client.received.endswith(b"x" * 1000 + b"\r\n"), "the whole first piece")
        server.drop_connections()
        assert client.wait() == client.received


def test_blocked_loop_does_not_hold_up_a_client(hall, monkeypatch):
    """A client's wait in a loop that is blocked is a ServerStuckError."""
    monkeypatch.setattr(blocking, "_MARGIN", 0.1)
    with running(hall, allow_errors=True) as server, server.stall("/hold") as client:
        begin(server, "/block")
        try:
            assert hall.blocked.wait(PATIENCE)
            with pytest.raises(ServerStuckError, match="serve_block"):
                client.wait(timeout=0.1)
        finally:
            hall.freed.set()
        ask(server, "/release")


def test_dropped_connections(hall):
    """drop_connections() resets what is open, so that no client takes it for an end; new ones are served."""
    with running(hall) as server:
        client = server.connect()
        client.sendall(b"GET /await_disconnect HTTP/1.1\r\nHost: a\r\n\r\n")
        assert hall.begun.wait(PATIENCE)
        server.drop_connections()

        def read_all() -> None:
            while client.recv(65536):
                pass

        with pytest.raises(ConnectionResetError):
            read_all()
        assert hall.ended.wait(PATIENCE)
        assert ask(server) == (200, b"Hello")


def test_clients_of_several_threads(hall):
    """WebSockets of several threads do not get in each other's way."""

    def talk(word: str) -> None:
        with server.websocket("/") as websocket:
            for number in range(20):
                websocket.send_message(f"{word}{number}")
                assert websocket.get_message() == f"{word}{number}"

    with running(hall) as server:
        for thread in [InThread(lambda word=word: talk(word)) for word in "abcd"]:
            thread.result()
        assert len(server.websockets) == 4


def test_start_without_a_block(hall):
    """ThreadServer.start is for those who see to the end themselves; nothing is raised of errors."""
    server = ThreadServer.start(hall, tls=False)
    try:
        ask(server, "/fail")
        assert len(server.witness.take_errors()) == 1
    finally:
        server.shutdown()
