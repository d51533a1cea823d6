"""The stop signals and the hard deadline behind them."""

import faulthandler
import io
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.observer import Phase
from trioserve.process.signals import StopSignals, ignore_stops

from .programs import finish

CONFIG = Config(timeout_graceful_shutdown=1000, timeout_shutdown=3000, timeout_hard_shutdown=500)


@pytest.fixture(autouse=True)
def _disarmed():
    """No deadline outlives its test: it would end the test run."""
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def signals():
    with StopSignals(CONFIG) as entered:
        yield entered


def open_descriptors():
    """The number of open descriptors, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else None


def seconds_left(signals):
    return round(signals.deadline - time.monotonic(), -1)


def test_handlers_are_put_back():
    """After the block each signal has the handler it had before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals(CONFIG):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_serves_without_signals():
    """Outside the main thread no handler is set and no deadline ends the process."""
    seen = []

    def enter():
        with StopSignals(CONFIG) as entered:
            entered.phase_changed(Phase.CANCELLING)
            seen.append((signal.getsignal(signal.SIGTERM), entered.deadline))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert seen == [(before, None)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_are_told_in_the_loop(signals, number):
    """Each signal is told in the event loop, with its count."""
    send, receive = trio.open_memory_channel(10)
    signals.attach(trio.lowlevel.current_trio_token(), send.send_nowait)
    with trio.fail_after(5):
        signal.raise_signal(number)
        assert await receive.receive() == 1
        signal.raise_signal(number)
        assert await receive.receive() == 2


async def test_signals_before_the_loop_are_told_then(signals):
    """Signals that came before there was an event loop are not lost."""
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    told = []
    signals.attach(trio.lowlevel.current_trio_token(), told.append)
    assert told == [1, 2]


def test_signals_that_the_loop_does_not_hear(capfd):
    """A signal that finds the last one unheard says what follows if the loop stays blocked; one alone does not."""
    told = []
    said = []

    async def receive_two(signals):
        signals.attach(trio.lowlevel.current_trio_token(), told.append)
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            said.append(capfd.readouterr().err)
        await trio.testing.wait_all_tasks_blocked()

    # Not the fixture: it would be set up before pytest puts capfd's stream in place.
    with StopSignals(CONFIG) as signals:
        trio.run(receive_two, signals)
    warning = "warning: the event loop has not heard the last signal yet; if it never does, the process ends in 500 s"
    assert said == ["", f"{warning}, with every thread's stack\n"]
    assert told == [1, 2]


def test_signal_after_the_loop(signals):
    """A signal that comes when the event loop has ended does nothing."""

    async def attach():
        signals.attach(trio.lowlevel.current_trio_token(), lambda count: None)

    trio.run(attach)
    signal.raise_signal(signal.SIGTERM)


def test_imports_are_interrupted(signals):
    """While the application is imported a signal raises KeyboardInterrupt, and not after."""
    with pytest.raises(KeyboardInterrupt), signals.interrupting():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.DRAINING])
def test_first_signal_while_serving(signals, phase):
    """The first signal leaves the graceful and the hard timeout."""
    signals.phase_changed(phase)
    signal.raise_signal(signal.SIGTERM)
    assert seconds_left(signals) == 1500


@pytest.mark.parametrize(("phase", "seconds"), [(Phase.STARTING, 500), (Phase.SERVING, 4500), (Phase.DRAINING, 1500)])
def test_first_signal_with_a_delay(phase, seconds):
    """While it serves the first signal leaves the drain_delay as well; the second leaves the hard timeout."""
    with StopSignals(CONFIG.replace(drain_delay=3000)) as signals:
        signals.phase_changed(phase)
        signal.raise_signal(signal.SIGTERM)
        assert seconds_left(signals) == seconds
        signal.raise_signal(signal.SIGTERM)
        assert seconds_left(signals) == 500


def test_first_signal_while_starting(signals):
    """A start is cancelled at once, so the first signal leaves the hard timeout."""
    signal.raise_signal(signal.SIGTERM)
    assert seconds_left(signals) == 500


def test_second_signal(signals):
    """The second signal leaves the hard timeout."""
    signals.phase_changed(Phase.SERVING)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert seconds_left(signals) == 500


def test_cancelling(signals):
    """From the moment of cancelling the hard timeout is left, whoever cancelled."""
    signals.phase_changed(Phase.CANCELLING)
    assert seconds_left(signals) == 500


