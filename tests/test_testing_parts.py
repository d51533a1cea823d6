"""The parts of trioserve.testing, each by itself."""

from __future__ import annotations

import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve import AppLoadError, ConfigError, LifespanError, TrioserveError
from trioserve.exchange import Endpoint, Request
from trioserve.logs import ExchangeRecord, Outcome, WebSocketRecord
from trioserve.observer import Phase
from trioserve.testing import FinishedRequest, ServerStuckError, ThreadServer, thread_server, trio_server
from trioserve.testing.authority import Authority
from trioserve.testing.blocking import call_within
from trioserve.testing.clients import SlowClient, build_request, read_at_least
from trioserve.testing.flat_nursery import open_flat_nursery
from trioserve.testing.location import Location, connect_to
from trioserve.testing.portal import Portal
from trioserve.testing.preparation import DEFAULTS, prepare
from trioserve.testing.stuck import break_shields
from trioserve.testing.verdict import describe_errors, raise_errors, strip, tell_errors, trim
from trioserve.testing.witness import Witness

from .programs import wait_until
from .support import nothing_left, respond

pytestmark = pytest.mark.timeout(30)

PATIENCE = 20.0  # seconds; every wait in here ends by then


# The portal


class Loop:
    """An event loop in a thread of its own, with a portal into it. ``close`` ends the portal's nursery only."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    async def _main(self) -> None:
        self._closing, self._ending = trio.Event(), trio.Event()
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self.portal = Portal(nursery)
            self._ready.set()
            await self._closing.wait()
            nursery.cancel_scope.cancel()
        self.closed = threading.Event()
        self.closed.set()
        await self._ending.wait()

    def close(self) -> None:
        self.token.run_sync_soon(self._closing.set)

    def end(self) -> None:
        if self._thread.is_alive():
            self.close()
            self.token.run_sync_soon(self._ending.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.end()


class Manager:
    """An async context manager that keeps account of itself, and fails or waits where it is told to."""

    def __init__(self, *, fails_at: str = "", waits_at: str = "") -> None:
        self.fails_at, self.waits_at = fails_at, waits_at
        self.steps: list[str] = []
        self.waits = threading.Event()

    async def _pass(self, step: str) -> None:
        self.steps.append(step)
        if self.waits_at == step:
            self.waits.set()
            try:
                await trio.sleep_forever()
            finally:
                self.steps.append("cancelled")
        if self.fails_at == step:
            raise ValueError(step)

    async def __aenter__(self) -> str:
        await self._pass("enter")
        return "value"

    async def __aexit__(self, *error: object) -> None:
        await self._pass("exit")


def in_thread(function: Callable[[], object]) -> Callable[[], None]:
    """Run a function in another thread; returns what waits for it, and raises what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join(PATIENCE)
        assert not thread.is_alive()
        if raised:
            raise raised.pop()

    return wait


def test_portal_returns_what_the_function_returns(loop):
    """call() runs an async function in the event loop, and returns what that returns."""

    async def function() -> threading.Thread:
        await trio.lowlevel.checkpoint()
        return threading.current_thread()

    assert loop.portal.call(function) is not threading.current_thread()
    assert not loop.portal.is_inside


@pytest.mark.parametrize("error", [ValueError("a"), TimeoutError("b"), SystemExit(1), KeyboardInterrupt()])
def test_portal_raises_what_the_function_raises(loop, error):
    """Whatever the function raises is raised by call(), the same object; the event loop goes on."""

    async def function() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        loop.portal.call(function)
    assert caught.value is error
    assert loop.portal.call(answer) == 42


async def answer() -> int:
    await trio.lowlevel.checkpoint()
    return 42


def test_portal_refuses_its_own_thread(loop):
    """In the event loop's own thread, call() and hold() would wait for ever: they raise RuntimeError."""

    async def function() -> None:
        await trio.lowlevel.checkpoint()
        assert loop.portal.is_inside
        with pytest.raises(RuntimeError, match="own thread"):
            loop.portal.call(answer)
        with pytest.raises(RuntimeError, match="own thread"), loop.portal.hold(Manager()):
            pass

    loop.portal.call(function)


