"""An HTTP/1.1 client, made of h11, that checks every byte as it comes."""

from __future__ import annotations

import select
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import h11
import trio

from .content import Body
from .ledger import Life

PATIENCE = 25.0
"""Seconds for one whole answer; a client that waits longer has failed, whatever the driver did."""

_UPLOAD_PIECE = 32768


class WrongBytes(Exception):
    """Something else came than must come."""


class Broken(Exception):
    """The connection ended, or nothing came."""


@dataclass(frozen=True)
class Address:
    """Where the server listens. ``tls`` trusts it; None: it speaks plain HTTP there."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


@dataclass(frozen=True)
class Request:
    """A request and its answer. ``is_cut``: the answer breaks off after ``expected``."""

    kind: str
    target: str
    expected: Body
    method: str = "GET"
    upload: Body | None = None
    is_chunked: bool = False
    asks_first: bool = False
    status: int = 200
    is_cut: bool = False
    has_worker: bool = True
    """The answer is the application's, which says who gave it."""

    @property
    def head(self) -> h11.Request:
        fields = [("Host", "localhost")]
        if self.upload is not None:
            fields.append(("Transfer-Encoding", "chunked") if self.is_chunked else self._length)
        if self.asks_first:
            fields.append(("Expect", "100-continue"))
        return h11.Request(method=self.method, target=self.target, headers=fields)

    @property
    def _length(self) -> tuple[str, str]:
        assert self.upload is not None
        return "Content-Length", str(self.upload.size)

    def pieces(self) -> list[h11.Data]:
        body = self.upload or Body()
        return [h11.Data(data=body.part(at, at + _UPLOAD_PIECE)) for at in range(0, body.size, _UPLOAD_PIECE)]


