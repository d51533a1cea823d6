"""What a process tells of itself when somebody asks, and what it tells when it crashes."""

from __future__ import annotations

import _thread
import faulthandler
import logging
import signal
import sys
import threading
from contextlib import closing
from typing import cast

import pytest
import trio

from trioserve.process.deadline import show_crashes
from trioserve.process.dump import Dump
from trioserve.process.signals import hear_dumps
from trioserve.server import Server

from .programs import PATIENCE

pytestmark = pytest.mark.timeout(100)


def test_before_and_after_the_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no event loop yet, or none any more, the threads are told."""
    caplog.set_level(logging.WARNING)
    one = Dump("worker 7")
    one.ask()
    assert caplog.messages[0].startswith("worker 7: the event loop does not run\nThreads, the most recent call last:")

    async def main() -> None:
        one.attach()

    trio.run(main)
    one.ask()
    assert caplog.messages[1].startswith("worker 7: the event loop does not run\nTasks, each with where it waits")


def test_a_loop_that_runs_tells_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The event loop describes its tasks in its own thread, where nothing moves meanwhile; so that is left out."""
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        one = Dump()
        one.attach()
        await trio.to_thread.run_sync(one.ask)

    trio.run(main)
    [message] = caplog.messages
    assert message.startswith("Tasks, each with where it waits")
    assert "MainThread" not in message
    assert "Open: " not in message  # there is no server


def test_what_cannot_be_described(caplog: pytest.LogCaptureFixture) -> None:
    """A description that fails is told, and ends nothing."""

    class Broken:
        def activities(self) -> dict[trio.lowlevel.Task, str]:
            raise RecursionError("too deep")

    async def main() -> None:
        one = Dump("worker 7")
        one.attach()
        one.server = cast("Server", Broken())
        await trio.to_thread.run_sync(one.ask)

    trio.run(main)
    [record] = caplog.records
    assert record.getMessage() == "worker 7: cannot describe what this process does"
    assert "too deep" in caplog.text


def test_a_loop_that_comes_too_late_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the asking thread has said for a blocked loop is not said again."""
    monkeypatch.setattr("trioserve.process.dump.PATIENCE", 0.05)

    async def main() -> None:
        one = Dump()
        one.attach()
        thread = threading.Thread(target=one.ask)
        thread.start()
        thread.join(PATIENCE)  # the event loop is blocked
        await trio.sleep(0.1)

    trio.run(main)
    [message] = caplog.messages
    assert message.startswith("the event loop does not run; what runs is the task ")


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the signal does nothing, least of all raise in whatever it interrupts."""

    def refuse(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with hear_dumps(lambda: None):
        signal.raise_signal(signal.SIGUSR1)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGUSR1")
def test_the_signal_is_heard_in_a_thread() -> None:
    """SIGUSR1 is answered in another thread, and afterwards it means what it meant before."""
    before = signal.getsignal(signal.SIGUSR1)
    heard, threads = threading.Event(), []

    def asked() -> None:
        threads.append(threading.current_thread())
        heard.set()

    with hear_dumps(asked):
        signal.raise_signal(signal.SIGUSR1)
        assert heard.wait(PATIENCE)
    assert threads != [threading.main_thread()]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_where_there_is_no_such_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the signal, and outside the main thread, nothing is taken over."""
    before = signal.getsignal(signal.SIGUSR1)
    seen = []

    def look() -> None:
        with hear_dumps(lambda: None):
            seen.append(signal.getsignal(before_number))

    before_number = signal.SIGUSR1
    thread = threading.Thread(target=look)
    thread.start()
    thread.join(PATIENCE)
    monkeypatch.delattr(signal, "SIGUSR1")
    look()
    assert seen == [before, before]


@pytest.fixture
def without_crash_stacks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """As in a program that has not enabled faulthandler; pytest has, on a descriptor of its own."""
    enabled: list[object] = []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: bool(enabled))
    return enabled


def test_crashes_are_shown(without_crash_stacks: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """faulthandler is enabled, unless the program itself has done it."""
    monkeypatch.setattr(faulthandler, "enable", lambda **options: without_crash_stacks.append(options))
    show_crashes()
    show_crashes()
    assert without_crash_stacks == [{"all_threads": True}]


@pytest.mark.parametrize("how", ["none", "closed"])
def test_crashes_where_there_is_no_error_output(
    without_crash_stacks: list[object], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A process without a usable sys.stderr starts all the same."""
    with closing(open("/dev/null", "w")) as stream:
        monkeypatch.setattr(sys, "stderr", None if how == "none" else stream)
        stream.close()
        show_crashes()
    assert without_crash_stacks == []
