"""What a browser, a program and a proxy see while the application does not run."""

from __future__ import annotations

import h11
import pytest

from trioserve.process.error_page import make_error_page

from .support import Answer, memory_server
from .websocket_client import UPGRADE

pytestmark = pytest.mark.timeout(30)

TITLE = "The <application> does not start"
TRACE = 'Traceback:\n  File "main.py"\nValueError: <b>5 & 6</b> {title} caf\xe9 \u2713'


async def ask(*headers: tuple[str, str], method: str = "GET", text: str = TRACE) -> Answer:
    """The page as a client with these header fields gets it."""
    async with memory_server(make_error_page(TITLE, text), lifespan="off") as server:
        client = await server.connect()
        answer = await client.request(method, "/any/path?query", [*headers])
        await client.aclose()
    assert not server.errors
    return answer


async def test_a_program_gets_text(autojump_clock):
    """Without a wish for HTML the answer is 503 with the title and the text as they are; no cache keeps it."""
    answer = await ask()
    assert answer.status == 503
    assert answer.body.decode() == f"{TITLE}\n\n{TRACE}"
    assert answer.headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert answer.headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize("accept", ["text/html", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"])
async def test_a_browser_gets_a_page(autojump_clock, accept):
    """Who asks for HTML gets it, with nothing of title and text that could be taken for markup."""
    answer = await ask(("Accept", accept))
    page = answer.body.decode()
    assert answer.status == 503
    assert answer.headers[b"content-type"] == b"text/html; charset=utf-8"
    assert page.startswith("<!doctype html>\n")
    assert page.count("The &lt;application&gt; does not start") == 2
    assert "<pre>Traceback:\n  File &quot;main.py&quot;\n" in page
    assert "ValueError: &lt;b&gt;5 &amp; 6&lt;/b&gt; {title} caf\xe9 \u2713</pre>" in page
    assert "<application>" not in page
    assert "<b>" not in page


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/plain"])
async def test_others_get_text(autojump_clock, accept):
    """An Accept field that does not name HTML is no wish for it."""
    assert (await ask(("Accept", accept))).body.decode() == f"{TITLE}\n\n{TRACE}"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_every_method_is_answered(autojump_clock, method):
    """Whatever is asked, the answer is the same."""
    assert (await ask(method=method)).status == 503


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Via", "1.1 proxy"),
        ("Forwarded", "for=192.0.2.60"),
        ("X-Forwarded-For", "192.0.2.60"),
        ("X-Real-IP", "192.0.2.60"),
        ("VIA", ""),
    ],
)
@pytest.mark.parametrize("accept", ["text/html", "*/*"])
async def test_the_text_is_not_for_whom_a_proxy_speaks_for(autojump_clock, name, value, accept):
    """A request that a proxy has handed on is told the title alone, by any of the fields that proxies add."""
    answer = await ask(("Accept", accept), (name, value))
    assert answer.status == 503
    assert b"does not start" in answer.body
    assert b"ValueError" not in answer.body
    assert b"main.py" not in answer.body


async def test_a_field_like_that_of_a_proxy(autojump_clock):
    """Other fields say nothing of a proxy: each developer's browser sends X-Requested-With and its like."""
    assert TRACE in (await ask(("X-Requested-With", "XMLHttpRequest"), ("X-Forwarded", "1"))).body.decode()


async def test_a_websocket_is_denied(autojump_clock):
    """A WebSocket handshake is answered with the same page (ASGI's websocket.http.response)."""
    fields = [(name.decode(), value.decode()) for name, value in UPGRADE if name != b"host"]
    answer = await ask(*fields)
    assert answer.status == 503
    assert answer.body.decode() == f"{TITLE}\n\n{TRACE}"


async def test_text_that_is_no_unicode(autojump_clock):
    """A trace may name a file whose name is no UTF-8; what cannot be shown is replaced."""
    assert (await ask(text="File '\udcff.py'")).body == f"{TITLE}\n\nFile '?.py'".encode()


async def test_one_connection_asks_again(autojump_clock):
    """The page keeps connections open like any application."""
    async with memory_server(make_error_page(TITLE, TRACE), lifespan="off") as server:
        client = await server.connect()
        for _ in range(3):
            assert (await client.get()).status == 503
        assert client.h11.our_state is h11.IDLE
        await client.aclose()