def test_portal_loses_patience(loop):
    """A function that takes too long is cancelled; ServerStuckError shows where it waits."""
    manager = Manager(waits_at="enter")
    with pytest.raises(ServerStuckError, match=r"not done in 0\.05 s") as caught:
        loop.portal.call(manager.__aenter__, patience=0.05)
    assert "in Manager._pass" in str(caught.value)
    wait_until(lambda: manager.steps == ["enter", "cancelled"], "the cancellation")
    assert loop.portal.call(answer) == 42


def test_portal_after_the_end_of_its_nursery(loop):
    """Once the nursery has closed, whatever asks for the event loop hears that the server has ended."""
    loop.close()
    wait_until(lambda: hasattr(loop, "closed") and loop.closed.is_set(), "the end of the nursery")
    with pytest.raises(RuntimeError, match="the server has ended"):
        loop.portal.call(answer)
    with pytest.raises(RuntimeError, match="the server has ended"), loop.portal.hold(Manager()):
        pass


def test_portal_after_the_end_of_its_loop(loop):
    """The same holds once the whole event loop has ended; tell() then does nothing."""
    loop.end()
    told = []
    loop.portal.tell(lambda: told.append("told"))
    with pytest.raises(RuntimeError, match="the server has ended"):
        loop.portal.call(answer)
    with pytest.raises(RuntimeError, match="the server has ended"), loop.portal.hold(Manager()):
        pass
    assert told == []


def test_portal_whose_nursery_ends_meanwhile(loop):
    """A call whose task is cancelled with the nursery hears at once that the server has ended."""
    manager = Manager(waits_at="enter")
    wait = in_thread(lambda: loop.portal.call(manager.__aenter__))
    assert manager.waits.wait(PATIENCE)
    loop.close()
    with pytest.raises(RuntimeError, match="the server has ended"):
        wait()


def test_portal_keeps_a_manager_open(loop):
    """hold() keeps an async context manager open for as long as the block."""
    manager = Manager()
    with loop.portal.hold(manager) as value:
        assert value == "value"
        assert manager.steps == ["enter"]
    assert manager.steps == ["enter", "exit"]


def test_manager_is_closed_if_the_block_raises(loop):
    """What the block raises comes out as it is, after the manager was closed."""
    manager = Manager()
    with pytest.raises(ZeroDivisionError), loop.portal.hold(manager):
        raise ZeroDivisionError
    assert manager.steps == ["enter", "exit"]


def test_manager_that_cannot_open(loop):
    """What a manager raises while it opens is raised where it was to be opened."""
    with pytest.raises(ValueError, match="enter"), loop.portal.hold(Manager(fails_at="enter")):
        pytest.fail("it was opened")
    assert loop.portal.call(answer) == 42


def test_manager_that_cannot_close(loop):
    """What a manager raises while it closes is raised at the end of the block, unless the block raises."""
    with pytest.raises(ValueError, match="exit"), loop.portal.hold(Manager(fails_at="exit")):
        pass
    with pytest.raises(ZeroDivisionError), loop.portal.hold(Manager(fails_at="exit")):
        raise ZeroDivisionError


def test_manager_that_ends_by_itself(loop):
    """A manager whose task fails while the block runs is heard of at its end."""

    @asynccontextmanager
    async def failing():
        async with open_flat_nursery() as nursery:
            nursery.start_soon(Manager(fails_at="enter").__aenter__)
            yield
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="enter"), loop.portal.hold(failing()):
        pass


def test_manager_of_a_loop_that_has_ended(loop):
    """If the server ends while the block runs, the manager has been closed, and nothing is raised for that."""
    manager = Manager()
    with loop.portal.hold(manager):
        loop.end()
        assert manager.steps == ["enter", "exit"]


