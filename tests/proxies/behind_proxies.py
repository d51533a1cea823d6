"""Starlette, FastAPI and Quart, under a prefix, behind a real nginx and a real HAProxy."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.sync.client import connect

from .proxies import application, free_port, haproxy, nginx

pytestmark = pytest.mark.timeout(60)

TRUST = ("--forwarded-allow-ips", "127.0.0.2")
SAYS = "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
PREFIX = ("--forwarded-headers", "x-forwarded-prefix")
USUAL = ("--forwarded-headers", "x-forwarded-for", "--forwarded-headers", "x-forwarded-proto")
# Proxies and clients have addresses of their own, so that it shows who is who.
AS_PROXY = "proxy_bind 127.0.0.2;"
FRAMEWORKS = pytest.mark.parametrize("framework", ["starlette", "fastapi", "quart"])


def get(url: str, **headers: str) -> dict[str, str]:
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.9"), trust_env=False, timeout=30) as client:
        response = client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert response.status_code == 200, response.text
    return response.json()


def talk(port: int, path: str) -> dict[str, str]:
    """Send one message on a WebSocket; returns what the application says."""
    with connect(f"ws://127.0.0.1:{port}{path}", open_timeout=20, proxy=None) as one:
        one.send("hello")
        return json.loads(one.recv(timeout=20))


@FRAMEWORKS
@pytest.mark.parametrize("how", ["told", "set, and taken off", "set, and passed on"])
def test_a_prefix_behind_nginx(tmp_path: Path, framework: str, how: str) -> None:
    """URLs are right whether nginx says what it takes off, or trioserve is told, be it taken off or not."""
    upstream, port = free_port(), free_port()
    options = (*USUAL, *PREFIX) if how == "told" else ("--root-path", "/api")
    rest = "/" if how != "set, and passed on" else ""
    says = f"{SAYS} proxy_set_header X-Forwarded-Proto https; proxy_set_header X-Forwarded-Prefix /api;"
    location = f"location /api/ {{ proxy_pass http://127.0.0.1:{upstream}{rest}; {says} {AS_PROXY} }}"
    with (
        application(framework, "--port", str(upstream), *TRUST, *options),
        nginx(tmp_path, port, location),
    ):
        seen = get(f"http://127.0.0.1:{port}/api/show", X_Forwarded_For="192.0.2.66", X_Forwarded_Prefix="/evil")
        direct = get(f"http://127.0.0.1:{upstream}/show", X_Forwarded_For="192.0.2.66", X_Forwarded_Proto="https")
    assert seen == {
        "client": "127.0.0.9",
        "scheme": "https",
        "path": "/api/show",
        "root_path": "/api",
        "url": f"https://127.0.0.1:{port}/api/show",
    }
    # Past the proxy nobody is believed.
    assert (direct["client"], direct["scheme"]) == ("127.0.0.9", "http")


@FRAMEWORKS
def test_websockets_behind_nginx(tmp_path: Path, framework: str) -> None:
    """A WebSocket's client and scheme are the ones that nginx tells."""
    upstream, port = free_port(), free_port()
    upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
    upgrade += " proxy_set_header Connection $connection_upgrade; proxy_set_header X-Forwarded-Proto https;"
    location = f"location / {{ proxy_pass http://127.0.0.1:{upstream}; {SAYS} {upgrade} {AS_PROXY} }}"
    with application(framework, "--port", str(upstream), *TRUST), nginx(tmp_path, port, location):
        assert talk(port, "/echo") == {"client": "127.0.0.1", "scheme": "wss", "text": "hello"}


def test_nginx_on_a_unix_socket(tmp_path: Path) -> None:
    """Where nginx comes over a unix socket, `unix` is its name."""
    path, port = tmp_path / "app.sock", free_port()
    location = f"location / {{ proxy_pass http://unix:{path}; {SAYS} proxy_set_header X-Forwarded-Proto $scheme; }}"
    with (
        application("starlette", "--uds", str(path), "--forwarded-allow-ips", "unix"),
        nginx(tmp_path, port, location),
    ):
        seen = get(f"http://127.0.0.1:{port}/show")
    assert (seen["client"], seen["scheme"], seen["url"]) == ("127.0.0.9", "http", f"http://127.0.0.1:{port}/show")


@FRAMEWORKS
def test_haproxy_with_fields(tmp_path: Path, framework: str) -> None:
    """HAProxy takes a prefix off, says so, and says who the client is."""
    upstream, port = free_port(), free_port()
    text = (
        f"listen web\n  mode http\n  bind 127.0.0.1:{port}\n  option forwardfor\n"
        "  http-request set-header X-Forwarded-Proto https\n"
        "  http-request set-header X-Forwarded-Prefix /api\n"
        "  http-request replace-path /api(/.*) \\1\n"
        f"  server app 127.0.0.1:{upstream} source 127.0.0.2\n"
    )
    with (
        application(framework, "--port", str(upstream), *TRUST, *USUAL, *PREFIX),
        haproxy(tmp_path, port, text),
    ):
        seen = get(f"http://127.0.0.1:{port}/api/show", X_Forwarded_For="192.0.2.66")
        assert talk(port, "/api/echo") == {"client": "127.0.0.1", "scheme": "wss", "text": "hello"}
    assert seen == {
        "client": "127.0.0.9",
        "scheme": "https",
        "path": "/api/show",
        "root_path": "/api",
        "url": f"https://127.0.0.1:{port}/api/show",
    }


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_haproxy_with_the_proxy_protocol(tmp_path: Path, version: str) -> None:
    """HAProxy passes bytes on, and says before the first whose they are; its checks are no requests."""
    upstream, port = free_port(), free_port()
    text = (
        f"listen web\n  mode tcp\n  bind 127.0.0.1:{port}\n"
        f"  server app 127.0.0.1:{upstream} source 127.0.0.2 {version} check inter 50ms fall 1000\n"
    )
    options = ("--proxy-protocol", "--no-proxy-headers", "--port", str(upstream))
    with application("starlette", *TRUST, *options) as program, haproxy(tmp_path, port, text):
        for _ in range(20):
            seen = get(f"http://127.0.0.1:{port}/show", X_Forwarded_For="192.0.2.66")
            assert (seen["client"], seen["scheme"]) == ("127.0.0.9", "http")
        assert talk(port, "/echo")["client"] == "127.0.0.1"
    assert "refused" not in program.errors
    assert "closed a connection" not in program.errors


def test_haproxy_that_undoes_tls(tmp_path: Path) -> None:
    """Where HAProxy has undone TLS, version 2 says so, and URLs begin with https."""
    upstream, port, authority = free_port(), free_port(), trustme.CA()
    certificate = tmp_path / "both.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    text = (
        f"listen web\n  mode tcp\n  bind 127.0.0.1:{port} ssl crt {certificate}\n"
        f"  server app 127.0.0.1:{upstream} source 127.0.0.2 send-proxy-v2-ssl\n"
    )
    options = ("--proxy-protocol", "--no-proxy-headers", "--port", str(upstream))
    with application("starlette", *TRUST, *options), haproxy(tmp_path, port, text):
        response = httpx.get(f"https://127.0.0.1:{port}/show", verify=False, trust_env=False, timeout=30)
    seen = response.json()
    assert (seen["client"], seen["url"]) == ("127.0.0.1", f"https://127.0.0.1:{port}/show")
