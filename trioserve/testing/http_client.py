"""One HTTP request over any Trio stream, for servers that no HTTP library can reach."""

from __future__ import annotations

from dataclasses import dataclass

import h11
import trio

RECEIVE_SIZE = 65536


@dataclass(frozen=True)
class Answer:
    """A whole response. ``headers`` are its fields in order, with lower-case names."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


async def receive_answer(stream: trio.abc.ReceiveStream, method: str) -> Answer:
    """Read the response to a request with this method; raises BrokenResourceError if it is cut or no HTTP."""
    client = h11.Connection(h11.CLIENT)
    # What has been sent is not h11's, which only has to know how the answer is framed.
    client.send(h11.Request(method=method, target="/", headers=[("Host", "test")]))
    client.send(h11.EndOfMessage())
    head: h11.Response | None = None
    body = bytearray()
    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError as error:
            raise trio.BrokenResourceError(f"the answer is cut, or no HTTP: {error}") from error
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some(RECEIVE_SIZE)))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None  # h11 sees to that
            return Answer(head.status_code, list(head.headers), bytes(body))
