"""Workers that are replaced, killed, added and retired under a load of 200 keep-alive clients."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from .load import (
    DEADLINE,
    Client,
    Load,
    Request,
    assert_nothing_lost,
    clients_of,
    kill_and_wait,
    loaded,
    served,
    suspend,
    wait_for,
    wait_for_children,
)
from .websocket_client import WebSocketClient, open_handshake

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")

ROUNDS = 5

HELD = 10
"""Requests that a worker must hold before it is killed, so that there is something to lose."""


async def test_roll_loses_nothing(tmp_path: Path) -> None:
    """SIGHUP replaces every worker, and no request fails nor has to be retried."""
    with served(tmp_path) as program:
        async with loaded(program) as load:
            for number in range(ROUNDS):
                old = program.children()
                program.signal(signal.SIGHUP)
                await wait_for(program, "all workers are replaced", times=number + 1)
                new = await wait_for_children(program, 2, but=old)
                await load.wait_for_workers(new)
        assert_nothing_lost(load)
        assert len(load.workers) == 2 * (ROUNDS + 1)


async def test_killed_worker_loses_what_it_held(tmp_path: Path) -> None:
    """kill -9 of a worker loses at most the requests that it held; all others, and all new connections, are answered
    by the rest and by the replacement.
    """
    held: set[int] = set()
    with served(tmp_path) as program:
        async with loaded(program) as load:
            rounds = 0
            # A worker may have answered all that its clients have not read yet. Then it has held nothing.
            while rounds < ROUNDS or (not load.losses and rounds < 10 * ROUNDS):
                rounds += 1
                old = program.children()
                killed = max(old, key=load.workers.__getitem__)
                suspend(killed)
                # A request on an idle connection has not been sent yet, and its client sees that it is closed.
                while len(busy := clients_of(killed) - load.idle) < HELD:
                    await trio.sleep(0.01)
                # No client does anything between that look and the end of this call.
                kill_and_wait(killed)
                print(f"worker {killed} is killed with {len(busy)} requests")
                held |= busy
                new = await wait_for_children(program, 2, but=[killed])
                await load.wait_for_workers(new)
        assert 0 < len(load.losses) <= len(held)
        assert [loss for loss in load.losses if loss.port not in held] == []


async def test_one_worker_more_loses_nothing(tmp_path: Path) -> None:
    """SIGTTIN adds a worker that takes its part, and no request fails nor has to be retried."""
    with served(tmp_path) as program:
        async with loaded(program) as load:
            program.signal(signal.SIGTTIN)
            await load.wait_for_workers(await wait_for_children(program, 3))
        assert_nothing_lost(load)
        assert len(load.workers) == 3


async def test_one_worker_fewer_loses_nothing(tmp_path: Path) -> None:
    """SIGTTOU retires a worker, and no request fails nor has to be retried: the listener is shared."""
    with served(tmp_path) as program:
        async with loaded(program) as load:
            program.signal(signal.SIGTTOU)
            await wait_for(program, r"worker \d+ has ended")
            assert len(program.children()) == 1
        assert_nothing_lost(load)


async def test_worn_workers_lose_nothing(tmp_path: Path) -> None:
    """Workers that have served limit_max_requests are replaced, and no request fails nor has to be retried."""
    with served(tmp_path, "--limit-max-requests", "500", "--limit-max-requests-jitter", "200") as program:
        async with loaded(program) as load:
            for number in range(4):  # each with a patience of its own, within that of the load
                await wait_for(program, r"worker \d+ has ended", times=number + 1)
        assert_nothing_lost(load)
        assert len(load.workers) >= 6


async def test_websockets_are_told_of_the_restart(tmp_path: Path) -> None:
    """SIGHUP closes each WebSocket with 1012 (service restart), and its client can open a new one at once."""
    closes: list[int] = []
    workers: dict[int, str] = {}
    with served(tmp_path) as program, trio.fail_after(DEADLINE):

        async def talk(number: int) -> None:
            while True:
                stream = await trio.open_tcp_stream(*program.address)
                async with stream:
                    client = await open_handshake(stream)
                    assert isinstance(client, WebSocketClient), client
                    await client.send_text(f"from {number}")
                    answer = await client.receive()
                    assert isinstance(answer, str)
                    worker, _, text = answer.partition(" ")
                    assert text == f"from {number}"
                    workers[number] = worker
                    code, _ = await client.receive_close()
                    closes.append(code)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(talk, number)
            old = program.children()

            async def wait_served_by(pids: set[int]) -> None:
                while len(workers) < 40 or not set(workers.values()) <= set(map(str, pids)):
                    await trio.sleep(0.01)

            await wait_served_by(old)
            program.signal(signal.SIGHUP)
            await wait_for(program, "all workers are replaced")
            await wait_served_by(await wait_for_children(program, 2, but=old))
            nursery.cancel_scope.cancel()
    assert set(closes) == {1012}
    assert len(closes) >= 40


# The load itself


def answer_to(name: bytes, body: bytes = b"", *, cut: int = 0) -> bytes:
    """What the application answers to a request of this name, without the last bytes."""
    whole = name + b" " + body
    if int(name.partition(b"-")[2]) % 2:
        framing, content = b"transfer-encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(whole), whole)
    else:
        framing, content = b"content-length: %d" % len(whole), whole
    answer = b"HTTP/1.1 200 OK\r\nworker: 1\r\n%s\r\n\r\n%s" % (framing, content)
    return answer[: len(answer) - cut]


FIRST, SECOND = answer_to(b"0-0", Request(0, 0).body), answer_to(b"0-1")


@pytest.mark.parametrize(
    ("connections", "retried", "failed", "dropped"),
    [
        ([[FIRST, SECOND]], 0, 0, 0),
        ([[FIRST, b""], [SECOND]], 1, 0, 0),
        ([[b""], [FIRST, SECOND]], 0, 1, 0),
        ([[FIRST], [SECOND]], 0, 0, 1),
        ([[FIRST[:-1]], [FIRST, SECOND]], 0, 1, 0),
        ([[FIRST, SECOND[:-2]], [SECOND]], 0, 1, 0),
        ([[FIRST, b"H"], [SECOND]], 0, 1, 0),
        ([[FIRST, answer_to(b"0-3")], [SECOND]], 0, 1, 0),
        ([[FIRST.replace(b"200 OK", b"503 No")], [FIRST, SECOND]], 0, 1, 0),
        ([[FIRST, SECOND + b"surplus"], [SECOND]], 0, 1, 0),
    ],
    ids=[
        "all is well",
        "a reused connection closes before the answer",
        "a new connection closes unanswered",
        "an idle connection closes",
        "a cut body",
        "a cut last chunk",
        "a cut head",
        "the answer to another request",
        "another status",
        "more than the answer",
    ],
)
async def test_load_counts_what_is_owed(
    connections: list[list[bytes]], retried: int, failed: int, dropped: int
) -> None:
    """The load retries what was sent on a reused connection that closed before the first byte of the answer, and counts
    everything else that is not the right answer as failed; in the end everything is answered.
    """
    scripts = iter(connections)

    async def serve(stream: trio.SocketStream) -> None:
        """Answer each request with the next of its connection's answers; an empty one, or none, closes it."""
        received = b""
        for answer in next(scripts):
            while not is_whole(received):
                received += await stream.receive_some()
            received = b""
            await stream.send_all(answer)
            if not answer:
                break

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            load = Load(listener.socket.getsockname(), clients=1)
            await Client(load, 0).run(2)
            nursery.cancel_scope.cancel()
    assert (load.retried, load.failed, load.dropped) == (retried, failed, dropped)
    assert (load.sent, load.answered) == (2, 2)


def is_whole(request: bytes) -> bool:
    """The whole request has come, with the body that its number gives it."""
    head, end, body = request.partition(b"\r\n\r\n")
    return bool(end) and (not head.startswith(b"POST") or body == Request(0, 0).body)