@pytest.mark.parametrize("step", ["enter", "exit"])
def test_manager_that_takes_too_long(loop, step):
    """A manager that does not open or close in time is a ServerStuckError, and is cancelled; the loop goes on."""
    manager = Manager(waits_at=step)
    with pytest.raises(ServerStuckError, match="has not done"), loop.portal.hold(manager, patience=0.05):
        assert step == "exit"
    wait_until(lambda: manager.steps[-1] == "cancelled", "the cancellation")
    assert loop.portal.call(answer) == 42


def test_manager_that_opens_while_the_server_ends(loop):
    """Whoever waits for a manager to open hears at once that the server has ended."""
    manager = Manager(waits_at="enter")

    def hold() -> None:
        with loop.portal.hold(manager, patience=3):
            pytest.fail("it was opened")

    wait = in_thread(hold)
    assert manager.waits.wait(PATIENCE)
    loop.close()
    with pytest.raises(RuntimeError, match="the server has ended"):
        wait()


def test_interrupted_call_is_given_up(loop):
    """Ctrl-C in call() cancels the function."""
    manager = Manager(waits_at="enter")
    main = threading.main_thread().ident

    def interrupt() -> None:
        assert manager.waits.wait(PATIENCE)
        wait_until(lambda: sys._current_frames()[main].f_code.co_filename == threading.__file__, "the wait")
        signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        wait = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.portal.call(manager.__aenter__)
        wait()
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: manager.steps == ["enter", "cancelled"], "the cancellation")


def test_call_within_says_what_took_too_long(loop):
    """call_within() raises TimeoutError in the words it was given; in time it returns what the function returns."""
    assert call_within(loop.portal, PATIENCE, "the answer", answer) == 42
    with pytest.raises(TimeoutError, match=r"the answer took longer than 0\.01 s"):
        call_within(loop.portal, 0.01, "the answer", trio.sleep_forever)


def test_server_that_was_not_started_is_not_waited_for(monkeypatch):
    """A server whose thread was never started has no event loop, and stopping it fails without one."""
    monkeypatch.setattr(thread_server, "_MARGIN", 0.01)
    monkeypatch.setattr(trio_server, "_TEARDOWN_MARGIN", 0.01)
    options = {"timeout_graceful_shutdown": 0, "timeout_hard_shutdown": 0.01, "timeout_shutdown": 0.01}
    server = ThreadServer(prepare(respond(), tls=False, options=options), [])
    with pytest.raises(RuntimeError, match="the server has not started"):
        server.drop_connections()
    with pytest.raises(ServerStuckError, match="thread has not ended"):
        server.shutdown()
    server.shutdown()


# Preparation


def test_preparation_has_defaults_for_tests():
    """The port is the system's choice and stops are short, unless the options say otherwise."""
    preparation = prepare(respond(), tls=False, options={})
    assert {name: getattr(preparation.config, name) for name in DEFAULTS} == DEFAULTS
    assert preparation.config.port == 0
    assert preparation.authority is None
    other = prepare(respond(), tls=False, options={"port": 8000, "timeout_shutdown": 9})
    assert (other.config.port, other.config.timeout_shutdown) == (8000, 9)


def test_preparation_makes_certificates():
    """With tls there is a certificate for the loopback, localhost and the host; closing resources removes it."""
    preparation = prepare(respond(), tls=True, options={"host": "127.0.0.3"})
    file = Path(preparation.config.ssl_certfile)
    with preparation.resources:
        context = ssl.create_default_context(cafile=preparation.authority.bundle)
        assert ssl.PEM_cert_to_DER_cert(Path(preparation.authority.bundle).read_text()) in context.get_ca_certs(True)
        names = ssl._ssl._test_decode_cert(str(file))["subjectAltName"]
        assert {name for _, name in names} == {"localhost", "127.0.0.1", "0:0:0:0:0:0:0:1", "127.0.0.3"}
    assert not file.exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_preparation_certifies_no_address_of_all_interfaces(host):
    """0.0.0.0 and :: are no addresses to connect to, so no certificate names them."""
    preparation = prepare(respond(), tls=True, options={"host": host})
    with preparation.resources:
        names = ssl._ssl._test_decode_cert(preparation.config.ssl_certfile)["subjectAltName"]
        assert host not in {name for _, name in names}


