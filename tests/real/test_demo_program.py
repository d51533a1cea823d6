"""The demo application as a newcomer meets it: the trioserve program and curl."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from ..programs import start
from .clients import REPOSITORY, SERVE, curl_program


@pytest.fixture(scope="module")
def url():
    """Where the demo is served; it stops with 0 and without a trace at the end."""
    with start(*SERVE, "trioserve.demo:app", "--port", "0", cwd=REPOSITORY) as program:
        yield program.wait_for(r"listening on (http://\S+)")[1]
        program.signal()
        assert program.wait() == 0, program.errors
    assert "Traceback" not in program.errors


def test_page(url):
    """The page is HTML and names its other routes."""
    answer = curl_program(url)
    assert answer.status == 200
    assert answer.body.startswith(b"<!doctype html>")


def test_echo(url):
    """JSON comes back."""
    answer = curl_program("--json", '{"hello": [1, null]}', f"{url}/echo")
    assert json.loads(answer.body) == {"hello": [1, None]}


def test_echo_of_something_else(url):
    """What is not JSON gets 400 and a reason."""
    answer = curl_program("-d", "hello", f"{url}/echo")
    assert answer.status == 400
    assert b"not JSON" in answer.body


def test_echo_of_too_much(url):
    """More than the limit gets 413, and the answer is not lost to a reset."""
    answer = curl_program("--data-binary", "@-", f"{url}/echo", stdin=b"1" * 3_000_000)
    assert answer.status == 413
    assert b"limit" in answer.body


def test_download(url):
    """As many bytes as were asked for."""
    answer = curl_program(f"{url}/download?bytes=10000000")
    assert (answer.code, len(answer.body)) == (0, 10_000_000)


def test_upload(url):
    """The bytes are counted, whatever their framing."""
    content = os.urandom(2_000_000)
    expected = {"bytes": 2_000_000, "sha256": hashlib.sha256(content).hexdigest()}
    assert json.loads(curl_program("--data-binary", "@-", f"{url}/upload", stdin=content).body) == expected
    answer = curl_program("-X", "POST", "-T", "-", f"{url}/upload", stdin=content)
    assert json.loads(answer.body) == expected


def test_events(url):
    """Events come one by one while the connection is open."""
    answer = curl_program("-N", "--max-time", "1.5", f"{url}/events")
    assert answer.code == 28  # curl's own limit ended it
    assert answer.body.count(b"\n\n") == 2


def test_unknown_path_and_method(url):
    """404 and 405 are answered in words."""
    assert curl_program(f"{url}/none").status == 404
    answer = curl_program("-X", "DELETE", f"{url}/echo")
    assert answer.status == 405
    assert "< allow: POST" in answer.talk
