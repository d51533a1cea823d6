"""What is measured for metrics, and how those of several servers become one."""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from trio_websocket import open_websocket_url

from trioserve.config import Config
from trioserve.errors import Refusal, usual_refusal
from trioserve.figures import (
    FAMILIES,
    Kind,
    Measures,
    bound_labels,
    figures_of,
    handshake_label,
    is_known,
    lasting,
    sum_up,
)
from trioserve.logs import ExchangeRecord, Outcome, WebSocketRecord
from trioserve.metrics import Counters, take_statistics
from trioserve.observer import Observer
from trioserve.server import serve_observed

from . import support
from .support import Client, http_app, memory_server, respond, send_text


def record(method="GET", status=200, *, received=0, sent=0, duration=0.0, outcome=Outcome.OK):
    return ExchangeRecord("10.0.0.1:1", method, "/", "1.1", status, received, sent, duration, None, outcome)


def histogram(figures, name):
    return {key[1]: value for key, value in figures.items() if key[0] == name}


# Measures


@pytest.mark.parametrize(
    ("ended", "labels"),
    [
        (record(), ("GET", "2xx", "ok")),
        (record("BREW", 418, outcome=Outcome.ERROR), ("other", "4xx", "error")),
        (record("-", 400), ("other", "4xx", "ok")),
        (record("POST", None, outcome=Outcome.CLIENT_LEFT), ("POST", "none", "client_left")),
        (record("get", 999, outcome=Outcome.SHUTDOWN), ("other", "9xx", "shutdown")),
        (record("PATCH", 101, outcome=Outcome.DEADLINE), ("PATCH", "1xx", "deadline")),
    ],
)
def test_requests_are_counted_by_few_words(ended, labels):
    """A request counts by its method, its status class and its outcome; what no standard knows is one method."""
    measures = Measures()
    measures.exchange_ended(ended)
    measures.exchange_ended(ended)
    assert {key: value for key, value in measures.figures().items() if key[0] == "requests"} == {
        ("requests", *labels): 2
    }


def test_histograms():
    """A value counts in the first bucket whose bound it does not exceed, and in the sum."""
    measures = Measures()
    assert measures.figures() == {}
    for duration, received, sent in ((0.001, 0, 256), (0.0011, 1, 257), (61, 10**9, 0)):
        measures.exchange_ended(record(received=received, sent=sent, duration=duration))
    figures = measures.figures()
    assert histogram(figures, "request_duration_seconds") == {
        "0.001": 1,
        "0.0025": 1,
        "+Inf": 1,
        "sum": pytest.approx(61.0021),
    }
    assert histogram(figures, "request_body_bytes") == {"0.0": 1, "256.0": 1, "+Inf": 1, "sum": 10**9 + 1}
    assert histogram(figures, "response_body_bytes") == {"256.0": 1, "1024.0": 1, "0.0": 1, "sum": 513}


@pytest.mark.parametrize(
    ("code", "label"),
    [(1000, "1000"), (1015, "1015"), (1016, "other"), (3000, "3xxx"), (4999, "4xxx"), (2999, "other"), (5000, "other")],
)
def test_closed_websockets_are_counted_by_few_codes(code, label):
    """The codes with names count for themselves, those of libraries and applications together."""
    measures = Measures()
    measures.websocket_closed(WebSocketRecord("10.0.0.1:1", "/", code))
    measures.websocket_closed(WebSocketRecord("10.0.0.1:1", "/", code))
    assert measures.figures() == {("websockets_closed", label): 2}


# What there is in any case


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("no shared cipher", "no shared cipher"),
        ("tlsv1 alert unknown ca", "alert unknown ca"),
        ("sslv3 alert certificate unknown", "alert certificate unknown"),
        ("ssl/tls alert certificate unknown", "alert certificate unknown"),
        ("tlsv13 alert certificate required", "other"),
        ("self signed certificate", "self-signed certificate"),
        ("bad record type of the client's choice", "other"),
        ("timed out", "timed out"),
    ],
)
def test_failed_handshakes_have_few_reasons(reason, label):
    """OpenSSL's words as it has spelled them in all its versions, and one for what says little."""
    assert handshake_label(reason) == label