def test_preparation_that_fails_leaves_nothing(monkeypatch, tmp_path):
    """If the certificate cannot be made, the folder made for it is removed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # A name of more than 63 characters cannot be encoded.
    with pytest.raises(Exception, match="[Ll]abel|too long|IDNA"):
        prepare(respond(), tls=True, options={"host": "a" * 64})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["", "a" * 64, "-"])
def test_host_without_a_certificate_is_an_error_of_ours(host):
    """A host that no certificate can name is a ConfigError, not whatever the maker of certificates raises."""
    with pytest.raises(ConfigError, match="host"):
        prepare(respond(), tls=True, options={"host": host})


def test_preparation_refuses_contradictions():
    """What cannot be served in this process, or has two certificates, is a ConfigError."""
    for options in ({"workers": 2}, {"reload": True}):
        with pytest.raises(ConfigError, match=r"for the command line and run\(\)"):
            prepare(respond(), tls=False, options=options)
    for options in ({"ssl_certfile": "a"}, {"ssl_context_factory": "a:b"}):
        with pytest.raises(ConfigError, match="tls=True makes a certificate"):
            prepare(respond(), tls=True, options=options)


def test_preparation_restores_the_path_after_a_failure(tmp_path):
    """A name that cannot be imported is an AppLoadError, and sys.path is as before."""
    before = list(sys.path)
    with pytest.raises(AppLoadError, match="no_such_module_at_all"):
        prepare("no_such_module_at_all:app", tls=False, options={"app_dir": str(tmp_path)})
    assert sys.path == before


# What is stuck


async def shielded(depth: int, began: Callable[[], None]) -> None:
    with trio.CancelScope(shield=True):
        if depth:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shielded, depth - 1, began)
                nursery.cancel_scope.shield = True
        else:
            began()
            await trio.sleep_forever()


async def test_shields_are_broken_however_deep():
    """break_shields() lets a cancelled scope reach a task and its children, below any number of shields."""
    began = trio.Event()
    task: list[trio.lowlevel.Task] = []
    outermost = trio.CancelScope()

    async def run() -> None:
        task.append(trio.lowlevel.current_task())
        with outermost:
            await shielded(3, began.set)

    with nothing_left(), trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await began.wait()
            outermost.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            break_shields(task[0], outermost)
    assert outermost.cancelled_caught


async def test_shields_further_out_stay():
    """What shields the outermost scope itself is not touched."""
    began = trio.Event()
    with trio.CancelScope(shield=True) as outer, trio.CancelScope() as outermost:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shielded, 0, began.set)
            await began.wait()
            outermost.cancel()
            (task,) = nursery.child_tasks
            break_shields(task, outermost)
    assert outer.shield


async def test_text_of_what_is_stuck():
    """ServerStuckError.of() adds the tasks if it has a root task, and threads if wanted."""
    root = trio.lowlevel.current_root_task()
    assert str(ServerStuckError.of("words", None, with_threads=False)) == "words"
    tasks = str(ServerStuckError.of("words", root, with_threads=False))
    assert tasks.startswith("words\n\nTasks, ")
    assert "Threads" not in tasks
    assert "\n\nThreads, " in str(ServerStuckError.of("words", root, with_threads=True))


# The verdict


def raised(error: BaseException) -> BaseException:
    """An error with a trace whose only frame is this function's."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - whatever it is
        return caught


def test_no_errors_no_verdict():
    """Without errors nothing is raised."""
    raise_errors([])


def test_single_error_is_raised_bare():
    """One error is raised as it is."""
    error = raised(LookupError(3))
    with pytest.raises(LookupError) as caught:
        raise_errors([error])
    assert caught.value is error


def test_system_exit_does_not_end_the_tests():
    """SystemExit of an application comes as the cause of an error: alone it would end the program that runs a test."""
    error = raised(SystemExit(3))
    with pytest.raises(TrioserveError, match="^the application raised SystemExit: 3$") as caught:
        raise_errors([error])
    assert caught.value.__cause__ is error


