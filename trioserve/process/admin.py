"""Pages for those who run a server, on an address of their own: health, metrics, and what is mounted beside them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from ..config import Config
from ..logs import server_log
from ..observer import Observer
from ..server import Server, serve_observed
from ..types import Receive, Scope, Send

PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """What a page answers. ``content_type`` is the whole value of that field."""

    status: int
    content_type: str
    body: bytes


Page = Callable[[], Awaitable[Answer]]
"""Answers a GET of its path; a HEAD gets the same without the body. What it raises is logged, and answered with 500."""


def health_pages(why_not_ready: Callable[[], str | None]) -> dict[str, Page]:
    """/livez, which answers as long as the event loop runs, and /readyz; ``why_not_ready`` is None if it is."""

    async def live() -> Answer:
        return Answer(200, PLAIN, b"alive\n")

    async def ready() -> Answer:
        reason = why_not_ready()
        return Answer(200, PLAIN, b"ready\n") if reason is None else Answer(503, PLAIN, f"{reason}\n".encode())

    return {"/livez": live, "/readyz": ready}


class Admin:
    """A server of its own for these pages, by their paths, on ``metrics_bind``.

    It shares the event loop and nothing else with the server that it tells of.
    """

    def __init__(self, config: Config, pages: Mapping[str, Page]) -> None:
        self._config = _admin_config(config)
        self._pages = pages

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ``started`` once it does. Raises BindError."""
        # Without a nursery, which would wrap the error in a group.
        status = _Announced(task_status)
        await serve_observed(self._answer, self._config, observer=Observer(), task_status=status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, page = scope["method"], self._pages.get(scope["path"])
        allowed = []
        if page is None:
            answer = Answer(404, PLAIN, "".join(f"{path}\n" for path in self._pages).encode())
        elif method not in ("GET", "HEAD"):
            answer = Answer(405, PLAIN, b"GET or HEAD\n")
            allowed = [(b"allow", b"GET, HEAD")]
        else:
            answer = await page()
        fields = [
            *allowed,
            (b"content-type", answer.content_type.encode("latin-1")),
            (b"cache-control", b"no-store"),
            # Nothing here is for pages of others: it is not guessed at, not embedded and not framed.
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"referrer-policy", b"no-referrer"),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})


@dataclass(frozen=True)
class _Announced:
    """A task status that says where the pages are; ``outer`` hears of the start."""

    outer: trio.TaskStatus[None]

    def started(self, value: Server | None = None) -> None:
        assert value is not None
        server_log.info("health and metrics on %s", ", ".join(value.urls))
        self.outer.started()


def _admin_config(config: Config) -> Config:
    """Few clients, small requests, short waits: what goes wrong here must not cost the server anything."""
    assert config.metrics_bind is not None
    return Config(
        bind=(config.metrics_bind,),
        uds_permissions=config.uds_permissions,
        lifespan="off",
        access_log=False,
        ws="off",
        limit_connections=64,
        limit_concurrency=16,
        limit_request_head=8192,
        limit_request_fields=64,
        limit_request_body=0,
        timeout_keep_alive=5,
        timeout_request_head=5,
        timeout_request_body=5,
        timeout_write=5,
        timeout_request=15,
        timeout_disconnect_grace=0,
    )
