"""What README's deployment guide says, made to run here: other addresses and folders, and nothing else changed."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import socket
import sys
from contextlib import closing
from pathlib import Path

from ..load import write_app
from ..readme import block, blocks

GUIDE = "## Deployment"
SBIN = "/usr/sbin"  # where some of the programs are installed, which is on no ordinary user's path
OWN = Path(sys.executable).with_name("trioserve")

# The application of the load, and what else passes a proxy: an upload, a stream of events, who the client is.
APP = """
import hashlib
import json
import os
import trio
import load_app

async def app(scope, receive, send):
    answer = WAYS.get(scope.get("path"))
    await (load_app.app if answer is None or scope["type"] != "http" else answer)(scope, receive, send)

async def upload(scope, receive, send):
    digest = hashlib.sha256()
    while (message := await receive())["type"] == "http.request":
        digest.update(message["body"])
        if not message["more_body"]:
            await respond(send, digest.hexdigest())
            return

async def tell(scope, receive, send):
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    await respond(send, json.dumps({"client": scope["client"], "scheme": scope["scheme"], "headers": headers}))

async def respond(send, text):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})

async def events(scope, receive, send):
    # Each event is sent when the client has got the one before, and made a file that says so.
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    for number in range(3):
        await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % number, "more_body": True})
        while not os.path.exists(f"got-{number}"):
            await trio.sleep(0.005)
    await send({"type": "http.response.body", "body": b""})

async def flood(scope, receive, send):
    # More than the kernel takes on its way; the file tells how many were sent when one of them had to wait.
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    number = 0
    with trio.CancelScope() as patience:
        while number < 1000:
            patience.deadline = trio.current_time() + 3
            await send({"type": "http.response.body", "body": b"data: %65536d\\n\\n" % number, "more_body": True})
            number += 1
    with open("flood.new", "w") as file:
        file.write(str(number))
    os.rename("flood.new", "flood")

WAYS = {"/upload": upload, "/tell": tell, "/events": events, "/events/flood": flood}
"""


def write_main(folder: Path) -> None:
    """The application that the guide calls main:app."""
    write_app(folder)
    (folder / "main.py").write_text(APP)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        return one.getsockname()[1]


def find(program: str) -> str:
    found = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], SBIN]))
    assert found is not None, f"{program} is not installed"
    return found


def unit(name: str) -> str:
    """The text of one of systemd's units."""
    return block(f"# /etc/systemd/system/{name}\n", "ini", GUIDE, "### systemd")


def settings(text: str, section: str) -> dict[str, str]:
    """One section of a unit; in these ones each setting stands but once."""
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return dict(parser[section])


def exec_start() -> list[str]:
    """The service's command line; the application's own environment is the one that the tests run in."""
    program, *arguments = shlex.split(settings(unit("shop.service"), "Service")["ExecStart"])
    assert Path(program).name == "trioserve"
    return [str(OWN), *arguments]


def commands(*headings: str) -> list[list[str]]:
    """The commands in a part of the guide, without the shell scripts."""
    found = []
    for text in blocks("sh", GUIDE, *headings):
        if not text.startswith("#!"):
            found += [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line]
    return found