def test_counters_as_figures():
    """What a server counts has a figure each; reasons that have one word are counted together."""
    counters = Counters(connections_total=3, requests=2, websockets=1, websockets_total=4, application_errors=5)
    assert ("event_loop_lag_seconds",) not in figures_of(counters)
    counters.count_rejected(400)
    counters.count_rejected(431, Refusal.FIELDS)
    counters.count_rejected(431, Refusal.FIELDS)
    counters.count_rejected(503, Refusal.NO_DESCRIPTORS, 7)
    for reason in ("length mismatch", "bad key", "http request"):
        counters.count_handshake_failure("127.0.0.1:443", reason)
    counters.count_handshake("127.0.0.1:443")
    counters.note_loop_lag(0.5)
    counters.note_loop_lag(0.25)
    assert figures_of(counters) == {
        ("requests_active",): 2,
        ("connections_accepted",): 3,
        ("websockets_open",): 1,
        ("websockets_opened",): 4,
        ("application_errors",): 5,
        ("event_loop_lag_seconds",): 0.25,
        ("event_loop_lag_max_seconds",): 0.5,
        ("event_loop_late_seconds",): 0.75,
        ("rejected", "400", "malformed"): 1,
        ("rejected", "431", "limit_request_fields"): 2,
        ("rejected", "503", "no_descriptors"): 7,
        ("tls_handshakes", "127.0.0.1:443"): 1,
        ("tls_handshake_failures", "127.0.0.1:443", "other"): 2,
        ("tls_handshake_failures", "127.0.0.1:443", "http request"): 1,
    }
    assert all(map(is_known, figures_of(counters)))
    statistics = take_statistics(counters)
    assert statistics.rejected == {400: 1, 431: 2, 503: 7}
    assert statistics.rejected_by[503, "no_descriptors"] == 7
    assert statistics.handshakes == {"127.0.0.1:443": 1}


def test_usual_reasons():
    """Each status that the server gives has a usual reason."""
    assert usual_refusal(413) is Refusal.BODY_SIZE
    assert {usual_refusal(status) for status in (400, 405, 426)} == {Refusal.MALFORMED}


# Several servers


def test_figures_of_several_servers():
    """Counts add up, and of what is late the worst counts."""
    first = {("connections_accepted",): 3, ("event_loop_lag_seconds",): 0.1, ("requests", "GET", "2xx", "ok"): 1}
    second = {("connections_accepted",): 4, ("event_loop_lag_seconds",): 0.3, ("requests", "GET", "4xx", "ok"): 2}
    assert sum_up([first, second]) == {
        ("connections_accepted",): 7,
        ("event_loop_lag_seconds",): 0.3,
        ("requests", "GET", "2xx", "ok"): 1,
        ("requests", "GET", "4xx", "ok"): 2,
    }
    assert sum_up([]) == {}


def test_what_lasts():
    """Of one that has ended its counts stay; what it was is no more."""
    figures = {
        ("connections_accepted",): 3,
        ("request_body_bytes", "0.0"): 2,
        ("connections_open", "idle"): 1,
        ("event_loop_lag_seconds",): 0.1,
    }
    assert lasting(figures) == {("connections_accepted",): 3, ("request_body_bytes", "0.0"): 2}


@pytest.mark.parametrize(
    ("key", "known"),
    [
        (("tasks",), True),
        (("tasks", "x"), False),
        (("requests", "GET", "2xx", "ok"), True),
        (("requests", "GET"), False),
        (("request_body_bytes", "0.0"), True),
        (("request_body_bytes",), False),
        (("surf",), False),
        ((), False),
    ],
)
def test_known_figures(key, known):
    """A figure is known by its name and the number of its labels."""
    assert is_known(key) is known


def test_families_have_names_of_their_own():
    """No name stands twice, a counter's has no suffix, and a histogram's buckets rise."""
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert not family.name.endswith("_total")
        assert (family.kind is Kind.HISTOGRAM) == bool(family.bounds)
        assert list(family.bounds) == sorted(family.bounds)
        assert family.help.endswith(".")
        assert [float(label) for label in bound_labels(family.bounds)] == [*family.bounds, math.inf]


# In a server


@asynccontextmanager
async def measured(app, **options):
    """A server that measures, on a real port; yields its handle and a function that connects."""
    config = Config(port=0, http=support.HTTP, access_log=False, metrics_bind="127.0.0.1:1", **options)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_observed, app, config, observer=Observer()))

        async def connect():
            return Client(await trio.open_tcp_stream(*server.addresses[0]))

        yield server, connect
        nursery.cancel_scope.cancel()


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


@pytest.mark.both_codecs
async def test_requests_of_a_server():
    """With metrics_bind each exchange is measured once; its sizes are those of the bodies."""

    async def handler(scope, receive, send):
        await receive()
        await send_text(send, "x" * 1000, 404)

    async with measured(http_app(handler)) as (server, connect):
        client = await connect()
        await client.request("POST", "/", body=b"y" * 300)
        await client.request("HEAD", "/")
        await client.raw(b"nonsense\r\n\r\n")
        await client.receive_rest()
        await client.aclose()
        await until(lambda: server.figures()["connections_open", "idle"] == 0)
        figures = server.figures()
    assert {key[1:]: value for key, value in figures.items() if key[0] == "requests"} == {
        ("POST", "4xx", "ok"): 1,
        ("HEAD", "4xx", "ok"): 1,
        ("other", "4xx", "error"): 1,
    }
    assert histogram(figures, "request_body_bytes") == {"0.0": 2, "1024.0": 1, "sum": 300}
    assert figures["connections_accepted",] == 1
    assert figures["rejected", "400", "malformed"] == 1
    assert figures["tasks",] >= 3
    assert all(map(is_known, figures))


