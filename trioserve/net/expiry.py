"""Until when a certificate is valid, read from its file, since Python's ssl tells that of nobody's own certificate."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from pathlib import Path

_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags


def read_expiry(path: str) -> datetime | None:
    """The end of validity of the first certificate in a file in PEM; None if it cannot be read.

    Source: RFC 5280 §4.1, X.690 §8.
    """
    try:
        found = _FIRST.search(Path(path).read_bytes())
        return None if found is None else _read_not_after(base64.b64decode(found[1]))
    except (OSError, ValueError, IndexError):
        return None


def _read_not_after(certificate: bytes) -> datetime:
    at = _begin(certificate, _begin(certificate, 0))  # the first field of tbsCertificate
    if certificate[at] == _VERSION:
        at = _end(certificate, at)
    for _ in ("serialNumber", "signature", "issuer"):
        at = _end(certificate, at)
    at = _end(certificate, _begin(certificate, at))  # of validity what follows notBefore
    text = certificate[_begin(certificate, at) : _end(certificate, at)].decode("ascii")
    kind = "%y%m%d%H%M%SZ" if certificate[at] == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text, kind).replace(tzinfo=UTC)


def _begin(data: bytes, at: int) -> int:
    """Where the content begins of what stands here."""
    # A short length is one byte; of a long one that byte says how many follow.
    return at + 2 + (data[at + 1] & 0x7F if data[at + 1] & 0x80 else 0)


def _end(data: bytes, at: int) -> int:
    begin = _begin(data, at)
    return begin + (int.from_bytes(data[at + 2 : begin]) if data[at + 1] & 0x80 else data[at + 1])
