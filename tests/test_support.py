"""The tests' own tools."""

from __future__ import annotations

import trio.testing

from .support import http_app, memory_server, read_body, respond, send_text, socket_server


async def test_a_request_over_memory_streams(autojump_clock: trio.testing.MockClock) -> None:
    """A client made of h11 gets its answers, one after the other, on one connection."""
    async with memory_server(respond(b"Hi")) as server:
        client = await server.connect()
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.body) == (200, b"Hi")
        assert [record.status for record in server.records] == [200, 200]


async def test_a_request_over_a_socket() -> None:
    """The same over a real port, with a body."""

    async def echo(scope, receive, send):  # type: ignore[no-untyped-def]
        await send_text(send, await read_body(receive))

    async with socket_server(http_app(echo)) as server:
        client = await server.connect()
        answer = await client.request("POST", body=b"x" * 100_000)
        assert answer.body == b"x" * 100_000
        await client.aclose()
