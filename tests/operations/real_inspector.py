"""The inspector's page in a headless Chromium."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ..programs import PATIENCE, WORKER_APP, HeldRequest, Program, start
from ..real.test_chromium import Tab, browser

pytestmark = pytest.mark.timeout(100)

SERVE = ("-m", "trioserve", "main:app", "--port", "0", "--metrics-bind", "127.0.0.1:0")
TREE = "document.getElementById('tree').innerText"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="i") as made:
        Path(made, "main.py").write_text(WORKER_APP)
        yield Path(made)


@asynccontextmanager
async def page_of(folder: Path, *arguments: str) -> AsyncIterator[tuple[Program, Tab, str]]:
    """A server, its page, and the address of what is beside the page."""
    with start(*SERVE, *arguments, cwd=folder, TMPDIR=str(folder), XDG_RUNTIME_DIR="") as program:
        await trio.to_thread.run_sync(program.wait_for, "Ctrl-C stops")
        admin = program.wait_for(r"health and metrics on (http://\S+)")[1]
        async with browser() as chrome:
            tab = await chrome.open(f"{admin}/inspect")
            await tab.wait_for("state", "^live$")
            yield program, tab, admin


async def wait_without(tab: Tab, text: str) -> None:
    """Wait until something is not in the tree any more."""
    with trio.fail_after(PATIENCE):
        while text in str(await tab.evaluate(TREE)):
            await trio.sleep(0.05)


async def wait_for_pictures(tab: Tab, count: int) -> None:
    """Wait until the page has asked so often for a new one, so that all before the last are shown."""
    asked = "performance.getEntriesByType('resource').length"
    before = int(str(await tab.evaluate(asked)))
    with trio.fail_after(PATIENCE):
        while int(str(await tab.evaluate(asked))) < before + count:
            await trio.sleep(0.05)


async def test_a_request_comes_and_goes(folder: Path) -> None:
    """A request appears while it runs, with where it waits, and disappears when it has ended, without a reload."""
    async with page_of(folder) as (program, tab, _):
        shown = await tab.wait_for("tree", f"server {program.process.pid} +main:app")
        assert "POST" not in shown
        held = await trio.to_thread.run_sync(program.hold)
        shown = await tab.wait_for("tree", "POST / +200")
        assert re.search(r"waits for the request body at \S+/main\.py:\d+ in app", shown)
        await trio.to_thread.run_sync(held.release)
        await wait_without(tab, "POST /")
        # What is folded stays so.
        await tab.evaluate("document.querySelector('#tree summary').click()")
        await wait_for_pictures(tab, 2)
        assert await tab.evaluate("document.querySelector('#tree details').open") is False
        # A page that hears nothing says so.
        program.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(program.wait) == 0
        await tab.wait_for("state", "^no answer for ")


async def test_two_workers(folder: Path) -> None:
    """Behind a supervisor both workers are there, each with its own request; one that is stopped is told as such."""
    async with page_of(folder, "--workers", "2") as (program, tab, _):
        workers = await trio.to_thread.run_sync(lambda: program.wait_for_answers(2))
        with contextlib.ExitStack() as stack:
            held: dict[int, HeldRequest] = await trio.to_thread.run_sync(program.hold_in_each, workers, stack)
            for worker in workers:
                await tab.wait_for("tree", rf"worker {worker} [^§]*?POST /")
            shown = await tab.wait_for("tree", "(?s)POST /.*POST /")
            assert shown.startswith(f"supervisor {program.process.pid}")
            for one in held.values():
                await trio.to_thread.run_sync(one.release)


ATTACK = """/<script>document.title='pwned'</script><img/src="x"/onerror="document.title='pwned'">"""


EVEN_SO = f"""
new Promise(resolve => {{
  const one = document.createElement("div");
  one.innerHTML = {ATTACK[1:]!r};
  one.querySelector("img").addEventListener("error", resolve);  // after what stands in the attribute would have run
  document.body.append(one);
  const script = document.createElement("script");
  script.textContent = "document.title = 'pwned'";
  document.body.append(script);
}}).then(() => null)
"""
"""Puts it into the document as markup, which the page itself never does."""


async def test_targets_are_text(folder: Path) -> None:
    """Whatever a client asks for is shown and nothing more; not even the page itself could run what stands there."""
    async with page_of(folder) as (program, tab, _):
        with socket.create_connection(program.address, PATIENCE) as client:
            client.sendall(f"POST {ATTACK} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n".encode())
            shown = await tab.wait_for("tree", "POST /<script>")
            assert ATTACK in shown
            assert await tab.evaluate("document.querySelectorAll('#tree script, #tree img').length") == 0
            await tab.evaluate(EVEN_SO)
            assert await tab.evaluate("document.title") == "trioserve"


async def test_no_page_without_the_inspector(folder: Path) -> None:
    """Who does not want the inspector has no page either."""
    with start(*SERVE, "--no-inspector", cwd=folder, TMPDIR=str(folder), XDG_RUNTIME_DIR="") as program:
        await trio.to_thread.run_sync(program.wait_for, "Ctrl-C stops")
        admin = program.wait_for(r"health and metrics on http://([\d.]+):(\d+)")
        async with await trio.open_tcp_stream(admin[1], int(admin[2])) as client:
            await client.send_all(b"GET /inspect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await client.receive_some()).startswith(b"HTTP/1.1 404 ")
