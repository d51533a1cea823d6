"""Requests of which each has a TLS handshake of its own, a whole one.

wrk would do for the load, but it resumes its sessions: of 307 connections to a server that looked, 303 did. A resumed
handshake needs no signature, which is most of what a handshake costs.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time

DEADLINE = 10.0  # seconds for each step
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
BODY = b"\r\n\r\nHello, world!"
OK = b"HTTP/1.1 200 "


def run(address: tuple[str, int], threads: int, seconds: float) -> tuple[list[float], list[str]]:
    """Make requests in several threads for some seconds. Returns the seconds each took, and what failed."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is the server under test, and its certificate is of its own making
    latencies: list[float] = []
    errors: list[str] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        while (start := time.perf_counter()) < end:
            try:
                request(address, context)
            except (OSError, ValueError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                if len(errors) > 1000:
                    return
            else:
                latencies.append(time.perf_counter() - start)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return latencies, errors


def request(address: tuple[str, int], context: ssl.SSLContext) -> None:
    """One connection, one handshake, one request; raises ValueError if the answer is not as it should be."""
    with (
        socket.create_connection(address, DEADLINE) as plain,
        context.wrap_socket(plain) as connection,
    ):
        if connection.session_reused:
            raise ValueError("the session was resumed")
        connection.sendall(REQUEST)
        answer = b""
        while data := connection.recv(1 << 14):
            answer += data
    if not answer.startswith(OK) or not answer.endswith(BODY):
        raise ValueError(f"the answer is {answer[:40]!r}")
