"""What HTTP/1.1 adds to the opening handshake of a WebSocket."""

from __future__ import annotations

import pytest

from trioserve.errors import ProtocolError
from trioserve.wire.request_reader import Head
from trioserve.wire.upgrade import check_upgrade, upgrade_fields, wants_websocket

from .websocket_client import ACCEPT, KEY, UPGRADE

Field = tuple[bytes, bytes]


def head(*more: Field, without: str = "", method: str = "GET", version: str = "1.1", length: int | None = 0) -> Head:
    """The head of a handshake; ``more`` fields are added, the one called ``without`` is left out."""
    fields = [field for field in UPGRADE if field[0] != without.encode()]
    return Head(method, b"/", [*fields, *more], version, length, has_upgrade=True)


# Whether it is one


@pytest.mark.parametrize(
    ("upgrade", "connection"),
    [
        ([b"websocket"], [b"Upgrade"]),
        ([b"WebSocket"], [b"UPGRADE"]),
        ([b"h2c, websocket"], [b"keep-alive, Upgrade"]),
        ([b"h2c,websocket"], [b"keep-alive,upgrade"]),
        ([b" websocket\t"], [b"\tupgrade "]),
        ([b"h2c", b"websocket"], [b"keep-alive", b"Upgrade"]),
        ([b"websocket", b"h2c"], [b"Upgrade", b"keep-alive"]),
        ([b", websocket,"], [b",,upgrade,"]),
    ],
)
def test_a_request_for_a_websocket_is_known(upgrade: list[bytes], connection: list[bytes]) -> None:
    """Both fields are lists in any case, and may be repeated (RFC 9110 §7.8)."""
    fields = [(b"upgrade", value) for value in upgrade] + [(b"connection", value) for value in connection]
    assert wants_websocket(Head("GET", b"/", [(b"host", b"a"), *fields], "1.1", 0, has_upgrade=bool(upgrade)))


@pytest.mark.parametrize(
    ("upgrade", "connection"),
    [
        ([], []),
        ([], [b"Upgrade"]),
        ([b"websocket"], []),
        ([b"websocket"], [b"keep-alive"]),
        ([b"websocket"], [b"Upgraded"]),
        ([b"h2c"], [b"Upgrade"]),
        ([b"websockets"], [b"Upgrade"]),
        ([b"websocket/13"], [b"Upgrade"]),
        ([b"web socket"], [b"Upgrade"]),
        ([b""], [b"Upgrade"]),
        ([b"web", b"socket"], [b"Upgrade"]),
    ],
)
def test_another_request_is_none(upgrade: list[bytes], connection: list[bytes]) -> None:
    """Another protocol is not ours, and an Upgrade that Connection does not name was meant for another hop."""
    fields = [(b"upgrade", value) for value in upgrade] + [(b"connection", value) for value in connection]
    assert not wants_websocket(Head("GET", b"/", [(b"host", b"a"), *fields], "1.1", 0, has_upgrade=bool(upgrade)))


# Whether it is a right one


def test_the_handshake_of_the_rfc_passes() -> None:
    """RFC 6455 §1.2's own request is let through."""
    check_upgrade(head((b"origin", b"http://example.com"), (b"sec-websocket-protocol", b"chat, superchat")))


@pytest.mark.parametrize("version", ["1.0", "0.9"])
def test_an_older_version_is_refused(version: str) -> None:
    """HTTP/1.0 knows no upgrade; the client is told which version it spoke."""
    with pytest.raises(ProtocolError, match=f"HTTP/{version}") as caught:
        check_upgrade(head(version=version))
    assert caught.value.status == 400


@pytest.mark.parametrize("method", ["POST", "HEAD", "get"])
def test_another_method_is_refused(method: str) -> None:
    """Only GET opens a WebSocket; the answer names it, as a 405 must."""
    with pytest.raises(ProtocolError, match=f"not {method}") as caught:
        check_upgrade(head(method=method))
    assert caught.value.status == 405
    assert caught.value.fields == ((b"allow", b"GET"),)


@pytest.mark.parametrize("length", [1, None])
def test_a_body_is_refused(length: int | None) -> None:
    """A body, of known length or in chunks, would be read as frames."""
    with pytest.raises(ProtocolError, match="no body") as caught:
        check_upgrade(head(length=length))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [b""],
        [KEY, KEY],
        [KEY + b", " + KEY],
        [KEY[:-1]],
        [KEY + b"="],
        [b"A" + KEY],
        [KEY[4:]],
        [b"dGhlIHNhbXBsZSBub25jZ!=="],
        [b"dGhlIHNhbXBsZSBub25j_-=="],
        [KEY + b"\n"],
    ],
)
def test_a_key_that_is_none_is_refused(keys: list[bytes]) -> None:
    """The key must be there once, and be 16 bytes in base64 (RFC 6455 §4.2.1)."""
    with pytest.raises(ProtocolError, match="Sec-WebSocket-Key") as caught:
        check_upgrade(head(*((b"sec-websocket-key", key) for key in keys), without="sec-websocket-key"))
    assert caught.value.status == 400


# The answer


def test_the_key_is_answered() -> None:
    """RFC 6455 §1.3's own example: the fields that make a 101 of the answer."""
    assert upgrade_fields([(b"host", b"a"), (b"sec-websocket-key", KEY)]) == [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", ACCEPT),
    ]


def test_another_key_has_another_answer() -> None:
    """Wikipedia's example of a handshake, which is not the RFC's."""
    fields = dict(upgrade_fields([(b"sec-websocket-key", b"x3JJHMbDL1EzLkh9GBhXDw==")]))
    assert fields[b"sec-websocket-accept"] == b"HSmrc0sMlYUkAGmm5OPpG2HaGWk="
