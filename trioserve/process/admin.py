"""Pages for those who run a server, on an address of their own: health, metrics, and what is mounted beside them."""

from __future__ import annotations

import functools
import ipaddress
import platform
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from ..config import Config
from ..errors import BindError, ConfigError
from ..figures import Figures
from ..logs import server_log
from ..observer import Observer
from ..server import Server, serve_observed
from ..types import Receive, Scope, Send
from ..wire.codecs import codec_name
from .banner import read_version
from .sharing import Shared

PLAIN = "text/plain; charset=utf-8"
METRICS = "/metrics"
HEALTH = ("/livez", "/readyz")
"""What tells nobody anything that would be worth hiding, and is asked for by whatever name the server has."""


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

    return dict(zip(HEALTH, (live, ready), strict=True))


Render = Callable[[Figures, str], tuple[str, bytes]]
"""Shows figures in the format that suits an Accept field best; returns its content type and the text."""


def load_renderer() -> Render:
    """Raises ConfigError if the library for it is missing."""
    try:
        from .exposition import render  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("metrics_bind needs prometheus-client: pip install 'trioserve[metrics]'") from None
    return render


class Admin:
    """A server of its own for these pages, by their paths, on ``metrics_bind``.

    It shares the event loop and nothing else with the server that it tells of. A text in the place of a page says why
    there is none.
    """

    def __init__(
        self, config: Config, pages: Mapping[str, Page | str], figures: Callable[[], Awaitable[Figures]]
    ) -> None:
        self._config = _admin_config(config)
        self._pages = pages
        self._figures = figures
        self._render = load_renderer()
        self._scrape = Shared(self._take)
        self._own: Figures = {
            ("start_time_seconds",): time.time(),
            ("build_info", read_version(), codec_name(config), platform.python_version()): 1,
        }

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ``started`` once it does. Raises BindError."""
        # Without a nursery, which would wrap the error in a group.
        status = _Announced(task_status)
        try:
            await serve_observed(self._answer, self._config, observer=Observer(), task_status=status)
        except BindError as error:
            # Of several addresses this is one that the user may not think of.
            raise BindError(error.errno, f"{error.reason} (metrics_bind)", error.address) from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        page, is_metrics = self._pages.get(path), path == METRICS
        allowed = []
        if path not in HEALTH and _is_rebound(scope):
            answer = Answer(421, PLAIN, b"On this machine ask for an address or for localhost, not for another name\n")
        elif page is None and not is_metrics:
            paths = [METRICS, *(path for path, page in self._pages.items() if not isinstance(page, str))]
            answer = Answer(404, PLAIN, "".join(f"{path}\n" for path in paths).encode())
        elif method not in ("GET", "HEAD"):
            answer = Answer(405, PLAIN, b"GET or HEAD\n")
            allowed = [(b"allow", b"GET, HEAD")]
        elif page is None:
            answer = (await self._scrape.get())(_field(scope, b"accept", b","))
        elif isinstance(page, str):
            answer = Answer(404, PLAIN, f"{page}\n".encode())
        else:
            answer = await page()
        fields = [
            *allowed,
            (b"content-type", answer.content_type.encode("latin-1")),
            (b"content-length", b"%d" % len(answer.body)),  # which a HEAD gets, too
            (b"cache-control", b"no-store"),
            # Nothing here is for pages of others: it is not guessed at, not embedded and not framed.
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"referrer-policy", b"no-referrer"),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    async def _take(self) -> Callable[[str], Answer]:
        """The figures of now, to be shown for one Accept field or another."""
        figures = self._own | await self._figures()

        def show(accept: str) -> Answer:
            return Answer(200, *self._render(figures, accept))

        return functools.cache(show)  # 4 ms of the event loop, for which all who share the figures need not pay


def _field(scope: Scope, wanted: bytes, separator: bytes = b"") -> str:
    return separator.join(value for name, value in scope["headers"] if name == wanted).decode("latin-1")


def _is_rebound(scope: Scope) -> bool:
    """Whether somebody on this machine asks a loopback address for another name than localhost.

    That is what a browser does for a page of whoever owns the name, and has pointed it here in order to read ours.
    """
    server = scope["server"]
    if server is None or not _is_address(server[0]) or not ipaddress.ip_address(server[0]).is_loopback:
        return False
    name = re.sub(r":[0-9]*$", "", _field(scope, b"host")).strip("[]").lower()
    return not (name in ("", "localhost") or name.endswith(".localhost") or _is_address(name))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Announced:
    """A task status that says where the pages are; ``outer`` hears of the start."""

    outer: trio.TaskStatus[None]

    def started(self, value: Server | None = None) -> None:
        assert value is not None
        server_log.info("health and metrics on %s", ", ".join(value.urls))
        self.outer.started()


def _admin_config(config: Config) -> Config:
    """Small requests and short waits: what goes wrong here must not cost the server anything.

    There is no limit of requests at once, which would be one for /livez, too: what is dear to make is shared.
    """
    assert config.metrics_bind is not None
    return Config(
        bind=(config.metrics_bind,),
        uds_permissions=config.uds_permissions,
        lifespan="off",
        access_log=False,
        ws="off",
        limit_connections=512,
        limit_request_head=8192,
        limit_request_fields=64,
        limit_request_body=0,
        # A kubelet waits for a second, and asks three times: those who send nothing must not keep it waiting for long.
        timeout_keep_alive=2,
        timeout_request_head=2,
        timeout_request_body=5,
        timeout_write=5,
        timeout_request=15,
        timeout_disconnect_grace=0,
    )
