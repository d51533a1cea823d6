"""What a server says of itself once it serves."""

import base64
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from trioserve.config import Config
from trioserve.net.expiry import read_expiry
from trioserve.process.banner import announce
from trioserve.process.settings import Settings


@pytest.fixture
def said(caplog):
    """The lines of a banner."""
    caplog.set_level(logging.INFO, "trioserve")

    def announce_it(*urls, file=None, **options):
        caplog.clear()
        announce("main:app", urls, Settings(Config(**options), "main:app", {}, file))
        return caplog.messages

    return announce_it


def write_certificate(folder: Path, expiry: datetime) -> str:
    path = folder / "both.pem"
    begin = expiry - timedelta(days=1)
    certificate = trustme.CA().issue_cert("localhost", not_before=begin, not_after=expiry)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


def test_one_process(said):
    """Three lines say what, where, with what, and how to stop it."""
    first, second, third = said("http://127.0.0.1:8000")
    assert first.startswith("trioserve ")
    assert first.endswith(" serves main:app")
    assert second == "listening on http://127.0.0.1:8000"
    assert third.startswith("Python 3.")
    assert third.endswith(", HTTP/1.1 by httptools; Ctrl-C stops")


@pytest.mark.parametrize(
    ("options", "end"),
    [({"workers": 2}, " serves main:app with 2 workers"), ({"reload": True}, " serves main:app with reload")],
)
def test_several_processes(said, options, end):
    """What runs the application is said with it."""
    assert said("http://127.0.0.1:8000", **options)[0].endswith(end)


def test_file(said):
    """So is the file that options came from."""
    assert said(file=Path("/srv/trioserve.toml"))[-1].endswith("; settings from /srv/trioserve.toml; Ctrl-C stops")


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://0.0.0.0:80", "http://0.0.0.0:80 (all addresses); on this machine: http://127.0.0.1:80"),
        ("https://[::]:80", "https://[::]:80 (all addresses); on this machine: https://[::1]:80"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://10.0.0.1:80", "http://10.0.0.1:80"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
    ],
)
def test_addresses(said, url, line):
    """Where it listens is a URL to click on; of all addresses at once one is told that a browser can take."""
    assert said(url)[1] == f"listening on {line}"


@pytest.mark.parametrize(
    ("days", "level", "text"), [(9, logging.INFO, "valid until"), (-9, logging.WARNING, "which has expired on")]
)
def test_certificate(said, caplog, tmp_path, days, level, text):
    """With TLS the certificate's file is told, and the end of its validity; one that has expired is a warning."""
    expiry = datetime.now(UTC) + timedelta(days=days)
    path = write_certificate(tmp_path, expiry)
    assert said("https://127.0.0.1:8443", ssl_certfile=path)[2] == f"TLS with {path}, {text} {expiry.date()}"
    assert caplog.records[2].levelno == level


def test_certificate_that_tells_nothing(said):
    """What cannot be read is told without."""
    assert said(ssl_certfile="nowhere.pem")[1] == "TLS with nowhere.pem"
    assert said(ssl_context_factory="main:make")[1] == "TLS by main:make"
    assert said(ssl_context_factory="main:make", ssl_certfile="unused.pem")[1] == "TLS by main:make"


@pytest.mark.parametrize("year", [2049, 2050])
def test_expiry(tmp_path, year):
    """The end of validity is read in both forms that it has: years from 2050 on have four digits."""
    expiry = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert read_expiry(write_certificate(tmp_path, expiry)) == expiry


def test_expiry_of_the_first_version(tmp_path):
    """A certificate of version 1 does not say its version; its fields are those of RFC 5280 §4.1 all the same."""
    validity = b"\x30\x1e\x17\x0d200101000000Z\x17\x0d300102030405Z"
    fields = b"\x02\x01\x01" + b"\x30\x00" + b"\x30\x00" + validity
    write_der(tmp_path / "c.pem", b"\x30\x81" + bytes([len(fields) + 2]) + b"\x30" + bytes([len(fields)]) + fields)
    assert read_expiry(str(tmp_path / "c.pem")) == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def write_der(path: Path, data: bytes) -> None:
    lines = (b"-----BEGIN CERTIFICATE-----", base64.b64encode(data), b"-----END CERTIFICATE-----")
    path.write_bytes(b"\n".join(lines))


def test_expiry_of_anything(tmp_path):
    """A file without a certificate, with half of one, or with any bytes has no expiry, and does no harm."""
    expiry = datetime(2049, 2, 3, 4, 5, 6, tzinfo=UTC)
    text = Path(write_certificate(tmp_path, expiry)).read_bytes().partition(b"-----BEGIN CERTIFICATE-----\n")[2]
    whole = base64.b64decode(text.partition(b"-----END")[0])
    path = tmp_path / "cut.pem"
    for length in range(0, len(whole), 5):
        write_der(path, whole[:length])
        assert read_expiry(str(path)) in (None, expiry)
    write_der(path, bytes(range(256)))
    assert read_expiry(str(path)) is None
    path.write_bytes(b"no certificate")
    assert read_expiry(str(path)) is None
