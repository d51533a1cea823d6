"""What a server does at one moment, as plain values."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from starlette.concurrency import run_in_threadpool

from trioserve import snapshot as module
from trioserve.activity import State
from trioserve.config import Config
from trioserve.connection import Connections
from trioserve.context import ServerContext
from trioserve.inspector import Call
from trioserve.outline import outline
from trioserve.screen import draw
from trioserve.snapshot import Births, Pace, Request, Scene, Snapshot
from trioserve.types import PlainValues, Receive, Scope, Send

from .support import Recorder, RunningServer, http_app, send_text, socket_server
from .test_calls import Gate, block
from .websocket_client import open_handshake, websocket_app

pytestmark = pytest.mark.timeout(20)


FRAME = {"kind": "worker", "pid": 1, "app": "shop:app", "phase": "serving", "age": 1.0, "listeners": []}
"""What a process tells beside a snapshot."""


@pytest.fixture
async def births() -> Births:
    made = Births()
    trio.lowlevel.add_instrument(made)
    return made


def scene_of(births: Births, running: tuple[Call, ...] = ()) -> Scene:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return Scene(root, trio.current_time(), births, "tests", running)


def take(server: RunningServer, births: Births, request: Request | None = None) -> Snapshot:
    return Snapshot(scene_of(births), request or Request(), server.server.look())


async def work(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve with tasks of its own, or work on after the response."""
    if scope["path"] == "/children":
        async with trio.open_nursery() as first, trio.open_nursery() as second:
            first.start_soon(trio.sleep_forever, name="in the first")
            second.start_soon(trio.sleep_forever, name="in the second")
    if scope["path"] == "/body":
        await receive()
    await send_text(send, b"Hi")
    if scope["path"] == "/behind":
        await trio.sleep_forever()


@asynccontextmanager
async def asked(
    server: RunningServer, target: str, method: str = "GET", *fields: str
) -> AsyncIterator[trio.SocketStream]:
    """A client that has sent a request, when nothing moves any more."""
    address = server.server.addresses[0]
    assert isinstance(address, tuple)
    async with await trio.open_tcp_stream(*address) as client:
        head = [f"{method} {target} HTTP/1.1", "Host: a", *fields, "", ""]
        await client.send_all("\r\n".join(head).encode())
        while not server.server.statistics().requests_total:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        yield client


async def test_a_request_and_its_tasks(births: Births) -> None:
    """Below a connection are its request, where that waits, and the tasks that the application has started for it."""
    async with socket_server(http_app(work)) as server, asked(server, "/children?a=b"):
        shot = take(server, births)
        connections, tasks = shot.connections(), shot.tasks()
        assert connections["open"] == 1
        assert connections["by_state"] == {"serves": 1}
        assert list(connections["by_listener"].values()) == [1]
        [connection] = connections["shown"]
        assert connection["state"] == "serves"
        assert connection["requests"] == 1
        assert connection["tls"] is False
        assert connection["client"].startswith("127.0.0.1:")
        [task] = connection["tasks"]
        exchange = task["exchange"]
        assert (exchange["method"], exchange["target"], exchange["status"]) == ("GET", "/children?a=b", None)
        assert exchange["client"] == connection["client"]
        assert task["waits_for"] == "its child tasks"
        assert task["at"]["function"] == "work"
        assert [(one["name"], one["nursery"]) for one in task["tasks"]] == [("in the first", 1), ("in the second", 2)]
        assert all(0 <= one["age"] < 20 for one in [task, *task["tasks"]])
        # They hang there, and nowhere else; the task whose nursery the connection is in says so.
        whole = json.dumps(tasks)
        assert "in the first" not in whole
        assert whole.count('"connections": 1') == 1


PLAIN = ["gate", "plain thread", "plain sleep", "taker"]


async def start_plain(nursery: trio.Nursery, gate: Gate) -> None:
    """Tasks without a call of the application's."""
    nursery.start_soon(trio.Event().wait, name="gate")
    nursery.start_soon(trio.to_thread.run_sync, gate.release.wait, name="plain thread")
    nursery.start_soon(trio.sleep_forever, name="plain sleep")
    nursery.start_soon(trio.serve_tcp, print, 0, name="taker")


