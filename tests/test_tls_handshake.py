"""The server's side of the handshake: how it fails, and what the client is told."""

from __future__ import annotations

import ssl
from contextlib import suppress
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import memory_stream_pair

from trioserve.clock import Clock
from trioserve.drain import Drain, DrainKind
from trioserve.errors import ClientDisconnected
from trioserve.net.tls import build_context
from trioserve.net.tls_handshake import PATIENCE_AT_STOP, PLAIN_HTTP_ANSWER, HandshakeError, TLSSession, handshake

from .test_tls import Files
from .tls_client import TLSClient
from .transports import writing_transport


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def shake(
    stream: trio.abc.Stream, context: ssl.SSLContext, deadline: float = inf, drain: Drain | None = None
) -> TLSSession:
    """The server's handshake on a stream, which stays open."""
    clock = Clock()
    async with trio.open_nursery() as nursery, writing_transport(stream, clock) as transport:
        nursery.start_soon(clock.run)
        try:
            session = await handshake(transport, context, deadline=deadline, drain=drain or Drain())
        except HandshakeError as error:
            session, failure = None, error
            with suppress(ClientDisconnected):
                await transport.flush()
        nursery.cancel_scope.cancel()
    if session is None:
        raise failure
    return session


async def test_alert_of_the_client_is_the_reason(files: Files) -> None:
    """The reason of a handshake that the client refused is the alert it sent."""
    near, far = memory_stream_pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")

    async def refuse() -> None:
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        await far.send_all(outgoing.read())
        incoming.write(await far.receive_some())
        with pytest.raises(ssl.SSLCertVerificationError):
            client.do_handshake()
        await far.send_all(outgoing.read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(HandshakeError) as caught:
            await shake(near, build_context(files.config()))
    assert caught.value.reason == "tlsv1 alert unknown ca"
    assert not caught.value.plain_http


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT"])
async def test_plain_http_is_recognised(files: Files, method: str) -> None:
    """A client that speaks plain HTTP is recognised, and can be answered on a transport nothing was written to."""
    near, far = memory_stream_pair()
    await far.send_all(f"{method} /path HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    with pytest.raises(HandshakeError) as caught:
        await shake(near, build_context(files.config()))
    assert caught.value.plain_http
    assert caught.value.reason == "http request"
    await near.send_all(PLAIN_HTTP_ANSWER)
    await near.aclose()
    assert b"".join([piece async for piece in far]) == PLAIN_HTTP_ANSWER


def test_answer_to_plain_http_is_a_whole_response() -> None:
    """PLAIN_HTTP_ANSWER is a complete 400 that closes the connection."""
    head, _, body = PLAIN_HTTP_ANSWER.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"speaks HTTPS" in body


async def test_other_bytes_are_not_taken_for_http(files: Files) -> None:
    """A client of another protocol fails without an answer in HTTP."""
    near, far = memory_stream_pair()
    await far.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(HandshakeError) as caught:
        await shake(near, build_context(files.config()))
    assert not caught.value.plain_http
    assert caught.value.reason == "wrong version number"


async def test_lost_connection_is_a_reason(files: Files) -> None:
    """A client that leaves without a word counts as a lost connection."""
    near, far = memory_stream_pair()
    await far.aclose()
    with pytest.raises(HandshakeError, match="^connection lost$"):
        await shake(near, build_context(files.config()))


async def test_a_client_that_says_goodbye_is_lost(files: Files) -> None:
    """A close_notify in the middle of a handshake is no more than leaving."""
    near, far = memory_stream_pair()

    async def leave() -> None:
        client = TLSClient(files.ca, ssl.TLSVersion.TLSv1_3)
        await far.send_all(client.hello)
        await far.receive_some()
        await far.send_all(b"\x15\x03\x03\x00\x02\x01\x00")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        with pytest.raises(HandshakeError, match="^connection lost$") as caught:
            await shake(near, build_context(files.config()))
    assert isinstance(caught.value.__cause__, ssl.SSLZeroReturnError)


async def test_a_client_that_is_lost_before_it_is_answered(files: Files) -> None:
    """What it has said can still be read, but not answered: a lost connection."""
    near, far = memory_stream_pair()
    async with writing_transport(near) as transport:
        await far.send_all(TLSClient(files.ca, ssl.TLSVersion.TLSv1_3).hello)
        await trio.testing.wait_all_tasks_blocked()
        await transport.lose()
        failure = None
        try:
            await handshake(transport, build_context(files.config()), deadline=inf, drain=Drain())
        except HandshakeError as error:
            failure = error
    assert failure is not None
    assert failure.reason == "connection lost"


async def test_broken_transport_counts_as_lost(files: Files) -> None:
    """A reset in the middle of the handshake is a lost connection too, not an error of ours."""
    near = memory_stream_pair()[0]

    async def reset(stream: object) -> None:
        raise trio.BrokenResourceError from ConnectionResetError()

    near.receive_stream.receive_some = reset  # type: ignore[method-assign, assignment]  # a stream that fails
    with pytest.raises(HandshakeError, match="^connection lost$"):
        await shake(near, build_context(files.config()))


async def test_handshake_may_be_cancelled(files: Files, autojump_clock: trio.testing.MockClock) -> None:
    """A client that says nothing is cut by the caller's deadline; the transport stays the caller's."""
    near, far = memory_stream_pair()
    with trio.move_on_after(10) as scope:
        await shake(near, build_context(files.config()))
    assert scope.cancelled_caught
    await near.send_all(b"x")
    assert await far.receive_some() == b"x"


async def test_alert_into_a_broken_connection_is_dropped(files: Files) -> None:
    """A client that cannot be told why it was refused changes nothing about the reason."""
    near, far = memory_stream_pair()
    await far.send_all(b"\x16\x03\x01\x00\x05aaaaa")
    await far.receive_stream.aclose()
    with pytest.raises(HandshakeError, match="^unexpected message$"):
        await shake(near, build_context(files.config()))


async def test_a_silent_client_has_until_the_deadline(files: Files, autojump_clock: trio.testing.MockClock) -> None:
    """The handshake ends at its deadline, however often the client says a little."""
    near, far = memory_stream_pair()
    start = trio.current_time()

    async def trickle() -> None:
        for byte in b"\x16\x03\x01\x02\x00":
            await far.send_all(bytes([byte]))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        with pytest.raises(HandshakeError, match="^timed out$"):
            await shake(near, build_context(files.config()), deadline=start + 10)
    assert trio.current_time() - start == 10


@pytest.mark.parametrize("begins_before", [True, False])
async def test_a_stop_leaves_a_moment(
    files: Files, autojump_clock: trio.testing.MockClock, begins_before: bool
) -> None:
    """A stop, whether it began before or begins now, leaves a second; a retiring server waits as ever."""
    near, _ = memory_stream_pair()
    drain = Drain()
    start = trio.current_time()

    async def stop() -> None:
        await trio.sleep(3)
        drain.begin(DrainKind.RETIRE)
        await trio.sleep(1)
        drain.begin(DrainKind.STOP)

    if begins_before:
        drain.begin(DrainKind.STOP)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        with pytest.raises(HandshakeError, match="^timed out$"):
            await shake(near, build_context(files.config()), deadline=start + 10, drain=drain)
        assert trio.current_time() - start == (0 if begins_before else 4) + PATIENCE_AT_STOP
        nursery.cancel_scope.cancel()
