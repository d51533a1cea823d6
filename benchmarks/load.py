"""The load generator for WebSockets, run as a program of its own: ``python -m benchmarks.load``.

Every connection sends a message, waits for its echo and sends the next. All messages are the same bytes, framed once
beforehand, so that the generator does little more than system calls and the server is what limits the rate.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from urllib.parse import urlsplit

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
    payload,
    read_head,
)
from .measure import CONNECTIONS, Sample
from .processes import cpu_time

RECEIVE = 1 << 17  # the longest message with its frame fits
DEADLINE = 10.0  # for each step of the opening
STALLED = 2.0  # an echo that takes longer is an error, as wrk has it


class Connection:
    """One WebSocket connection: blocking while it opens, then driven by ``ready``."""

    def __init__(self, address: tuple[str, int], message: bytes, *, deflate: bool) -> None:
        self.message = message
        self.deflate = deflate
        self.frame = frame(BINARY, deflated(message) if deflate else message, compressed=deflate)
        self.socket = socket.create_connection(address, DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expected = 0  # bytes that the frames of an echo contain together
        self.pending = b""  # what was received of an incomplete head
        self.left = 0  # what is missing of the current frame's payload
        self.final = False  # whether the current frame ends the message
        self.length = 0  # what has arrived of the message, over all its frames
        self.unsent = b""
        self.sent_at = 0.0

    def open(self) -> None:
        """Shake hands, and check that the first message comes back as it was sent."""
        host = "{}:{}".format(*self.socket.getpeername())
        self.socket.sendall(opening(host, deflate=self.deflate))
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.receive()
        answer, _, received = received.partition(b"\r\n\r\n")
        check_answer(answer, deflate=self.deflate)
        self.socket.sendall(self.frame)
        echo, compressed = self.first_echo(received)
        if (inflated(echo) if compressed else echo) != self.message:
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

    def receive(self) -> bytes:
        """Receive what is there; raises ConnectionError at the end."""
        data = self.socket.recv(RECEIVE)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def ready(self, events: int) -> bool:
        """Do what the socket is ready for. Returns whether the echo is complete."""
        if events & select.EPOLLOUT:
            unsent, self.unsent = self.unsent, b""
            self.send(unsent)
        return events != select.EPOLLOUT and self.feed(self.receive())

    def send_message(self, now: float) -> None:
        """Send the next message."""
        self.sent_at = now
        self.send(self.frame)

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

    def feed(self, data: bytes) -> bool:
        """Count what was received. Returns whether the echo is complete; raises ProtocolError if it is another."""
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


class Load:
    """All connections to one server."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self.open = {connection.socket.fileno(): connection for connection in connections}
        self.epoll = select.epoll()
        self.latencies = array("d")  # seconds, of the current run
        self.errors = 0  # connections lost, also while warming up
        now = time.perf_counter()
        for number, connection in self.open.items():
            self.epoll.register(number, select.EPOLLIN)
            self.attend(number, connection, 0, now)

    def run(self, seconds: float) -> float:
        """Keep the server busy. Returns how long that was; ``latencies`` are of this time."""
        self.latencies = array("d")
        start = now = time.perf_counter()
        while now < start + seconds:
            if not self.open:
                raise ProtocolError("the server closed every connection")
            for number, events in self.epoll.poll(0.1):  # seconds
                now = time.perf_counter()
                self.attend(number, self.open[number], events, now)
            now = time.perf_counter()
        return now - start

    def stalled(self) -> int:
        """How many connections have waited too long for an echo."""
        now = time.perf_counter()
        return sum(now - connection.sent_at > STALLED for connection in self.open.values())

    def attend(self, number: int, connection: Connection, events: int, now: float) -> None:
        """Go on with a connection that is ready, or that has just been opened: then there are no events."""
        had_unsent = bool(connection.unsent)
        try:
            if not events:
                connection.send_message(now)
            elif connection.ready(events):
                self.latencies.append(now - connection.sent_at)
                connection.send_message(now)
        except (ProtocolError, OSError) as error:
            print(f"an echo failed: {error}", file=sys.stderr)
            self.errors += 1
            connection.socket.close()
            del self.open[number]
        else:
            if had_unsent != bool(connection.unsent):
                self.epoll.modify(number, select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0))


def main() -> None:
    """Load one server and print the sample as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="the server's")
    parser.add_argument("--size", type=int, required=True, help="bytes of each message")
    parser.add_argument("--deflate", action="store_true", help="offer permessage-deflate")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds that do not count, before those that do")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    parts = urlsplit(options.url)
    address, message = (parts.hostname or "127.0.0.1", parts.port or 80), payload(options.size)
    connections = [Connection(address, message, deflate=options.deflate) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.open()
    load = Load(connections)
    load.run(options.warm_up)
    print(json.dumps(asdict(sample(load, options.pid, options.seconds))))


def sample(load: Load, pid: int, seconds: float) -> Sample:
    """Measure what the load costs the server with this pid."""
    before = cpu_time(pid)
    elapsed = load.run(seconds)
    used = cpu_time(pid) - before
    latencies = sorted(load.latencies)
    count = len(latencies)
    return Sample(
        cpu=used / count if count else float("inf"),
        rate=count / elapsed,
        p50=1e3 * latencies[count // 2] if count else float("inf"),
        p99=1e3 * latencies[count * 99 // 100] if count else float("inf"),
        errors=load.errors + load.stalled(),
    )


if __name__ == "__main__":
    main()
