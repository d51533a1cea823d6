"""Real servers for tests: in a thread, in the test's own Trio loop, or over memory streams. Needs no test framework.

The pytest fixtures are made of the same; ServeApp, OpenTrioServer and OpenMemoryServer are their types.
"""

from __future__ import annotations

from .http_client import Answer
from .memory_server import MemoryServer, memory_server
from .stuck import ServerStuckError
from .thread_server import ThreadServer, running
from .trio_server import TrioServer, open_server
from .watch import OpenMemoryServer, OpenTrioServer, ServeApp
from .witness import FinishedRequest

__all__ = [
    "Answer",
    "FinishedRequest",
    "MemoryServer",
    "OpenMemoryServer",
    "OpenTrioServer",
    "ServeApp",
    "ServerStuckError",
    "ThreadServer",
    "TrioServer",
    "memory_server",
    "open_server",
    "running",
]
