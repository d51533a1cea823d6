"""A process that answers questions about itself, and the ones who ask."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

import trioserve
from trioserve.observer import Phase
from trioserve.process import inspector_client, inspector_folder
from trioserve.process import inspector_socket as module
from trioserve.process.inspection import Inspection, Loop
from trioserve.process.inspector_client import NoAnswer, ask, ask_whole, find_servers
from trioserve.process.inspector_folder import Found, SocketFile, find_sockets
from trioserve.process.inspector_socket import InspectorSocket, offer, read_request, request_line
from trioserve.snapshot import Request
from trioserve.types import AnyValue, PlainValues

from .programs import finish
from .support import http_app, open_descriptors, send_text

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform == "win32", reason="Python has no unix sockets there"),
]

PATIENCE = 20


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not tmp_path: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="i") as made:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(inspector_folder, "gettempdir", lambda: made)
        yield Path(made, f"trioserve-{os.geteuid()}")
        monkeypatch.undo()


def no_workers() -> tuple[list[str], list[PlainValues]]:
    return [], []


@pytest.fixture
def inspection() -> Inspection:
    return Inspection("server", "shop.app:app")


@contextmanager
def answering(inspection: Inspection) -> Iterator[Found]:
    before = open_descriptors()
    with offer(inspection, wanted=True):
        [found] = find_sockets()
        yield found
    assert find_sockets() == []
    for thread in threading.enumerate():
        if thread.name.startswith("trioserve inspector"):
            thread.join(PATIENCE)
    assert open_descriptors() - before == set()


def connect(found: Found) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect(str(found.path))
    return client


def read_answer(client: socket.socket) -> PlainValues:
    data = b""
    with contextlib.suppress(ConnectionResetError):  # the end, where not all was read
        while piece := client.recv(65536):
            data += piece
    return cast("PlainValues", json.loads(data))


# Questions


def test_before_there_is_an_event_loop(inspection: Inspection) -> None:
    """A process that has no event loop yet tells what it is."""
    with answering(inspection) as found:
        values = ask(found, Request())
    assert values["kind"] == "server"
    assert values["pid"] == os.getpid()
    assert values["app"] == "shop.app:app"
    assert values["phase"] == "starting"
    assert values["urls"] == []
    assert "tasks" not in values


@pytest.mark.parametrize("request_", [None, Request(), Request(limit=0, stacks=True)])
def test_questions(request_: Request | None) -> None:
    """What a client sends is what the process reads."""
    assert read_request(request_line(request_)) == request_


NONSENSE = [
    b"", b"\n", b"nonsense\n", b"\xff\xfe\n", b"[]\n", b"null\n", b'{"limit": 1}\n', b'{"limit": -1, "stacks": true}\n',
    b'{"limit": true, "stacks": true}\n', b'{"limit": 1, "stacks": 1}\n', b"[" * 4095 + b"\n", b"x" * 10000,
]  # fmt: skip


@pytest.mark.parametrize("line", NONSENSE, ids=lambda line: str(line[:30]))
def test_nonsense(inspection: Inspection, line: bytes) -> None:
    """Whatever is sent, the answer says how to ask."""
    with answering(inspection) as found, connect(found) as client:
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        assert read_answer(client)["error"].startswith("a question is {}")
        with pytest.raises(NoAnswer, match="cannot be asked: a question is"):
            read(found, line[:100] + b"\n")


def read(found: Found, line: bytes) -> PlainValues:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(inspector_client, "request_line", lambda request: line)
        return ask(found, None)


def test_what_cannot_be_described(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the description is the answer, and ends nothing."""

    def fail(request: object) -> PlainValues:
        raise RecursionError("too deep")

    monkeypatch.setattr(inspection, "describe", fail)
    with answering(inspection) as found, pytest.raises(NoAnswer, match="it cannot describe itself: RecursionError"):
        ask(found, None)


# Clients that do harm


