"""No request hides in another: each case of the table is one message, however it comes, or none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.errors import ProtocolError
from trioserve.exchange import Response
from trioserve.types import Receive, Scope, Send
from trioserve.wire.codecs import codec_maker

from . import smuggling_bodies, smuggling_heads
from .smuggling_bodies import BODIES, CHUNKS, CODINGS, LENGTH_AND_CODING, LENGTHS, Case
from .smuggling_heads import HOSTS, LINES, REQUEST_LINES, TARGETS
from .support import RunningServer, http_app, memory_server, send_text

FOLLOWING = b"GET /following HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CASES = [*smuggling_bodies.CASES, *smuggling_heads.CASES]
GROUPS = {
    "length and coding": LENGTH_AND_CODING,
    "codings": CODINGS,
    "lengths": LENGTHS,
    "lines": LINES,
    "chunks": CHUNKS,
    "request lines": REQUEST_LINES,
    "hosts": HOSTS,
    "targets": TARGETS,
    "bodies": BODIES,
}
groups = pytest.mark.parametrize("cases", GROUPS.values(), ids=GROUPS)


@dataclass
class Outcome:
    """What a codec made of some bytes: the whole requests, as target and body, and the status of a refusal."""

    requests: list[tuple[bytes, bytes]]
    refusal: int | None = None


def read(name: str, pieces: Sequence[bytes]) -> Outcome:
    """Feed a codec, and answer each whole request, until it closes or refuses."""
    codec = codec_maker(Config.from_plain({"http": name}))()  # which knows no head yet
    outcome, target, body = Outcome([]), b"", b""
    reads_head = True
    try:
        for piece in pieces:
            codec.feed(piece)
            while True:
                if reads_head:
                    found = codec.next_head()
                    if found is None:
                        break
                    target, body, reads_head = found.target, b"", False
                part = codec.next_body()
                if part is None:
                    break
                body += part[0]
                if part[1]:
                    continue
                outcome.requests.append((target, body))
                codec.response_head(Response(200, [(b"content-length", b"0")]), (), False)
                codec.end(())
                if not codec.can_reuse:
                    return outcome
                codec.start_next()
                reads_head = True
    except ProtocolError as error:
        outcome.refusal = error.status
    return outcome


def expected_of(case: Case, outcome: Outcome) -> Outcome:
    """What must have become of a case with another request behind it; the first one's target may be what it is."""
    if isinstance(case.expected, int):
        return Outcome([], case.expected)
    if case.expected is None:
        return Outcome([])
    target = outcome.requests[0][0] if outcome.requests else b"/"
    return Outcome([(target, case.expected)] if case.closes else [(target, case.expected), (b"/following", b"")])


def test_the_table_is_large() -> None:
    """There are many cases, all different, and each names its rule."""
    assert len({case.raw for case in CASES}) == len(CASES) >= 150
    assert all(case.source.split(" §")[0] in {"9110", "9112", "9113", "6585", "3875"} for case in CASES)


@groups
def test_each_case_is_one_message_or_none(cases: Sequence[Case], codec: str) -> None:
    """Both codecs make of each case what the table says, and never more requests than there are."""
    for case in cases:
        outcome = read(codec, [case.raw + FOLLOWING])
        assert outcome == expected_of(case, outcome), str(case)
        alone = read(codec, [case.raw])
        assert alone.requests == [one for one in outcome.requests if one[0] != b"/following"], str(case)


@groups
def test_each_case_is_the_same_however_it_is_cut(cases: Sequence[Case], codec: str) -> None:
    """Cut in two at any byte, or come byte by byte, nothing changes."""
    for case in cases:
        data = case.raw + FOLLOWING
        whole = read(codec, [data])
        # Of the long ones the middle is the same byte again and again.
        places = range(len(data)) if len(data) < 6000 else [*range(100), *range(len(data) - 200, len(data))]
        for place in places:
            assert read(codec, [data[:place], data[place:]]) == whole, (place, str(case))
        if len(data) < 6000:
            assert read(codec, [bytes([one]) for one in data]) == whole, str(case)


@pytest.mark.timeout(60)
@pytest.mark.both_codecs
@groups
async def test_each_case_through_the_server(cases: Sequence[Case]) -> None:
    """Cut at ten places, the server answers each case as the table says, and then the request behind it, or not."""
    targets: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request":
            if not message["more_body"]:
                targets.append(scope["raw_path"])
                await send_text(send, b"")
                return

    chosen = random.Random(len(cases))
    async with memory_server(http_app(app)) as server:
        for case in cases:
            data = case.raw + FOLLOWING
            for _ in range(10):
                targets.clear()
                place = chosen.randrange(len(data))
                with trio.fail_after(5):
                    answer = await talk(server, [data[:place], data[place:]], ends=case.expected is None)
                check(case, targets, answer, (place, str(case)))


async def talk(server: RunningServer, pieces: Sequence[bytes], *, ends: bool) -> bytes:
    """Send pieces, each once the server has taken the one before, and if asked the end; returns all that it answers."""
    stream = await server.connect_stream()
    received = bytearray()

    async def send() -> None:
        try:
            for piece in pieces:
                if piece:
                    await stream.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
            if ends:
                await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the server has refused it before its end

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async for data in stream:
            received += data
    await stream.aclose()
    return bytes(received)


def check(case: Case, targets: list[bytes], answer: bytes, what: object) -> None:
    statuses = [int(line.split(b" ")[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert b"/smuggled" not in targets, what
    if isinstance(case.expected, int):
        assert statuses == [case.expected], what
        assert b"/following" not in targets, what
        return
    assert statuses.count(200) == len(targets), what
    if case.expected is None:
        assert targets == [], what
    elif case.closes:
        assert len(targets) == 1, what
    else:
        assert len(targets) == 2, what
        assert targets[1] == b"/following", what
