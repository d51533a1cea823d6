"""One call of an HTTP application: its ``receive`` and its ``send``."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum

import trio

from ..errors import ClientDisconnected, MessageError
from ..exchange import Exchange, Response
from ..types import Message, PlainValues
from .messages import as_bytes, open_regular_file, read, read_file, read_headers, read_response


class _Expects(Enum):
    """What the application must send next, in an error's words."""

    START = "http.response.start"
    BODY = "http.response.body"
    TRAILERS = "http.response.trailers"
    NOTHING = "nothing more, the response is complete"


class HTTPCall:
    """The receive and send of one call. Several tasks of the application may call both at once.

    ``debug`` is called with the info of http.response.debug; None: the extension is not offered.
    """

    # Defaults of the class are those that hardly ever change: a call then costs less to make.
    _has_trailers = False
    # Set before the write that completes the body, as another task that sends meanwhile must find it so.
    _after_body = _Expects.NOTHING
    _body_read = False
    _is_reading = False
    _turn: trio.lowlevel.ParkingLot | None = None

    def __init__(self, exchange: Exchange, debug: Callable[[PlainValues], None] | None = None) -> None:
        self._exchange = exchange
        self._debug = debug
        self._expects = _Expects.START
        self._response: Response | None = None  # held until the first piece of the body: both leave in one write

    @property
    def is_complete(self) -> bool:
        return self._expects is _Expects.NOTHING

    async def receive(self) -> Message:
        """Return the next piece of the body; once there is none, wait for the end and return http.disconnect."""
        exchange = self._exchange
        while not self._body_read and not exchange.ended:
            if self._is_reading:
                await self._wait_turn()
                continue
            self._is_reading = True
            try:
                body, more = await exchange.receive_body()
            except ClientDisconnected:
                self._body_read = True
                break
            finally:
                self._is_reading = False
                if self._turn is not None:
                    self._turn.unpark_all()
            self._body_read = not more
            return {"type": "http.request", "body": body, "more_body": more}
        await exchange.wait_disconnect()
        return {"type": "http.disconnect"}

    async def _wait_turn(self) -> None:
        # Another task is reading: pieces go to one at a time, and which one does not matter. Made late, as hardly any
        # application does this.
        if self._turn is None:
            self._turn = trio.lowlevel.ParkingLot()
        await self._turn.park()

    async def send(self, message: Message) -> None:
        """Take one message of the response.

        Raises MessageError for a message that is wrong, ClientDisconnected when nothing can reach the client.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        kind = message.get("type")
        if kind == "http.response.start":
            if self._expects is not _Expects.START:
                raise self._unexpected(kind)
            response = self._response = read_response(message)
            if response.trailers:
                self._has_trailers, self._after_body = True, _Expects.TRAILERS
            self._expects = _Expects.BODY
        elif kind == "http.response.body":
            if self._expects is not _Expects.BODY:
                raise self._unexpected(kind)
            data = message.get("body", b"")
            if type(data) is not bytes:
                data = as_bytes(message, "body", data)
            more = bool(message.get("more_body", False))
            if self._response is not None:
                self._begin(None if more else len(data))
            if not more:
                self._expects = self._after_body
            await self._exchange.send_body(data, more or self._has_trailers)
        else:
            await self._send_extension(read(message, "type", str), message)

    async def _send_extension(self, kind: str, message: Message) -> None:
        if kind == "http.response.trailers":
            self._expect(kind, _Expects.TRAILERS)
            await self._send_trailers(message)
        elif kind == "http.response.early_hint":
            self._expect(kind, _Expects.START)
            links = [(b"link", as_bytes(message, "links", link)) for link in read(message, "links", list, tuple)]
            await self._exchange.send_informational(103, links)
        elif kind == "http.response.pathsend":
            self._expect(kind, _Expects.BODY)
            await self._send_path(read(message, "path", str))
        elif kind == "http.response.zerocopysend" and self._exchange.can_send_files:
            self._expect(kind, _Expects.BODY)
            await self._send_open_file(message)
        elif kind == "http.response.debug" and self._debug is not None:
            self._debug(read(message, "info", dict))
        else:
            raise MessageError(f"expected {self._expects.value}, not a message of type {kind!r}")

    def _expect(self, kind: str, expects: _Expects) -> None:
        if self._expects is not expects:
            raise self._unexpected(kind)

    def _unexpected(self, kind: str) -> MessageError:
        return MessageError(f"expected {self._expects.value}, not {kind}")

    def _begin(self, length: int | None) -> None:
        """Hand over the held head, if it still is; ``length`` is that of the body if its first piece is all of it."""
        response = self._response
        if response is not None:
            if not response.trailers and self._exchange.request.method != "HEAD":
                response.length = length
            self._exchange.send_response(response)
            self._response = None

    async def _send_trailers(self, message: Message) -> None:
        if message.get("more_trailers", False):
            raise MessageError("http.response.trailers: send all trailers in one message, without more_trailers")
        headers = read_headers(message)
        self._expects = _Expects.NOTHING
        await self._exchange.send_trailers(headers)

    async def _send_path(self, path: str) -> None:
        if not os.path.isabs(path):
            raise MessageError(f"http.response.pathsend: 'path' must be absolute, not {path!r}")
        # In a thread: opening can block for long on a cold or remote disk.
        file, size = await trio.to_thread.run_sync(open_regular_file, path)
        try:
            self._begin(size)
            self._expects = self._after_body
            await self._exchange.send_file(file, 0, size, self._has_trailers)
        finally:
            os.close(file)

    async def _send_open_file(self, message: Message) -> None:
        file, offset, count = read_file(message)
        more = bool(message.get("more_body", False))
        self._begin(None if more else count)
        if not more:
            self._expects = self._after_body
        await self._exchange.send_file(file, offset, count, more or self._has_trailers)
