"""Applications that need asyncio: what they are told, and how they get it."""

import asyncio
import functools
import sys

import pytest
import trio

from trioserve.errors import AppLoadError, LifespanError
from trioserve.foreign_loop import _tell_once, needs_asyncio, tell_of_asyncio
from trioserve.process.exits import report_failure
from trioserve.process.loader import load_app

from .programs import STRICT, start
from .support import http_app, memory_server, send_text

SAID = "the application needs asyncio, and runs on Trio: use anyio"

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def _not_told_yet():
    _tell_once.cache_clear()
    yield
    _tell_once.cache_clear()


def hints(caplog):
    return [message for message in caplog.messages if message.startswith(SAID)]


async def create_task():
    asyncio.create_task(nothing())  # noqa: RUF006


async def nothing():
    pass


async def wait_for_event():
    event = asyncio.Event()
    await event.wait()


async def wait_for_get():
    await asyncio.Queue().get()


async def enter_timeout():
    async with asyncio.timeout(1):
        await nothing()


async def await_a_future():
    await Answer()


class Answer:
    """What a library awaits that has a loop in another thread."""

    def __await__(self):
        yield self


async def behind_another():
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise OSError("cannot connect") from error


async def in_a_group():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asyncio.sleep, 0)


COMPLAINTS = [
    *(functools.partial(asyncio.sleep, 0), functools.partial(asyncio.sleep, 1), wait_for_event, wait_for_get),
    *(enter_timeout, await_a_future, behind_another, in_a_group),
]


@pytest.mark.parametrize(
    "complain", COMPLAINTS, ids=lambda one: getattr(one, "__name__", None) or f"sleep({one.args[0]})"
)
async def test_complaints(complain):
    """What asyncio's own functions and Trio raise in such an application is known, also behind and within others."""
    with pytest.raises((RuntimeError, TypeError, AttributeError, OSError, ExceptionGroup)) as caught:
        await complain()
    assert needs_asyncio(caught.value)


async def test_thread_without_a_loop():
    """In a thread, as that of a `def` endpoint, asyncio has other words for it."""
    with pytest.raises(RuntimeError) as caught:
        await trio.to_thread.run_sync(asyncio.get_event_loop)
    assert needs_asyncio(caught.value)


class Odd(RuntimeError):
    def __str__(self):
        raise AssertionError("nobody is to ask")


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("no"),
        RuntimeError(),
        TypeError("no"),
        AttributeError("no"),
        Odd(),
        ValueError("no running event loop"),
    ],
)
def test_other_errors(error):
    """Other errors are none of this, and no code of theirs is run."""
    assert not needs_asyncio(error)


def test_error_that_is_its_own_cause():
    """A ring of errors is walked round once."""
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one
    assert not needs_asyncio(one)


async def test_request(autojump_clock, caplog):
    """A request that fails for want of asyncio leaves its trace, and one line for the whole process."""

    async def handler(scope, receive, send):
        await asyncio.sleep(1)

    async with memory_server(http_app(handler)) as server:
        for _ in range(2):
            client = await server.connect()
            assert (await client.get("/")).status == 500
            await client.aclose()
    assert [one.name for one in caplog.records if one.name.startswith("trioserve")].count("trioserve.error") == 2
    assert len(hints(caplog)) == 1


async def test_refused_lifespan(autojump_clock, caplog):
    """So is one told whose lifespan fails for it before it has asked for anything, and is done without."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await asyncio.sleep(1)
        await send_text(send, "hello")

    async with memory_server(app) as server:
        client = await server.connect()
        assert (await client.get("/")).status == 200
        await client.aclose()
    assert len(hints(caplog)) == 1


def test_import(tmp_path, monkeypatch, caplog):
    """So is one whose module fails for it when it is imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "site_aio.py").write_text("import asyncio\nloop = asyncio.get_running_loop()\n")
    with pytest.raises(AppLoadError) as caught:
        load_app("site_aio:app", app_dir=str(tmp_path))
    assert report_failure(caught.value, 3) == 3
    assert len(hints(caplog)) == 1


def test_failed_lifespan(caplog):
    """So is one whose lifespan has failed for it."""
    error = LifespanError("the application's lifespan raised during start-up")
    error.__cause__ = RuntimeError("no running event loop")
    report_failure(error, 3)
    report_failure(error, 3)
    assert len(hints(caplog)) == 1


def test_failure_in_words(caplog):
    """So is one whose framework says so in the words of a message only, as Quart does."""
    report_failure(LifespanError("the application could not start: no running event loop"), 3)
    assert len(hints(caplog)) == 1


def test_not_told_without_need(caplog):
    """Nothing is said of other errors."""
    tell_of_asyncio(ValueError("no"))
    assert hints(caplog) == []


# In a process of its own, since trio-asyncio changes asyncio for the whole of one.
WITH_A_LOOP = """
import asyncio
import trio_asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        async with trio_asyncio.open_loop() as loop:
            app.loop = loop
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        print("the loop is closed", flush=True)
        return
    await trio_asyncio.aio_as_trio(WAYS[scope["path"]])()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun"})

async def work():
    assert asyncio.get_running_loop() is app.loop
    async with asyncio.timeout(30):
        await asyncio.gather(asyncio.sleep(0), asyncio.create_task(asyncio.sleep(0.001)))

async def wait():
    print("waits", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("cancelled", flush=True)

WAYS = {"/": work, "/wait": wait}
"""


def test_loop_of_the_lifespan(tmp_path):
    """A trio-asyncio loop that the lifespan has opened is there in each request; who leaves ends his part in it."""
    (tmp_path / "main.py").write_text(WITH_A_LOOP)
    arguments = (*STRICT, "-m", "trioserve", "main:app", "--port", "0", "--timeout-disconnect-grace", "0")
    with start(*arguments, cwd=tmp_path) as program:
        for _ in range(3):
            program.connect("/").close()
        client = program.open()
        client.request("GET", "/wait")
        program.wait_for("waits\n")
        client.close()
        program.wait_for("cancelled\n")
        program.signal()
        assert program.wait() == 0
    assert program.output.endswith("the loop is closed\n")
    assert "error" not in program.errors
