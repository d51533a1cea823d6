"""Rolls that fail, and that hang: what SIGHUP does to several workers when the application is broken meanwhile."""

from __future__ import annotations

import os
import signal

import pytest
import trustme

from .programs import WORKER_APP, Program, finish, start
from .support import LINUX
from .test_workers import SERVE, serving

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not LINUX, reason="looks at processes through /proc"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(WORKER_APP)
    return tmp_path


def roll(program: Program, end: str, times: int = 1) -> None:
    """Send a HUP, and wait for the n-th of such ends."""
    program.signal(signal.SIGHUP)
    program.wait_for(f"(?s)(.*{end}\n){{{times}}}")


def wear_out(program: Program, workers: set[int]) -> None:
    """Ask until one of the workers has had all its requests, and waits for the next try to replace it."""
    while "so the old one stays until the next try, in 0.25 s\n" not in program.errors:
        assert program.ask() in workers


def test_a_hangup_stops_a_start_that_hangs(folder):
    """A successor that hangs in its import holds up no later HUP: it is stopped, and all begins anew."""
    with serving(folder) as (program, old):
        (folder / "main.py").write_text("import time\nprint('hangs', flush=True)\ntime.sleep(1000)\n")
        program.signal(signal.SIGHUP)
        program.wait_for("hangs")
        (folder / "main.py").write_text(WORKER_APP)
        roll(program, "all workers are replaced")
        assert not program.wait_for_answers(2, but=old) & old
        program.signal()
        assert program.wait() == 0
    assert "info: beginning to replace the workers once more\n" in program.errors
    assert "the new worker cannot start" not in program.errors


def test_failed_rolls_are_no_crash_loop(folder):
    """However often a HUP finds a broken application, workers that die later are replaced, and at once."""
    with serving(folder) as (program, old):
        (folder / "main.py").write_text("1 / 0\n")
        for times in range(1, 7):
            roll(program, "the new worker cannot start, so the old ones stay", times)
        (folder / "main.py").write_text(WORKER_APP)
        for worker in old:
            os.kill(worker, signal.SIGKILL)
        program.wait_for_answers(2, but=old)
        program.signal()
        assert program.wait() == 0
    assert "in a row" not in program.errors


def test_a_worn_worker_whose_successor_cannot_start_serves_on(folder):
    """It goes on, the next try comes later, and a HUP is heard meanwhile."""
    with serving(folder, "--limit-max-requests", "200") as (program, old):
        (folder / "main.py").write_text("1 / 0\n")
        program.wait_for_answers(2)
        wear_out(program, old)
        roll(program, "the new worker cannot start, so the old ones stay")
        (folder / "main.py").write_text(WORKER_APP)
        roll(program, "all workers are replaced")
        program.wait_for_answers(2, but=old)
        program.signal()
        assert program.wait() == 0


def test_a_worn_worker_that_dies_while_it_waits_for_the_next_try_is_replaced(folder):
    """The wait for the next try ends when the worker does."""
    with serving(folder, "--limit-max-requests", "200") as (program, old):
        (folder / "main.py").write_text("1 / 0\n")
        wear_out(program, old)
        for worker in old:  # before the next try could succeed
            os.kill(worker, signal.SIGKILL)
        (folder / "main.py").write_text(WORKER_APP)
        program.wait_for_answers(2, but=old)
        program.signal()
        assert program.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_factory_that_ends_the_process(folder, workers):
    """A factory of the application that calls sys.exit is an application that cannot start."""
    (folder / "main.py").write_text("import sys\ndef make():\n    sys.exit('no database')\n")
    command = ("-m", "trioserve", "main:make", "--factory", "--port", "0", "--workers", workers)
    program = finish(*command, cwd=folder)
    assert program.process.returncode == 3
    assert "error: the application factory raised SystemExit: no database\n" in program.errors


def test_a_context_factory_that_ends_the_process(folder):
    """A factory of the TLS context that calls sys.exit is a certificate that cannot be used."""
    (folder / "tls_maker.py").write_text("import sys\ndef make(config, default):\n    sys.exit(5)\n")
    program = finish(*SERVE, "--ssl-context-factory", "tls_maker:make", "--workers", "2", cwd=folder)
    assert program.process.returncode == 3
    assert "error: ssl_context_factory 'tls_maker:make': SystemExit: 5\n" in program.errors


def test_a_context_factory_under_reload(folder):
    """The factory is no code for the supervisor: there is no page while it is broken, and a change heals it."""
    pair = trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem
    pair.write_to_path(str(folder / "both.pem"))
    (folder / "tls_maker.py").write_text("import sys\nsys.exit(5)\n")
    options = ("--reload", "--reload-delay", "0.05", "--ssl-context-factory", "tls_maker:make")
    with start(*SERVE, *options, "--ssl-certfile", "both.pem", cwd=folder) as program:
        program.wait_for("warning: waiting for a change\n")
        (folder / "tls_maker.py").write_text("def make(config, default):\n    return default()\n")
        program.wait_for("listening on https://")
        program.signal()
        assert program.wait() == 0
