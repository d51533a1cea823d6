"""The ways in which other servers hurt people, and that ours does not: PEERS.md §3, as far as one server in one process
goes.
"""

from __future__ import annotations

import copy
import json
import logging
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

import trioserve
from trioserve import BindError, Config, LifespanError, Server, serve
from trioserve.testing.memory_server import MemoryListener

from .support import memory_server, nothing_left, open_descriptors, respond, socket_server

pytestmark = pytest.mark.timeout(60)


# uvicorn #1286: 'Server' object has no attribute 'servers'


async def test_a_stop_on_a_server_that_never_started_cannot_be_written(autojump_clock):
    """There is no handle before the start, and a start that fails gives none: nothing half-built can be stopped."""

    async def never(scope, receive, send):
        await receive()
        await trio.sleep_forever()

    handles = []
    with nothing_left(), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            start = partial(serve, never, listeners=[MemoryListener()], timeout_startup=3)
            handles.append(await nursery.start(start))
    assert handles == []
    assert caught.group_contains(LifespanError, match="did not start")


async def test_a_handle_can_do_everything_from_the_start(autojump_clock):
    """Nothing of a handle is made late: all of it works in the very step in which it is handed out."""
    handles = []

    class TaskStatus:
        def started(self, server: Server) -> None:
            handles.append(
                (server.urls, server.addresses, server.state, server.statistics(), server.describe_waiting())
            )
            server.shutdown()

    with nothing_left():
        await serve(respond(), listeners=[MemoryListener()], task_status=TaskStatus())
    assert handles[0][:3] == ((), (None,), {})
    assert handles[0][4] == "nothing"


async def test_a_handle_outlives_its_server(autojump_clock):
    """After the end every method of the handle still works, and shutdown() does nothing."""
    async with memory_server(respond()) as server:
        handle = server.server
        await (await server.connect()).get()
    handle.shutdown()
    handle.shutdown(grace=0)
    assert handle.statistics().requests_total == 1
    assert handle.statistics().connections == 0
    assert handle.describe_waiting() == "nothing"


async def test_a_failed_start_is_not_masked():
    """The error is that of the start, with the address, and not one of the clean-up after it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with nothing_left(), pytest.raises(BindError) as caught:
            await serve(respond(), port=port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: address already in use"
    assert caught.value.__context__ is None or caught.value.__suppress_context__


async def test_a_failed_start_up_is_not_masked_by_its_clean_up(autojump_clock):
    """What fails first is what serve() raises, also when the application's clean-up fails too."""

    async def app(scope, receive, send):
        await receive()
        try:
            await send({"type": "lifespan.startup.failed", "message": "first"})
        finally:
            raise ValueError("second")

    with nothing_left(), pytest.raises(LifespanError, match="could not start: first$"):
        await serve(app, listeners=[MemoryListener()])


async def test_a_start_after_a_failed_one(tmp_path):
    """A start that failed leaves nothing in the way of the next, on the same address."""
    path = str(tmp_path / "s")

    async def broken(scope, receive, send):
        await receive()
        raise ValueError

    for _ in range(2):
        with pytest.raises(LifespanError):
            await serve(broken, uds=path)
        async with socket_server(respond(), uds=path) as server:
            client = await server.connect()
            assert (await client.get()).status == 200
            await client.aclose()


async def test_config_not_mutated():
    """Serving leaves the Config, and the values it was made of, as they were."""
    values = {"port": 0, "header": ["X-A: b"], "bind": ["127.0.0.1:0"], "lifespan": "auto"}
    before = copy.deepcopy(values)
    config = Config(**values)
    copied = copy.deepcopy(config)
    plain = copy.deepcopy(config.to_plain())
    async with socket_server(respond(), config=config) as server:
        client = await server.connect()
        await client.get()
        await client.aclose()
    assert values == before
    assert config == copied
    assert config.to_plain() == plain


def snapshot() -> object:
    loggers = [logging.root] + [
        one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)
    ]
    state = {
        one.name: (one.level, one.propagate, one.disabled, tuple(one.handlers), tuple(one.filters)) for one in loggers
    }
    return state, {number: signal.getsignal(number) for number in signal.valid_signals()}


async def test_logging_and_signals_untouched_by_a_failed_start(autojump_clock):
    """Also a start that fails leaves loggers and signals as they were."""

    async def broken(scope, receive, send):
        await receive()
        raise ValueError

    before = snapshot()
    with pytest.raises(LifespanError):
        await serve(broken, listeners=[MemoryListener()])
    assert snapshot() == before