async def open_stream(address: Address) -> trio.abc.Stream:
    """Raises OSError and trio.BrokenResourceError."""
    sock = trio.socket.socket()
    try:
        await sock.connect((address.host, address.port))
    except BaseException:
        sock.close()
        raise
    stream = trio.SocketStream(sock)
    if address.tls is None:
        return stream
    secured = trio.SSLStream(stream, address.tls, server_hostname="localhost", https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


def socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType:
    raw = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(raw, trio.SocketStream)
    return raw.socket


def port_of(stream: trio.abc.Stream) -> int:
    """By which the server's log names the client."""
    port: int = socket_of(stream).getsockname()[1]
    return port


def is_readable(stream: trio.abc.Stream) -> bool:
    looking = select.poll()
    looking.register(socket_of(stream).fileno(), select.POLLIN)
    return bool(looking.poll(0))


class Connection:
    """A client's end of one connection, which sends one request or several and reads their answers in order."""

    def __init__(self, address: Address, number: int) -> None:
        self._address = address
        self.life = Life(f"{address.scheme} client {number}")
        self.is_reusable = True
        self.has_bytes = False
        """Something came of the answer that is being waited for."""
        self._stream: trio.abc.Stream | None = None
        self._rest = b""

    async def exchange(self, requests: Sequence[Request]) -> list[Request]:
        """Send requests, pipelined if there are several, and check the answers; returns those that were answered.

        If the connection ends between two answers, the rest was not answered. Raises WrongBytes and Broken.
        """
        self.has_bytes = False
        try:
            with trio.fail_after(PATIENCE):
                return await self._exchange(requests)
        except trio.TooSlowError:
            raise Broken(f"no whole answer in {PATIENCE} s") from None
        except (trio.BrokenResourceError, OSError, h11.RemoteProtocolError) as error:
            raise Broken(f"{type(error).__name__}: {error.__cause__ or error}") from error

    async def _exchange(self, requests: Sequence[Request]) -> list[Request]:
        if self._stream is None:
            self._stream = await open_stream(self._address)
            self.life.note(f"connected, from port {port_of(self._stream)}")
        machines = [h11.Connection(h11.CLIENT) for _ in requests]
        if len(requests) > 1 or not requests[0].asks_first:
            await self._send(zip(machines, requests, strict=True))
        answered = []
        for machine, request in zip(machines, requests, strict=True):
            if request.asks_first:
                await self._ask_first(machine, request)
            await self._read(machine, request)
            answered.append(request)
            self.life.answers += 1
            self.is_reusable = machine.their_state is h11.DONE and machine.our_state is h11.DONE
            if not self.is_reusable:
                break
        return answered

    async def _send(self, pairs: zip[tuple[h11.Connection, Request]]) -> None:
        data = b""
        self.life.asked = trio.current_time()
        for machine, request in pairs:
            self.life.note(f"> {request.method} {request.target}")
            events = [request.head, *request.pieces(), h11.EndOfMessage()]
            data += b"".join(machine.send(event) or b"" for event in events)
        await self._stream.send_all(data)

    async def _ask_first(self, machine: h11.Connection, request: Request) -> None:
        self.life.asked = trio.current_time()
        self.life.note(f"> {request.method} {request.target}, Expect")
        await self._stream.send_all(machine.send(request.head) or b"")
        event = await self._next(machine)
        if not isinstance(event, h11.InformationalResponse) or event.status_code != 100:
            raise WrongBytes(f"no 100 (Continue) but {event!r}")
        for event in (*request.pieces(), h11.EndOfMessage()):
            await self._stream.send_all(machine.send(event) or b"")

    async def _next(self, machine: h11.Connection) -> h11.Event | type[h11.PAUSED]:
        """The next event; what was left over of the answer before comes first."""
        while (event := machine.next_event()) is h11.NEED_DATA:
            data, self._rest = self._rest, b""
            data = data or bytes(await self._stream.receive_some(65536))
            self.has_bytes = self.has_bytes or bool(data)
            self.life.note(f"< {len(data)} bytes {data[:60]!r}")
            machine.receive_data(data)
        return event

    async def _read(self, machine: h11.Connection, request: Request) -> None:
        place = 0
        try:
            await self._read_head(machine, request)
            while isinstance(event := await self._next(machine), h11.Data):
                data = bytes(event.data)
                if data != request.expected.part(place, place + len(data)):
                    raise WrongBytes(f"{request.target}: not the bytes from {place} on: {data[:60]!r}")
                place += len(data)
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            if not (request.is_cut and self.has_bytes):
                raise Broken(f"{request.target}: {place} of {request.expected.size} bytes: {error}") from error
            return
        if request.is_cut or not isinstance(event, h11.EndOfMessage):
            raise WrongBytes(f"{request.target}: this answer must not be complete; {event!r}")
        if request.method != "HEAD" and place != request.expected.size:
            raise WrongBytes(f"{request.target}: {place} of {request.expected.size} bytes, as if that were all")
        self._rest = machine.trailing_data[0]

    async def _read_head(self, machine: h11.Connection, request: Request) -> None:
        event = await self._next(machine)
        while isinstance(event, h11.InformationalResponse):
            event = await self._next(machine)
        if not isinstance(event, h11.Response):
            raise Broken(f"{request.target}: no answer: {event!r}")
        fields = dict(event.headers)
        if b"x-worker" in fields:
            self.life.worker = int(fields[b"x-worker"])
        if event.status_code != request.status or (request.has_worker and b"x-worker" not in fields):
            raise WrongStatus(request, event)

    async def is_closed(self) -> bool:
        """Whether the server has closed the idle connection; raises WrongBytes if it has sent what nobody asked for."""
        if self._rest:
            raise WrongBytes(f"bytes that nobody asked for: {self._rest[:60]!r}")
        if not is_readable(self._stream):
            return False
        # What is there may be TLS's own.
        with trio.move_on_after(0.02):
            try:
                data = bytes(await self._stream.receive_some(65536))
            except (trio.BrokenResourceError, OSError):
                return True
            if data:
                raise WrongBytes(f"bytes that nobody asked for: {data[:60]!r}")
            return True
        return False

    async def vanish(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


class WrongStatus(Broken):
    """Another status than expected, which the server may have a reason for."""

    def __init__(self, request: Request, response: h11.Response) -> None:
        fields = b", ".join(b": ".join(one) for one in islice(response.headers, 8))
        super().__init__(f"{request.target}: {response.status_code} instead of {request.status}; {fields!r}")
