"""What the good clients ask for: every kind of request, each with the answer that it must get."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from ..attacks import CLOCKS
from .app import PREFIX
from .content import Body
from .http_client import Request

MOST = min(900_000, CLOCKS["limit_request_body"])
"""Bytes of an upload; the attacks want a limit."""

SERVER_ERROR = Body.of(b"Internal Server Error")
TIMED_OUT = Body.of(b"The request took too long.\n")
"""What trioserve answers for an application that raises, or takes longer than timeout_request."""


def _seed(chance: random.Random) -> int:
    return chance.randrange(2**32)


def _size(chance: random.Random, most: int) -> int:
    """Mostly small, sometimes nothing, sometimes as much as this."""
    return int(most ** chance.random()) - 1 if chance.random() < 0.9 else most


def _target(path: str, **query: object) -> str:
    # None: this one is left out.
    words = "&".join(f"{name}={value}" for name, value in query.items() if value is not None)
    return f"{PREFIX}{path}?{words}"


def _maybe(chance: random.Random) -> str | None:
    return chance.choice(["yes", None])


def echo(chance: random.Random) -> Request:
    body = Body(_seed(chance), _size(chance, min(200_000, MOST)))
    target = _target("echo", chunked=_maybe(chance), piece=chance.choice([1000, 8192, 65536, 200_000]))
    return Request("echo", target, body, "POST", body, is_chunked=chance.random() < 0.5)


def upload(chance: random.Random) -> Request:
    body = Body(_seed(chance), 1 + _size(chance, MOST - 1))  # for an empty one nobody has to ask first
    answer = Body.of(hashlib.sha256(body.whole).hexdigest().encode())
    target = _target("digest", pause=chance.choice([None, None, 0.001]))
    kind = chance.choice(["upload", "upload with Expect"])
    is_chunked = chance.random() < 0.5
    return Request(kind, target, answer, "PUT", body, is_chunked=is_chunked, asks_first=kind != "upload")


def download(chance: random.Random) -> Request:
    body = Body(_seed(chance), _size(chance, 2_000_000))
    target = _target("download", seed=body.seed, size=body.size, chunked=_maybe(chance), piece=16384)
    return Request("download", target, body)


def slow_stream(chance: random.Random) -> Request:
    body = Body(_seed(chance), 20_000)
    target = _target("download", seed=body.seed, size=body.size, chunked=_maybe(chance), piece=1000, pause=0.04)
    return Request("slow stream", target, body)


def small(chance: random.Random) -> Request:
    body = Body(_seed(chance), _size(chance, 5_000))
    return Request("small", _target("download", seed=body.seed, size=body.size), body)


def head(chance: random.Random) -> Request:
    body = Body(_seed(chance), 1000)
    return Request("HEAD", _target("download", seed=body.seed, size=body.size), Body(), "HEAD")


def not_found(chance: random.Random) -> Request:
    body = Body(_seed(chance), 100)
    return Request("404", _target("download", seed=body.seed, size=body.size, status=404), body, status=404)


def no_content(chance: random.Random) -> Request:
    return Request("204", _target("download", seed=0, size=0, status=204, chunked="yes"), Body(), status=204)


def _later(path: str) -> Callable[[random.Random], Request]:
    def make(chance: random.Random) -> Request:
        body = Body(_seed(chance), _size(chance, 20_000))
        seconds = round(chance.uniform(0, 0.3), 3)
        target = _target(path, seed=body.seed, size=body.size, seconds=seconds, shielded=0.3, chunked=_maybe(chance))
        return Request(path, target, body)

    return make


def fail_before(chance: random.Random) -> Request:
    target = _target("fail", error=chance.choice(["plain", "group", "exit", "lookup"]))
    return Request("raises before the head", target, SERVER_ERROR, status=500, has_worker=False)


def hang(chance: random.Random) -> Request:
    return Request("hangs until timeout_request", _target("hang"), TIMED_OUT, status=504, has_worker=False)


def fail_after(chance: random.Random) -> Request:
    body = Body(_seed(chance), 1 + _size(chance, 100_000))
    target = _target("fail", seed=body.seed, size=body.size, chunked=_maybe(chance))
    return Request("raises after the head", target, body, is_cut=True)


WEIGHTS = {
    small: 8,
    echo: 6,
    upload: 4,
    download: 4,
    slow_stream: 1,
    head: 1,
    not_found: 1,
    no_content: 1,
    _later("sleep"): 2,
    _later("thread"): 2,
    _later("background"): 2,
    _later("stubborn"): 1,
    fail_before: 1,
    fail_after: 1,
}

PIPELINED = (small, echo, head, not_found, _later("sleep"))


def choose(chance: random.Random) -> list[Request]:
    """One request, or a few to be pipelined."""
    if chance.random() < 0.1:
        return [chance.choice(PIPELINED)(chance) for _ in range(chance.randrange(2, 6))]
    (make,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return [make(chance)]


def choose_annoyance(chance: random.Random) -> str:
    """The target of a request whose client leaves before it has its answer, or does not look at it."""
    path = chance.choice(["hang", "hang", "stubborn", "swallow", "abandon", "anything", "anything", "download"])
    head = chance.choice(["yes", None]) if path == "hang" else None
    return _target(path, seed=_seed(chance), size=5_000_000, seconds=0.5, shielded=round(chance.random(), 2), head=head)
