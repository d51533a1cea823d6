"""The load generator for what wrk cannot do, run as a program of its own: ``python -m benchmarks.load``.

It keeps WebSockets or HTTP connections busy, all of them opened before the measurement begins; makes a TLS handshake
for each request; or holds idle connections. All messages are the same bytes, made once beforehand, so that the
generator does little more than system calls and the server is what limits the rate.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from urllib.parse import urlsplit

from . import handshakes
from .connections import Connection, HttpConnection, WebSocketConnection
from .frames import ProtocolError, payload
from .processes import cpu_time
from .results import Sample

STALLED = 10.0  # an answer that takes longer is an error; with 4,096 connections some servers need 4 s for a turn


class Load:
    """All connections to one server."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self.open = {connection.socket.fileno(): connection for connection in connections}
        self.epoll = select.epoll()
        self.latencies = array("d")  # seconds, of the current run
        self.errors = 0  # connections lost, also while warming up
        now = time.perf_counter()
        for number in self.open:
            self.epoll.register(number, select.EPOLLIN)
        for number, connection in list(self.open.items()):
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
        """How many connections have waited too long for an answer."""
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
                if connection.ends:
                    number = self.replace(number, connection)
                connection.send_message(now)
        except (ProtocolError, OSError) as error:
            print(f"an exchange failed: {error}", file=sys.stderr)
            self.errors += 1
            connection.socket.close()
            self.open.pop(number, None)
        else:
            if had_unsent != bool(connection.unsent):
                self.epoll.modify(number, select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0))

    def replace(self, number: int, connection: Connection) -> int:
        """Connect anew. Returns the new number."""
        del self.open[number]
        connection.reconnect()
        new = connection.socket.fileno()
        self.open[new] = connection
        self.epoll.register(new, select.EPOLLIN)
        return new


def main() -> None:
    """Load one server and print the sample, or what is left of the idle connections, as JSON."""
    options = parse_arguments()
    parts = urlsplit(options.url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    if options.kind == "hold":
        print(json.dumps({"left": hold(address, options.connections)}))
        return
    if options.kind == "handshakes":
        sample = measure_handshakes(address, options)
    elif options.kind == "http":
        sample = measure((HttpConnection(address) for _ in range(options.connections)), options)
    else:
        message = payload(options.size)
        sample = measure(
            (WebSocketConnection(address, message, deflate=options.deflate) for _ in range(options.connections)),
            options,
        )
    print(json.dumps(asdict(sample)))


def parse_arguments() -> argparse.Namespace:
    """What to do with whom."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("kind", choices=("http", "websocket", "handshakes", "hold"))
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, default=0, help="the server's")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--size", type=int, default=16, help="bytes of each WebSocket message")
    parser.add_argument("--deflate", action="store_true", help="offer permessage-deflate")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds that do not count, before those that do")
    parser.add_argument("--seconds", type=float, default=5)
    return parser.parse_args()


def measure(connections: Iterable[Connection], options: argparse.Namespace) -> Sample:
    """Open the connections, warm up, and measure what the load costs the server."""
    opened: list[Connection] = []
    for connection in connections:  # one by one, as some servers let only a hundred wait to be accepted
        connection.open()
        opened.append(connection)
    load = Load(opened)
    load.run(options.warm_up)
    before = cpu_time(options.pid)
    elapsed = load.run(options.seconds)
    used = cpu_time(options.pid) - before
    return make_sample(load.latencies, elapsed, used, load.errors + load.stalled())


def measure_handshakes(address: tuple[str, int], options: argparse.Namespace) -> Sample:
    """The same with a TLS handshake for every request."""
    handshakes.run(address, options.connections, options.warm_up)
    before, start = cpu_time(options.pid), time.perf_counter()
    latencies, errors = handshakes.run(address, options.connections, options.seconds)
    elapsed, used = time.perf_counter() - start, cpu_time(options.pid) - before
    for error in sorted(set(errors)):
        print(f"a request failed: {error}", file=sys.stderr)
    return make_sample(latencies, elapsed, used, len(errors))


def make_sample(latencies: Iterable[float], elapsed: float, used: float, errors: int) -> Sample:
    """The sample of exchanges with these latencies and so many errors; times in seconds, CPU in µs."""
    ordered = sorted(latencies)
    count = len(ordered)
    if not count:
        raise ProtocolError("nothing was answered")
    return Sample(
        cpu=used / count,
        rate=count / elapsed,
        p50=1e3 * ordered[count // 2],
        p99=1e3 * ordered[count * 99 // 100],
        errors=errors,
    )


def hold(address: tuple[str, int], count: int) -> int:
    """Open idle connections, say "held", wait for the end of standard input. Returns how many are open still.

    Each has had one answer before, as idle connections have.
    """
    connections: list[Connection] = []
    for _ in range(count):
        connection = HttpConnection(address)
        connection.open()
        connections.append(connection)
    print("held", flush=True)
    sys.stdin.read()
    return sum(map(is_open, connections))


def is_open(connection: Connection) -> bool:
    """Whether the server has neither closed this connection nor sent anything."""
    try:
        connection.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


if __name__ == "__main__":
    main()
