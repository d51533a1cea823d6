"""The demo's chat as its users meet it: two tabs of a browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from ..programs import start
from .clients import PATIENCE, REPOSITORY, SERVE, find_tool

CHROMIUM = (
    "--headless=new",
    "--no-sandbox",  # which root cannot use
    "--disable-gpu",
    "--disable-dev-shm-usage",  # small in containers
    "--disable-extensions",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)

LOSE_CONNECTION = """
new Promise(resolve => {
  socket.addEventListener("close", () => resolve(document.getElementById("status").innerText));
  socket.close(4000);
})
"""
"""Gives what the page says when its own handler has run, however soon it is connected again."""


@contextmanager
def chromium() -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a headless Chromium with a profile of its own; nothing of it is left after the block."""
    command = [find_tool("chromium"), *CHROMIUM]
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        profile = Path(folder)
        with (profile / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [*command, f"--user-data-dir={profile}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "TMPDIR": folder},
                start_new_session=True,  # so that its children can be ended with it
            )
            try:
                yield process, profile
            finally:
                end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a session: its leader in good order, if it will, and then all that is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


@dataclass
class Tab:
    """One page of the browser."""

    browser: Browser
    session: str

    async def evaluate(self, script: str) -> object:
        """Run JavaScript in the page; returns its value."""
        answer = await self.browser.call(
            "Runtime.evaluate", self.session, expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, identity: str, pattern: str) -> str:
        """Wait until an element's text fits; returns the text, with each paragraph on one line."""
        script = f"document.getElementById({json.dumps(identity)})?.innerText ?? ''"
        text = ""
        with trio.move_on_after(PATIENCE):
            while True:
                text = str(await self.evaluate(script)).replace("\n\n", "\n")
                if re.search(pattern, text):
                    return text
                await trio.sleep(0.02)
        raise AssertionError(f"#{identity} never fitted {pattern!r}, and is now {text!r}")

    async def type(self, identity: str, text: str) -> None:
        """Put the cursor into a field, select what is there, and type."""
        await self.evaluate(f"document.getElementById({json.dumps(identity)}).select()")
        await self.browser.call("Input.insertText", self.session, text=text)

    async def press_enter(self) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        await self.browser.call("Input.dispatchKeyEvent", self.session, type="keyDown", text="\r", **key)
        await self.browser.call("Input.dispatchKeyEvent", self.session, type="keyUp", **key)


class Browser:
    """A client of Chromium's DevTools protocol, for one task. Source: https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def call(self, method: str, session: str | None = None, /, **parameters: object) -> dict:
        """Call a method of the browser, or of one of its pages, and return its result."""
        request = {"id": next(self._numbers), "method": method, "params": parameters}
        if session is not None:
            request["sessionId"] = session
        with trio.fail_after(PATIENCE):
            await self._socket.send_message(json.dumps(request))
            while (answer := json.loads(await self._socket.get_message())).get("id") != request["id"]:
                pass  # an event
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def open(self, url: str) -> Tab:
        """Open a page in a tab of its own."""
        target = await self.call("Target.createTarget", url=url)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = Tab(self, attached["sessionId"])
        # As if every tab were looked at: those in the background are slowed down.
        await self.call("Emulation.setFocusEmulationEnabled", tab.session, enabled=True)
        return tab


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Run Chromium and connect to it."""
    with chromium() as (process, profile):
        address = await find_address(process, profile)
        async with open_websocket_url(address, connect_timeout=PATIENCE, disconnect_timeout=1) as socket:
            yield Browser(socket)


async def find_address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Wait until Chromium has left word where it listens: a line with the port, and one with the path."""
    with trio.move_on_after(PATIENCE):
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                found = re.match(r"(\d+)\n(/\S+)", (profile / "DevToolsActivePort").read_text())
                if found:
                    return f"ws://127.0.0.1:{found[1]}{found[2]}"
            await trio.sleep(0.02)
    raise AssertionError(f"Chromium did not start:\n{(profile / 'errors').read_text()}")


async def test_two_tabs_talk_until_the_server_stops():
    """What is typed into one tab is read in the other; at the server's stop both are told so with 1012, "restart"."""
    with start(*SERVE, "trioserve.demo:app", "--port", "0", cwd=REPOSITORY) as program:
        url = await trio.to_thread.run_sync(lambda: program.wait_for(r"listening on (http://\S+)")[1])
        async with browser() as chrome:
            ada = await chrome.open(f"{url}/chat")
            await ada.wait_for("status", "^connected$")
            bob = await chrome.open(f"{url}/chat")
            await ada.wait_for("log", "joined\n.* joined")

            await ada.type("name", "Ada")
            await ada.type("text", "<b>hello</b> wörld")
            await ada.press_enter()
            assert (await bob.wait_for("log", "Ada: ")).endswith("\nAda: <b>hello</b> wörld")
            assert "Ada" in await bob.wait_for("here", "Ada")

            program.signal(signal.SIGTERM)
            for tab in (ada, bob):
                await tab.wait_for("status", r"^connection lost \(1012\); trying again$")
            assert await trio.to_thread.run_sync(program.wait) == 0, program.errors
    assert "Traceback" not in program.errors


async def test_page_connects_again_and_knows_what_was_said():
    """A connection that is lost is made anew, under the same name, and the page shows each message once."""
    with start(*SERVE, "trioserve.demo:app", "--port", "0", cwd=REPOSITORY) as program:
        url = await trio.to_thread.run_sync(lambda: program.wait_for(r"listening on (http://\S+)")[1])
        async with browser() as chrome:
            tab = await chrome.open(f"{url}/chat")
            await tab.wait_for("status", "^connected$")
            await tab.type("name", "Ada")
            await tab.type("text", "remember me")
            await tab.press_enter()
            await tab.wait_for("log", "Ada: remember me")

            assert await tab.evaluate(LOSE_CONNECTION) == "connection lost (4000); trying again"
            await tab.wait_for("status", "^connected$")
            log = await tab.wait_for("log", "Ada joined")
            assert log.split("\n") == ["Ada: remember me", "Ada joined"]
        program.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(program.wait) == 0, program.errors
    assert "Traceback" not in program.errors
