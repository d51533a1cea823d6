"""How the driver asks a worker for its figures: through a unix socket of its own, in a thread, past the server."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import socket
import sys
import threading
from collections import Counter
from pathlib import Path

import trio

LAG_PERIOD = 0.05
"""Seconds between two looks at how late the event loop is."""

_PATIENCE = 20.0
"""Seconds for the event loop to answer; it has a watchdog."""


def socket_of(folder: Path, pid: int) -> Path:
    """Where a worker answers."""
    return folder / f"{pid}.sock"


class Control:
    """A worker's side. Belongs to the application's lifespan, in whose task it is made."""

    def __init__(self, folder: Path) -> None:
        self._path = socket_of(folder, os.getpid())
        self._token = trio.lowlevel.current_trio_token()
        self._listener = socket.socket(socket.AF_UNIX)
        self._lag = 0.0
        self._peak = 0

    async def run(self) -> None:
        """Answer, and watch how late the event loop is, until cancelled."""
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._serve, name="stress control", daemon=True).start()
        try:
            while True:
                due = trio.current_time() + LAG_PERIOD
                await trio.sleep_until(due)
                self._lag = max(self._lag, trio.current_time() - due)
                self._peak = max(self._peak, trio.lowlevel.current_statistics().tasks_living)
        finally:
            self._path.unlink()

    def _serve(self) -> None:
        while True:
            asking, _ = self._listener.accept()
            with asking, contextlib.suppress(OSError):
                asking.sendall(json.dumps(self._take_figures()).encode())

    def _take_figures(self) -> dict[str, object]:
        figures: dict[str, object] = {}
        done = threading.Event()

        def take() -> None:
            # Generators that were abandoned end when the collector comes for them; and what their ends leave, too.
            gc.collect()
            gc.collect()
            figures["tasks"] = trio.lowlevel.current_statistics().tasks_living
            figures["peak_tasks"], figures["lag"] = self._peak, self._lag
            done.set()

        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(take)
            done.wait(_PATIENCE)
        _give_back_memory()
        objects = gc.get_objects()
        types = Counter(type(one).__name__ for one in objects)
        return {
            "pid": os.getpid(),
            "objects": len(objects),
            "blocks": sys.getallocatedblocks(),
            "types": types,
            "threads": threading.active_count(),
            "descriptors": _descriptors(),
            "memory": memory_of(os.getpid()),
            **figures,
        }


def _descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of this listing
            found.append(os.readlink(f"/proc/self/fd/{number}").partition(":[")[0])
    return sorted(found)


def memory_of(pid: int) -> float:
    """The resident memory of a process in MiB; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _give_back_memory() -> None:
    # glibc keeps what was freed for later, and that is no growth. Another C library has no such function.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
