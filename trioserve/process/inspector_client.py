"""Asks processes what they do: one of them, or a supervisor with all its workers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ..errors import TrioserveError
from ..snapshot import Request
from ..types import AnyValue, PlainValues
from .inspector_folder import Found, find_sockets, has_died, peer_is_ours
from .inspector_socket import request_line

PATIENCE = 3.0
"""Seconds that a process has to answer; one that has begun to has LONGEST."""

LONGEST = 15.0

LARGEST = 256 * 1024 * 1024
"""Bytes of an answer."""

AT_ONCE = 32


class NoAnswer(TrioserveError):
    """A process cannot be asked; the text says why."""


def ask(found: Found, request: Request | None, *, patience: float = PATIENCE) -> PlainValues:
    """What a process says of itself, and nothing of its workers but that they are there. Raises NoAnswer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(patience)
            server.connect(str(found.path))
            if not peer_is_ours(server):
                raise NoAnswer("its socket is answered by another user's process")
            server.sendall(request_line(request))
            answer = _read_all(server)
    except (TimeoutError, BlockingIOError):
        raise NoAnswer(
            f"does not answer within {patience:g} s: it is stopped, or native code keeps its threads waiting"
        ) from None
    except OSError as error:
        raise NoAnswer(f"cannot be asked: {error.strerror or error}") from None
    try:
        values: AnyValue = json.loads(answer)
    except ValueError:
        raise NoAnswer("ended while it answered") from None
    if not isinstance(values, dict) or "error" in values:
        raise NoAnswer(f"cannot be asked: {values['error'] if isinstance(values, dict) else 'no object came'}")
    return values


def _read_all(server: socket.socket) -> bytes:
    deadline = time.monotonic() + LONGEST
    pieces: list[bytes] = []
    size = 0
    while (piece := server.recv(1 << 20)) and size < LARGEST:
        pieces.append(piece)
        size += len(piece)
        server.settimeout(max(0.001, deadline - time.monotonic()))
    return b"".join(pieces)


def ask_whole(found: Found, request: Request, *, patience: float = PATIENCE) -> PlainValues:
    """What a process says of itself, and if it has workers, what each of them does. Raises NoAnswer."""
    return with_workers(ask(found, request, patience=patience), request, patience=patience)


def with_workers(values: PlainValues, request: Request, *, patience: float = PATIENCE) -> PlainValues:
    """What a supervisor says of itself, with what its workers say in the place of what it knows of them."""
    known: Sequence[PlainValues] = values.get("workers", ())
    if known:
        sockets = {one.pid: one for one in find_sockets() if one.kind == "worker"}
        fetch = partial(_ask_worker, sockets=sockets, request=request, patience=patience)
        with ThreadPoolExecutor(min(len(known), AT_ONCE)) as pool:
            values["workers"] = list(pool.map(fetch, known))
    return values


def _ask_worker(known: PlainValues, sockets: dict[int, Found], request: Request, patience: float) -> PlainValues:
    found = sockets.get(known["pid"])
    if found is None:
        return {**known, "error": "cannot be asked: it has no socket, or no longer"}
    try:
        return {**known, **ask(found, request, patience=patience)}
    except NoAnswer as error:
        return {**known, "error": str(error)}


def find_servers(found: Iterable[Found]) -> list[Found]:
    """Those that are somebody's to be asked first: servers and supervisors that live, not the workers of one."""
    return [one for one in found if one.kind != "worker" and not has_died(one.path)]
