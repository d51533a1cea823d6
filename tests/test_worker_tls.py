"""TLS with two workers: each makes its own context of the files, and SIGHUP renews the certificates."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509

from .load import DEADLINE, wait_for, wait_for_children, write_app
from .programs import PATIENCE, Program, start
from .test_tls import BROKEN, Files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers' processes are found in /proc")


class RenewableFiles(Files):
    """An authority, and the newest pair of its certificates in the same files."""

    def renew(self) -> int:
        """Make a new certificate, and the files its; returns its serial number."""
        self.server = self.ca.issue_cert("localhost")
        Path(self.chain).write_bytes(b"".join(one.bytes() for one in self.server.cert_chain_pems))
        Path(self.key).write_bytes(self.server.private_key_pem.bytes())
        return self.serial

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.server.cert_chain_pems[0].bytes()).serial_number


@pytest.fixture
def files(tmp_path: Path) -> RenewableFiles:
    return RenewableFiles(tmp_path)


@contextmanager
def served(files: RenewableFiles, *options: str, **variables: str) -> Iterator[Program]:
    """The application of the load behind TLS in two workers, which have both answered when the block begins."""
    if "--ssl-keyfile" not in options:
        options = ("--ssl-keyfile", files.key, *options)
    tls = ("--ssl-certfile", files.chain, *options)
    command = ("-m", "trioserve", write_app(files.folder), "--workers", "2", "--port", "0", *tls)
    with start(*command, cwd=files.folder, **variables) as program:
        program.wait_for("listening on https://")
        workers = program.wait_for_children(2)
        seen = set()
        while seen != workers:
            seen.add(ask(program, files.client()).worker)
        yield program


@dataclass(frozen=True)
class Answer:
    """Who answered, and behind which certificate."""

    worker: int
    serial: int


def serial_of(certificate: dict[str, str]) -> int:
    return int(certificate["serialNumber"], 16)


def ask(program: Program, context: ssl.SSLContext, host: str = "localhost") -> Answer:
    """One request on a connection of its own, by ``ssl``; raises ssl.SSLError."""
    with closing(http.client.HTTPSConnection(host, program.address[1], timeout=PATIENCE, context=context)) as client:
        client.connect()
        serial = serial_of(client.sock.getpeercert())
        client.request("GET", "/echo/1-1", headers={"Connection": "close"})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b"1-1 ")
        return Answer(int(answer.headers["worker"]), serial)


def url_of(program: Program, host: str = "localhost") -> str:
    return f"https://{host}:{program.address[1]}/echo/1-1"


# Clients that verify


def test_clients_verify_authority_and_host_name(files: RenewableFiles) -> None:
    """Clients that trust the authority, and nothing else, get answers of both workers; another authority and another
    host name are refused by them: by ssl, httpx and curl.
    """
    strangers = Files(make_folder(files.folder / "strangers"))
    with served(files) as program:
        check_ssl(program, files, strangers)
        check_httpx(program, files, strangers)
        check_curl(program, files, strangers)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def check_ssl(program: Program, files: RenewableFiles, strangers: Files) -> None:
    trusting = ssl.create_default_context(cafile=files.authorities)
    assert ask(program, trusting).serial == files.serial
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        ask(program, trusting, host="127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        ask(program, ssl.create_default_context(cafile=strangers.authorities))


def check_httpx(program: Program, files: RenewableFiles, strangers: Files) -> None:
    def get(authorities: str, host: str = "localhost") -> httpx.Response:
        # Without trust_env the proxy of the machine that runs the tests stays out.
        context = ssl.create_default_context(cafile=authorities)
        with httpx.Client(verify=context, trust_env=False, timeout=PATIENCE) as client:
            return client.get(url_of(program, host))

    answer = get(files.authorities)
    assert (answer.status_code, answer.text) == (200, "1-1 ")
    with pytest.raises(httpx.ConnectError, match="IP address mismatch"):
        get(files.authorities, host="127.0.0.1")
    with pytest.raises(httpx.ConnectError, match="unable to get local issuer certificate"):
        get(strangers.authorities)


CURL_REFUSES = 60  # its exit code for a certificate that does not verify


def check_curl(program: Program, files: RenewableFiles, strangers: Files) -> None:
    if shutil.which("curl") is None:
        return

    def get(authorities: str, host: str = "localhost") -> subprocess.CompletedProcess[str]:
        command = ["curl", "--silent", "--noproxy", "*", "--max-time", "20", "--cacert", authorities]
        command.append(url_of(program, host))
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    answer = get(files.authorities)
    assert (answer.returncode, answer.stdout) == (0, "1-1 ")
    # A certificate that names no address is one that curl's OpenSSL and others have different words for.
    assert get(files.authorities, host="127.0.0.1").returncode == CURL_REFUSES
    assert get(strangers.authorities).returncode == CURL_REFUSES


PLAIN_REQUESTS = (
    b"GET /echo/1-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /echo/1-1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\n\r\nGET /echo/1-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
)


def test_plain_http_gets_no_answer_of_the_application(files: RenewableFiles) -> None:
    """What comes without TLS to a port of TLS never reaches the application, whichever worker takes it."""
    with served(files) as program:
        for request in PLAIN_REQUESTS * 8:
            answer = b""
            with socket.create_connection(program.address, PATIENCE) as client:
                client.sendall(request)
                while data := receive(client):
                    answer += data
            assert b"1-1 " not in answer
            assert b"worker" not in answer
            if request.startswith((b"GET", b"POST")):
                assert answer.startswith(b"HTTP/1.1 400 "), answer


def receive(client: socket.socket) -> bytes:
    """What comes next; nothing at the end of the connection, however it ends."""
    try:
        return client.recv(65536)
    except ConnectionResetError:
        return b""


# Renewal


@dataclass
class Stream:
    """What a stream of new connections has seen, in the order in which they were answered."""

    answers: list[Answer] = field(default_factory=list)

    async def wait_more(self, count: int = 20) -> None:
        """Wait for so many connections that begin from now on."""
        goal = len(self.answers) + count + STREAM_CLIENTS  # what was begun before has been answered by then
        while len(self.answers) < goal:
            await trio.sleep(0.01)


STREAM_CLIENTS = 8


async def fetch(client: trio.SSLStream[trio.SocketStream]) -> Answer:
    """A handshake, and the one request of its connection."""
    await client.do_handshake()
    await client.send_all(b"GET /echo/1-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = b""
    while data := await client.receive_some():
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    assert body == b"1-1 "
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return Answer(int(fields[b"worker"]), serial_of(client.getpeercert()))


@asynccontextmanager
async def connecting(program: Program, context: ssl.SSLContext) -> AsyncIterator[Stream]:
    """New connections, one handshake and one request on each, as long as the block runs; each must be answered."""
    stream = Stream()

    async def connect_forever() -> None:
        while True:
            plain = await trio.open_tcp_stream(*program.address)
            async with trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True) as client:
                stream.answers.append(await fetch(client))

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for _ in range(STREAM_CLIENTS):
                nursery.start_soon(connect_forever)
            yield stream
            nursery.cancel_scope.cancel()


async def test_roll_renews_the_certificate(files: RenewableFiles) -> None:
    """SIGHUP reads the files again: before it the old certificate is served, after it only the new one, each worker
    has one of them all its life, and no handshake fails at any time.
    """
    old = files.serial
    with served(files) as program:
        async with connecting(program, files.client()) as stream:
            old_workers = program.children()
            new = files.renew()
            await stream.wait_more()  # new files alone change nothing
            assert {one.serial for one in stream.answers} == {old}
            program.signal(signal.SIGHUP)
            await wait_for(program, "all workers are replaced")
            new_workers = await wait_for_children(program, 2, but=old_workers)
            await stream.wait_more()
            until_now = len(stream.answers)
            await stream.wait_more()
    print(f"{len(stream.answers)} handshakes, of which {count(stream, old)} old and {count(stream, new)} new, 0 failed")
    assert {one.serial for one in stream.answers[until_now:]} == {new}
    assert {one.worker for one in stream.answers if one.serial == old} == old_workers
    assert {one.worker for one in stream.answers if one.serial == new} == new_workers


def count(stream: Stream, serial: int) -> int:
    return sum(one.serial == serial for one in stream.answers)


def swap_key(files: RenewableFiles) -> str:
    Path(files.key).write_bytes(files.ca.issue_cert("localhost").private_key_pem.bytes())
    return f"ssl_keyfile {files.key!r}: the private key does not belong to the certificate in {files.chain!r}"


def damage_certificate(files: RenewableFiles) -> str:
    Path(files.chain).write_text(BROKEN)
    return f"ssl_keyfile {files.key!r}: OpenSSL cannot use the certificate or the private key"


def remove_key(files: RenewableFiles) -> str:
    Path(files.key).unlink()
    return f"ssl_keyfile {files.key!r}: no such file or directory"


def cut_certificate(files: RenewableFiles) -> str:
    whole = Path(files.chain).read_bytes()
    Path(files.chain).write_bytes(whole[: len(whole) // 2])
    return f"ssl_certfile {files.chain!r}: no certificate in PEM in it"


async def test_broken_pair_changes_nothing(files: RenewableFiles) -> None:
    """SIGHUP with a pair that cannot be used leaves the old workers and their certificate, and one line says why; a
    good pair and another SIGHUP then renew it.
    """
    old = files.serial
    with served(files) as program:
        async with connecting(program, files.client()) as stream:
            workers = program.children()
            for number, breakage in enumerate((swap_key, damage_certificate, remove_key, cut_certificate), 1):
                reason = breakage(files)
                program.signal(signal.SIGHUP)
                await wait_for(program, "the new worker cannot start, so the old ones stay", times=number)
                await stream.wait_more()
                assert {one.serial for one in stream.answers} == {old}
                assert await wait_for_children(program, 2) == workers
                said = [line for line in program.errors.splitlines() if str(files.folder) in line]
                del said[0]  # what the start says of the certificate
                assert len(said) == number
                assert reason in said[-1]
                files.renew()
            assert "Traceback" not in program.errors
            program.signal(signal.SIGHUP)
            await wait_for(program, "all workers are replaced")
            await wait_for_children(program, 2, but=workers)
            await stream.wait_more()
            until_now = len(stream.answers)
            await stream.wait_more()
            assert {one.serial for one in stream.answers[until_now:]} == {files.serial}


# The key's password

PASSWORD = "open-sesame-4711"


def command_lines(*pids: int) -> bytes:
    return b"\n".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


def test_password_of_the_key_stays_out_of_the_command_lines(files: RenewableFiles) -> None:
    """An encrypted key is opened by each worker with ssl_keyfile_password of the environment, also after SIGHUP, and no
    command line shows the password to the other users of the machine, nor does the log.
    """
    key = files.encrypted_key(PASSWORD.encode())
    with served(files, "--ssl-keyfile", key, TRIOSERVE_SSL_KEYFILE_PASSWORD=PASSWORD) as program:
        old = program.children()
        shown = command_lines(program.process.pid, *old)
        program.signal(signal.SIGHUP)
        program.wait_for("all workers are replaced")
        new = program.wait_for_children(2, but=old)
        shown += command_lines(*new)
        assert ask(program, files.client()).worker in new
        assert b"trioserve.process.worker" in shown
        assert PASSWORD.encode() not in shown
        assert PASSWORD not in program.errors + program.output
