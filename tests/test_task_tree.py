"""Applications that break Trio's task tree hurt their own connection only."""

from __future__ import annotations

import hashlib
import logging
import sys

import h11
import pytest
import trio

from .support import http_app, memory_server, nothing_left, send_text, socket_server

pytestmark = pytest.mark.timeout(30)

START = {"type": "http.response.start", "status": 200, "headers": []}


def piece(body: bytes, *, more: bool = True):
    return {"type": "http.response.body", "body": body, "more_body": more}


async def in_nursery(interval=1):
    """What many write, and Trio cannot bear: a generator that yields inside a nursery, and may be left half-way."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        while True:
            yield b"tick"
            await trio.sleep(interval)


async def in_scope():
    with trio.CancelScope():
        while True:
            yield b"tick"
            await trio.sleep(1)


async def stream(generator, send):
    # Without closing the generator, as Starlette's StreamingResponse does: it keeps all that it has opened.
    await send(START)
    async for body in generator:
        await send(piece(body))


async def yields_in_a_nursery(scope, receive, send):
    await stream(in_nursery(), send)


async def yields_in_a_scope(scope, receive, send):
    await stream(in_scope(), send)


async def yields_beside_a_listener(scope, receive, send):
    """As Starlette for older ASGI versions: the stream in one task, and a listener that cancels it on a disconnect."""

    async def listen(nursery):
        while (await receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, nursery)
        await stream(in_nursery(), send)


async def enters_a_scope_and_never_leaves(scope, receive, send):
    # Kept alive past the handler, or closing it would put things in order.
    kept.append(trio.CancelScope())
    kept[-1].__enter__()
    await send(START)
    while True:
        await send(piece(b"tick"))
        await trio.sleep(1)


async def opens_a_nursery_and_returns(scope, receive, send):
    manager = trio.open_nursery()
    kept.append(manager)
    nursery = await manager.__aenter__()
    nursery.start_soon(trio.sleep_forever)
    await send(START)
    await send(piece(b"tick"))
    await trio.sleep(30)
    await send(piece(b"", more=False))


async def exits(scope, receive, send):
    await send(START)
    await send(piece(b"tick"))
    await trio.sleep(2)
    sys.exit("the application wants to go")


kept: list[object] = []
BREAKERS = [
    yields_in_a_nursery,
    yields_in_a_scope,
    yields_beside_a_listener,
    enters_a_scope_and_never_leaves,
    opens_a_nursery_and_returns,
    exits,
]
BODY = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _forget():
    yield
    kept.clear()


def app_with(breaker):
    async def handler(scope, receive, send):
        if scope["path"] == "/broken":
            await breaker(scope, receive, send)
            return
        if scope["path"] == "/fine":
            await send_text(send, "fine")
            return
        await send({**START, "headers": [(b"content-length", b"%d" % len(BODY))]})
        for start in range(0, len(BODY), 1024):
            await trio.sleep(1)
            await send(piece(BODY[start : start + 1024], more=start + 1024 < len(BODY)))

    return http_app(handler)


async def begin(server, target) -> object:
    client = await server.connect()
    await client.send(h11.Request(method="GET", target=target, headers=[("Host", "a")]), h11.EndOfMessage())
    return client


async def download(server, results) -> None:
    client = await begin(server, "/download")
    answer = await client.answer()
    results.append(hashlib.sha256(answer.body).digest() == hashlib.sha256(BODY).digest())
    await client.aclose()


async def first_tick(client) -> None:
    assert isinstance(await client.next_event(), h11.Response)
    assert (await client.next_event()).data == b"tick"


def errors_logged(caplog) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.name == "trioserve.error" and one.levelno == logging.ERROR]


@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
@pytest.mark.parametrize("breaker", BREAKERS)
@pytest.mark.parametrize("end", ["client leaves", "timeout_request", "shutdown", "cancel"])
async def test_a_broken_task_tree_hurts_its_own_connection_only(autojump_clock, caplog, breaker, end):
    """However it is abandoned, another connection gets its whole body, there is at most one error record, and no task
    is left.
    """
    results: list[bool] = []
    with nothing_left():
        async with memory_server(app_with(breaker), timeout_request=50) as server, trio.open_nursery() as nursery:
            broken = await begin(server, "/broken")
            await first_tick(broken)
            await trio.sleep(20)
            nursery.start_soon(download, server, results)
            await trio.sleep(3)
            if end == "client leaves":
                await broken.aclose()
            elif end == "shutdown":
                server.server.shutdown(grace=45)
            elif end == "cancel":
                server.nursery.cancel_scope.cancel()
            await trio.sleep(45)
            assert results == [True]
            if end != "shutdown":
                client = await server.connect()
                assert (await client.get("/fine")).body == b"fine"
            assert server.server.statistics().requests == 0
    assert results == ([] if end == "cancel" else [True])
    # A nursery of the application's own notices too that it was broken into, and that is an error of its own.
    assert len(errors_logged(caplog)) <= (2 if breaker is yields_beside_a_listener else 1)


@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
@pytest.mark.parametrize("breaker", [yields_in_a_nursery, yields_in_a_scope, enters_a_scope_and_never_leaves])
async def test_a_client_that_leaves_a_broken_stream_is_one_record(autojump_clock, caplog, breaker):
    """What Trio raises when the connection's task ends is one application error, with the trace."""
    async with memory_server(app_with(breaker)) as server:
        client = await begin(server, "/broken")
        await first_tick(client)
        await client.aclose()
        await trio.sleep(10)
        assert server.server.statistics().connections == 0
        assert len(errors_logged(caplog)) == 1
        assert errors_logged(caplog)[0].exc_info is not None


@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
async def test_a_broken_task_tree_over_sockets(caplog):
    """The same over real sockets, with the transport of sockets: a neighbour's request is answered after it."""

    async def handler(scope, receive, send):
        if scope["path"] == "/broken":
            await stream(in_nursery(0.01), send)
        else:
            await send_text(send, "fine")

    async with socket_server(http_app(handler)) as server:
        neighbour = await server.connect()
        assert (await neighbour.get()).body == b"fine"
        client = await begin(server, "/broken")
        await first_tick(client)
        await client.aclose()
        with trio.fail_after(10):
            while server.server.statistics().connections > 1:
                await trio.sleep(0.01)
        assert (await neighbour.get()).body == b"fine"
        await neighbour.aclose()
    assert len(errors_logged(caplog)) == 1
