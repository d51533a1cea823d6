"""The connections of our own load generator: each sends a message, and knows when its answer is complete."""

from __future__ import annotations

import select
import socket
from abc import ABC, abstractmethod

from .frames import (
    BINARY,
    CLOSE,
    CONTROL,
    PING,
    PONG,
    ProtocolError,
    check_answer,
    deflated,
    frame,
    inflated,
    opening,
    read_head,
)

RECEIVE = 1 << 17  # the longest message with its frame fits
DEADLINE = 20.0  # seconds for each step of the opening
OK = b"HTTP/1.1 200 "


class Connection(ABC):
    """One connection: blocking while it opens, then driven by ``ready``. ``message`` is what it sends each time."""

    def __init__(self, address: tuple[str, int], message: bytes) -> None:
        self.message = message
        self.address = address
        self.socket = self.connect()
        self.ends = False  # whether the server has said that it closes this connection
        self.expected = 0  # bytes of an answer
        self.unsent = b""
        self.sent_at = 0.0

    def connect(self) -> socket.socket:
        """Make the connection."""
        connected = socket.create_connection(self.address, DEADLINE)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def reconnect(self) -> None:
        """Go on with a new one, as wrk does."""
        self.socket.close()
        self.socket = self.connect()
        self.socket.setblocking(False)
        self.ends = False

    @abstractmethod
    def open(self) -> None:
        """Send and check what stands before the measurement, and make the socket non-blocking."""

    @abstractmethod
    def feed(self, data: bytes) -> bool:
        """Count what was received. Returns whether the answer is complete; raises ProtocolError if it is another."""

    def receive(self) -> bytes:
        """Receive what is there; raises ConnectionError at the end."""
        data = self.socket.recv(RECEIVE)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def ready(self, events: int) -> bool:
        """Do what the socket is ready for. Returns whether the answer is complete."""
        if events & select.EPOLLOUT:
            unsent, self.unsent = self.unsent, b""
            self.send(unsent)
        return events != select.EPOLLOUT and self.feed(self.receive())

    def send_message(self, now: float) -> None:
        """Send the next message."""
        self.sent_at = now
        self.send(self.message)

    def send(self, data: bytes) -> None:
        """Send what the kernel takes, and keep the rest."""
        if self.unsent:
            self.unsent += data
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = data[sent:]


class HttpConnection(Connection):
    """Keeps a connection alive and gets the same answer again and again; the first tells how long it is.

    An answer of another length is read in full: after so many some servers add that they close the connection.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, "GET / HTTP/1.1\r\nHost: {}:{}\r\n\r\n".format(*address).encode())
        self.received = b""  # of an answer that did not come at once

    def open(self) -> None:
        """See Connection."""
        self.socket.sendall(self.message)
        while not self.is_complete(self.receive()):
            pass
        self.socket.setblocking(False)

    def feed(self, data: bytes) -> bool:
        """See Connection."""
        if not self.received and len(data) == self.expected and data.startswith(OK):
            return True
        return self.is_complete(data)

    def is_complete(self, data: bytes) -> bool:
        """Add what was received, and look whether the answer is complete by what its head says."""
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return False
        fields = {
            name: value.strip() for name, _, value in (line.partition(b":") for line in head.lower().split(b"\r\n"))
        }
        if not head.startswith(OK) or b"content-length" not in fields:
            raise ProtocolError(f"an answer is {head!r}")
        missing = int(fields[b"content-length"]) - len(body)
        if missing < 0:
            raise ProtocolError("an answer is longer than it says")
        if missing:
            return False
        self.ends = fields.get(b"connection") == b"close"
        self.expected, self.received = len(self.received), b""
        return True


class WebSocketConnection(Connection):
    """Sends a message, which is framed once beforehand, and waits for its echo."""

    def __init__(self, address: tuple[str, int], payload: bytes, *, deflate: bool) -> None:
        self.payload = payload
        self.deflate = deflate
        super().__init__(address, frame(BINARY, deflated(payload) if deflate else payload, compressed=deflate))
        self.pending = b""  # what was received of an incomplete head
        self.left = 0  # what is missing of the current frame's payload
        self.final = False  # whether the current frame ends the message
        self.length = 0  # what has arrived of the message, over all its frames

    def open(self) -> None:
        """See Connection: shake hands, and check that the first message comes back as it was sent."""
        host = "{}:{}".format(*self.socket.getpeername())
        self.socket.sendall(opening(host, deflate=self.deflate))
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.receive()
        answer, _, received = received.partition(b"\r\n\r\n")
        check_answer(answer, deflate=self.deflate)
        self.socket.sendall(self.message)
        echo, compressed = self.first_echo(received)
        if (inflated(echo) if compressed else echo) != self.payload:
            raise ProtocolError("the first echo is not what was sent")
        self.expected = len(echo)
        self.socket.setblocking(False)

    def first_echo(self, received: bytes) -> tuple[bytes, bool]:
        """Wait for the first message: what its frames contain, and whether that is compressed."""
        at, echo, compressed = 0, b"", False
        while True:
            head = read_head(received, at)
            if head is None or head.end > len(received):
                received += self.receive()
                continue
            at = head.end
            if head.opcode & CONTROL:
                self.answer_control(head.opcode, received[head.start : head.end])
                continue
            echo += received[head.start : head.end]
            compressed |= head.compressed
            if head.final:
                return echo, compressed

    def feed(self, data: bytes) -> bool:
        """See Connection."""
        if self.pending:
            data, self.pending = self.pending + data, b""
        at, complete = 0, False
        while at < len(data):
            if not self.left:
                head = read_head(data, at)
                if head is None or (head.opcode & CONTROL and head.end > len(data)):
                    self.pending = data[at:]
                    break
                if head.opcode & CONTROL:
                    self.answer_control(head.opcode, data[head.start : head.end])
                    at = head.end
                    continue
                at, self.left, self.final = head.start, head.end - head.start, head.final
                self.length += self.left
            taken = min(self.left, len(data) - at)
            at += taken
            self.left -= taken
            if self.final and not self.left:
                if complete or self.length != self.expected:
                    raise ProtocolError("the echo has another length than the first")
                complete, self.length = True, 0
        return complete

    def answer_control(self, opcode: int, data: bytes) -> None:
        """Answer a ping; a server that closes is an error."""
        if opcode == CLOSE:
            raise ProtocolError("the server closed the WebSocket")
        if opcode == PING:
            self.send(frame(PONG, data))
