"""README's configurations of nginx and HAProxy, in front of two instances that are restarted under load."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio
import trustme
from websockets.sync.client import connect

from ..load import ESTABLISHED, KernelSocket, assert_nothing_lost, loading
from ..programs import Program, start, wait_until
from ..proxies.proxies import running
from ..readme import block
from .guide import GUIDE, OWN, commands, find, free_port, write_main

pytestmark = pytest.mark.timeout(180)

CLIENT = "127.0.0.9"  # whom the application must see, and not the proxy
NGINX = "# /etc/nginx/conf.d/shop.conf\n"
HAPROXY = "# /etc/haproxy/haproxy.cfg\n"


PLAIN, TLS, ALL = slice(0, 2), slice(2, 4), slice(0, 4)  # of the instances that README starts for HAProxy
PORT = re.compile(r"\b\d{4}\b")


@dataclass
class Instances:
    """Trioserves, started as README says; each port that is printed there stands for a free one here."""

    folder: Path
    commands: list[list[str]]
    free: dict[str, int]
    """Printed port to the one in use here."""
    programs: list[Program] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self, index: int) -> Program:
        name, *options = self.commands[index]
        assert name == "trioserve"
        options = [self.moved(one) for one in options]
        program = self.stack.enter_context(start(*options, executable=str(OWN), cwd=self.folder))
        program.wait_for("Ctrl-C stops")
        return program

    def moved(self, text: str) -> str:
        return PORT.sub(lambda found: str(self.free[found[0]]), text)

    def port(self, index: int, option: str = "--port") -> int:
        command = self.commands[index]
        return self.free[command[command.index(option) + 1].rpartition(":")[2]]

    def is_ready(self, index: int) -> bool:
        url = f"http://127.0.0.1:{self.port(index, '--metrics-bind')}/readyz"
        return httpx.get(url, trust_env=False, timeout=30).status_code == 200

    async def restart_each(self) -> None:
        for index, program in enumerate(self.programs):
            program.signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(program.wait) == 0, program.errors
            self.programs[index] = await trio.to_thread.run_sync(self.start, index)
            assert await trio.to_thread.run_sync(self.is_ready, index)
            await trio.sleep(3)  # the proxy asks each second

    def connections(self) -> list[KernelSocket]:
        ports = [self.port(index) for index in range(len(self.commands))]
        return [one for one in KernelSocket.all() if one.state == ESTABLISHED and one.port in ports]

    @property
    def errors(self) -> str:
        return "\n".join(one.errors for one in self.programs)


@contextmanager
def instances(folder: Path, which: slice, *more: str, delay: int | None = None) -> Iterator[Instances]:
    """Those of README's instances, with more options, or with another ``--drain-delay`` in seconds."""
    printed = commands("### HAProxy")
    free = {port: free_port() for one in printed for port in PORT.findall(" ".join(one))}
    chosen = [[*one, *more] for one in printed[which]]
    if delay is not None:
        for one in chosen:
            one[one.index("--drain-delay") + 1] = str(delay)
    made = Instances(folder, chosen, free)
    with made.stack:
        for index in range(len(chosen)):
            made.programs.append(made.start(index))
        yield made
        for program in made.programs:
            program.signal()
        for program in made.programs:
            program.wait_for("Ctrl-C again cuts")
            program.signal()  # without further delay
        for program in made.programs:
            assert program.wait() == 0
        assert "Traceback" not in made.errors


