"""The pages for those who run a server: what each answers, and that nobody who asks for them disturbs anything."""

from __future__ import annotations

import logging
import sys
from contextlib import asynccontextmanager

import h11
import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.errors import BindError, ConfigError
from trioserve.logs import server_log
from trioserve.process.admin import HEALTH, PLAIN, Admin, Answer, health_pages, load_renderer

from .support import Client, nothing_left

NOTHING_FOR_OTHERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
}


async def no_figures():
    return {("tasks",): 5}


@asynccontextmanager
async def admin(pages, bind="127.0.0.1:0", figures=no_figures, **options):
    """The pages on an address, which the log tells; yields a function that connects."""
    told = []

    class Told(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())

    handler = Told()
    server_log.addHandler(handler)
    level = server_log.level
    server_log.setLevel("INFO")
    with nothing_left():
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(Admin(Config(metrics_bind=bind, **options), pages, figures).run)
            finally:
                server_log.removeHandler(handler)
                server_log.setLevel(level)
            url = told[0].removeprefix("health and metrics on ")

            async def connect():
                if url.startswith("unix:"):
                    return Client(await trio.open_unix_socket(url.removeprefix("unix:")))
                host, _, port = url.removeprefix("http://").rpartition(":")
                return Client(await trio.open_tcp_stream(host, int(port)))

            yield connect
            nursery.cancel_scope.cancel()


async def ask(connect, target, method="GET", headers=(), body=b""):
    client = await connect()
    try:
        fields = [("Host", "localhost"), *headers, *([("Content-Length", str(len(body)))] if body else [])]
        data = [h11.Data(data=body)] if body else []
        await client.send(h11.Request(method=method, target=target, headers=fields), *data, h11.EndOfMessage())
        return await client.answer()
    finally:
        await client.aclose()


async def test_health():
    """/livez says yes; /readyz too, unless there is a reason, which it gives with a 503."""
    reason = None
    async with admin(health_pages(lambda: reason)) as connect:
        for target, body in (("/livez", b"alive\n"), ("/readyz", b"ready\n")):
            answer = await ask(connect, target)
            assert (answer.status, answer.body) == (200, body)
            assert answer.headers[b"content-type"] == PLAIN.encode()
            assert NOTHING_FOR_OTHERS.items() <= answer.headers.items()
        reason = "draining"
        answer = await ask(connect, "/readyz")
        assert (answer.status, answer.body) == (503, b"draining\n")
        assert (await ask(connect, "/livez")).status == 200


