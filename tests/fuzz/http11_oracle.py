"""Which answers an HTTP/1.1 server may give to some bytes: from what its codec reads of them alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import h11

from trioserve.wire.request_reader import Head
from trioserve.wire.upgrade import wants_websocket

from ..codec_reading import Reading

SWITCHING = 101
FAILED_HANDSHAKE = {400, 405, 426}  # no WebSocket, and HTTP goes on
TOO_LATE = 408


@dataclass
class Call:
    """What the application saw of one request; ``body`` is None if it did not read it, or not to its end."""

    method: str
    target: bytes
    query: bytes = b""
    body: bytes | None = None

    @property
    def word(self) -> bytes:
        """The first letter of the path, which tells the application what to do."""
        return self.target[1:2]

    @property
    def echo(self) -> bytes:
        return b"%b %b %b" % (self.method.encode(), self.target, self.body or b"")


@dataclass
class Answer:
    """A response as h11 reads it; ``is_whole``: to its end."""

    status: int = 0
    body: bytes = b""
    is_whole: bool = False
    informational: list[int] = field(default_factory=list)


def read_answers(data: bytes, heads: Sequence[Head]) -> list[Answer]:
    """Read responses to these requests, and to one more that could not be read. Raises what h11 raises."""
    answers: list[Answer] = []
    while data:
        assert len(answers) <= len(heads), f"more responses than requests: {data[:100]!r}"
        head = heads[len(answers)] if len(answers) < len(heads) else None
        answer, data = _read_answer(data, head)
        answers.append(answer)
        if answer.status == SWITCHING:
            break
        assert answer.is_whole or not data
    return answers


def _read_answer(data: bytes, head: Head | None) -> tuple[Answer, bytes]:
    client = h11.Connection(h11.CLIENT)
    fields = [("host", "a")]
    if head is not None and head.has_upgrade:
        fields += [("upgrade", "websocket"), ("connection", "upgrade")]
    client.send(h11.Request(method=head.method if head is not None else "GET", target="/", headers=fields))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    answer = Answer()
    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError:
            if not answer.status:
                raise
            return answer, b""  # broken off
        if isinstance(event, h11.InformationalResponse):
            if event.status_code == SWITCHING:
                answer.status = SWITCHING
                return answer, client.trailing_data[0]
            answer.informational.append(event.status_code)
        elif isinstance(event, h11.Response):
            answer.status = event.status_code
        elif isinstance(event, h11.Data):
            answer.body += event.data
        else:
            assert isinstance(event, h11.EndOfMessage), event
            answer.is_whole = True
            rest = client.trailing_data[0]
            assert client.their_state is h11.DONE or not rest, f"after the last response: {rest[:100]!r}"
            return answer, rest


class Oracle:
    """``waits``: the client does not close, so that what is incomplete has its deadline.

    The whole server may do less than its codec reads, as it closes when an application has failed. Never more.
    """

    def __init__(self, reading: Reading, calls: Sequence[Call], *, waits: bool) -> None:
        self._reading = reading
        self._calls = deque(calls)
        self._waits = waits
        self._heads = [exchange.head for exchange in reading.exchanges]
        if reading.head is not None:
            self._heads.append(reading.head)

    def check(self, data: bytes) -> None:
        answers = read_answers(data, self._heads)
        for number, answer in enumerate(answers):
            if number == len(self._heads):
                self._check_unread(answer)
            elif wants_websocket(self._heads[number]):
                assert answer.status in {SWITCHING, *FAILED_HANDSHAKE}, answer
            else:
                self._check_call(number, answer)
        complete = len(self._reading.exchanges)
        if len(answers) < complete:
            # Only a WebSocket, and an application that has failed or read nothing, end a connection too early.
            last = self._heads[max(0, len(answers) - 1)]
            assert answers, "no answer at all"
            assert answers[-1].status == SWITCHING or last.target[1:2] in {b"i", b"r", b"b", b"n"}, answers
        # One more it may have begun, whose client left.
        assert len(self._calls) <= (self._reading.head is not None and len(answers) == complete), self._calls
        for call in self._calls:
            self._check_same(call, self._heads[-1], None)

    def _check_unread(self, answer: Answer) -> None:
        assert self._reading.head is None
        expected = self._reading.refusal
        if expected is None:
            assert self._waits, answer
            assert self._reading.has_begun, answer
            expected = TOO_LATE
        assert (answer.status, answer.is_whole) == (expected, True), answer

    def _check_call(self, number: int, answer: Answer) -> None:
        assert self._calls, f"nobody asked the application for {answer}"
        call = self._calls.popleft()
        is_complete = number < len(self._reading.exchanges)
        body = self._reading.exchanges[number].body if is_complete else None
        self._check_same(call, self._heads[number], body)
        bodiless = call.method == "HEAD"
        if call.word in (b"r", b"n"):
            assert answer.status == 500, answer
        elif call.word == b"b":
            assert answer.status == 200, answer
            assert answer.body in (b"", b"half"), answer
        elif call.word == b"i":
            assert (answer.status, answer.body) == (200, b"" if bodiless else b"ignored"), answer
        elif not is_complete:
            assert answer.status in {self._reading.refusal, TOO_LATE, 500}, answer
        elif call.word == b"e":
            assert (answer.status, answer.body) == (204, b""), answer
        else:
            expected = call.target + (call.body or b"") if call.word == b"s" else call.echo
            assert (answer.status, answer.body) == (200, b"" if bodiless else expected), answer
        assert answer.is_whole or call.word == b"b", answer
        assert set(answer.informational) <= {100, 103}, answer

    def _check_same(self, call: Call, head: Head, body: bytes | None) -> None:
        path, _, query = head.target.partition(b"?")
        assert (call.method, call.target, call.query) == (head.method, path, query), (call, head)
        assert call.body is None or call.body == body, (call.body, body)