@contextmanager
def nginx(folder: Path, upstream: Instances) -> Iterator[int]:
    """nginx with README's file inside `http { }`, where the packages' own nginx.conf has it; gives its port."""
    port = free_port()
    text = block(NGINX, "nginx", GUIDE, "### nginx")
    text = re.sub(r"(?<= 127\.0\.0\.1:)\d+", lambda found: upstream.moved(found[0]), text)
    text = replaced(text, "listen 80;", f"listen 127.0.0.1:{port};")
    folders = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "" if os.geteuid() else "user root;\n"  # else its worker is nobody, who may not enter this folder
    file = folder / "nginx.conf"
    file.write_text(
        f"{user}daemon off; pid {folder}/pid; error_log {folder}/errors.log; events {{}}\n"
        f"http {{ access_log off; {folders}\n{text}\n}}\n"
    )
    arguments = ("-e", "stderr", "-p", str(folder), "-c", str(file))
    done = subprocess.run([find("nginx"), "-t", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr
    with running("nginx", *arguments, port=port):
        yield port


@contextmanager
def haproxy(folder: Path, upstream: Instances) -> Iterator[tuple[int, int]]:
    """HAProxy with README's file; gives the ports of its two pairs, the one with TLS last."""
    ports = {"80": free_port(), "443": free_port()}
    text = block(HAPROXY, "haproxy", GUIDE, "### HAProxy")
    text = re.sub(r"(?<= 127\.0\.0\.1:)\d+|(?<= port )\d+", lambda found: upstream.moved(found[0]), text)
    for name, port in ports.items():
        text = replaced(text, f"bind :{name}\n", f"bind 127.0.0.1:{port}\n")
    file = folder / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run([find("haproxy"), "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    with running("haproxy", "-db", "-f", str(file), port=ports["80"]):
        yield ports["80"], ports["443"]


def replaced(text: str, old: str, new: str, *, count: int = 1) -> str:
    assert text.count(old) == count, f"README has {text.count(old)} of {old!r}, and should have {count}"
    return text.replace(old, new)


def check_traffic(folder: Path, url: str, verify: ssl.SSLContext | bool = True) -> None:
    """Requests, an upload, server-sent events and a WebSocket come through whole, and unbuffered."""
    scheme = url.partition(":")[0]
    with client_of(url, verify) as client:
        told = client.get("/tell", headers={"X-Forwarded-For": "192.0.2.66"}).json()
        assert (told["client"][0], told["scheme"]) == (CLIENT, scheme)
        data = os.urandom(5_000_000)
        assert client.post("/upload", content=data).text == hashlib.sha256(data).hexdigest()
        pieces = (data[start : start + 65536] for start in range(0, len(data), 65536))
        assert client.post("/upload", content=pieces).text == hashlib.sha256(data).hexdigest()
        check_events(folder, client)
    context = verify if isinstance(verify, ssl.SSLContext) else None
    address = url.replace("http", "ws", 1)
    with connect(f"{address}/chat", ssl=context, open_timeout=30, proxy=None) as websocket:
        for text in ("hello", "x" * 100_000):
            websocket.send(text)
            assert re.fullmatch(rf"\d+ {text}", str(websocket.recv(timeout=30)))


def client_of(url: str, verify: ssl.SSLContext | bool = True) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=CLIENT, verify=verify)
    return httpx.Client(base_url=url, transport=transport, trust_env=False, timeout=30)


def check_events(folder: Path, client: httpx.Client) -> None:
    """Each event is here before the next one is sent, and a client that takes nothing holds back the application."""
    for name in ("got-0", "got-1", "got-2", "flood"):
        (folder / name).unlink(missing_ok=True)
    received = ""
    with client.stream("GET", "/events") as response:
        for text in response.iter_text():
            received += text
            for number in range(received.count("\n\n")):
                (folder / f"got-{number}").touch()
    assert received == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    with client.stream("GET", "/events/flood"):  # of which nothing is read but the head
        wait_until((folder / "flood").exists, "the application is held back, or has sent all")
    assert int((folder / "flood").read_text()) < 1000


def check_request_ids(url: str, verify: ssl.SSLContext | bool = True, *, is_set: bool = True) -> None:
    """An id that a client chose is not the request's; ``is_set``: the proxy sets one, which the application sees."""
    chosen = {"X-Request-ID": "chosen-by-the-client"}
    with client_of(url, verify) as client:
        answers = [client.get("/tell", headers=chosen) for _ in range(2)]
        with client.stream("HEAD", "/events/none", headers=chosen) as other:
            ids = [one.headers["x-request-id"] for one in (*answers, other)]
    assert len({*ids, *chosen.values()}) == 4
    if is_set:
        assert [one.json()["headers"]["x-request-id"] for one in answers] == ids[:2]


# nginx


def test_traffic_through_nginx(tmp_path: Path) -> None:
    """All kinds come through, and connections to the instances are kept."""
    write_main(tmp_path)
    with instances(tmp_path, PLAIN, "--request-id") as pair, nginx(tmp_path, pair) as port:
        check_traffic(tmp_path, f"http://127.0.0.1:{port}")
        check_request_ids(f"http://127.0.0.1:{port}")
        assert pair.connections()


async def test_restarts_behind_nginx(tmp_path: Path) -> None:
    """Each instance is restarted under load, and no request fails that nginx may send twice; hardly any other does.

    That is a POST on a connection that is being closed: nginx answers it with 502. By max_fails=0 that is all.
    """
    write_main(tmp_path)
    with instances(tmp_path, PLAIN) as pair, nginx(tmp_path, pair) as port:
        async with loading(("127.0.0.1", port), lambda: pair.errors) as load:
            await load.wait_for_workers(one.process.pid for one in pair.programs)
            await pair.restart_each()
            await load.wait_for_workers(one.process.pid for one in pair.programs)
        assert load.dropped == 0
        assert [one for one in load.losses if not one.request.body or "status_code=502" not in one.reason] == []
        assert load.failed <= load.answered / 1000


# HAProxy


def test_traffic_through_haproxy(tmp_path: Path) -> None:
    """All kinds come through both pairs at once, whose commands are run together, as they are printed."""
    write_main(tmp_path)
    certificate = Certificate(tmp_path)
    with instances(tmp_path, ALL, "--request-id") as four, haproxy(tmp_path, four) as (port, tls_port):
        wait_until(lambda: all(map(four.is_ready, range(4))), "all four are ready")
        check_traffic(tmp_path, f"http://127.0.0.1:{port}")
        check_request_ids(f"http://127.0.0.1:{port}")
        assert four.connections()
        check_traffic(tmp_path, f"https://127.0.0.1:{tls_port}", certificate.context)
        check_request_ids(f"https://127.0.0.1:{tls_port}", certificate.context, is_set=False)


async def test_restarts_behind_haproxy(tmp_path: Path) -> None:
    """Each instance is restarted under load, and no request fails: HAProxy hears of it in the drain_delay."""
    write_main(tmp_path)
    with instances(tmp_path, PLAIN) as pair, haproxy(tmp_path, pair) as (port, _):
        async with loading(("127.0.0.1", port), lambda: pair.errors) as load:
            await load.wait_for_workers(one.process.pid for one in pair.programs)
            await pair.restart_each()
            await load.wait_for_workers(one.process.pid for one in pair.programs)
        assert_nothing_lost(load)


class Certificate:
    """A certificate for the loopback, in the files that README names."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(str(folder / "privkey.pem"))
        for one in made.cert_chain_pems:
            one.write_to_path(str(folder / "fullchain.pem"), append=True)
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)


def test_restarts_with_tls_behind_haproxy(tmp_path: Path) -> None:
    """TLS passes through while each instance is restarted."""
    write_main(tmp_path)
    certificate = Certificate(tmp_path)
    with instances(tmp_path, TLS) as pair, haproxy(tmp_path, pair) as (_, port):
        url = f"https://127.0.0.1:{port}"
        answers: list[int] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                answers.append(httpx.get(f"{url}/echo/1", verify=certificate.context, trust_env=False).status_code)

        async def restart() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(trio.to_thread.run_sync, ask)
                await pair.restart_each()
                ended.set()

        trio.run(restart)
        print(f"TLS through HAProxy: {len(answers)} requests")
        assert set(answers) == {200}


def test_haproxy_notices_what_is_not_ready(tmp_path: Path) -> None:
    """In the drain_delay an instance still serves, while HAProxy sends it nothing any more."""
    write_main(tmp_path)
    # A delay long enough to look at it on a slow machine.
    with instances(tmp_path, PLAIN, delay=60) as pair, haproxy(tmp_path, pair) as (port, _):
        first, second = pair.programs

        def worker(target: int) -> int:
            return int(httpx.get(f"http://127.0.0.1:{target}/echo/1", trust_env=False).headers["worker"])

        assert {worker(port) for _ in range(20)} == {first.process.pid, second.process.pid}
        first.signal(signal.SIGTERM)
        wait_until(lambda: not pair.is_ready(0), "it says that it is not ready")
        wait_until(lambda: {worker(port) for _ in range(20)} == {second.process.pid}, "HAProxy has heard of it")
        assert worker(pair.port(0)) == first.process.pid
        first.signal(signal.SIGTERM)  # once more: without further delay
        assert first.wait() == 0
        pair.programs[0] = pair.start(0)
