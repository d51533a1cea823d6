"""An ASGI server for Trio."""

from __future__ import annotations

from .config import Config
from .errors import (
    AppLoadError,
    BindError,
    CertificateError,
    ClientDisconnected,
    ConfigError,
    LifespanError,
    MessageError,
    StartupError,
    TrioserveError,
)
from .process.runner import run
from .server import Server, serve, serve_stream

__version__ = "0.1.0"

__all__ = [
    "AppLoadError",
    "BindError",
    "CertificateError",
    "ClientDisconnected",
    "Config",
    "ConfigError",
    "LifespanError",
    "MessageError",
    "Server",
    "StartupError",
    "TrioserveError",
    "__version__",
    "run",
    "serve",
    "serve_stream",
]
