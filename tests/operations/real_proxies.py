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


@dataclass
class Instances:
    """Two trioserves, started as README says, with other ports."""

    folder: Path
    options: list[str]
    ports: tuple[int, int]
    metrics: tuple[int, int]
    programs: list[Program] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self, index: int) -> Program:
        options = [*self.options, "--port", str(self.ports[index])]
        options += ["--metrics-bind", f"127.0.0.1:{self.metrics[index]}"]
        program = self.stack.enter_context(start(*options, executable=str(OWN), cwd=self.folder))
        program.wait_for("Ctrl-C stops")
        return program

    def is_ready(self, index: int) -> bool:
        url = f"http://127.0.0.1:{self.metrics[index]}/readyz"
        return httpx.get(url, trust_env=False, timeout=30).status_code == 200

    async def restart_each(self) -> None:
        for index, program in enumerate(self.programs):
            program.signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(program.wait) == 0, program.errors
            self.programs[index] = await trio.to_thread.run_sync(self.start, index)
            assert await trio.to_thread.run_sync(self.is_ready, index)
            await trio.sleep(3)  # the proxy asks each second

    def connections(self) -> list[KernelSocket]:
        return [one for one in KernelSocket.all() if one.state == ESTABLISHED and one.port in self.ports]

    @property
    def errors(self) -> str:
        return "\n".join(one.errors for one in self.programs)