def test_importing_touches_nothing():
    """Importing trioserve adds no handler, sets no level, takes no signal, opens no file and starts no thread."""
    program = """
import logging, os, signal, sys, threading
def snapshot():
    return (logging.root.level, logging.root.handlers[:], os.getcwd(), dict(os.environ), threading.active_count(),
            {number: signal.getsignal(number) for number in signal.valid_signals()}, os.listdir("/proc/self/fd")
            if os.path.isdir("/proc/self/fd") else None)
import trio
before = snapshot()
import trioserve
assert snapshot() == before
for name, logger in logging.Logger.manager.loggerDict.items():
    if name.startswith("trioserve") and isinstance(logger, logging.Logger):
        assert logger.level == logging.NOTSET and logger.handlers == [] and logger.propagate
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


# uvicorn #920: tasks left pending


async def test_no_task_is_left_however_a_connection_ends(autojump_clock):
    """Whether the client leaves, is refused or is cut: when serve() has returned its tasks have ended."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(receive)

    with nothing_left():
        async with memory_server(app) as server:
            for data in (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0\0\0\0\r\n\r\n"):
                stays, leaves = await server.connect(), await server.connect()
                await stays.raw(data)
                await leaves.raw(data)
                await leaves.aclose()
            await trio.testing.wait_all_tasks_blocked()


# uvicorn #352: an SSLContext in the configuration


async def test_a_config_with_tls_survives_json_while_it_is_served(tmp_path):
    """What a worker gets is plain values, also once a context has been made of them."""
    ca = trustme.CA()
    pem = tmp_path / "both.pem"
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    config = Config(
        port=0,
        ssl_certfile=str(pem),
        ssl_ca_certs=str(tmp_path / "ca.pem"),
        ssl_cert_reqs="optional",
        ssl_ciphers="HIGH",
    )
    async with socket_server(respond(), config=config):
        text = json.dumps(config.to_plain())
        again = Config.from_plain(json.loads(text))
        assert again == config
        # And another server can be made of them at once.
        await trio.testing.wait_all_tasks_blocked()
        async with socket_server(respond(), config=again) as server:
            assert server.server.urls[0].startswith("https://")


# uvicorn #1286 again: tests that depend on their order


ORDER = """
import pytest, trio
from functools import partial
from trioserve import serve, LifespanError

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"Hi"})

async def broken(scope, receive, send):
    await receive()
    raise ValueError("no")

async def test_a_serves(caplog):
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, app, port=0))
        stream = await trio.open_tcp_stream(*server.addresses[0])
        await stream.send_all(b"GET / HTTP/1.0\\r\\n\\r\\n")
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received.endswith(b"Hi")
        await stream.aclose()
        server.shutdown()
    assert caplog.records == []

async def test_b_fails(caplog):
    with pytest.raises(LifespanError):
        await serve(broken, port=0)
    assert caplog.records == []

async def test_c_serves_with_log(caplog):
    caplog.set_level("INFO", "trioserve.access")
    await test_a_body(caplog)

async def test_a_body(caplog):
    caplog.set_level("INFO", "trioserve.access")
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, app, port=0))
        stream = await trio.open_tcp_stream(*server.addresses[0])
        await stream.send_all(b"GET / HTTP/1.0\\r\\n\\r\\n")
        while await stream.receive_some():
            pass
        await stream.aclose()
        server.shutdown()
    assert len(caplog.records) == 1
"""


@pytest.mark.parametrize("order", ["forwards", "backwards", "twice"])
def test_tests_do_not_depend_on_their_order(tmp_path, order):
    """The same tests of a program with our server pass in one process in either order, and twice in a row."""
    module = tmp_path / "test_program.py"
    module.write_text(ORDER)
    names = ["test_a_serves", "test_b_fails", "test_c_serves_with_log", "test_a_body"]
    chosen = {"forwards": names, "backwards": names[::-1], "twice": names}[order]
    again = [f"{module}::{name}" for name in chosen]
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error", "-c", "/dev/null"]
    options += ["-o", "trio_mode=true", f"--rootdir={tmp_path}"]
    runs = """
import pytest, sys
sys.exit(max([pytest.main(sys.argv[2:]) for _ in range(int(sys.argv[1]))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", runs, "2" if order == "twice" else "1", *options, *again],
        cwd=Path(trioserve.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_many_servers_one_after_the_other(tmp_path):
    """Starting and stopping a server again and again in one program leaves nothing behind."""
    descriptors = open_descriptors()
    for _ in range(10):
        async with socket_server(respond()) as server:
            client = await server.connect()
            assert (await client.get()).status == 200
            await client.aclose()
            server.server.shutdown()
    assert open_descriptors() == descriptors
