"""The clients people use: httpx, curl and wrk."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import subprocess
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route

from trioserve.logs import Outcome

from ..programs import Program, start
from ..support import http_app, socket_server
from .clients import PATIENCE, REPOSITORY, SERVE, curl, find_tool, wait_until

pytestmark = pytest.mark.both_codecs

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def count(request: Request) -> JSONResponse:
    """What arrived of a body, and how it was framed."""
    digest, size = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        size += len(piece)
    return JSONResponse(
        {
            "method": request.method,
            "size": size,
            "sha256": digest.hexdigest(),
            "framing": request.headers.get("transfer-encoding", "length"),
        }
    )


async def refuse(request: Request) -> PlainTextResponse:
    """An answer without a look at the body."""
    return PlainTextResponse("too large", 413)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("Hello, world!")


@pytest.fixture
def content_file(tmp_path):
    path = tmp_path / "content.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def app(content_file):
    async def file(request):
        return FileResponse(content_file)

    return Starlette(
        routes=[
            Route("/", hello),
            Route("/count", count, methods=["POST", "PUT"]),
            Route("/refuse", refuse, methods=["POST", "PUT"]),
            Route("/file", file),
        ]
    )


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path):
    """The path of a chain and key for localhost."""
    path = tmp_path / "server.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def authority_file(authority, tmp_path):
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


# httpx


async def test_httpx_keeps_its_connection(app):
    """Several requests of httpx, with bodies both ways, take one connection."""
    async with socket_server(app) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(base_url=server.server.urls[0], trust_env=False) as client:
                for _ in range(3):
                    assert (await client.get("/")).text == "Hello, world!"
                    response = await client.post("/count", content=CONTENT)
                    assert response.json()["sha256"] == DIGEST
                    assert (await client.get("/file")).content == CONTENT
        assert server.server.statistics().connections_total == 1
    assert {record.outcome for record in server.records} == {Outcome.OK}


async def test_httpx_uploads_in_chunks(app):
    """A streamed upload of unknown length is sent in chunks and arrives whole."""

    async def pieces() -> AsyncIterator[bytes]:
        for start_at in range(0, len(CONTENT), 70_000):
            yield CONTENT[start_at : start_at + 70_000]

    async with socket_server(app) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(base_url=server.server.urls[0], trust_env=False) as client:
                response = await client.post("/count", content=pieces())
    assert response.json() == {"method": "POST", "size": len(CONTENT), "sha256": DIGEST, "framing": "chunked"}


async def test_httpx_with_many_connections(app):
    """A hundred requests at once over many connections are all answered."""
    async with socket_server(app) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(base_url=server.server.urls[0], trust_env=False) as client:
                statuses = []

                async def ask():
                    statuses.append((await client.get("/")).status_code)

                async with trio.open_nursery() as nursery:
                    for _ in range(100):
                        nursery.start_soon(ask)
    assert statuses == [200] * 100


async def test_httpx_over_tls(app, authority, certificate):
    """httpx trusts the private authority and gets its answers over TLS."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with socket_server(app, ssl_certfile=certificate) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(verify=context, trust_env=False) as client:
                assert (await client.get(f"{server.server.urls[0]}/file")).content == CONTENT
                assert (await client.post(f"{server.server.urls[0]}/count", content=CONTENT)).json()["sha256"] == DIGEST


async def test_httpx_read_timeout_is_a_client_that_left():
    """A client that loses patience is logged as one that left, and its handler is cancelled."""
    ended = trio.Event()

    async def slow(request):
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    app = Starlette(routes=[Route("/", slow)])
    async with socket_server(app, timeout_disconnect_grace=0.1) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(trust_env=False, timeout=0.2) as client:
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(server.server.urls[0])
                await ended.wait()
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


# curl


async def test_curl_get(app):
    """A plain GET."""
    async with socket_server(app) as server:
        answer = await curl("--http1.1", server.server.urls[0])
    assert (answer.code, answer.status, answer.body) == (0, 200, b"Hello, world!")


async def test_curl_http_1_0(app):
    """An HTTP/1.0 request is answered whole, and the connection closes."""
    async with socket_server(app) as server:
        answer = await curl("--http1.0", f"{server.server.urls[0]}/file")
    assert (answer.code, answer.status) == (0, 200)
    assert answer.body == CONTENT
    assert "Closing connection" in answer.talk


