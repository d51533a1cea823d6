"""A program: one instance after the other on one port, under load. For a network of its own, so that it may set it up.

python -m tests.operations.two_on_one_port FOLDER ROUNDS
"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import trio

from ..load import loading
from ..programs import Program, start
from .guide import OWN, free_port, write_main


async def main(folder: Path, rounds: int) -> None:
    address = ("127.0.0.1", free_port())
    write_main(folder)
    with ExitStack() as running:

        def begin() -> Program:
            options = ("main:app", "--port", str(address[1]), "--reuse-port")
            program = running.enter_context(start(*options, executable=str(OWN), cwd=folder))
            program.wait_for("Ctrl-C stops")
            return program

        older = begin()
        async with loading(address, lambda: older.errors) as load:
            for _ in range(rounds):
                newer = await trio.to_thread.run_sync(begin)
                older.signal(signal.SIGTERM)
                assert await trio.to_thread.run_sync(older.wait) == 0
                older = newer
                await load.wait_answered(200)
                await load.wait_for_workers([newer.process.pid])
        assert load.failed == 0, load.losses


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
