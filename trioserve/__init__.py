"""An ASGI server for Trio."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# pytest loads the plugin, and so this package, in every run of everyone who has trioserve installed: so nothing is
# imported before it is used.
_HOMES = {
    "Config": "config",
    "AppLoadError": "errors",
    "BindError": "errors",
    "CertificateError": "errors",
    "ClientDisconnected": "errors",
    "ConfigError": "errors",
    "LifespanError": "errors",
    "MessageError": "errors",
    "StartupError": "errors",
    "TrioserveError": "errors",
    "run": "process.runner",
    "Server": "server",
    "serve": "server",
    "serve_stream": "server",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
