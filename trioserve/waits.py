"""What a task waits for, in words, and where: told from the calls that it is in."""

from __future__ import annotations

import functools
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from .inspector import Call
from .types import PlainValues

CLIENT_TAKES = "the client to take what was sent"
BODY = "the request body"

WORDS = {
    "trio._timeouts": {
        "sleep": "a sleep to end",
        "sleep_until": "a sleep to end",
        "sleep_forever": "its cancellation",
    },
    "trio._sync": {
        "Event.wait": "an event",
        "CapacityLimiter.acquire_on_behalf_of": "a capacity limiter",
        "Semaphore.acquire": "a semaphore",
        "_LockImpl.acquire": "a lock",
        "Condition.wait": "a condition",
    },
    "trio._channel": {
        "MemorySendChannel.send": "room in a memory channel",
        "MemoryReceiveChannel.receive": "a memory channel",
    },
    "trio._threads": {"to_thread_run_sync": "a thread"},
    "trio._subprocess": {"Process.wait": "a process to end", "_run_process": "a process to end"},
    "trio._core._run": {"NurseryManager.__aexit__": "its child tasks", "checkpoint": "its turn"},
    "trio._core._traps": {"cancel_shielded_checkpoint": "its turn"},
    "trio._highlevel_socket": {
        "SocketStream.receive_some": "bytes from a socket",
        "SocketStream.send_all": "room in a socket",
        "SocketListener.accept": "a connection",
    },
    "trio._highlevel_open_tcp_stream": {"open_tcp_stream": "a connection to be made"},
    "trio._unix_pipes": {"FdStream.receive_some": "bytes from a pipe", "FdStream.send_all": "room in a pipe"},
    "trio._socket": {
        "getaddrinfo": "a name to be looked up",
        "_SocketType.connect": "a connection to be made",
        "_SocketType._nonblocking_helper": "a socket",
    },
    "trio._signals": {"SignalReceiver.__anext__": "a signal"},
    "trioserve.asgi.handle": {"handle_websocket": "the WebSocket to close"},
    "trioserve.asgi.http": {"HTTPCall._wait_turn": BODY, "HTTPCall.send": CLIENT_TAKES},
    "trioserve.asgi.lifespan": {"Lifespan._receive": "the server to stop", "Lifespan.wait_started": "its start-up"},
    "trioserve.asgi.session": {
        "WebSocketSession.receive": "a message",
        "WebSocketSession.attend": "what the client sends",
    },
    "trioserve.asgi.websocket": {"WebSocketCall.send": CLIENT_TAKES},
    "trioserve.clock": {"Clock.run": "the next deadline"},
    "trioserve.lanes": {"_Lane._wait": "the next connection"},
    "trioserve.linger": {"linger": "the client to close"},
    "trioserve.net.door": {"Door.wait_room": "room for connections"},
    "trioserve.net.listeners": {"Listener.accept": "a connection"},
    "trioserve.net.proxy_protocol": {"receive_header": "the PROXY header"},
    "trioserve.net.reactor": {"Reactor.run": "news of the sockets", "Reactor._write_soon": "something to write"},
    "trioserve.net.tls_handshake": {"handshake": "the TLS handshake"},
    "trioserve.server": {"Server.run": "a stop"},
    "trioserve.wire.discard": {"discard_body": "the rest of the body, to throw it away"},
    "trioserve.wire.http11": {"HTTP11Connection._read_head": "the next request"},
    "trioserve.wire.http11_exchange": {
        "HTTP11Exchange._wait_for_body": BODY,
        "HTTP11Exchange.wait_disconnect": "the client to leave",
    },
}
"""What who is in these functions waits for; the functions of a module by their qualified names."""

_OWN = os.path.dirname(__file__)
_OURS = tuple(os.path.join(folder, "") for folder in (_OWN, os.path.dirname(trio.__file__)))
_DEMOS = os.path.join(_OWN, "demo")
_STANDARD_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})


@dataclass(frozen=True)
class Wait:
    """``what`` in words, None if nothing tells; ``place`` is the innermost call of the application, or of a library
    that it uses, None where there is but the server's own.
    """

    what: str | None
    place: Call | None


def find_wait(calls: Sequence[Call], package: str | None) -> Wait:
    """Tell what a task waits for from its calls, the innermost last.

    ``package`` is the application's, which may be installed among the libraries; None if nobody knows.
    """
    place, start = _find_place(calls, package)
    # The outermost says most: who waits for a name to be looked up waits for a thread, too.
    words = (WORDS.get(_module_of(call), {}).get(call.code.co_qualname) for call in calls[start:])
    return Wait(next((one for one in words if one is not None), None), place)


def find_place(calls: Sequence[Call], package: str | None) -> Call | None:
    """The innermost call of the application, else of a library that it uses; the innermost is the last."""
    return _find_place(calls, package)[0]


def _find_place(calls: Sequence[Call], package: str | None) -> tuple[Call | None, int]:
    fallback: tuple[Call | None, int] = None, 0
    for number in range(len(calls) - 1, -1, -1):
        call = calls[number]
        if _is_application(call, package):
            return call, number
        if fallback[0] is None and not _is_ours(call.code.co_filename):
            fallback = call, number
    return fallback


def to_place(call: Call) -> PlainValues:
    return {"file": call.code.co_filename, "line": call.line, "function": call.code.co_qualname}


def _module_of(call: Call) -> str:
    return str(call.module.get("__name__"))


def _is_application(call: Call, package: str | None) -> bool:
    if _is_ours(call.code.co_filename):
        return False
    return _module_of(call).partition(".")[0] == package or not _is_library(call.code.co_filename)


@functools.lru_cache(maxsize=4096)
def _is_ours(file: str) -> bool:
    """Whether it is trioserve's, Trio's or Python's own; what trioserve has for trying it out is an application."""
    # By the file: the module of a worker's is __main__.
    if file.startswith(_OURS):
        return not file.startswith(_DEMOS)
    return _is_library(file) and not _is_installed(file)


@functools.lru_cache(maxsize=4096)
def _is_library(file: str) -> bool:
    return _is_installed(file) or file.startswith(("<", *_STANDARD_LIBRARY))


def _is_installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file