def test_several_errors_are_raised_in_order():
    """Several errors come in one group, in order."""
    errors = [raised(ValueError("a")), raised(TypeError("b"))]
    with pytest.raises(ExceptionGroup, match="2 errors in the application") as caught:
        raise_errors(errors)
    assert list(caught.value.exceptions) == errors
    with pytest.raises(ExceptionGroup, match="3 errors"):
        raise_errors([*errors, SystemExit()])


def test_failing_block_is_told_what_the_application_raised():
    """tell_errors() adds each error to what leaves the block, once, but not to itself."""
    witness = Witness()
    witness.errors = [raised(ValueError("a")), raised(TypeError("b"))]
    with pytest.raises(ZeroDivisionError) as caught, tell_errors(witness):
        raise ZeroDivisionError
    assert [note.splitlines()[-1] for note in caught.value.__notes__] == ["ValueError: a", "TypeError: b"]
    with pytest.raises(ZeroDivisionError) as caught, tell_errors(witness):
        raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")
    one = Witness()
    one.errors = [raised(ValueError("a"))]
    with pytest.raises(ValueError, match="a") as same, tell_errors(one):
        raise one.errors[0]
    assert not hasattr(same.value, "__notes__")


def test_block_that_is_fine_is_told_nothing():
    """tell_errors() leaves the errors where they are if nothing leaves the block."""
    witness = Witness()
    witness.errors = [ValueError()]
    with tell_errors(witness):
        pass
    assert witness.take_errors() == witness.errors


def test_errors_are_described_as_python_prints_them():
    """describe_errors() gives each error with its trace."""
    text = describe_errors([raised(ValueError("a")), TypeError("b")])
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in raised\n" in text
    assert text.endswith("ValueError: a\nTypeError: b")


def test_failures_of_the_server_lose_its_frames():
    """strip() takes the trace of an error of ours, and the server's part of its cause's; others stay as they are."""
    failure = raised(LifespanError("a"))
    failure.__cause__ = raised(ValueError("b"))
    assert strip(failure) is failure
    assert failure.__traceback__ is None
    assert failure.__cause__.__traceback__.tb_frame.f_code.co_name == "raised"
    bare = raised(LifespanError("a"))
    assert strip(bare).__traceback__ is None
    other = raised(ValueError("c"))
    assert strip(other).__traceback__ is not None


def test_trace_begins_with_the_application():
    """trim() cuts frames of the server and of Trio from the beginning of a trace."""

    async def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it has no text
        trio.run(fail)
    error = trim(caught.value.with_traceback(caught.value.__traceback__.tb_next))
    assert error.__traceback__.tb_frame.f_code.co_name == "fail"


# The witness


def make_request(target: bytes = b"/", client: tuple[str, int] | None = ("127.0.0.1", 1)) -> Request:
    return Request("GET", target, [], "1.1", Endpoint(client=client))


def make_record(target: str) -> ExchangeRecord:
    return ExchangeRecord("127.0.0.1:1", "GET", target, "1.1", 200, 1, 2, 0.5, 0.1, Outcome.OK)


async def test_witness_keeps_what_it_is_told():
    """Records, errors and running requests are kept in order."""
    witness = Witness()
    first, second = make_request(b"/a"), make_request(b"/b")
    witness.exchange_began(first)
    witness.exchange_began(second)
    assert witness.active == [first, second]
    witness.exchange_left(first)
    assert witness.active == [second]
    witness.exchange_ended(make_record("/a?b?c"))
    (finished,) = witness.requests
    assert finished == FinishedRequest("GET", "/a", "b?c", 200, 2, 1, 0.5, Outcome.OK, "127.0.0.1:1")
    assert finished.outcome == "ok"
    record = WebSocketRecord("127.0.0.1:1", "/")
    witness.websocket_closed(record)
    assert witness.websockets == [record]


async def test_witness_knows_the_end():
    """The witness knows when the last handler has ended, and when the server has."""
    witness = Witness()
    seen = []
    for phase in Phase:
        witness.phase_changed(phase)
        seen.append((witness.handlers_have_ended, witness.has_ended))
    assert seen == [(False, False)] * 4 + [(True, False), (True, True)]


