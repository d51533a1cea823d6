"""What a task waits for, in words, and where: told from the calls that it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from .calls import Call, Function, Origin, calls_of, find_innermost, origin_of

TASKS_AT_MOST = 100
"""Tasks below one that are looked at: handlers may have started thousands."""

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

_LIMITER = ("trio._sync", "CapacityLimiter.acquire_on_behalf_of")


@dataclass(frozen=True)
class Wait:
    """``what`` in words, None if nothing tells; ``place`` as find_place tells it, and ``origin`` whose that is."""

    what: str | None = None
    place: Call | None = None
    origin: Origin = Origin.SERVER


def find_deepest_wait(top: trio.lowlevel.Task) -> Wait:
    """What the application waits for in this task, or below it, if it has started others there and waits for them."""
    found = Wait()
    ahead = [top]
    for _ in range(TASKS_AT_MOST):
        if not ahead:
            break
        task = ahead.pop()
        wait = find_wait(calls_of(task, closely=True), None)
        # Of several that tell as much the last, which is the deepest: above it there are middlewares that wait for it.
        if wait.origin >= found.origin:
            found = wait
        # Names make the choice the same each time; a set of tasks has no order.
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        ahead += sorted(children, key=lambda child: child.name, reverse=True)
    return found


def find_wait(calls: Sequence[Call], package: str | None) -> Wait:
    """Tell what a task waits for from its calls, the innermost last; ``package`` as for find_place.

    If the application's code is but in a thread, the place is where it has got to in that thread,
    or where it begins.
    """
    origin, number = find_innermost(calls, package)
    function = next((call.function for call in calls if call.function is not None), None)
    if function is not None and function.start is not None:
        # While it queues for a thread, one that runs the same function is another task's.
        queues = any((call.module_name, call.code.co_qualname) == _LIMITER for call in calls)
        there = (function.start,) if queues or not function.calls else function.calls
        origin_there, number_there = find_innermost(there, package)
        if origin_there > origin:
            return Wait("a free thread" if queues else "its thread", there[number_there], origin_there)
    if origin is Origin.SERVER:
        return Wait(next(iter(_find_words(calls)), None))
    return Wait(_describe(calls[number + 1 :], function, package), calls[number], origin)


def _describe(calls: Sequence[Call], function: Function | None, package: str | None) -> str | None:
    """In words, from the calls below the place."""
    # The server's own words say most: a library that reads the request waits for the client. Then a library's name.
    ours = _find_words([call for call in calls if call.package == "trioserve"])
    if ours:
        return ours[0]
    named = [call for call in calls if not call.code.co_name.startswith("__")]
    libraries = [call.name for call in named if origin_of(call, package) is Origin.LIBRARY]
    if libraries:
        return libraries[0]
    if function is not None:
        return f"{function.name} in a thread"
    # The outermost says most: who waits for a name to be looked up waits for a thread, too.
    return next(iter([*_find_words(calls), *(call.name for call in named)]), None)


def _find_words(calls: Sequence[Call]) -> list[str]:
    words = (WORDS.get(call.module_name, {}).get(call.code.co_qualname) for call in calls)
    return [one for one in words if one is not None]