def owners(tasks: list[PlainValues]) -> dict[str, bool]:
    """Whether they are the server's own, and those below them, by their names."""
    found = {one["name"]: one["own"] for one in tasks}
    for one in tasks:
        found |= owners(one["tasks"])
    return found


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_plain_tasks_of_a_request(births: Births, kind: str) -> None:
    """What a request has started is the application's, though it is in nothing but Trio's calls."""
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            if kind == "websocket":
                await receive()
                await send({"type": "websocket.accept"})
                nursery.start_soon(receive, name="reader")
            await start_plain(nursery, gate)

    served = http_app(app) if kind == "http" else websocket_app(app)
    async with socket_server(served) as server:
        client = await server.connect()
        if kind == "http":
            await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while not server.server.statistics().requests_total:
                await trio.lowlevel.checkpoint()
        else:
            await open_handshake(client.stream)
        await trio.testing.wait_all_tasks_blocked()
        shot = take(server, births)
        connections, tasks = shot.connections(), shot.tasks()
        gate.open()
        [request] = connections["shown"][0]["tasks"]
        found = owners([request])
        assert found.pop(request["name"]) is True
        attendants = {"trioserve WebSocket": True, "reader": False} if kind == "websocket" else {}
        # Below the taker is Trio's own task for its listener.
        listener = {"trio._highlevel_serve_listeners._serve_one_listener": False}
        assert found == dict.fromkeys(PLAIN, False) | attendants | listener
        shown = "\n".join(draw(outline({**FRAME, "connections": connections, "tasks": tasks})))
        assert all(f"─ {name} " in shown for name in PLAIN)
        assert "─ trioserve WebSocket" not in shown
        await client.aclose()


async def test_plain_tasks_of_the_lifespan(births: Births) -> None:
    """So is what the lifespan has started; it is not counted as the server's own."""
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with trio.open_nursery() as nursery:
            await start_plain(nursery, gate)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async with socket_server(app, lifespan="on") as server:
        await trio.testing.wait_all_tasks_blocked()
        shot = take(server, births)
        values = {**FRAME, "connections": shot.connections(), "tasks": shot.tasks()}
        gate.open()
        found = owners(values["tasks"])
        assert {name: found[name] for name in PLAIN} == dict.fromkeys(PLAIN, False)
        assert found["trioserve lifespan"] is True
        assert found["trioserve clock"] is True
        shown = "\n".join(draw(outline(values)))
        assert all(f"─ {name} " in shown for name in PLAIN)
        assert "─ trioserve clock" not in shown


async def test_a_websocket(births: Births) -> None:
    """An open WebSocket is a state of its own."""

    async def listen(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        await receive()

    async with socket_server(websocket_app(listen)) as server:
        client = await server.connect()
        await open_handshake(client.stream)
        await trio.testing.wait_all_tasks_blocked()
        connections = take(server, births).connections()
        assert connections["by_state"] == {"WebSocket": 1}
        [task] = connections["shown"][0]["tasks"]
        assert task["exchange"]["websocket"] is True
        assert task["exchange"]["status"] == 101
        await client.aclose()


async def test_idle_and_background(births: Births) -> None:
    """What works on after its response says so, beside the same connection's next request; idle is told last."""
    async with socket_server(http_app(work)) as server, asked(server, "/behind") as client:
        await client.receive_some()
        assert take(server, births).connections()["by_state"] == {"works on after its response": 1}
        await client.send_all(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        idle = await server.connect()
        while server.server.statistics().connections < 2 or server.server.statistics().requests_total < 2:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        connections = take(server, births).connections()
        assert connections["by_state"] == {"idle": 1, "serves": 1}
        first, second = connections["shown"]
        assert (first["state"], second["state"]) == ("serves", "idle")
        assert first["requests"] == 2
        told = {one["exchange"]["target"]: one["waits_for"] for one in first["tasks"]}
        assert told == {"/behind": "its cancellation", "/body": "the request body"}
        assert [one.get("exchange") for one in second["tasks"]] == [None]
        assert second["tasks"][0]["waits_for"] == "the next request"
        await idle.aclose()


async def test_a_function_in_a_thread(births: Births) -> None:
    """Where no code of the application's waits for it, as with a `def` endpoint, it is the place; for any thread."""
    gate = Gate()

    def endpoint() -> None:
        block(gate)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_threadpool, endpoint)
        await trio.testing.wait_all_tasks_blocked()
        gate.wait()
        [task] = nursery.child_tasks
        shot = Snapshot(scene_of(births), Request(), ())
        node = await trio.to_thread.run_sync(shot.tree, task)
        gate.open()
    assert node["waits_for"] == "its thread"
    assert node["at"]["line"] == block.__code__.co_firstlineno + 1
    assert node["at"]["function"] == "block"


async def test_limit(births: Births) -> None:
    """Connections beyond the limit are counted."""
    async with socket_server(http_app(work)) as server:
        clients = [await server.connect() for _ in range(3)]
        while server.server.statistics().connections < 3:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        connections = take(server, births, Request(limit=1)).connections()
        assert connections["open"] == 3
        assert len(connections["shown"]) == 1
        for client in clients:
            await client.aclose()


async def test_a_connection_that_has_not_begun(births: Births) -> None:
    """Between its accept and its first step a connection has no task to tell of."""
    connections = Connections(ServerContext(http_app(work), Config(), observer=Recorder()))
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        connections.start(nursery, theirs, False, "a listener")
        shot = Snapshot(scene_of(births), Request(), connections.look())
        [connection] = shot.connections()["shown"]
        assert connection["state"] == "begins"
        assert connection["tasks"] == []
        assert connection["listener"] == "a listener"
        await trio.testing.wait_all_tasks_blocked()
        # Its tasks besides that which serves it: what watches a stream that is no socket.
        [connection] = Snapshot(scene_of(births), Request(), connections.look()).connections()["shown"]
        assert len(connection["tasks"]) == 2
        await ours.aclose()
        nursery.cancel_scope.cancel()


async def test_a_connection_in_its_own_task(births: Births) -> None:
    """Whatever serves a connection for its caller hangs below that."""
    connections = Connections(ServerContext(http_app(work), Config(), observer=Recorder()))
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.serve, theirs)
        await trio.testing.wait_all_tasks_blocked()
        [connection] = Snapshot(scene_of(births), Request(), connections.look()).connections()["shown"]
        assert [one["name"] for one in connection["tasks"]] == ["trioserve connection"]
        await ours.aclose()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_closes(births: Births) -> None:
    """Once its last task has ended a connection still closes, for a moment."""
    connections = Connections(ServerContext(http_app(work), Config(), observer=Recorder()))
    ours, theirs = trio.testing.memory_stream_pair()
    seen: list[State] = []
    theirs.send_stream.close_hook = lambda: seen.extend(one.state for one in connections.look())
    async with trio.open_nursery() as nursery:
        connections.start(nursery, theirs, False, "")
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert State.CLOSES in seen


