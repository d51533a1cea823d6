"""What is measured: the workloads, which servers run under each, and how those are started."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .frames import deflated, payload
from .loads import Idle, Load, Own, Requests
from .servers import DEFAULTS, DEFLATE_SERVERS, HTTP_SERVERS, WEBSOCKET_SERVERS, WORKER_SERVERS, Variant
from .workers import Shares

KIB, MIB = 1 << 10, 1 << 20
IDLE = 10_000
GROWTH = (1, 8, 64, 512, 4096)
CLOSE = ("Connection: close",)
# What a browser sends, with a cookie and a token.
HEADERS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: https://shop.example/articles?page=2",
    "Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=yes",
    "Authorization: Bearer c2FtcGxlLXRva2VuLW9mLXNvbWUtbGVuZ3RoLWZvci1iZW5jaG1hcmtz",
    "Cache-Control: no-cache",
    "X-Request-ID: 7b1c6f0e-3d0a-4a53-9d0b-6a2f1c9e5d11",
)  # the tenth is Host


@dataclass(frozen=True)
class Workload:
    """One table of the report. ``key`` is what `--only` takes."""

    key: str
    title: str
    load: Load
    servers: tuple[str, ...] = HTTP_SERVERS
    variant: Variant = DEFAULTS
    unit: str = "request"


def over_tls(workload: Workload) -> Workload:
    """The same over TLS, where opening a connection costs as much as a dozen requests or more."""
    load = workload.load
    assert isinstance(load, Requests)
    return replace(
        workload,
        load=replace(load, opening=2 * load.opening),
        key=f"tls-{workload.key}",
        title=f"TLS: {workload.title}",
        variant=replace(workload.variant, tls=True),
    )


def echo(size: int, shown: str, *, deflate: bool = False) -> Workload:
    """A WebSocket message and its echo."""
    compressed = f", as {len(deflated(payload(size)))} B with permessage-deflate" if deflate else ""
    return Workload(
        key=f"ws-{shown.replace(' ', '')}{'-deflate' if deflate else ''}",
        title=f"WebSocket echo of {shown}{compressed}, 64 connections",
        load=Own("websocket", (f"--size={size}", *(["--deflate"] if deflate else []))),
        servers=DEFLATE_SERVERS if deflate else WEBSOCKET_SERVERS,
        unit="message",
    )


PLAIN = (
    *(
        Workload(
            f"hello-{number}",
            f"Hello, world!, {number} connection{'s' * (number > 1)}",
            Requests(connections=number, opening=opening),
        )
        for number, opening in ((1, 0), (64, 0), (512, 1))
    ),
    Workload(
        "headers",
        "Hello, world!, 10 realistic header fields, each time another target, 64 connections",
        Requests(headers=HEADERS, varies=True),
    ),
    Workload("stream-64KiB", "64 KiB streamed, 64 connections", Requests(path=f"stream/{64 * KIB}", body=64 * KIB)),
    Workload("stream-4MiB", "4 MiB streamed, 8 connections", Requests(8, path=f"stream/{4 * MIB}", body=4 * MIB)),
    Workload("upload-1MiB", "1 MiB uploaded, 8 connections", Requests(8, path="upload", upload=MIB)),
)
ECHOES = tuple((size, shown) for size, shown in ((16, "16 B"), (KIB, "1 KiB"), (64 * KIB, "64 KiB")))

WORKLOADS = {
    workload.key: workload
    for workload in (
        *PLAIN,
        Workload("close", "A connection per request, 64 at a time", Requests(headers=CLOSE)),
        Workload(
            "hello-logged", "Hello, world!, 64 connections, access log on", Requests(), variant=Variant(access_log=True)
        ),
        Workload(
            "fastapi",
            "FastAPI: JSON of a model, 64 connections",
            Requests(path="items/7", body=66),
            variant=Variant(app="benchmarks.fastapi_app:app"),
        ),
        *map(over_tls, PLAIN),
        Workload(
            "tls-close",
            "TLS: a connection and a whole handshake per request, 8 at a time",
            Own("handshakes", ("--connections=8",)),
            variant=Variant(tls=True),
        ),
        *(echo(size, shown) for size, shown in ECHOES),
        *(echo(size, shown, deflate=True) for size, shown in ECHOES),
        *(
            Workload(
                f"growth-{number}",
                f"Growth: Hello, world!, {number} connection{'s' * (number > 1)}",
                Own("http", (f"--connections={number}",), opening=number / 2000, times=3 if number > 1000 else 1),
                variant=Variant(keep=True),
            )
            for number in GROWTH
        ),
        Workload("idle", f"{IDLE:,} idle connections, and 64 busy ones", Idle(IDLE), variant=Variant(keep=True)),
        Workload("workers", "trioserve's workers, 64 kept connections", Requests(), WORKER_SERVERS),
        Workload(
            "workers-close",
            "trioserve's workers, a connection per request",
            Shares(Requests(headers=CLOSE)),
            WORKER_SERVERS,
            Variant(app="benchmarks.accepts:app"),
        ),
    )
}