async def test_witness_is_waited_for():
    """wait_until() looks again whenever something changes."""
    witness = Witness()
    looks = []

    def look() -> bool:
        looks.append(len(witness.active))
        return len(witness.active) == 2

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(witness.wait_until, look)
            await trio.testing.wait_all_tasks_blocked()
            witness.exchange_began(make_request())
            await trio.testing.wait_all_tasks_blocked()
            witness.exchange_began(make_request())
    assert looks == [0, 1, 2]


async def test_each_expectation_is_for_one_request():
    """expect() is met by a request for its target from its client, and of equal ones each by another request."""
    witness = Witness()
    client = ("127.0.0.1", 1)
    with witness.expect(b"/a", client) as first, witness.expect(b"/a", client) as second:
        witness.exchange_began(make_request(b"/b"))
        witness.exchange_began(make_request(b"/a", ("127.0.0.1", 2)))
        assert not first.is_set()
        witness.exchange_began(make_request(b"/a"))
        assert first.is_set()
        assert not second.is_set()
        witness.exchange_began(make_request(b"/a"))
        assert second.is_set()
    with witness.expect(b"/a", None) as late:
        pass
    witness.exchange_began(make_request(b"/a", None))
    assert not late.is_set()


async def test_errors_are_taken_once():
    """take_errors() gives each error once, and leaves it in the list; what was taken out by hand is not given."""
    witness = Witness()
    first, second = ValueError("a"), ValueError("b")
    witness.application_failed(first, make_request(b"/a?b"))
    assert witness.take_errors() == [first]
    assert witness.take_errors() == []
    witness.application_failed(second, None)
    assert witness.take_errors() == [second]
    assert witness.errors == [first, second]
    assert first.__notes__ == ["raised in the application by GET /a?b HTTP/1.1"]
    assert second.__notes__ == ["raised in the application"]
    witness.application_failed(third := ValueError("c"), None)
    witness.errors.remove(third)
    assert witness.take_errors() == []


async def test_note_is_added_once():
    """An error that comes again from the same request line has one note of it."""
    witness = Witness()
    error = ValueError()
    for target in (b"/a", b"/a", b"/b"):
        witness.application_failed(error, make_request(target))
    assert [note.rsplit(" ", 2)[1] for note in error.__notes__] == ["/a", "/b"]


# Authority


def test_authority_signs_what_its_context_trusts(tmp_path):
    """A certificate of the authority is good for whoever trusts its bundle, for the names it was issued for."""
    authority = Authority(tmp_path)
    assert authority.bundle == str(tmp_path / "ca.pem")
    path = authority.issue_server_certificate("localhost", "127.0.0.1")
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(path)
    for context in (authority.client_context(), ssl.create_default_context(cafile=authority.bundle)):
        for name in ("localhost", "127.0.0.1"):
            shake_hands(context.wrap_bio, server_context, name)
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(context.wrap_bio, server_context, "example.org")