@contextmanager
def instances(folder: Path, command: list[str]) -> Iterator[Instances]:
    assert command[0] == "trioserve"
    options = command[1:]
    for name in ("--port", "--metrics-bind"):  # ours are free
        del options[options.index(name) : options.index(name) + 2]
    made = Instances(folder, options, (free_port(), free_port()), (free_port(), free_port()))
    with made.stack:
        made.programs = [made.start(0), made.start(1)]
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
    for old, new in (("8001", upstream.ports[0]), ("8002", upstream.ports[1])):
        text = replaced(text, f"127.0.0.1:{old};", f"127.0.0.1:{new};")
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
def haproxy(folder: Path, upstream: Instances, *, tls: bool = False) -> Iterator[int]:
    """HAProxy with README's file; gives the port of one of its pairs."""
    ports = {"80": free_port(), "443": free_port()}
    text = block(HAPROXY, "haproxy", GUIDE, "### HAProxy")
    for name, port in ports.items():
        text = replaced(text, f"bind :{name}\n", f"bind 127.0.0.1:{port}\n")
    pair = ("8441", "8442") if tls else ("8001", "8002")
    for old, new in zip(pair, upstream.ports, strict=True):
        text = replaced(text, f" 127.0.0.1:{old} ", f" 127.0.0.1:{new} ")
    for old, new in zip(("9101", "9102"), upstream.metrics, strict=True):
        text = replaced(text, f" port {old}\n", f" port {new}\n", count=2)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run([find("haproxy"), "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    port = ports["443" if tls else "80"]
    with running("haproxy", "-db", "-f", str(file), port=port):
        yield port


def replaced(text: str, old: str, new: str, *, count: int = 1) -> str:
    assert text.count(old) == count, f"README has {text.count(old)} of {old!r}, and should have {count}"
    return text.replace(old, new)


def check_traffic(folder: Path, url: str, verify: ssl.SSLContext | bool = True) -> None:
    """Requests, an upload, server-sent events and a WebSocket come through whole, and unbuffered."""
    transport = httpx.HTTPTransport(local_address=CLIENT, verify=verify)
    scheme = url.partition(":")[0]
    with httpx.Client(base_url=url, transport=transport, trust_env=False, timeout=30) as client:
        told = client.get("/tell", headers={"X-Forwarded-For": "192.0.2.66"}).json()
        assert (told["client"][0], told["scheme"]) == (CLIENT, scheme)
        data = os.urandom(5_000_000)
        assert client.post("/upload", content=data).text == hashlib.sha256(data).hexdigest()
        pieces = (data[start : start + 65536] for start in range(0, len(data), 65536))
        assert client.post("/upload", content=pieces).text == hashlib.sha256(data).hexdigest()
        received = ""
        with client.stream("GET", "/events") as response:
            for text in response.iter_text():
                received += text
                for number in range(received.count("\n\n")):
                    (folder / f"got-{number}").touch()
        assert received == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    context = verify if isinstance(verify, ssl.SSLContext) else None
    address = url.replace("http", "ws", 1)
    with connect(f"{address}/chat", ssl=context, open_timeout=30, proxy=None) as websocket:
        for text in ("hello", "x" * 100_000):
            websocket.send(text)
            assert re.fullmatch(rf"\d+ {text}", str(websocket.recv(timeout=30)))


def plain_command() -> list[str]:
    return commands("### HAProxy")[0]


# nginx


def test_traffic_through_nginx(tmp_path: Path) -> None:
    """All kinds come through, and connections to the instances are kept."""
    write_main(tmp_path)
    with instances(tmp_path, plain_command()) as pair, nginx(tmp_path, pair) as port:
        check_traffic(tmp_path, f"http://127.0.0.1:{port}")
        assert pair.connections()


async def test_restarts_behind_nginx(tmp_path: Path) -> None:
    """Each instance is restarted under load, and no request fails that nginx may send twice; hardly any other does.

    That is a POST on a connection that is being closed: nginx answers it with 502.
    """
    write_main(tmp_path)
    command = plain_command()
    with instances(tmp_path, command) as pair, nginx(tmp_path, pair) as port:
        async with loading(("127.0.0.1", port), lambda: pair.errors) as load:
            await load.wait_for_workers(one.process.pid for one in pair.programs)
            await pair.restart_each()
            await load.wait_for_workers(one.process.pid for one in pair.programs)
        assert load.dropped == 0
        assert [one for one in load.losses if not one.request.body or "status_code=502" not in one.reason] == []
        assert load.failed <= load.answered / 1000


# HAProxy


def test_traffic_through_haproxy(tmp_path: Path) -> None:
    """All kinds come through."""
    write_main(tmp_path)
    with instances(tmp_path, plain_command()) as pair, haproxy(tmp_path, pair) as port:
        check_traffic(tmp_path, f"http://127.0.0.1:{port}")
        assert pair.connections()


async def test_restarts_behind_haproxy(tmp_path: Path) -> None:
    """Each instance is restarted under load, and no request fails: HAProxy hears of it in the drain_delay."""
    write_main(tmp_path)
    with instances(tmp_path, plain_command()) as pair, haproxy(tmp_path, pair) as port:
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


def test_tls_and_the_proxy_protocol_behind_haproxy(tmp_path: Path) -> None:
    """TLS passes through, with the client's address; and so it does while each instance is restarted."""
    write_main(tmp_path)
    certificate = Certificate(tmp_path)
    with instances(tmp_path, commands("### HAProxy")[1]) as pair, haproxy(tmp_path, pair, tls=True) as port:
        url = f"https://127.0.0.1:{port}"
        check_traffic(tmp_path, url, certificate.context)
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
    command = plain_command()
    command[command.index("--drain-delay") + 1] = "60"  # long enough to look at it on a slow machine
    with instances(tmp_path, command) as pair, haproxy(tmp_path, pair) as port:
        first, second = pair.programs

        def worker(target: int) -> int:
            return int(httpx.get(f"http://127.0.0.1:{target}/echo/1", trust_env=False).headers["worker"])

        assert {worker(port) for _ in range(20)} == {first.process.pid, second.process.pid}
        first.signal(signal.SIGTERM)
        wait_until(lambda: not pair.is_ready(0), "it says that it is not ready")
        wait_until(lambda: {worker(port) for _ in range(20)} == {second.process.pid}, "HAProxy has heard of it")
        assert worker(pair.ports[0]) == first.process.pid
        first.signal(signal.SIGTERM)  # once more: without further delay
        assert first.wait() == 0
        pair.programs[0] = pair.start(0)
