"""HTTP/1.1's exchange alone, on a transport made for the purpose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.context import ServerContext
from trioserve.errors import ClientDisconnected
from trioserve.exchange import Endpoint, Request, Response
from trioserve.observer import Observer
from trioserve.transport import FilePiece, Wake
from trioserve.wire.codec_h11 import H11Codec
from trioserve.wire.framing import FramedHeads
from trioserve.wire.http11_exchange import UNCANCELLED, HTTP11Exchange
from trioserve.wire.request_reader import ParsedHeads
from trioserve.wire.rules import CHUNKS_AT_ONCE

from .support import respond


class Scripted:
    """A Transport whose receive is what a test says; what is sent is dropped."""

    has_waited = has_left = has_unread = is_broken = can_send_files = False

    def __init__(self) -> None:
        self.on_receive: Callable[[], object] = object
        self.received = 0

    def tell(self, *, left: Callable[[], None], unread: Callable[[], None]) -> None: ...

    async def receive(self, deadline: float) -> bytes | Wake:
        self.received += 1
        came = await self.on_receive()  # type: ignore[misc]  # the tests give coroutine functions
        assert isinstance(came, bytes | Wake)
        return came

    async def send(self, data: bytes, stall: float) -> None: ...

    async def send_parts(self, parts: Sequence[bytes], stall: float, more: bool) -> None: ...

    async def send_file(self, piece: FilePiece, stall: float) -> None: ...

    async def flush(self) -> None: ...

    async def wait_left(self) -> None: ...

    def wake(self, reason: Wake) -> None: ...

    async def send_eof(self) -> None: ...

    async def aclose(self, *, reset: bool = False) -> None: ...


def make_exchange(transport: Scripted, head: bytes) -> HTTP11Exchange:
    config = Config(access_log=False)
    codec = H11Codec(config, ParsedHeads(), FramedHeads())
    codec.feed(head)
    read = codec.next_head()
    assert read is not None
    return HTTP11Exchange(
        Request(read.method, read.target, read.headers, read.http_version, Endpoint()),
        transport=transport,
        codec=codec,
        server=ServerContext(respond(), config, observer=Observer()),
        on_end=lambda: None,
    )


async def test_a_reader_whose_bytes_come_with_the_end_does_not_wait_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A task that waits for the body is woken by a part of a chunk's line while another completes the response: it must
    not go back to the transport, which has another reader by then, but learn that the exchange has ended."""
    transport = Scripted()
    exchange = make_exchange(transport, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def end_meanwhile() -> bytes:
        exchange.send_response(Response(200, []))
        await exchange.send_body(b"done", more=False)
        return b"5"

    transport.on_receive = end_meanwhile
    with pytest.raises(ClientDisconnected):
        await exchange.receive_body()
    assert transport.received == 1


POST_FIVE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


async def test_a_drain_while_the_last_bytes_of_a_client_that_left_are_read() -> None:
    """Whoever reads much lets others run in between; being woken then is no end of what has come."""
    transport = Scripted()
    transport.has_left = True
    exchange = make_exchange(transport, POST_FIVE)
    comes = iter([b"he", Wake.DRAIN, b"llo", b""])

    async def next_of_them() -> bytes | Wake:
        return next(comes)

    transport.on_receive = next_of_them
    assert await exchange.receive_body() == (b"hello", False)


async def test_an_end_while_the_last_bytes_of_a_client_that_left_are_read() -> None:
    """When another task completes the response meanwhile, the transport has another reader, and we stop."""
    transport = Scripted()
    transport.has_left = True
    exchange = make_exchange(transport, POST_FIVE)

    async def end_meanwhile() -> bytes:
        exchange.send_response(Response(200, []))
        await exchange.send_body(b"done", more=False)
        return b"he"

    transport.on_receive = end_meanwhile
    with pytest.raises(ClientDisconnected):
        await exchange.receive_body()
    assert transport.received == 1


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def receive_until_cancelled(exchange: HTTP11Exchange) -> int:
    """Receive in a cancelled scope; how many bytes that gave."""
    received = 0
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(100):
            received += len((await exchange.receive_body())[0])
    assert scope.cancelled_caught
    return received


async def test_a_body_that_always_has_more_can_be_cancelled() -> None:
    """What is there is to be had in a cancelled scope, but not for ever; and nothing of it is lost."""
    transport = Scripted()
    size = 3 * UNCANCELLED
    exchange = make_exchange(transport, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)

    async def always() -> bytes:
        return b"x" * 65536

    transport.on_receive = always
    assert await receive_until_cancelled(exchange) == UNCANCELLED
    assert await receive_until_cancelled(exchange) == UNCANCELLED
    received, more = 0, True
    while more:
        piece, more = await exchange.receive_body()
        received += len(piece)
    assert received == UNCANCELLED


@pytest.mark.parametrize("has_left", [False, True])
async def test_tiny_chunks_without_end_can_be_cancelled(has_left: bool) -> None:
    """A handler that reads them is cancelled after the first thousand, also if its client has left; none is lost."""
    transport = Scripted()
    exchange = make_exchange(transport, CHUNKED)
    comes = iter([b"1\r\nx\r\n" * 2500 + b"0\r\n\r\n"])

    async def all_at_once() -> bytes:
        return next(comes, b"")

    transport.on_receive = all_at_once
    transport.has_left = has_left
    received = await receive_until_cancelled(exchange)
    assert received == (0 if has_left else CHUNKS_AT_ONCE)
    more = True
    while more:
        piece, more = await exchange.receive_body()
        received += len(piece)
    assert received == 2500


@pytest.mark.parametrize(
    "send",
    [
        lambda exchange: exchange.send_informational(103, []),
        lambda exchange: exchange.send_file(0, 0, 1, more=False),
        lambda exchange: exchange.send_body(b"x", more=False),
        lambda exchange: exchange.send_trailers([]),
        lambda exchange: exchange.switch_protocols([]),
    ],
)
async def test_nothing_can_be_sent_after_the_end(send: Callable[[HTTP11Exchange], Awaitable[object]]) -> None:
    """Once the response is complete, or nothing can reach the client, whatever sends says so."""
    ended, broken = (make_exchange(Scripted(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(2))
    ended.abort()
    broken._transport.is_broken = True  # type: ignore[misc]  # the test's own transport
    for exchange in (ended, broken):
        with pytest.raises(ClientDisconnected):
            await send(exchange)
        with pytest.raises(ClientDisconnected):
            exchange.send_response(Response(200, []))


async def test_a_file_that_is_cancelled_ends_the_response() -> None:
    """Its bytes are counted, and perhaps none has gone out: what is sent after it would be taken for the rest of it,
    and the next response, too.
    """
    exchange = make_exchange(transport := Scripted(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    exchange.send_response(Response(200, [(b"content-length", b"5")]))
    await exchange.send_body(b"", more=True)

    async def wait_for_its_turn(piece: FilePiece, stall: float) -> None:
        await trio.sleep_forever()

    transport.send_file = wait_for_its_turn  # type: ignore[method-assign]  # it is the test's own
    with trio.CancelScope() as scope:
        scope.cancel()
        await exchange.send_file(0, 0, 5, more=True)
    assert scope.cancelled_caught
    assert exchange.has_aborted
    assert exchange.must_close
    with pytest.raises(ClientDisconnected):
        await exchange.send_body(b"", more=False)
