"""The servers under test: what each is called, what it needs, and its command line."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

APP = "benchmarks.app:app"


@dataclass(frozen=True)
class Variant:
    """How a workload wants its server started."""

    app: str = APP
    access_log: bool = False
    tls: bool = False
    keep: bool = False  # idle connections for longer than the measurement takes; some servers' default is two seconds


DEFAULTS = Variant()


@dataclass(frozen=True)
class Server:
    """A server under test: what follows ``python -m``, by purpose.

    APP, PORT, CERT and KEY stand for what is different each time. ``needs`` are the distributions it cannot do without,
    its own first.
    """

    name: str
    needs: tuple[str, ...]
    base: str
    quiet: str = ""
    access_log: str = ""
    tls: str = ""
    keep: str = ""

    def arguments(self, variant: Variant) -> str:
        """What follows ``python -m`` for this variant, as it is shown."""
        parts = (
            self.base,
            self.access_log if variant.access_log else self.quiet,
            self.tls if variant.tls else "",
            self.keep if variant.keep else "",
        )
        return " ".join(part for part in parts if part).replace("APP", variant.app)

    def command(self, variant: Variant, **values: str) -> list[str]:
        """The command line with the Python that runs the benchmarks; ``values`` are those of PORT, CERT and KEY."""
        words = shlex.split(self.arguments(variant))
        return [sys.executable, "-m", *(fill(word, values) for word in words)]

    @property
    def missing(self) -> list[str]:
        """Which of the distributions it needs are not installed."""
        return [name for name in self.needs if version_of(name) is None]


def fill(word: str, values: dict[str, str]) -> str:
    """Put the values where their names stand."""
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def version_of(distribution: str) -> str | None:
    """The version that is installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def trioserve(name: str, more: str, *needs: str) -> Server:
    """trioserve with some options."""
    return Server(
        name,
        ("trioserve", *needs),
        f"trioserve APP --port PORT {more}",
        quiet="--no-access-log",
        tls="--ssl-certfile CERT --ssl-keyfile KEY",
        keep="--timeout-keep-alive 75",
    )


def uvicorn(name: str, more: str, *needs: str) -> Server:
    """uvicorn with some options."""
    return Server(
        name,
        ("uvicorn", *needs),
        f"uvicorn APP --port PORT{more}",
        quiet="--no-access-log --log-level warning",
        tls="--ssl-certfile CERT --ssl-keyfile KEY",
        keep="--timeout-keep-alive 75",
    )


def hypercorn(name: str, program: str, worker: str) -> Server:
    """Hypercorn, or its descendant anycorn, which has the same options. No access log is their default."""
    return Server(
        name,
        (program,),
        f"{program} APP --bind 127.0.0.1:PORT --worker-class {worker}",
        access_log="--access-logfile -",
        tls="--certfile CERT --keyfile KEY",
        keep="--keep-alive 75",
    )


TRIOSERVE = "trioserve"
STANDARD = ("uvloop", "httptools")  # what makes uvicorn[standard] fast
H11 = "trioserve h11"
UVICORN = "uvicorn[standard]"
UVICORN_H11 = "uvicorn h11+asyncio"
UVICORN_WSPROTO = "uvicorn --ws wsproto"
GRANIAN = "Granian"
HYPERCORN = "Hypercorn trio"

# Each with one worker and its defaults. Where uvloop is installed, as here, uvicorn, Granian and gunicorn use it.
SERVERS = {
    server.name: server
    for server in (
        trioserve(TRIOSERVE, "--http httptools", "httptools"),
        trioserve(H11, "--http h11"),
        uvicorn(UVICORN, "", *STANDARD, "websockets"),
        uvicorn(UVICORN_H11, " --http h11 --loop asyncio"),
        uvicorn(UVICORN_WSPROTO, " --ws wsproto", *STANDARD, "wsproto"),
        Server(
            GRANIAN,
            ("granian", "uvloop"),
            "granian APP --interface asgi --port PORT --workers 1",
            quiet="--no-access-log",
            access_log="--access-log",
            tls="--ssl-certificate CERT --ssl-keyfile KEY",
            keep="--http1-header-read-timeout 60000 --backlog 16384 --backpressure 16384",
        ),
        Server(
            "gunicorn asgi",
            ("gunicorn", "uvloop"),
            "gunicorn APP --worker-class asgi --workers 1 --bind 127.0.0.1:PORT",
            access_log="--access-logfile -",
            tls="--certfile CERT --keyfile KEY",
            keep="--keep-alive 75",
        ),
        hypercorn(HYPERCORN, "hypercorn", "trio"),
        hypercorn("Hypercorn asyncio", "hypercorn", "asyncio"),
        hypercorn("anycorn trio", "anycorn", "trio"),
        trioserve("1 worker", "--http h11"),
        trioserve("2 workers", "--http h11 --workers 2"),
        trioserve("2 workers, a listener each", "--http h11 --workers 2 --reuse-port"),
    )
}

WORKER_SERVERS = ("1 worker", "2 workers", "2 workers, a listener each")
HTTP_SERVERS = tuple(name for name in SERVERS if name not in (*WORKER_SERVERS, UVICORN_WSPROTO))
WEBSOCKET_SERVERS = tuple(name for name in SERVERS if name not in (*WORKER_SERVERS, H11, UVICORN_H11))
DEFLATE_SERVERS = (TRIOSERVE, UVICORN, UVICORN_WSPROTO, HYPERCORN)


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of these distributions, of those that are installed."""
    found = ((name, version_of(name)) for name in names)
    return {name: version for name, version in found if version is not None}
