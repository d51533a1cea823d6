"""The application's lifespan: one task that begins before every handler and ends after the last."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from enum import Enum

import trio

from ..config import Config
from ..errors import LifespanError, MessageError
from ..foreign_loop import tell_of_asyncio
from ..logs import server_log
from ..types import ASGIApp, Message, Scope, State
from .messages import read

SPEC_VERSION = "2.0"

FAREWELL = 1.0
"""Seconds in which an application that has said its last word may return, before it is cancelled."""


class _Step(Enum):
    """How far the application has come, as it reads in an error about a message that does not fit."""

    CALLED = "before lifespan.startup was received"
    ASKED = "during start-up"
    FAILED = "after it said that it failed"
    STARTED = "while serving"
    STOPPING = "during shutdown"
    COMPLETE = "after shutdown was complete"


class Lifespan:
    """The lifespan of one server.

    ``run`` is its task; ``wait_started`` and ``shutdown`` are called by the server, in this order. ``error`` is what
    went wrong at any time, once ``run`` has ended. ``state`` is what the application put there; ``base`` the context
    variables as they were when start-up was complete.
    """

    def __init__(self, app: ASGIApp, config: Config, *, on_failure: Callable[[], None]) -> None:
        self._app = app
        self._config = config
        self._on_failure = on_failure
        self._step = _Step.CALLED
        self._is_interrupted = False
        self._said = ""  # why the application says that it failed
        self._settled = trio.Event()  # start-up is over, well or badly
        self._stop = trio.Event()
        self._ended = trio.Event()
        # Out of reach of the server's own cancellation: handlers end first. Its deadline is set where its end is due.
        self._scope = trio.CancelScope(shield=True)
        self.error: LifespanError | None = None
        self.state: State = {}
        self.base = contextvars.copy_context()

    async def run(self) -> None:
        """Call the application; raises nothing of its own. With ``lifespan`` off there is nothing to do."""
        if self._config.lifespan == "off":
            self._settled.set()
            self._ended.set()
            return
        scope: Scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "state": self.state,
        }
        raised: BaseException | None = None
        try:
            with self._scope:
                await self._app(scope, self._receive, self._send)
        except (KeyboardInterrupt, GeneratorExit):
            self._is_interrupted = True
            raise
        except BaseException as error:  # noqa: BLE001 - the boundary round the lifespan; judged below
            raised = error
        finally:
            try:
                self._judge(raised)
            finally:
                self._settled.set()
                self._ended.set()

    def _judge(self, raised: BaseException | None) -> None:
        """The application has returned or raised: decide what that means at this point."""
        step = self._step
        if step is _Step.CALLED and self._config.lifespan == "auto" and self._scope.deadline == float("inf"):
            if isinstance(raised, SystemExit):
                self._fail(f"the application's lifespan raised {step.value}: {_describe(raised)}", raised)
            elif raised is not None:
                server_log.info("serving without lifespan, which the application refused: %s", _describe(raised))
                server_log.debug("what the application raised", exc_info=raised)
                tell_of_asyncio(raised)
        elif step is _Step.FAILED:
            self._fail(f"the application could not start: {self._said or 'it gave no reason'}", raised)
        elif raised is not None:
            self._fail(f"the application's lifespan raised {step.value}: {_describe(raised)}", raised)
        elif step is _Step.STARTED or (step in (_Step.CALLED, _Step.ASKED) and not self._scope.cancelled_caught):
            self._fail(f"the application's lifespan returned {step.value}", None)

    def _fail(self, message: str, cause: BaseException | None) -> None:
        if self.error is None:
            self.error = LifespanError(message)
        self.error.__cause__ = self.error.__cause__ or cause
        self._on_failure()

    async def wait_started(self) -> bool:
        """Wait until the application has started; False if it failed, which ``error`` explains when ``run`` has
        ended.
        """
        with trio.move_on_after(self._config.timeout_startup):
            await self._settled.wait()
        if not self._settled.is_set():
            self._fail(f"the application did not start within {self._config.timeout_startup:g} s", None)
        return self.error is None and self._step is not _Step.FAILED and not self._is_interrupted

    async def shutdown(self) -> None:
        """Let the application shut down, if it started, and wait until its task has ended."""
        with trio.CancelScope(shield=True):
            if self._step is _Step.STARTED and not self._ended.is_set():
                await self._wait_for_shutdown()
            elif self._step is _Step.FAILED:
                self._scope.deadline = trio.current_time() + FAREWELL
            else:
                self._scope.cancel()
            await self._ended.wait()

    async def _wait_for_shutdown(self) -> None:
        self._step = _Step.STOPPING
        self._stop.set()
        with trio.move_on_after(self._config.timeout_shutdown):
            await self._ended.wait()
        if not self._ended.is_set():
            if self._step is _Step.STOPPING:
                self._fail(f"the application did not shut down within {self._config.timeout_shutdown:g} s", None)
            self._scope.cancel()

    async def _receive(self) -> Message:
        if self._step is _Step.CALLED:
            self._step = _Step.ASKED
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        kind, step = read(message, "type", str), self._step
        if kind == "lifespan.startup.complete" and step in (_Step.CALLED, _Step.ASKED):
            self._step = _Step.STARTED
            self.base = contextvars.copy_context()
            self._settled.set()
        elif kind == "lifespan.startup.failed" and step in (_Step.CALLED, _Step.ASKED):
            self._step = _Step.FAILED
            self._said = _last_line(message)
            self._settled.set()
        elif kind == "lifespan.shutdown.complete" and step is _Step.STOPPING:
            self._step = _Step.COMPLETE
        elif kind == "lifespan.shutdown.failed" and step is _Step.STOPPING:
            self._step = _Step.COMPLETE
            self._fail(f"the application could not shut down: {_last_line(message) or 'it gave no reason'}", None)
        else:
            raise MessageError(f"a message of type {kind!r} does not fit {step.value}")


def _last_line(message: Message) -> str:
    # Starlette sends a whole trace here, and then raises what it is about.
    lines = read(message, "message", str).strip().splitlines() if "message" in message else []
    return lines[-1] if lines else ""


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the user's code, which may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
