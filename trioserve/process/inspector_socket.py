"""Answers ``trioserve inspect``, in threads of its own: the event loop may be blocked, which is why somebody asks.

A client sends one line of JSON and gets one object back. Whatever it sends, or does not read, it has only so long.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

import trio

from ..errors import ConfigError
from ..logs import server_log
from ..snapshot import Request
from ..types import AnyValue, PlainValues
from .inspection import Inspection
from .inspector_folder import SUPPORTED, SocketFile, peer_is_ours
from .signals import signals_held_back

CLIENTS = 4
"""Clients that are answered at a time; one more is told to come again."""

READ_PATIENCE = 2.0
"""Seconds that a client has to say what it wants."""

WRITE_PATIENCE = 10.0
"""Seconds that it has to read the answer."""

LONGEST_LINE = 4096

_END_PATIENCE = 1.0


@contextlib.contextmanager
def offer(inspection: Inspection, *, wanted: bool) -> Iterator[Sequence[trio.abc.Instrument]]:
    """Answer in this block, if that is wanted and possible; what is in the way of that is no error.

    Gives what trio.run needs for it.
    """
    inspector: InspectorSocket | None = None
    if wanted and SUPPORTED:
        try:
            inspector = InspectorSocket(inspection)
        except (OSError, RuntimeError) as error:  # no folder, a read-only one, no thread to be had
            server_log.info("trioserve inspect will not find this process: %s", error)
    try:
        yield [inspection.loop.births] if wanted else []
    finally:
        if inspector is not None:
            inspector.close()


class InspectorSocket:
    """A thread that listens, and one for each client. Raises OSError or RuntimeError if it cannot begin."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._free = threading.BoundedSemaphore(CLIENTS)
        with contextlib.ExitStack() as opened:
            self._file = SocketFile(inspection.kind)
            opened.callback(self._file.close)
            self._ending, self._wakes = map(opened.enter_context, socket.socketpair())
            self._listener = self._file.socket
            self._listener.setblocking(False)
            self._thread = threading.Thread(target=self._listen, name="trioserve inspector", daemon=True)
            with signals_held_back():
                self._thread.start()
            self._opened = opened.pop_all()
        # A forked child has no such thread, and must not keep clients waiting once we have ended.
        if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has neither
            reference = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _abandon(reference()))

    def close(self) -> None:
        """Stop answering; who is being answered is left to itself."""
        self._file.remove()
        with contextlib.suppress(OSError):  # it has ended by itself
            self._wakes.send(b"x")
        self._thread.join(_END_PATIENCE)
        self._opened.close()

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self._opened.close()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ending, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while self._ending not in [key.fileobj for key, _ in selector.select()]:
                self._accept()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has left already, or the process is out of descriptors
            time.sleep(0.1)
            return
        if not self._free.acquire(blocking=False):
            _refuse(client)
            return
        try:
            threading.Thread(
                target=self._attend, args=(client,), name="trioserve inspector's answer", daemon=True
            ).start()
        except RuntimeError:  # there is no thread to be had
            self._free.release()
            _refuse(client)

    def _attend(self, client: socket.socket) -> None:
        try:
            # One that is too slow, or has left, hears nothing.
            with client, contextlib.suppress(OSError):
                if peer_is_ours(client):
                    answer = self.answer(_read_line(client))
                    client.settimeout(WRITE_PATIENCE)
                    client.sendall(answer)
        finally:
            self._free.release()

    def answer(self, line: bytes) -> bytes:
        """What a client hears that has sent this line."""
        try:
            values = self._inspection.describe(read_request(line))
        except ConfigError as error:
            values = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - what describes a program must not end it, and says what is wrong
            values = {"error": f"it cannot describe itself: {error!r}"}
        return json.dumps(values).encode("ascii")


def _abandon(inspector: InspectorSocket | None) -> None:
    if inspector is not None:
        inspector.abandon()


def _refuse(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        client.setblocking(False)
        client.send(b'{"error": "it is busy with other questions"}')


def _read_line(client: socket.socket) -> bytes:
    """Read up to the line's end, or the client's. Raises OSError if that takes too long."""
    deadline = time.monotonic() + READ_PATIENCE
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        if not (came := client.recv(LONGEST_LINE - len(line))):
            break
        line += came
    return line


def request_line(request: Request | None) -> bytes:
    """What a client sends; None asks only what the process is."""
    values: PlainValues = {} if request is None else {"limit": request.limit, "stacks": request.stacks}
    return json.dumps(values).encode("ascii") + b"\n"


def read_request(line: bytes) -> Request | None:
    """The reverse of request_line; raises ConfigError for anything else."""
    try:
        values: AnyValue = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if values == {}:
        return None
    if isinstance(values, dict) and values.keys() == {"limit", "stacks"}:
        limit, stacks = values["limit"], values["stacks"]
        if type(limit) is int and limit >= 0 and type(stacks) is bool:
            return Request(limit, stacks)
    raise ConfigError('a question is {} or {"limit": N, "stacks": true or false}')