async def test_websockets_of_a_server():
    """With metrics_bind each WebSocket that has closed is measured, by its close code."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with measured(app, lifespan="off") as (server, _):
        async with open_websocket_url(server.urls[0].replace("http", "ws", 1)) as client:
            await client.aclose(4000)
        await until(lambda: server.figures()["websockets_open",] == 0)
        figures = server.figures()
    assert figures["websockets_closed", "4xxx"] == 1
    assert figures["websockets_opened",] == 1
    assert figures["requests", "GET", "1xx", "ok"] == 1


async def test_nothing_is_measured_unasked():
    """Without the option there are no more figures than counters."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.get()
        assert not any(key[0] == "requests" for key in server.server.figures())
        assert server.server.figures()["connections_accepted",] == 1


async def test_states_of_connections(autojump_clock):
    """Each open connection counts by what it does."""
    waiting = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        if scope["path"] == "/slow":
            await waiting.wait()
        await send_text(send, "answer")

    def states():
        return {key[1]: count for key, count in server.server.figures().items() if key[0] == "connections_open"}

    async with memory_server(app, lifespan="off") as server:
        nothing = dict.fromkeys(("opening", "idle", "reading", "active", "websocket"), 0)
        assert states() == nothing
        first = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert states() == {**nothing, "idle": 1}
        await first.raw(b"GET / HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert states() == {**nothing, "reading": 1}
        second = await server.connect()
        await second.raw(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        async with server.handle.websocket("/"):
            await trio.testing.wait_all_tasks_blocked()
            assert states() == {**nothing, "reading": 1, "active": 1, "websocket": 1}
            figures = server.server.figures()
            assert (figures["websockets_open",], figures["requests_active",]) == (1, 2)
        waiting.set()


async def test_a_handshake_is_an_opening(autojump_clock):
    """A connection that has not begun to speak HTTP is opening."""
    async with memory_server(respond(), proxy_protocol=True, forwarded_allow_ips=["*"]) as server:
        await server.connect_stream()
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.figures()["connections_open", "opening"] == 1


@pytest.mark.parametrize(
    ("options", "request_bytes", "rejected"),
    [
        ({"limit_request_head": 256}, b"GET / HTTP/1.1\r\nA: " + b"x" * 300, (431, "limit_request_head")),
        ({"limit_request_head": 256}, b"GET /" + b"x" * 300, (414, "limit_request_head")),
        (
            {"limit_request_fields": 1},
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nC: d\r\n\r\n",
            (431, "limit_request_fields"),
        ),
        (
            {"limit_request_body": 1},
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx",
            (413, "limit_request_body"),
        ),
        (
            {"limit_request_body": 1},
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n",
            (413, "limit_request_body"),
        ),
        ({}, b"GET", (408, "timeout_request_head")),
        ({}, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx", (408, "timeout_request_body")),
        ({"timeout_request": 1}, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", (504, "timeout_request")),
        ({}, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", (505, "unsupported")),
        ({}, b"GET / HTTP/1.1\r\n\r\n", (400, "malformed")),
    ],
)
async def test_rejected_requests_name_the_limit(options, request_bytes, rejected, autojump_clock):
    """A request that the server answers itself counts by the limit that it has met."""

    async def handler(scope, receive, send):
        if scope["path"] == "/slow":
            await trio.sleep_forever()
        while (await receive()).get("more_body"):
            pass

    async with memory_server(http_app(handler), **options) as server:
        client = await server.connect()
        await client.raw(request_bytes)
        await client.receive_rest()
        assert server.server.statistics().rejected_by == {rejected: 1}


async def test_a_body_that_is_too_slow_names_its_rate(autojump_clock):
    """A client that sends too little, but never nothing for long, has met the rate and not the clock."""

    async def handler(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async with memory_server(http_app(handler), limit_request_body_rate=1000) as server, trio.open_nursery() as nursery:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")

        async def trickle():
            while True:
                await client.raw(b"x")
                await trio.sleep(7)

        nursery.start_soon(trickle)
        await client.receive_rest()
        nursery.cancel_scope.cancel()
        assert server.server.statistics().rejected_by == {(408, "limit_request_body_rate"): 1}


async def test_a_busy_server_names_its_limit(autojump_clock):
    """More requests at once than limit_concurrency allows."""

    async def handler(scope, receive, send):
        await trio.sleep(1)
        await send_text(send, "answer")

    async with memory_server(http_app(handler), limit_concurrency=1) as server:
        first, second = await server.connect(), await server.connect()
        await first.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert (await second.get()).status == 503
        assert (await first.answer()).status == 200
        assert server.server.statistics().rejected_by == {(503, "limit_concurrency"): 1}


def test_sums_do_not_depend_on_the_order():
    """Counters of several servers in any order give the same."""
    one = random.Random(3)
    parts = [{("requests", "GET", "2xx", "ok"): one.randrange(100), ("tasks",): one.randrange(9)} for _ in range(5)]
    assert sum_up(parts) == sum_up(reversed(parts))