async def test_metrics():
    """/metrics shows the figures, beside what serves and since when, in the format that is asked for."""
    async with admin({}) as connect:
        answer = await ask(connect, "/metrics?name=whatever")
        assert answer.status == 200
        assert answer.headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
        assert b"\ntrioserve_tasks 5.0\n" in answer.body
        assert b"\ntrioserve_build_info{" in answer.body
        fields = [("Accept", "text/html"), ("Accept", "application/openmetrics-text; version=1.0.0")]
        answer = await ask(connect, "/metrics", headers=fields)
        assert answer.headers[b"content-type"].startswith(b"application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("target", ["/metrics", "/livez"])
async def test_head(target):
    """A HEAD gets the fields of a GET, and no body."""
    async with admin(health_pages(lambda: None)) as connect:
        whole, head = await ask(connect, target), await ask(connect, target, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers[b"content-length"] == whole.headers[b"content-length"]
        assert head.headers[b"content-type"] == whole.headers[b"content-type"]


async def test_what_is_not_there():
    """Any other path is a 404 that names those there are; any other method a 405."""
    async with admin(health_pages(lambda: None)) as connect:
        for target in ("/", "/metrics/", "/livez/x", "/METRICS"):
            answer = await ask(connect, target)
            assert (answer.status, answer.body) == (404, b"/metrics\n/livez\n/readyz\n")
            assert NOTHING_FOR_OTHERS.items() <= answer.headers.items()
        for method in ("POST", "OPTIONS", "DELETE"):
            for target in ("/metrics", "/livez"):
                answer = await ask(connect, target, method)
                assert (answer.status, answer.headers[b"allow"]) == (405, b"GET, HEAD")


async def test_a_page_that_is_not_shown():
    """Where there is none for a reason, that is told to who asks for it, and nobody is sent there."""
    async with admin({**health_pages(lambda: None), "/secret": "ask the operator"}) as connect:
        answer = await ask(connect, "/secret")
        assert (answer.status, answer.body) == (404, b"ask the operator\n")
        assert (await ask(connect, "/")).body == b"/metrics\n/livez\n/readyz\n"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9100", 200),
        ("localhost:9100", 200),
        ("LOCALHOST", 200),
        ("app.localhost:1", 200),
        ("[::1]:9100", 200),
        ("10.0.0.1", 200),
        ("evil.example", 421),
        ("localhost.evil.example:9100", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
async def test_names_of_others(host, status):
    """On a loopback address no page is for a browser that asks for a stranger's name, which he has pointed here."""
    async with admin({"/secret": health_pages(lambda: None)["/livez"]}) as connect:
        client = await connect()
        await client.raw(f"GET /secret HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await client.receive_rest()
        await client.aclose()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.endswith(b"alive\n") is (status == 200)


async def test_health_by_any_name():
    """A health check may use whatever name the server has."""
    async with admin(health_pages(lambda: None)) as connect:
        for path in HEALTH:
            client = await connect()
            await client.raw(f"GET {path} HTTP/1.1\r\nHost: web-1.internal\r\nConnection: close\r\n\r\n".encode())
            assert (await client.receive_rest()).startswith(b"HTTP/1.1 200 ")
            await client.aclose()


async def test_names_elsewhere():
    """Whoever has opened the pages to others chooses their names; an old client needs none."""
    async with admin({"/secret": health_pages(lambda: None)["/livez"]}, "0.0.0.0:0") as connect:
        client = await connect()
        await client.raw(b"GET /secret HTTP/1.0\r\n\r\n")
        assert (await client.receive_rest()).endswith(b"alive\n")
        await client.aclose()
    app = Admin(Config(metrics_bind="127.0.0.1:0"), {"/secret": health_pages(lambda: None)["/livez"]}, no_figures)
    sent = []

    async def send(message):
        sent.append(message)

    for server in (("10.0.0.1", 9100), ("/run/metrics", None), None):
        headers = [(b"host", b"metrics.example")]
        await app._answer({"method": "GET", "path": "/secret", "server": server, "headers": headers}, None, send)
    assert [message["status"] for message in sent if "status" in message] == [200, 200, 200]


async def test_no_body_and_no_websocket():
    """Bodies are refused, and a WebSocket is an ordinary GET."""
    async with admin(health_pages(lambda: None)) as connect:
        assert (await ask(connect, "/livez", "POST", body=b"x")).status == 413
        upgrade = [
            ("Connection", "upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        assert (await ask(connect, "/livez", headers=upgrade)).status == 200


async def test_a_page_that_fails(caplog):
    """A page that raises is a 500 and a trace in the log; the others go on."""

    async def fail():
        raise LookupError("the page's own")

    async def show():
        return Answer(203, "text/html", b"<p>")

    async with admin({"/fail": fail, "/show": show}) as connect:
        assert (await ask(connect, "/fail")).status == 500
        answer = await ask(connect, "/show")
        assert (answer.status, answer.headers[b"content-type"], answer.body) == (203, b"text/html", b"<p>")
    assert "the page's own" in caplog.text


async def test_unix_socket(tmp_path):
    """The pages can be on a unix socket, with the mode that the server's own have."""
    path = tmp_path / "m"
    async with admin(health_pages(lambda: None), f"unix:{path}", uds_permissions=0o600) as connect:
        assert (await ask(connect, "/livez")).body == b"alive\n"
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_options_of_the_server_are_not_those_of_the_pages():
    """What the server adds to its responses, and where it listens, is not for the pages."""
    options = {"header": ["X-Own: 1"], "root_path": "/api", "port": 1, "limit_request_head": 256}
    async with admin(health_pages(lambda: None), **options) as connect:
        answer = await ask(connect, "/livez", headers=[("A", "b" * 1000)])
        assert answer.status == 200
        assert b"x-own" not in answer.headers


async def test_slow_clients():
    """Clients that only hold connections open leave room for others, and are let go of."""
    async with admin(health_pages(lambda: None)) as connect, trio.open_nursery() as nursery:
        slow = [await connect() for _ in range(40)]
        for client in slow[:20]:
            await client.raw(b"GET /livez HT")
        assert (await ask(connect, "/livez")).status == 200
        for client in slow:
            nursery.start_soon(client.aclose)


async def test_health_beside_all_who_wait():
    """However many wait for figures and for a slow page, the pages for health are answered; in the end all are."""
    go, waiting, all_wait = trio.Event(), [], trio.Event()

    async def slow():
        waiting.append(trio.current_time())
        if len(waiting) == 20:
            all_wait.set()
        await go.wait()
        return Answer(200, PLAIN, b"slow\n")

    async def slow_figures():
        await go.wait()
        return {}

    got = []

    async def get(connect, target):
        got.append((await ask(connect, target)).status)

    async with admin({**health_pages(lambda: None), "/slow": slow}, figures=slow_figures) as connect:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(get, connect, "/metrics")
                nursery.start_soon(get, connect, "/slow")
            await all_wait.wait()
            for target in ("/livez", "/readyz"):
                assert (await ask(connect, target)).status == 200
            assert got == []
            go.set()
        assert got == [200] * 40


async def test_a_scrape_is_shared():
    """Figures are taken once for all who ask while others are, and shown once in each format of theirs."""
    go, taken = trio.Event(), []

    async def figures():
        taken.append(1)
        await go.wait()
        return {("tasks",): len(taken)}

    app, bodies = Admin(Config(metrics_bind="127.0.0.1:0"), {}, figures), []

    async def keep(message):
        bodies.append(message.get("body"))

    async def get(accept):
        scope = {"method": "GET", "path": "/metrics", "server": None, "headers": [(b"accept", accept)]}
        await app._answer(scope, None, keep)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get, b"")
        await trio.testing.wait_all_tasks_blocked()
        for accept in (b"text/plain", b"application/openmetrics-text") * 10:
            nursery.start_soon(get, accept)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert len(taken) == 2
    shown = [body for body in bodies if body is not None]
    assert [b"\ntrioserve_tasks 2.0\n" in body for body in shown] == [False] + [True] * 20
    assert len({id(body) for body in shown}) == 3


def test_short_waits():
    """A client that sends nothing is let go of soon, and there is room for many; none of what is answered is limited.

    Else those who ask for slow pages would keep a kubelet from /livez, which kills the pod then.
    """
    config = Admin(Config(metrics_bind="127.0.0.1:0"), {}, no_figures)._config
    assert (config.limit_connections, config.limit_concurrency) == (512, None)
    assert (config.timeout_request_head, config.timeout_keep_alive) == (2, 2)


async def test_an_address_that_is_taken():
    """It is an error that names the address."""
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(BindError, match=f"cannot listen on {address}: address already in use [(]metrics_bind[)]"):
            await Admin(Config(metrics_bind=address), {}, no_figures).run()


def test_without_the_library(monkeypatch):
    """Without prometheus_client there is one line that says how to get it."""
    monkeypatch.delitem(sys.modules, "trioserve.process.exposition", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in [name for name in sys.modules if name.startswith("prometheus_client.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        load_renderer()
    assert str(caught.value) == "metrics_bind needs prometheus-client: pip install 'trioserve[metrics]'"


@pytest.mark.parametrize("text", ["fd:3", "fd:web", "9100", "localhost", "unix:", ""])
def test_addresses_that_it_cannot_have(text):
    """An inherited descriptor is the server's; the error says what is expected."""
    with pytest.raises(ConfigError) as caught:
        Config(metrics_bind=text)
    assert str(caught.value) == f"metrics_bind must be HOST:PORT, [v6]:PORT or unix:PATH, not {text!r}"