def shake_hands(wrap, server_context: ssl.SSLContext, name: str) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = wrap(down, up, server_hostname=name)
    server = server_context.wrap_bio(up, down, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.version() == "TLSv1.3"


def test_authority_is_trustmes_own(tmp_path):
    """The authority has all that trustme's has, such as certificates for clients."""
    authority = Authority(tmp_path)
    context = authority.client_context()
    authority.issue_cert("client@example.org").configure_cert(context)
    assert b"BEGIN CERTIFICATE" in authority.cert_pem.bytes()


# Location


@pytest.mark.parametrize(
    ("address", "uses_tls", "expected"),
    [
        (("127.0.0.1", 80), False, ("127.0.0.1", 80, None, "http://127.0.0.1:80", "ws://127.0.0.1:80")),
        (("0.0.0.0", 80), True, ("127.0.0.1", 80, None, "https://127.0.0.1:80", "wss://127.0.0.1:80")),
        (("::", 80), False, ("::1", 80, None, "http://[::1]:80", "ws://[::1]:80")),
        (("fd00::2", 1), False, ("fd00::2", 1, None, "http://[fd00::2]:1", "ws://[fd00::2]:1")),
        ("/run/s", False, ("localhost", 0, "/run/s", "http://localhost", "ws://localhost")),
        ("/run/s", True, ("localhost", 0, "/run/s", "https://localhost", "wss://localhost")),
        (None, False, ("localhost", 0, None, "http://localhost", "ws://localhost")),
    ],
)
def test_location(address, uses_tls, expected):
    """A location is where clients connect to, and what they call the server."""
    location = Location.of(address, uses_tls=uses_tls)
    assert (location.host, location.port, location.unix_path, location.url, location.ws_url) == expected
    assert location.url.endswith("//" + location.authority)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_location_is_connected_to(host):
    """connect_to() opens a connection, on request one for which the kernel keeps little."""
    listeners = await trio.open_tcp_listeners(0, host=host)
    async with listeners[0] as listener:
        location = Location.of(listener.socket.getsockname()[:2], uses_tls=False)
        async with (
            await connect_to(location, reads_little=False) as usual,
            await connect_to(location, reads_little=True) as narrow,
        ):
            size = [one.socket.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF) for one in (usual, narrow)]
    assert size[1] < size[0]
    with nothing_left(), pytest.raises(ConnectionRefusedError):
        await connect_to(location, reads_little=False)


async def test_unix_location_is_connected_to(tmp_path):
    """connect_to() goes to the path if there is one."""
    path = str(tmp_path / "s")
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(path)
        listening.listen()
        async with await connect_to(Location.of(path, uses_tls=False), reads_little=True) as stream:
            assert stream.socket.getpeername() == path


# Clients


def test_request_is_built():
    """A request names the host, asks for a close, and has the given fields, and a length if it has a body."""
    built = build_request("a:1", "/p?q", method="POST", headers=[(b"x", b"y")], body=b"abc")
    assert built == b"POST /p?q HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\nx: y\r\nContent-Length: 3\r\n\r\nabc"
    assert build_request("a", "/", method="GET", headers=(), body=b"").endswith(b"Connection: close\r\n\r\n")


@pytest.mark.parametrize("path", ["", "a", "http://a/", "/ ", "/ä", "/\r\nx: y", "/\0"])
def test_bad_path_is_refused(path):
    """A path that would not be one word of ASCII is a ValueError."""
    with pytest.raises(ValueError, match="must begin with / and be percent-encoded"):
        build_request("a", path, method="GET", headers=(), body=b"")


async def test_slow_client_takes_its_time(autojump_clock):
    """A slow client reads a tenth of a second's worth at a time, and ends with the stream."""
    near, far = trio.testing.memory_stream_pair()
    client = SlowClient(near)
    await far.send_all(b"x" * 100)
    await far.send_eof()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.read, 10)
        await trio.sleep(5)
        assert 45 <= len(client.received) <= 55
        assert await client.wait() == b"x" * 100
    assert trio.current_time() - begun == pytest.approx(10)


@pytest.mark.parametrize("pace", [1e9, 0.5])
async def test_slow_client_at_any_pace(autojump_clock, pace):
    """A pace may be less than a byte a second, or more than there is."""
    near, far = trio.testing.memory_stream_pair()
    client = SlowClient(near)
    await far.send_all(b"abc")
    await far.send_eof()
    await client.read(pace)
    assert bytes(client.received) == b"abc"


async def test_slow_client_loses_its_connection():
    """A connection that breaks, or is closed here, ends what there is to read."""
    near, far = trio.testing.memory_stream_pair()
    client = SlowClient(near)
    await far.send_all(b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.read, 1e6)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
        assert await client.wait() == b"abc"


async def test_so_many_bytes_are_read():
    """read_at_least() reads until it has so many bytes, or there are no more."""
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"x" * 10)
    await read_at_least(near, 0)
    await read_at_least(near, 4)
    assert await near.receive_some(100) == b"x" * 6
    await far.send_eof()
    await read_at_least(near, 4)