async def test_a_refused_client_that_does_not_go(births: Births) -> None:
    """While the client may still read why it was refused its connection closes."""
    async with socket_server(http_app(work)) as server:
        client = await server.connect()
        await client.raw(b"nonsense\r\n\r\n")
        await client.stream.receive_some()
        [connection] = take(server, births).connections()["shown"]
        assert connection["state"] == "closes"
        await client.aclose()


async def test_states_of_tasks(births: Births) -> None:
    """A task waits, runs or has not begun; one that is older than the instrument has no age."""
    current = trio.lowlevel.current_task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name="waiting")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(trio.sleep_forever, name="fresh")
        here = Call(current.coro.cr_code, 5, {"__name__": "tests"})
        tree = Snapshot(scene_of(births, (here,)), Request(stacks=True), ()).tree(current)
        assert tree["state"] == "running"
        assert tree["at"]["line"] == 5
        assert tree["stack"] == [str(here)]
        states = {one["name"]: one["state"] for one in tree["tasks"]}
        assert states == {"waiting": "waiting", "fresh": "not begun"}
        assert [one["name"] for one in tree["tasks"]] == ["waiting", "fresh"]
        assert tree["tasks"][0]["stack"][-1].endswith("in _real_async_yield")
        running = Snapshot(scene_of(births), Request(), ()).tree(current)
        assert running["at"] is None
        nursery.cancel_scope.cancel()
    assert Births().age_of(current) is None


async def test_too_many_and_too_deep(births: Births, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks beyond a limit, and those below a depth, are counted."""
    monkeypatch.setattr(module, "TASK_LIMIT", 3)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(trio.sleep_forever, name=f"child {number}")
        await trio.testing.wait_all_tasks_blocked()
        tree = Snapshot(scene_of(births), Request(), ()).tree(trio.lowlevel.current_task())
        assert len(tree["tasks"]) == 2
        assert tree["more_tasks"] == 3
        monkeypatch.setattr(module, "TASK_LIMIT", 100)
        monkeypatch.setattr(module, "DEPTH_LIMIT", 1)
        tree = Snapshot(scene_of(births), Request(), ()).tree(trio.lowlevel.current_task())
        assert tree["tasks"] == []
        assert tree["more_tasks"] == 5
        nursery.cancel_scope.cancel()


async def test_all_that_is_not_described_is_counted(births: Births, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a task that is too many those below it are counted."""

    async def nest(depth: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(*((nest, depth - 1) if depth else (trio.sleep_forever,)))

    monkeypatch.setattr(module, "TASK_LIMIT", 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest, 3)
        await trio.testing.wait_all_tasks_blocked()
        tree = Snapshot(scene_of(births), Request(), ()).tree(trio.lowlevel.current_task())
        assert tree["tasks"][0]["more_tasks"] == 4 - 1 + 1
        nursery.cancel_scope.cancel()


def test_pace_lets_others_run() -> None:
    """What would take long makes a pause every millisecond, in which another thread has the interpreter."""
    pace, ran = Pace(), []
    began = time.monotonic()
    thread = threading.Thread(target=lambda: ran.append(time.monotonic()))
    pace()
    thread.start()
    while time.monotonic() < began + 0.002:
        pass
    pace()
    thread.join()
    assert len(ran) == 1


async def test_json() -> None:
    """All of it is plain values."""
    values: PlainValues = {}
    async with socket_server(http_app(work)) as server, asked(server, "/children"):
        shot = take(server, Births(), Request(stacks=True))
        values = {"connections": shot.connections(), "tasks": shot.tasks()}
    assert json.loads(json.dumps(values)) == values
