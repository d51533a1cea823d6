"""Shows what the WebSocket echo cost, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from .frames import deflated, payload
from .measure import CONNECTIONS, ECHOES, Echo, Sample
from .servers import WEBSOCKET_SERVERS, Server, version_of
from .table import Results, commands, count_errors, machine, markdown, ratio, shown, spread

EchoResults = Mapping[Echo, Results]

PLAIN = [echo for echo in ECHOES if not echo.deflate]
DEFLATED = [echo for echo in ECHOES if echo.deflate]
SMALLEST = PLAIN[0]


def report(results: EchoResults, rounds: int, seconds: int) -> str:
    """The whole report: the figures, what compression costs, the ratios, and what was run."""
    servers = list(results[SMALLEST])
    tables = (figures(results, servers), deflate_cost(results, servers), ratios(results, servers))
    parts = (*tables, conditions(rounds, seconds), commands(servers))
    return "\n\n".join(part for part in parts if part)


def figures(results: EchoResults, servers: Iterable[Server]) -> str:
    """One line per server, without compression."""
    smallest = SMALLEST.size_shown
    header = ("server", *(f"CPU µs per message, {echo.size_shown}" for echo in PLAIN), f"messages/s, {smallest}")
    return markdown(
        (*header, f"p50 ms, {smallest}", f"p99 ms, {smallest}", "errors"),
        (
            (
                shown(server),
                *(spread(results[echo][server], cpu, 1) for echo in PLAIN),
                spread(results[SMALLEST][server], lambda sample: sample.rate, 0),
                spread(results[SMALLEST][server], lambda sample: sample.p50, 1),
                spread(results[SMALLEST][server], lambda sample: sample.p99, 1),
                count_errors(chain.from_iterable(results[echo][server] for echo in PLAIN)),
            )
            for server in servers
        ),
    )


def deflate_cost(results: EchoResults, servers: Iterable[Server]) -> str:
    """One line per server, with compression, and how that stands to the same without."""
    costs = (f"CPU µs per message, {echo.size_shown}" for echo in DEFLATED)
    times = (f"to without, {echo.size_shown}" for echo in DEFLATED)
    return markdown(
        ("with permessage-deflate", *costs, *times, "errors"),
        (
            (
                shown(server),
                *(spread(results[echo][server], cpu, 1) for echo in DEFLATED),
                *(
                    ratio(results[echo][server], results[plain][server], cpu)
                    for echo, plain in zip(DEFLATED, PLAIN, strict=True)
                ),
                count_errors(chain.from_iterable(results[echo][server] for echo in DEFLATED)),
            )
            for server in servers
        ),
    )


def ratios(results: EchoResults, servers: Iterable[Server]) -> str:
    """How the first server's CPU per message stands to each peer's."""
    ours, *peers = servers
    if ours != WEBSOCKET_SERVERS[0] or not peers:
        return ""
    return markdown(
        (f"CPU per message, {ours.name} to", *(echo.name for echo in PLAIN + DEFLATED)),
        (
            (peer.name, *(ratio(results[echo][ours], results[echo][peer], cpu) for echo in PLAIN + DEFLATED))
            for peer in peers
        ),
    )


def conditions(rounds: int, seconds: int) -> str:
    """What was run, and on what."""
    sizes = ", ".join(f"{len(deflated(payload(echo.size)))} B for {echo.size_shown}" for echo in DEFLATED)
    return (
        f"Medians of {rounds} rounds of {seconds} s in turn, with the least and the most; {CONNECTIONS} WebSocket "
        "connections over loopback, each sends a binary message of JSON and waits for its echo before it sends the "
        f"next, no access log. Deflated, without context takeover, the client's messages are {sizes}. CPU is user and "
        "system time of all the server's processes, without the handshakes. "
        f"wsproto {version_of('wsproto')}, websockets {version_of('websockets')}, {machine()}"
    )


def cpu(sample: Sample) -> float:
    """The figure that most is about."""
    return sample.cpu