async def test_curl_reuses_its_connection(app):
    """Two addresses on one command line take one connection."""
    async with socket_server(app) as server:
        url = server.server.urls[0]
        answer = await curl("--http1.1", url, f"{url}/file")
        assert server.server.statistics().connections_total == 1
    assert answer.body == b"Hello, world!" + CONTENT
    assert "Re-using existing connection" in answer.talk


async def test_curl_uploads_after_100_continue(app, content_file):
    """curl -T waits for 100 Continue, gets it, and its file arrives whole."""
    async with socket_server(app) as server:
        url = f"{server.server.urls[0]}/count"
        answer = await curl("--http1.1", "-H", "Expect: 100-continue", "-T", str(content_file), url)
    assert (answer.code, answer.status) == (0, 200)
    assert "< HTTP/1.1 100 Continue" in answer.talk
    assert DIGEST.encode() in answer.body


async def test_curl_upload_refused_before_it_began(app, content_file):
    """An application that refuses without reading spares curl the upload: the final status comes instead of 100."""
    async with socket_server(app) as server:
        url = f"{server.server.urls[0]}/refuse"
        answer = await curl(
            "--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "15", "-T", str(content_file), url
        )
    assert answer.status == 413
    assert answer.body == b"too large"
    assert "100 Continue" not in answer.talk
    assert [record.received for record in server.records] == [0]


async def test_curl_upload_refused_while_it_comes(app, content_file):
    """An upload that is refused while it is being sent still gets its answer, not a reset."""
    async with socket_server(app) as server:
        url = f"{server.server.urls[0]}/refuse"
        answer = await curl("--http1.1", "-H", "Expect:", "-T", str(content_file), url)
    assert answer.status == 413
    assert answer.body == b"too large"


async def test_curl_posts_a_file(app, content_file):
    """--data-binary sends a body with a length."""
    async with socket_server(app) as server:
        answer = await curl("--http1.1", "--data-binary", f"@{content_file}", f"{server.server.urls[0]}/count")
    assert answer.status == 200
    assert DIGEST.encode() in answer.body
    assert b'"framing":"length"' in answer.body


async def test_curl_posts_from_a_pipe(app):
    """-T - reads a pipe of unknown length, which curl sends in chunks."""
    async with socket_server(app) as server:
        answer = await curl("--http1.1", "-T", "-", f"{server.server.urls[0]}/count", stdin=CONTENT)
    assert answer.status == 200
    assert DIGEST.encode() in answer.body
    assert b'"framing":"chunked"' in answer.body


async def test_curl_head(app):
    """-I gets the head alone, with the length of the body it stands for, and does not wait for one."""
    async with socket_server(app) as server:
        answer = await curl("--http1.1", "-I", f"{server.server.urls[0]}/file")
    assert (answer.code, answer.status) == (0, 200)
    assert f"< content-length: {len(CONTENT)}" in answer.talk


async def test_curl_range(app):
    """-r gets 206 and its bytes."""
    async with socket_server(app) as server:
        answer = await curl("--http1.1", "-r", "1000-1999", f"{server.server.urls[0]}/file")
    assert answer.status == 206
    assert answer.body == CONTENT[1000:2000]


async def test_curl_over_tls(app, certificate, authority_file):
    """curl trusts the private authority; it offers HTTP/2, and ALPN settles on HTTP/1.1."""
    async with socket_server(app, ssl_certfile=certificate) as server:
        answer = await curl("--http2", "--cacert", authority_file, f"{server.server.urls[0]}/file")
    assert (answer.code, answer.status) == (0, 200)
    assert answer.body == CONTENT
    assert "ALPN: server accepted http/1.1" in answer.talk


async def test_curl_refuses_an_unknown_authority(app, certificate):
    """Without the authority curl refuses, and the server goes on."""
    async with socket_server(app, ssl_certfile=certificate) as server:
        assert (await curl(server.server.urls[0])).code == 60  # CURLE_PEER_FAILED_VERIFICATION
        assert (await curl("-k", server.server.urls[0])).status == 200


async def test_curl_speaks_plain_http_to_a_tls_port(app, certificate):
    """Plain HTTP on a TLS port gets a clear answer."""
    async with socket_server(app, ssl_certfile=certificate) as server:
        answer = await curl(server.server.urls[0].replace("https:", "http:"))
    assert answer.status == 400
    assert b"This port speaks HTTPS" in answer.body


