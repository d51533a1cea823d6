"""A TLS client of which a test sees every record, and whose records it may make itself."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio
import trustme
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HANDSHAKE = 22
APPLICATION_DATA = 23
ALERT = 21
KEY_UPDATE = b"\x18\x00\x00\x01\x01"  # update_requested (RFC 8446 §4.6.3)
AT_MOST = 16 * 1024

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
Seal = Callable[[bytes, int], bytes]
"""Makes a record of this content and type, with the client's keys."""


class TLSClient:
    """OpenSSL's client without any input or output; bytes go in and come out."""

    def __init__(self, authority: trustme.CA | None, version: ssl.TLSVersion, folder: Path | None = None) -> None:
        """``authority`` None: it trusts everybody. ``folder`` is for the keys, without which nothing can be sealed."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.minimum_version = self.context.maximum_version = version
        if authority is not None:
            authority.configure_trust(self.context)
        else:
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        if version is ssl.TLSVersion.TLSv1_2:
            self.context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
        self._log = None if folder is None else folder / "keys"
        if self._log is not None:
            self.context.keylog_filename = str(self._log)
        self.version = version
        self.begin()

    def begin(self, session: ssl.SSLSession | None = None) -> None:
        """Begin anew, as the same client on a new connection."""
        self.received = b""
        self.is_secured = self.has_heard_the_end = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = self.context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost", session=session)
        self.hello = self._go_on()

    def _go_on(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.is_secured = True
        return self._outgoing.read()

    def answer(self, data: bytes) -> bytes:
        """Go on with the handshake: what the client says to that."""
        self.received += data
        self._incoming.write(data)
        return self._go_on()

    def record(self, data: bytes) -> bytes:
        """One record with this, if it is not too much for one."""
        self.tls.write(data)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    def open(self, data: bytes) -> bytes:
        """What the server's records contain, up to its close_notify; SSLError for other alerts."""
        self._incoming.write(data)
        opened = b""
        with suppress(ssl.SSLWantReadError):
            while piece := self.tls.read(AT_MOST):
                opened += piece
            self.has_heard_the_end = True
        return opened

    async def shake(self, stream: trio.abc.Stream, *, at_once: int = 65536, with_the_end: bytes = b"") -> None:
        """Do the handshake on a stream, so many bytes at a time; ``with_the_end`` is sent together with its end."""
        answer = self.hello
        while True:
            if self.is_secured and with_the_end:
                answer += self.record(with_the_end)
            for start in range(0, len(answer), at_once):
                await stream.send_all(answer[start : start + at_once])
                await trio.testing.wait_all_tasks_blocked()
            if self.is_secured:
                return
            answer = self.answer(bytes(await stream.receive_some(65536)))

    def sealer(self) -> Seal:
        """What makes records after the handshake in OpenSSL's place, which then can only receive."""
        assert self._log is not None
        secrets = {line.split()[0]: bytes.fromhex(line.split()[2]) for line in self._log.read_text().splitlines()[1:]}
        if self.version is ssl.TLSVersion.TLSv1_3:
            return _sealer_1_3(secrets["CLIENT_TRAFFIC_SECRET_0"])
        # In both hellos the random follows the heads of record and message, and the version.
        return _sealer_1_2(secrets["CLIENT_RANDOM"], self.received[11:43] + self.hello[11:43])


def _sealer_1_3(secret: bytes) -> Seal:
    # RFC 8446 §7.1, §5.3; TLS_AES_256_GCM_SHA384 is OpenSSL's first choice.
    def expand(label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(secret, info + b"\1", "sha384")[:length]

    keys, iv, sequence = AESGCM(expand(b"key", 32)), int.from_bytes(expand(b"iv", 12), "big"), 0

    def seal(content: bytes, kind: int) -> bytes:
        nonlocal sequence
        head = bytes([APPLICATION_DATA, 3, 3]) + (len(content) + 17).to_bytes(2, "big")
        nonce = (iv ^ sequence).to_bytes(12, "big")
        sequence += 1
        return head + keys.encrypt(nonce, content + bytes([kind]), head)

    return seal


def _sealer_1_2(master: bytes, randoms: bytes) -> Seal:
    # RFC 5246 §5, §6.3 and RFC 5288 §3, for AES128-GCM-SHA256: two keys of 16 bytes, two salts of 4.
    seed = b"key expansion" + randoms
    block, chain = b"", seed
    while len(block) < 40:
        chain = hmac.digest(master, chain, hashlib.sha256)
        block += hmac.digest(master, chain + seed, hashlib.sha256)
    keys, salt, sequence = AESGCM(block[:16]), block[32:36], 1  # the first was Finished

    def seal(content: bytes, kind: int) -> bytes:
        nonlocal sequence
        number = sequence.to_bytes(8, "big")
        sequence += 1
        data = number + bytes([kind, 3, 3]) + len(content).to_bytes(2, "big")
        sealed = number + keys.encrypt(salt + number, content, data)
        return bytes([kind, 3, 3]) + len(sealed).to_bytes(2, "big") + sealed

    return seal
