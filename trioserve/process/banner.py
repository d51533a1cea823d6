"""What a server says of itself once it serves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from ..logs import server_log
from ..wire.codecs import codec_name
from .settings import Settings


def announce(name: str, urls: Iterable[str], settings: Settings) -> None:
    """Say what is served, where, and how to stop it."""
    config = settings.config
    workers = f" with {config.workers} workers" if config.workers > 1 else ""
    server_log.info("trioserve %s serves %s%s", read_version(), name, workers)
    for url in urls:
        server_log.info("listening on %s", url)
    file = f"settings from {settings.file}; " if settings.file else ""
    server_log.info("HTTP/1.1 by %s; %sCtrl-C stops", codec_name(config), file)


def read_version() -> str:
    """The installed version; a bundle without metadata serves all the same."""
    try:
        return importlib.metadata.version("trioserve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
