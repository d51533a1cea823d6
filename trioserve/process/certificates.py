"""Certificates that are renewed while the server runs: when their files change, or on request."""

from __future__ import annotations

import os

import trio

from ..config import Config
from ..errors import CertificateError
from ..logs import server_log
from ..server import Server

# Seconds between two looks. A look at three files costs 9 µs, and nobody waits for a certificate that has days to go.
LOOK_INTERVAL = 1.0

# Looks at which a pair that cannot be used is tried before that is said. The files may be half-written although nothing
# moved for a second, or their file system may be away for a moment.
ATTEMPTS = 3

Signature = tuple[tuple[int, int, int, int] | None, ...]
"""What tells one state of the files from another: of each the times of change, the size and the inode; None if missing.

All four, because a renewal may keep any of them: a copy that preserves mtime, a new file of the same size, a file that
is written in place.
"""


def sign_files(config: Config) -> Signature:
    """The state of the files that TLS is loaded from, in the order of their options; empty if no option names one."""
    return tuple(_sign(path) for path in (config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs) if path)


def _sign(path: str) -> tuple[int, int, int, int] | None:
    try:
        # Links are followed: Kubernetes replaces a link to the folder of the files, and leaves the files alone.
        status = os.stat(path)
    except OSError:  # not there, or its file system is away
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class CertificateKeeper:
    """Renews a server's certificates when their files change, or when asked.

    ``loaded_from``: what sign_files gave before the server read its files, so that a change between then and now, while
    the application started, is not missed. None stands for their state now.
    """

    def __init__(self, server: Server, config: Config, *, loaded_from: Signature | None = None) -> None:
        self._server = server
        self._config = config
        # The state that needs nothing more: it is loaded, or it was tried in vain and that has been said.
        self._done = sign_files(config) if loaded_from is None else loaded_from
        self._seen = self._done
        self._failures = 0

    async def run(self) -> None:
        """Watch the files until cancelled; return at once if there are none."""
        if not self._seen:
            return
        while True:
            await trio.sleep(LOOK_INTERVAL)
            self._look()

    def renew(self) -> None:
        """Load the files at once, changed or not, and log in one line what came of it."""
        if not self._config.uses_tls:
            server_log.info("there are no certificates to renew: TLS is off")
            return
        # Before they are read: a change from here on is one that the next look must see.
        self._seen = sign_files(self._config)
        self._load(is_last_attempt=True)

    def _look(self) -> None:
        seen = sign_files(self._config)
        if seen != self._seen:
            # Whoever renews them writes several files, one after the other: wait until nothing moves.
            self._seen, self._failures = seen, 0
        elif seen != self._done:
            self._load(is_last_attempt=self._failures + 1 == ATTEMPTS)

    def _load(self, *, is_last_attempt: bool) -> None:
        try:
            self._server.reload_certificates()
        except CertificateError as error:
            self._failures += 1
            if not is_last_attempt:
                return
            server_log.error("the new certificates cannot be used, so the old ones stay: %s", error)
        else:
            # A factory may take its certificates from anywhere.
            is_named = self._config.ssl_context_factory is None
            server_log.info("certificates renewed%s", f" from {self._config.ssl_certfile}" if is_named else "")
        self._done = self._seen