def test_clients_that_say_nothing(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing is left after a while; while there are too many another hears so."""
    monkeypatch.setattr(module, "CLIENTS", 1)
    monkeypatch.setattr(module, "READ_PATIENCE", 0.2)
    with answering(inspection) as found:
        silent = connect(found)
        with pytest.raises(NoAnswer, match="it is busy with other questions"):
            ask(found, None)
        assert silent.recv(1) == b""
        silent.close()
        wait_until_free(found)


def wait_until_free(found: Found) -> None:
    """The thread that has closed a connection is free a moment later."""
    while True:
        try:
            ask(found, None)
        except NoAnswer as error:
            assert "busy" in str(error)
        else:
            return


def test_a_client_that_does_not_read(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not take its answer is left after a while."""
    monkeypatch.setattr(module, "CLIENTS", 1)
    monkeypatch.setattr(module, "WRITE_PATIENCE", 0.2)
    with answering(inspection) as found:
        with monkeypatch.context() as changed, connect(found) as deaf:
            changed.setattr(inspection, "describe", lambda request: {"long": "x" * 10_000_000})
            deaf.sendall(request_line(None))
            deaf.recv(1)
            with pytest.raises(NoAnswer, match="busy"):
                ask(found, None)
        wait_until_free(found)


def test_a_client_that_leaves(inspection: Inspection) -> None:
    """One that leaves in the middle leaves nothing behind."""
    with answering(inspection) as found:
        for _ in range(3):
            with connect(found) as client:
                client.sendall(b"{")
        wait_until_free(found)


def test_a_client_of_another_user(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user gets no answer, whatever the file's mode; nor is another user's process believed."""
    with answering(inspection) as found:
        with monkeypatch.context() as changed:
            changed.setattr(module, "peer_is_ours", lambda client: False)
            with connect(found) as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
                client.sendall(request_line(None))
                assert client.recv(1) == b""
        with monkeypatch.context() as changed:
            changed.setattr(inspector_client, "peer_is_ours", lambda client: False)
            with pytest.raises(NoAnswer, match="another user's process"):
                ask(found, None)


def test_accepting_fails(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, or of threads, it goes on when there are some."""
    failures = [OSError(errno.EMFILE, "Too many open files")]
    with answering(inspection) as found:
        accept = module.socket.socket.accept

        def accept_late(listener: socket.socket) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return accept(listener)

        with monkeypatch.context() as changed:
            changed.setattr(module.socket.socket, "accept", accept_late)
            assert ask(found, None)["pid"] == os.getpid()
        threads = module.threading.Thread

        class Scarce(threads):  # type: ignore[misc, valid-type]
            def start(self) -> None:
                raise RuntimeError("can't start new thread")

        with monkeypatch.context() as changed:
            changed.setattr(module.threading, "Thread", Scarce)
            with pytest.raises(NoAnswer, match="busy"):
                ask(found, None)


# The life of it


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="other systems do not tell what a thread holds back")
def test_signals_are_for_others(inspection: Inspection) -> None:
    """Its threads leave signals to the main thread, which may hold them back for a moment."""
    with answering(inspection):
        [thread] = [one for one in threading.enumerate() if one.name == "trioserve inspector"]
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        held = int(status.partition("SigBlk:")[2].split()[0], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            assert held >> (number - 1) & 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


def test_not_wanted(inspection: Inspection) -> None:
    """Where it is not wanted, or not possible, there is nothing of it."""
    with offer(inspection, wanted=False) as instruments:
        assert instruments == []
        assert find_sockets() == []


def test_not_supported(inspection: Inspection, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Without unix sockets there is none; the page can still tell ages."""
    monkeypatch.setattr(module, "SUPPORTED", False)
    with offer(inspection, wanted=True) as instruments:
        assert instruments == [inspection.loop.births]
    assert not folder.exists()


def test_no_folder(inspection: Inspection, caplog: pytest.LogCaptureFixture, folder: Path) -> None:
    """A start does not fail for want of a folder."""
    caplog.set_level(logging.INFO, "trioserve")
    folder.write_text("in the way")
    before = open_descriptors()
    with offer(inspection, wanted=True):
        pass
    assert open_descriptors() == before
    [message] = caplog.messages
    assert message.startswith("trioserve inspect will not find this process: ")


def test_no_thread(inspection: Inspection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for want of a thread."""
    caplog.set_level(logging.INFO, "trioserve")

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", fail)
        with offer(inspection, wanted=True):
            assert find_sockets() == []
    assert caplog.messages == ["trioserve inspect will not find this process: can't start new thread"]


FORK = """
import os, socket
from trioserve.process.inspection import Inspection
from trioserve.process.inspector_client import ask
from trioserve.process.inspector_folder import find_sockets, has_died
from trioserve.process.inspector_socket import offer

with offer(Inspection("server", "a:b"), wanted=True):
    [found] = find_sockets()
    another = found.path.with_name("another")
    os.link(found.path, another)
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        theirs.send(b"x")
        theirs.recv(1)  # until the parent ends
        os._exit(0)
    theirs.close()
    ours.recv(1)
    assert ask(found, None)["pid"] == os.getpid()
print(found.path.exists(), has_died(another))
"""


def test_a_forked_child(folder: Path) -> None:
    """A child that is forked keeps nothing of its parent's socket."""
    program = finish("-W", "ignore", "-c", FORK, cwd=folder.parent, TMPDIR=str(folder.parent), XDG_RUNTIME_DIR="")
    assert program.output == "False True\n", program.errors


def test_letting_go_in_a_child(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in a child may be done late, and when there is nothing left to let go of."""
    hooks: list[Callable[[], object]] = []
    monkeypatch.setattr(module.os, "register_at_fork", lambda *, after_in_child: hooks.append(after_in_child))
    made = InspectorSocket(inspection)
    made.close()
    [in_child] = hooks
    in_child()
    del made
    in_child()


# Answers that do not come


def test_a_process_that_is_stopped(folder: Path) -> None:
    """One that does not answer is told as such, whether it takes the connection or not."""
    file = SocketFile("worker")
    file.socket.listen(0)
    found = Found("worker", os.getpid(), file.path)
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.05 s"):
        ask(found, None, patience=0.05)
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
    for client in waiting:
        client.setblocking(False)
        client.connect_ex(str(file.path))
    with pytest.raises(NoAnswer, match="does not answer"):
        ask(found, None, patience=0.05)
    for client in waiting:
        client.close()
    file.socket.close()
    with pytest.raises(NoAnswer, match="cannot be asked: Connection refused"):
        ask(found, None)
    file.remove()
    with pytest.raises(NoAnswer, match="No such file"):
        ask(found, None)


@pytest.mark.parametrize(
    ("said", "expected"), [(b"", "ended while it answered"), (b'{"a": ', "ended"), (b"[]", "no object came")]
)
def test_half_an_answer(said: bytes, expected: str) -> None:
    """One that ends in the middle of its answer, or gives none, is told as such."""
    file = SocketFile("server")

    def serve() -> None:
        client, _ = file.socket.accept()
        with client:
            client.recv(100)
            client.sendall(said)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(NoAnswer, match=expected):
        ask(Found("server", 1, file.path), None)
    thread.join(PATIENCE)
    file.remove()
    file.socket.close()


def test_workers_of_a_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker is asked; one that cannot be is told by what its supervisor knows."""
    known: list[PlainValues] = [
        {"kind": "worker", "pid": pid, "state": "serving", "served_for": 1.0} for pid in (os.getpid(), 2, 3)
    ]
    worker = Inspection("worker", "a:b")
    supervisor = Inspection("supervisor", "a:b", workers=lambda: (["http://a"], known))
    dead = Found("worker", 2, Path("/nowhere"))
    with offer(worker, wanted=True):
        monkeypatch.setattr(inspector_client, "find_sockets", lambda: [*find_sockets(), dead])
        with offer(supervisor, wanted=True):
            found = next(one for one in find_sockets() if one.kind == "supervisor")
            values = ask_whole(found, Request())
            assert [one.kind for one in find_servers(find_sockets())] == ["supervisor"]
    assert values["urls"] == ["http://a"]
    first, second, third = values["workers"]
    assert (first["kind"], first["state"], first["app"]) == ("worker", "serving", "a:b")
    assert second["error"] == "cannot be asked: No such file or directory"
    assert third["error"].startswith("cannot be asked: it has no socket")


# What is told


async def work(scope: AnyValue, receive: AnyValue, send: AnyValue) -> None:
    if scope["path"] == "/slow":
        await trio.sleep_forever()
    await send_text(send, b"Hi")


async def test_a_server(inspection: Inspection, nursery: trio.Nursery) -> None:
    """A server tells of its loop, figures, listeners, connections, tasks and, if asked, threads."""
    inspection.loop.attach()
    trio.lowlevel.add_instrument(inspection.loop.births)
    assert "statistics" not in inspection.describe(Request())
    server = await nursery.start(partial(trioserve.serve, http_app(work), port=0))
    inspection.server, inspection.phase = server, Phase.SERVING
    server._context.counters.count_rejected(503)
    server._context.counters.count_handshake_failure("a listener", "a reason")
    async with await trio.open_tcp_stream(*server.addresses[0]) as client:
        await client.send_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        while not server.statistics().requests:
            await trio.lowlevel.checkpoint()
        describe = partial(inspection.describe, Request(stacks=True))
        values = await trio.to_thread.run_sync(describe)
    assert values["phase"] == "serving"
    assert values["urls"] == list(server.urls)
    assert values["loop"] == {"runs": True, "seconds": 0.0, "running": None, "at": None}
    assert values["statistics"]["rejected"] == {"503": 1}
    assert values["statistics"]["handshake_failures"] == [{"listener": "a listener", "reason": "a reason", "count": 1}]
    [listener] = values["listeners"]
    assert listener == {"address": server.listeners[0][0], "url": server.urls[0], "connections": 1}
    assert values["connections"]["by_state"] == {"serves": 1}
    assert values["tasks"]
    assert "MainThread" in [one["name"] for one in values["threads"]]
    assert json.loads(json.dumps(values)) == values
    server.shutdown(0)


async def test_a_blocked_loop(inspection: Inspection, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loop is blocked that is told, with who blocks it, and for how long at least."""
    monkeypatch.setattr("trioserve.process.inspection.PATIENCE", 0.05)
    answers: list[PlainValues] = []

    async def block(scope: AnyValue, receive: AnyValue, send: AnyValue) -> None:
        def look() -> None:
            answers.extend(inspection.describe(Request()) for _ in range(2))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join(PATIENCE)
        await send_text(send, b"Hi")

    inspection.loop.attach()
    server = await nursery.start(partial(trioserve.serve, http_app(block), port=0))
    inspection.server = server
    async with await trio.open_tcp_stream(*server.addresses[0]) as client:
        await client.send_all(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.receive_some()
    first, second = [one["loop"] for one in answers]
    assert first["runs"] is False
    assert " GET /block, " in first["running"]
    assert first["at"]["file"] == __file__
    assert second["seconds"] > first["seconds"] >= 0.05
    # And when it runs again, it says so.
    values = await trio.to_thread.run_sync(inspection.describe, Request())
    assert values["loop"]["runs"] is True
    server.shutdown(0)


async def test_a_loop_blocked_by_no_request(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, and with nothing of the application's running, the rest is told all the same."""
    monkeypatch.setattr("trioserve.process.inspection.PATIENCE", 0.05)
    monkeypatch.setattr("trioserve.process.inspection.find_place", lambda calls, package: None)
    inspection.loop.attach()
    answers: list[PlainValues] = []
    thread = threading.Thread(target=lambda: answers.append(inspection.describe(Request())))
    thread.start()
    thread.join(PATIENCE)
    assert answers[0]["loop"]["at"] is None
    assert answers[0]["loop"]["running"].startswith("the task ")


def test_a_loop_that_has_ended(inspection: Inspection) -> None:
    """After its end a loop does not run, and nothing waits for it."""

    async def main() -> None:
        inspection.loop.attach()

    trio.run(main)
    values = inspection.describe(Request())
    assert values["loop"]["runs"] is False
    assert values["tasks"] == []


def test_calls_of_a_thread_that_is_gone() -> None:
    """A loop without a thread is in no call."""
    assert Loop().calls({}) == []