def test_stopping(signals):
    """When every handler has ended, lifespan.shutdown has its own timeout, and the hard one."""
    signals.phase_changed(Phase.SERVING)
    signal.raise_signal(signal.SIGTERM)
    signals.phase_changed(Phase.STOPPING)
    assert seconds_left(signals) == 3500


def test_first_signal_while_stopping(signals):
    """A first signal during lifespan.shutdown changes nothing."""
    signals.phase_changed(Phase.STOPPING)
    signal.raise_signal(signal.SIGTERM)
    assert seconds_left(signals) == 3500


def test_stopped(signals):
    """When serving has ended, the rest of the process has the hard timeout."""
    signals.phase_changed(Phase.STOPPING)
    signals.phase_changed(Phase.STOPPED)
    assert seconds_left(signals) == 500


@pytest.mark.parametrize("seconds", [math.inf, 1e10])
def test_longest_deadline(seconds):
    """A timeout longer than any process lives sets a deadline too, one that the interpreter can hold."""
    with StopSignals(Config(timeout_hard_shutdown=seconds)) as signals:
        signals.phase_changed(Phase.CANCELLING)
        assert time.monotonic() + 1e8 < signals.deadline < math.inf


@pytest.mark.parametrize(
    "later",
    [
        lambda signals: signals.phase_changed(Phase.CANCELLING),
        lambda signals: signals.phase_changed(Phase.STOPPING),
        lambda signals: signals.phase_changed(Phase.STOPPED),
        lambda signals: signal.raise_signal(signal.SIGTERM),
    ],
)
def test_final_deadline_is_never_put_off(signals, later):
    """After a cancel neither a phase nor another signal lengthens the deadline."""
    signals.phase_changed(Phase.CANCELLING)
    deadline = signals.deadline
    later(signals)
    assert signals.deadline == deadline


def test_disarmed():
    """In a program that goes on there is no deadline after the block, even if another signal came at its very end."""
    with StopSignals(CONFIG) as signals:
        signals.phase_changed(Phase.STOPPED)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signals.deadline is None


def test_kept():
    """In a process that ends after the block the deadline holds on, and a signal during the end changes nothing."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with StopSignals(CONFIG, ends_process=True) as signals:
            signals.phase_changed(Phase.STOPPED)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert seconds_left(signals) == 500
    faulthandler.cancel_dump_traceback_later()
    os.close(signals._hard.output)


def test_another_thread_ignores_nothing():
    """Outside the main thread there is no signal to ignore, as none was taken over."""
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ignore_stops)
    thread.start()
    thread.join(10)
    assert signal.getsignal(signal.SIGTERM) == before


def test_deadline_of_another(monkeypatch):
    """Where no stop began, a timer that the program itself has set in faulthandler is left alone."""
    cancelled = []
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: cancelled.append(True))
    with StopSignals(CONFIG):
        pass
    assert cancelled == []


ENDLESS = """
import signal, sys, time
from trioserve.config import Config
from trioserve.observer import Phase
from trioserve.process.signals import StopSignals

with StopSignals(Config(timeout_graceful_shutdown=0.1, timeout_hard_shutdown=0.1)) as signals:
    signals.phase_changed(Phase.SERVING)
    {prelude}
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.parametrize("prelude", ["pass", "sys.stderr.close()"])
def test_hard_deadline_ends_a_blocked_process(tmp_path, prelude):
    """At the hard deadline the process ends with exit code 1 and its stacks, whatever became of sys.stderr."""
    program = finish("-c", ENDLESS.format(prelude=prelude), cwd=tmp_path)
    assert program.process.returncode == 1
    assert "most recent call first" in program.errors


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_stderr_without_a_descriptor(monkeypatch, stream):
    """Where sys.stderr has no descriptor the process's first standard error is used."""
    monkeypatch.setattr(sys, "stderr", stream)
    with StopSignals(CONFIG) as signals:
        signals.phase_changed(Phase.CANCELLING)


def test_no_stderr_at_all(monkeypatch):
    """Without any standard error the deadline holds all the same, and no descriptor is left behind."""
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "__stderr__", None)
    before = open_descriptors()
    with StopSignals(CONFIG) as signals:
        signals.phase_changed(Phase.CANCELLING)
        assert seconds_left(signals) == 500
    assert open_descriptors() == before