@pytest.mark.parametrize("path", ["", "/count"])
async def test_curl_offers_to_upgrade_to_http_2(app, content_file, path):
    """An offer of h2c is declined by answering in HTTP/1.1, and the body of the request is kept."""
    body = ["--data-binary", f"@{content_file}"] if path else []
    async with socket_server(app) as server:
        answer = await curl("--http2", *body, f"{server.server.urls[0]}{path}")
    assert "> Upgrade: h2c" in answer.talk
    assert "< HTTP/1.1 200 OK" in answer.talk
    assert (DIGEST.encode() if path else b"Hello, world!") in answer.body


async def test_curl_speaks_http_2_unasked(app):
    """HTTP/2 with prior knowledge is refused at once: curl does not hang."""
    async with socket_server(app) as server:
        with trio.fail_after(5):
            answer = await curl("--http2-prior-knowledge", server.server.urls[0])
    assert answer.code not in (0, 28)  # neither success nor a timeout


async def test_curl_on_a_unix_socket(app, tmp_path):
    """--unix-socket."""
    path = str(tmp_path / "socket")
    async with socket_server(app, uds=path) as server:
        assert server.server.urls == (f"unix:{path}",)
        answer = await curl("--unix-socket", path, "http://localhost/file")
    assert answer.body == CONTENT


async def test_curl_stops_in_the_middle_of_a_download():
    """A download that breaks off is a client that left, and the next one is served."""

    async def download(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope["path"] == "/endless":
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        await send({"type": "http.response.body", "body": b"Hello, world!"})

    async with socket_server(http_app(download)) as server:
        url = server.server.urls[0]
        assert (await curl("--http1.1", "--max-time", "0.3", f"{url}/endless")).code == 28
        assert (await curl("--http1.1", url)).body == b"Hello, world!"
        await wait_until(lambda: len(server.records) == 2)
    assert sorted(record.outcome.value for record in server.records) == ["client left", "ok"]
    assert server.errors == []


async def test_application_that_raises_is_logged_as_an_error():
    """The access line of a request whose application raised says so; the answer is the server's own 500."""

    async def fail(scope, receive, send):
        raise ValueError("on purpose")

    async with socket_server(http_app(fail)) as server:
        assert (await curl("--http1.1", server.server.urls[0])).status == 500
    assert len(server.errors) == 1
    assert [record.outcome for record in server.records] == [Outcome.ERROR]


# wrk


def wrk_command(url: str, seconds: int) -> list[str]:
    return [find_tool("wrk"), "-t1", "-c64", f"-d{seconds}s", "--latency", url]


def test_wrk_for_ten_seconds():
    """Ten seconds of 64 connections against a FastAPI application: no socket error, nothing but 2xx."""
    with start(*SERVE, "tests.real.apps:hello", "--port", "0", "--no-access-log", cwd=REPOSITORY) as program:
        url = program.wait_for(r"listening on (http://\S+)")[1]
        report = subprocess.run(wrk_command(url, 10), capture_output=True, text=True, check=True).stdout
        program.signal()
        assert program.wait() == 0, program.errors
    requests = re.search(r"(\d+) requests in", report)
    assert requests, report
    assert int(requests[1]) > 1000
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report
    assert "Traceback" not in program.errors


def wait_for_answers(program: Program, count: int) -> None:
    """Wait until the access log has this many answers: a signal before that would not come under load."""
    deadline = time.monotonic() + PATIENCE
    while program.output.count('" 200 ') < count:
        assert time.monotonic() < deadline, f"there is no load:\n{program.errors}"
        time.sleep(0.02)


def test_ctrl_c_under_load():
    """Ctrl-C while wrk fires: what was begun is answered, the program ends with 0, and no trace is printed."""
    with start(*SERVE, "tests.real.apps:hello", "--port", "0", cwd=REPOSITORY) as program:
        url = program.wait_for(r"listening on (http://\S+)")[1]
        with subprocess.Popen(wrk_command(url, 60), stdout=subprocess.DEVNULL) as load:
            try:
                wait_for_answers(program, 500)
                assert load.poll() is None, "wrk has ended: there is no load"
                program.signal()
                assert program.wait() == 0, program.errors
            finally:
                load.kill()
    assert "Traceback" not in program.errors
    assert " error" not in program.errors
    assert not [line for line in program.output.splitlines() if not re.search(r'" 200 .* (ok|client left)$', line)]
