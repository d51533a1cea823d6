"""Logs what a process is doing when somebody asks: the tasks of its event loop, its connections, and all threads."""

from __future__ import annotations

import contextlib
import threading

import trio

from ..inspector import Notes, describe_running, format_task_tree, format_thread_stacks
from ..logs import server_log
from ..metrics import Statistics
from ..server import Server

PATIENCE = 1.0
"""Seconds that the event loop has to describe its tasks itself."""


class Dump:
    """Logs, at ``ask``, what the process does; ``name`` stands before it in the log, None if there is but one process.

    ``server`` is to be set once there is one.
    """

    def __init__(self, name: str | None = None) -> None:
        self._prefix = "" if name is None else f"{name}: "
        self._token: trio.lowlevel.TrioToken | None = None
        self._root: trio.lowlevel.Task | None = None
        self.server: Server | None = None

    def attach(self) -> None:
        """In a task of the event loop: this is the one that is asked about."""
        self._token, self._root = trio.lowlevel.current_trio_token(), trio.lowlevel.current_root_task()

    def ask(self) -> None:
        """Log it: from the event loop, or from this thread, which must be another one, if that does not come to it."""
        begun, is_late = threading.Event(), threading.Event()

        def log() -> None:
            begun.set()
            if not is_late.is_set():
                self._log()

        if self._token is not None:
            # The loop may have ended, and then there is nothing left to wait for.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(log)
        if not begun.wait(PATIENCE):
            is_late.set()
            self._log(is_blocked=True)

    def activities(self) -> Notes:
        """As Server.activities; nothing as long as there is no server."""
        return {} if self.server is None else self.server.activities()

    def _log(self, *, is_blocked: bool = False) -> None:
        try:
            text = self._describe(is_blocked=is_blocked)
        except Exception:  # noqa: BLE001 - what describes a program must not end it
            server_log.exception("%scannot describe what this process does", self._prefix)
        else:
            server_log.warning("%s%s", self._prefix, text)

    def _describe(self, *, is_blocked: bool) -> str:
        parts, running = [format_thread_stacks()], None
        if self._root is not None:
            notes = self.activities()
            parts.insert(0, format_task_tree(self._root, notes))
            running = describe_running(self._root, notes)
        if is_blocked:
            what = "" if running is None else f"; what runs is {running}"
            parts.insert(0, f"the event loop does not run{what}")
        if self.server is not None:
            parts.append(_describe(self.server.statistics()))
        return "\n".join(parts)


def _describe(figures: Statistics) -> str:
    text = f"Open: connections {figures.connections}, requests {figures.requests}, WebSockets {figures.websockets}"
    if figures.loop_lag is not None:
        text += f"; the event loop was late by {figures.loop_lag:.3f} s, at most by {figures.loop_lag_max:.3f} s"
    return text
