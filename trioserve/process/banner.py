"""What a server says of itself once it serves."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from datetime import UTC, datetime

import trio

from ..config import Config
from ..logs import server_log
from ..net.expiry import read_expiry
from ..wire.codecs import codec_name
from .settings import Settings

# What listens on every address of the machine, and where a browser on it finds that.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - read, and not bound to


def announce(name: str, urls: Iterable[str], settings: Settings) -> None:
    """Say what is served, where, and how to stop it."""
    config = settings.config
    kind = " with reload" if config.reload else f" with {config.workers} workers" if config.workers > 1 else ""
    server_log.info("trioserve %s serves %s%s", read_version(), name, kind)
    for url in urls:
        here = _find_here(url)
        server_log.info("listening on %s", url if here is None else f"{url} (all addresses); on this machine: {here}")
    if config.uses_tls:
        _announce_tls(config)
    file = f"settings from {settings.file}; " if settings.file else ""
    versions = f"Python {platform.python_version()}, Trio {trio.__version__}"
    server_log.info("%s, HTTP/1.1 by %s; %sCtrl-C stops", versions, codec_name(config), file)


def _find_here(url: str) -> str | None:
    scheme, _, address = url.partition("://")
    host, _, port = address.rpartition(":")
    return f"{scheme}://{_EVERYWHERE[host]}:{port}" if host in _EVERYWHERE else None


def _announce_tls(config: Config) -> None:
    # A context factory may use the file or not.
    if config.ssl_certfile is None or config.ssl_context_factory is not None:
        server_log.info("TLS by %s", config.ssl_context_factory)
        return
    expiry = read_expiry(config.ssl_certfile)
    if expiry is None:
        server_log.info("TLS with %s", config.ssl_certfile)
    elif expiry < datetime.now(UTC):
        server_log.warning("TLS with %s, which has expired on %s", config.ssl_certfile, expiry.date())
    else:
        server_log.info("TLS with %s, valid until %s", config.ssl_certfile, expiry.date())


def read_version() -> str:
    """The installed version; a bundle without metadata serves all the same."""
    try:
        return importlib.metadata.version("trioserve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
