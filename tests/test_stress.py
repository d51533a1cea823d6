"""The stress run finds what it is there to find: it passes what is right, and fails for each thing that is not."""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from trioserve.formatters import JSONFormatter
from trioserve.process.watchdog import Limit, Watchdog
from trioserve.types import ASGIApp, Message, Receive, Scope, Send

from .attacks import Unmet
from .programs import wait_until
from .stress import app as stress_app
from .stress import catalogue
from .stress.clients import GoodClient, Turns, attack
from .stress.content import BLOCK, Body, content
from .stress.control import Control
from .stress.growth import BLOCKS, MEMORY, OBJECTS, judge_end, judge_pairs
from .stress.http_client import Address, Request
from .stress.ledger import Clocks, Ledger, Life
from .stress.locks import StandstillWatch
from .stress.output import judge_output
from .stress.program import Figures, ask_worker
from .stress.report import lines_of
from .stress.run import GRACEFUL, HARD, Plan, Result, judge_stop
from .stress.trouble import judge_trouble
from .stress.websocket_clients import PATHS, WebSocketTalker
from .support import LINUX, RunningServer, socket_server

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.skipif(not LINUX, reason="the run looks at processes through /proc"),
]

CLOCKS = Clocks(keep_alive=3, graceful=4)
WORKER = (b"x-worker", b"1234")


def address_of(server: RunningServer) -> Address:
    host, port = server.server.addresses[0]
    return Address(host, port)


async def ask_once(
    app: ASGIApp, *requests: Request, ledger: Ledger | None = None, times: int = 1, **options: float
) -> Ledger:
    """What a good client makes of an application that it asks this."""
    ledger = ledger or Ledger(CLOCKS)
    async with socket_server(app, lifespan="off", **options) as server:
        client = GoodClient(1, [address_of(server)], ledger, random.Random(1))
        with trio.fail_after(20):
            for _ in range(times):
                await client.ask(requests)
        await client._disconnect()
    return ledger


DOWNLOAD = Request("download", "/", Body(7, 100_000))


def answering(body: bytes, *, length: int | None = None, ends: bool = True) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        fields = [WORKER, (b"content-length", b"%d" % (len(body) if length is None else length))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body, "more_body": not ends})

    return app


# --- what is right


def test_content_can_be_computed_at_any_place():
    """A part is the same whether it is computed alone or with what is before it, and blocks differ."""
    whole = content(5, 0, 5 * BLOCK)
    for start, end in [(0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK), (100, 4 * BLOCK + 3), (7, 7)]:
        assert content(5, start, end) == whole[start:end]
    assert len({whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK)}) == 5
    assert content(6, 0, BLOCK) != whole[:BLOCK]


@pytest.mark.parametrize("make", catalogue.WEIGHTS, ids=lambda make: make.__qualname__)
async def test_every_kind_of_request_is_verified(make):
    """trioserve passes, whatever is asked for, and nothing needs an explanation."""
    chance = random.Random(3)
    requests = [make(chance) for _ in range(2)]
    ledger = Ledger(CLOCKS)
    for request in requests:
        await ask_once(stress_app.app, request, ledger=ledger)
    assert ledger.examples == []
    assert ledger.verified == ledger.sent == Counter(one.kind for one in requests)
    assert not ledger.explained
    assert not ledger.retried


async def test_a_request_that_hangs_is_verified():
    """The server has the last word."""
    ledger = await ask_once(stress_app.app, catalogue.hang(random.Random()), timeout_request=0.1)
    assert ledger.examples == []
    assert ledger.verified.total() == 1


async def test_pipelined_requests_are_verified():
    """Answers come in the order of the requests, each checked for itself."""
    requests = [make(random.Random(4)) for make in catalogue.PIPELINED]
    ledger = await ask_once(stress_app.app, *requests, times=3)
    assert ledger.examples == []
    assert ledger.verified.total() == 3 * len(requests)


async def test_websockets_are_verified():
    """Messages with and without compression, in fragments; refusals, and ends of every kind."""
    ledger = Ledger(CLOCKS)
    async with socket_server(stress_app.app, lifespan="off") as server:
        for seed in range(len(PATHS)):
            talker = WebSocketTalker(0, [address_of(server)], ledger, random.Random(seed))
            with trio.fail_after(20):
                await talker.talk(lambda: False, PATHS[seed % len(PATHS)])
    assert ledger.examples == []
    assert {"WebSocket echo", "WebSocket fail", "WebSocket refuse", "WebSocket push", "message"} == ledger.sent.keys()
    assert ledger.verified == ledger.sent


def test_a_seed_repeats_the_plan():
    """The same seed asks for the same, another for something else."""
    plans = [Plan(seed=1), Plan(seed=1), Plan(seed=2)]
    asked = [[catalogue.choose(plan.chance("good", 1)) for _ in range(3)] for plan in plans]
    assert asked[0] == asked[1] != asked[2]


# --- what a good client finds


@pytest.mark.parametrize("place", [0, 1, 50_000, 99_999])
async def test_one_wrong_byte_is_found(place):
    """Wherever it is."""
    body = bytearray(DOWNLOAD.expected.whole)
    body[place] ^= 1
    ledger = await ask_once(answering(bytes(body)), DOWNLOAD)
    assert (ledger.wrong, ledger.failed, ledger.verified.total()) == (1, 0, 0)
    assert "not the bytes" in ledger.examples[0]


@pytest.mark.parametrize("size", [0, 50_000, 99_999, 100_001])
async def test_too_few_or_too_many_bytes_are_found(size):
    """An answer that is complete, but too short or too long, is wrong."""
    ledger = await ask_once(answering(content(7, 0, size)), DOWNLOAD)
    assert (ledger.wrong, ledger.verified.total()) == (1, 0)


async def test_an_answer_to_somebody_else_is_found():
    """The same bytes of another place are not these."""
    ledger = await ask_once(answering(content(7, BLOCK, BLOCK + 100_000)), DOWNLOAD)
    assert ledger.wrong == 1


async def test_an_answer_that_had_to_break_off_and_did_not_is_found():
    """What an application has not finished must not look finished."""
    ledger = await ask_once(answering(DOWNLOAD.expected.whole), replace(DOWNLOAD, is_cut=True))
    assert ledger.wrong == 1


async def test_a_cut_answer_has_failed_without_cause():
    """One that breaks off although it was not asked to; its transcript tells what came."""
    ledger = await ask_once(answering(content(7, 0, 500), length=100_000, ends=False), DOWNLOAD)
    assert (ledger.wrong, ledger.failed, ledger.verified.total()) == (0, 1, 0)
    assert "500 of 100000 bytes" in ledger.examples[0]
    assert "> GET /" in ledger.examples[0]


async def test_a_cut_answer_of_a_worker_that_was_killed_is_explained():
    """The cause is counted, and nothing else."""
    ledger = Ledger(CLOCKS)
    ledger.killed(1234)
    await ask_once(answering(content(7, 0, 500), length=100_000, ends=False), DOWNLOAD, ledger=ledger)
    assert ledger.examples == []
    assert ledger.explained == {"its worker was killed": 1}


async def test_an_end_amid_an_expectation_has_failed():
    """A FIN instead of 100, as the kernel of a worker sends that was killed when it had read all."""
    ledger = Ledger(CLOCKS)
    upload = Request("upload", "/", Body(7, 10), "PUT", Body(7, 10), asks_first=True)

    async def leave(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, leave, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        await GoodClient(1, [Address("127.0.0.1", port)], ledger, random.Random(1)).ask([upload])
        nursery.cancel_scope.cancel()
    assert (ledger.failed, ledger.wrong) == (1, 0)


async def test_a_wrong_status_has_failed():
    """A 503, say, for what must be answered."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [WORKER]})
        await send({"type": "http.response.body", "body": b""})

    ledger = await ask_once(app, DOWNLOAD)
    assert ledger.failed == 1
    assert "503 instead of 200" in ledger.examples[0]


async def test_a_connection_that_is_closed_while_it_is_idle_has_failed():
    """Unless there is a cause, and then the request goes out again on another."""
    small = Request("small", "/", Body(7, 10))
    for is_killed in (False, True):
        ledger = Ledger(CLOCKS)
        async with socket_server(answering(small.expected.whole), lifespan="off") as server:
            client = GoodClient(1, [address_of(server)], ledger, random.Random(1))
            await client.ask([small])
            await server.server.drop_connections()
            if is_killed:
                ledger.killed(1234)
            await client.ask([small])
            await client._disconnect()
        assert ledger.failed == (0 if is_killed else 1)
        assert ledger.verified["small"] == 2


async def test_a_websocket_that_echoes_something_else_is_found():
    """One message of many that is not the one that was sent."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_wrong(message: Message) -> None:
            if message.get("bytes"):
                message = {**message, "bytes": message["bytes"][:-1] + b"?"}
            await send(message)

        await stress_app.echo_messages(receive, send_wrong)

    ledger = Ledger(CLOCKS)
    async with socket_server(app, lifespan="off") as server:
        talker = WebSocketTalker(0, [address_of(server)], ledger, random.Random(0))
        with trio.fail_after(20):
            await talker.talk(lambda: False, "echo")
    assert ledger.wrong == 1


@pytest.mark.parametrize("code", [1000, 1006, 1011, 1012])
async def test_a_websocket_that_is_closed_has_failed(code):
    """By whatever code: a 1012 is the word of a worker that leaves, and here none does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stress_app._accept(receive, send)
        await receive()
        if code != 1006:
            await send({"type": "websocket.close", "code": code})
        else:
            await servers[0].server.drop_connections()

    servers: list[RunningServer] = []
    ledger = Ledger(CLOCKS)
    async with socket_server(app, lifespan="off") as server:
        servers.append(server)
        talker = WebSocketTalker(0, [address_of(server)], ledger, random.Random(0))
        with trio.fail_after(20):
            await talker.talk(lambda: False, "echo")
    assert (ledger.failed, ledger.wrong) == (1, 0)


# --- what explains a failure


def life(*, opened: float = -10.0, worker: int | None = None) -> Life:
    """Of a connection that was opened so many seconds from now."""
    return Life("a client", opened=trio.current_time() + opened, worker=worker)


async def test_a_kill_explains_its_worker_s_connections():
    """All from then on; and those of which the worker is not known, if they were open then."""
    ledger = Ledger(CLOCKS)
    ledger.killed(1234)
    now = trio.current_time()
    assert ledger.explain(life(worker=1234), now) is not None
    assert ledger.explain(life(worker=4321), now) is None
    assert ledger.explain(life(), now) is not None
    assert ledger.explain(life(opened=1), now) is None


async def test_a_worker_that_leaves_explains_what_it_did_not_wait_for():
    """Not what it cut at once; and not when none leaves."""
    ledger = Ledger(CLOCKS)
    began = trio.current_time() - CLOCKS.graceful
    assert ledger.explain(life(worker=1), began) is None
    leaving = ledger.begin_leaving()
    assert ledger.explain(life(worker=1), began) is not None
    assert ledger.explain(life(worker=1), began + 1) is None
    leaving.ended = trio.current_time() - 100
    assert ledger.explain(life(worker=1), began) is None
    assert not ledger.is_leaving(trio.current_time() - 10)


async def test_the_driver_s_own_delay_explains_what_came_of_it():
    """If it was long, and after the request had begun."""
    ledger = Ledger(CLOCKS)
    now = trio.current_time()
    ledger.was_late(0.1)
    assert ledger.explain(life(worker=1), now) is None
    ledger.was_late(2)
    assert ledger.explain(life(worker=1), now) is not None
    assert ledger.explain(life(worker=1), trio.current_time() + 1) is None
    assert ledger.lateness == 2


async def test_what_may_close_an_idle_connection():
    """The keep-alive time; a worker that has been told to leave for as long as it waits."""
    ledger = Ledger(CLOCKS)
    assert ledger.explain_close(life(worker=1), 0.5) is None
    assert ledger.explain_close(life(worker=1), CLOCKS.keep_alive) is not None
    leaving = ledger.begin_leaving()
    assert ledger.explain_close(life(worker=1), 0.5) is None
    leaving.began -= CLOCKS.graceful
    assert ledger.explain_close(life(worker=1), 0.5) is not None


# --- attacks


async def attack_once(outcome: BaseException | None, ledger: Ledger) -> None:
    async def run(chance: random.Random) -> None:
        if outcome is not None:
            raise outcome

    await attack({"flood": run}, Turns(["flood"]), ledger, random.Random(), times=1)


@pytest.mark.parametrize("error", [Unmet("alas"), ExceptionGroup("", [Unmet("alas")]), OSError("alas")])
async def test_an_attack_that_is_not_survived_fails_the_run(error):
    """It says which, and why."""
    ledger = Ledger(CLOCKS)
    await attack_once(error, ledger)
    (fault,) = Result(ledger, []).all_faults()
    assert "flood" in fault
    assert "alas" in fault


async def test_an_attack_that_met_a_kill_is_explained():
    """Whoever is served by a worker that dies learns nothing of the server."""
    ledger = Ledger(CLOCKS)

    async def run(chance: random.Random) -> None:
        ledger.killed(1234)
        raise ConnectionResetError

    await attack({"flood": run}, Turns(["flood"]), ledger, random.Random(), times=1)
    ledger.begin_leaving()
    await attack_once(Unmet("another clock"), ledger)
    assert ledger.unmet == []
    assert ledger.explained.total() == 2


async def test_an_attack_that_was_cut_short_has_the_next_turn():
    """Each of the attacks has its turn, in a random order; those that were cut short come first."""
    turns, ledger = Turns([str(number) for number in range(9)], random.Random(1)), Ledger(CLOCKS)
    tried: list[str] = []

    async def wait(name: str) -> None:
        tried.append(name)
        await trio.sleep_forever()

    run = {name: lambda chance, name=name: wait(name) for name in turns.names}
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await attack(run, turns, ledger, random.Random())
    assert tried[0] == tried[1]
    assert sorted(turns.take() for _ in turns.names) == turns.names
    assert ledger.survived.total() == 0


def test_a_run_without_trouble_is_none():
    """Workers must have died, been replaced, and come and gone."""
    assert judge_trouble(Ledger(CLOCKS, kills=[(0, 77)], rolls=1, resizes=1)) == []
    faults = judge_trouble(Ledger(CLOCKS, rolls=1))
    assert [fault.partition(",")[0] for fault in faults] == ["no worker was killed", "no worker was resized"]


async def test_every_attack_must_come_to_its_end():
    """One that was never tried, or always cut short, was not survived."""
    ledger = Ledger(CLOCKS)
    await attack_once(None, ledger)
    assert Result(ledger, ["flood"]).all_faults() == []
    (fault,) = Result(ledger, ["flood", "drought"]).all_faults()
    assert "drought" in fault


# --- growth

FIGURES = Figures(1, 10, 20, 5, ["socket", "pipe"], 1000, 5000, 50.0, 0.1, {"dict": 10})


@pytest.mark.parametrize(
    "now",
    [
        replace(FIGURES, tasks=11),
        replace(FIGURES, tasks=9),
        replace(FIGURES, descriptors=["socket", "pipe", "socket"]),
        replace(FIGURES, descriptors=["socket", "socket"]),
        replace(FIGURES, threads=11),
    ],
)
def test_what_is_left_of_a_load_is_found(now):
    """One task, descriptor or thread too many; and one too few, which somebody else's connection may have lost."""
    assert judge_end(FIGURES, FIGURES) == []
    assert len(judge_end(FIGURES, now)) == 1


@pytest.mark.parametrize(("name", "allowed"), [("memory", MEMORY), ("objects", OBJECTS), ("blocks", BLOCKS)])
def test_growth_is_found(name, allowed):
    """More than the tolerance; what there is more of is told."""
    grown = replace(FIGURES, types={"dict": 10, "Leak": 99}, **{name: getattr(FIGURES, name) + allowed})
    assert judge_pairs([FIGURES], [grown]) == []
    grown = replace(grown, **{name: getattr(grown, name) + 1})
    (fault,) = judge_pairs([FIGURES], [grown])
    assert name in fault
    assert "99 more Leak" in fault


def test_a_worker_that_is_another_is_found():
    """In the steady part nobody ends a worker."""
    assert len(judge_pairs([FIGURES], [replace(FIGURES, pid=2)])) == 1


async def test_a_real_leak_is_found(tmp_path):
    """A worker tells its figures: of a task, a descriptor and a heap of objects that an application keeps."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Control(tmp_path).run)
            await trio.testing.wait_all_tasks_blocked()
            before = await ask_worker(tmp_path, os.getpid())
            kept = [[number] for number in range(2 * OBJECTS)]
            with socket.socket():
                nursery.start_soon(trio.sleep_forever)
                after = await ask_worker(tmp_path, os.getpid())
            again = await ask_worker(tmp_path, os.getpid())
            nursery.cancel_scope.cancel()
    faults = judge_end(before, after)
    assert len(faults) == 2
    assert "'socket': 1" in faults[1]
    assert any("objects" in fault for fault in judge_pairs([before], [after]))
    assert len(judge_end(before, again)) == 1
    assert len(kept) == 2 * OBJECTS


# --- threads that stand still


def stand_still(lock: threading.Lock) -> None:
    with lock:
        pass


def native_id_of(thread: threading.Thread) -> int:
    assert thread.native_id is not None
    return thread.native_id


def waits_in(thread: threading.Thread, name: str) -> bool:
    """It is in this function, and asleep."""
    state = Path(f"/proc/self/task/{native_id_of(thread)}/stat").read_text().rpartition(") ")[2][0]
    return sys._current_frames()[native_ident(thread)].f_code.co_name == name and state == "S"


def native_ident(thread: threading.Thread) -> int:
    assert thread.ident is not None
    return thread.ident


def test_a_thread_that_waits_for_a_lock_is_found_once():
    """When it has stood longer than the limit; the report has its stack."""
    reports: list[str] = []
    watch = StandstillWatch(3, reports.append)
    lock = threading.Lock()
    with lock:
        thread = threading.Thread(target=stand_still, args=(lock,), name="planted")
        thread.start()
        wait_until(lambda: waits_in(thread, "stand_still"), "the thread waits for the lock")
        for now in (0, 1, 2, 3):
            watch.look(now)
        assert [report for report in reports if "planted" in report] == []
        for now in (3.1, 4, 10):
            watch.look(now)
    thread.join()
    (report,) = [report for report in reports if "planted" in report]
    assert "stand_still" in report
    assert judge_output(report.splitlines(), Ledger(CLOCKS)) != []


def test_a_thread_that_moves_is_not_found():
    """It waits for the same lock again and again, and gets it each time."""
    reports: list[str] = []
    watch = StandstillWatch(3, reports.append)
    turn, may_end = threading.Semaphore(0), threading.Event()

    def take_turns() -> None:
        while not may_end.is_set():
            turn.acquire()

    thread = threading.Thread(target=take_turns, name="busy")
    thread.start()
    for now in range(20):
        wait_until(lambda: waits_in(thread, "acquire") or waits_in(thread, "wait"), "the thread waits for its turn")
        watch.look(now)
        turn.release()
        wait_until(lambda: turn._value == 0, "the thread has had its turn")
    may_end.set()
    turn.release()
    thread.join()
    assert [report for report in reports if "busy" in report] == []


def test_a_thread_of_a_pool_that_has_nothing_to_do_is_not_found():
    """It waits for a lock, too, but nobody waits for it."""
    reports: list[str] = []
    watch = StandstillWatch(3, reports.append)
    threads: list[threading.Thread] = []

    async def use_thread() -> None:
        threads.append(await trio.to_thread.run_sync(threading.current_thread))

    trio.run(use_thread)
    (thread,) = threads
    wait_until(lambda: waits_in(thread, "_work"), "the thread is idle")
    watch.look(0)
    watch.look(10)
    assert [report for report in reports if thread.name in report] == []


def test_the_watch_looks_by_itself():
    """It is a thread, which finds one that stands still."""
    found = threading.Event()
    lock = threading.Lock()
    with lock:
        thread = threading.Thread(target=stand_still, args=(lock,), name="planted")
        thread.start()
        watch = StandstillWatch(0.1, lambda text: found.set() if "planted" in text else None)
        watch.start()
        assert found.wait(10)
    thread.join()
    watch.stop()


# --- what the server says


def line_of(message: str, *, level: int = logging.INFO, request_line: str = "", error: Exception | None = None) -> str:
    """A line of the log, as the server writes it."""
    record = logging.LogRecord("trioserve", level, "", 0, message, (), error and (type(error), error, None))
    if request_line:
        record.request_line = request_line
    return JSONFormatter().format(record)


def judge(*lines: str, ledger: Ledger | None = None) -> list[str]:
    return judge_output(list(lines), ledger or Ledger(CLOCKS))


def test_what_was_asked_for_is_no_fault():
    """Errors of requests that ask for them, ends of workers that are killed, and all that is no error."""
    ledger = Ledger(CLOCKS, kills=[(0, 77)], breakers=1)
    asked = "GET /stress/fail?error=exit HTTP/1.1"
    error = line_of("exception in the application", level=logging.ERROR, request_line=asked, error=KeyError("asked"))
    killed = line_of("worker 77 was ended by signal SIGKILL; its last error line: x", level=logging.ERROR)
    broken = line_of("a connection ended in an error: did the application", level=logging.ERROR, error=ValueError("x"))
    cut = error[:100]
    assert judge(line_of("listening"), error, killed, broken, cut, ledger=ledger) == []


@pytest.mark.parametrize(
    "lines",
    [
        [line_of("exception", level=logging.ERROR, request_line="GET /stress/echo HTTP/1.1", error=KeyError("x"))],
        [line_of("exception", level=logging.ERROR, error=AssertionError("of the server itself"))],
        [line_of("a warning", level=logging.WARNING, error=AssertionError("with a trace"))],
        [line_of("worker 77 was ended by signal SIGKILL", level=logging.ERROR)],
        [line_of("worker 77 was ended by signal SIGSEGV", level=logging.ERROR)],
        [line_of("worker 77 ended with exit code 1", level=logging.ERROR)],
        [line_of("a connection ended in an error: did", level=logging.ERROR, error=ValueError("unasked"))],
        [line_of("5 workers have died in a row", level=logging.CRITICAL)],
        [line_of("worker 3 has not ended in time and is killed", level=logging.ERROR)],
        [line_of("the event loop has been blocked for 3.1 s", level=logging.ERROR)],
        ["Traceback (most recent call last):", '  File "x.py"', "KeyError: 1"],
        ["Exception ignored in: <function>"],
        [line_of("half a line of nobody who was killed")[:50]],
    ],
)
def test_what_nobody_asked_for_is_a_fault(lines):
    """Each of these alone fails the run."""
    assert len(judge(line_of("listening"), *lines, line_of("stopped"))) == 1


async def test_a_dump_of_the_real_watchdog_is_found(caplog):
    """An event loop that is blocked for longer than the limit."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watchdog(Limit(0.1)).run)
        await trio.testing.wait_all_tasks_blocked()
        wait_until(lambda: any("blocked" in record.message for record in caplog.records), "a word of the watchdog")
        nursery.cancel_scope.cancel()
    faults = judge(*(JSONFormatter().format(record) for record in caplog.records))
    assert len(faults) == 1
    assert "blocked for" in faults[0]


# --- the end


@pytest.mark.parametrize(
    ("exit_code", "seconds", "left"), [(None, 1, 0), (1, 1, 0), (-9, 1, 0), (0, GRACEFUL + HARD + 1, 0), (0, 1, 1)]
)
def test_a_stop_that_went_wrong_is_found(exit_code, seconds, left):
    """A wrong exit code, a deadline that was missed, a process that is left."""
    assert judge_stop(0, GRACEFUL, 0) == []
    assert len(judge_stop(exit_code, seconds, left)) == 1


def test_the_last_line_is_the_verdict():
    """``passed``, or how many reasons there are; the seed is on the first."""
    result = Result(Ledger(CLOCKS), [], fresh=[FIGURES], lines=[line_of("listening")])
    *table, verdict = lines_of(Plan(seed=42), result)
    assert "seed 42" in table[0]
    assert verdict == "passed"
    result.faults.append("a descriptor is left")
    *table, verdict = lines_of(Plan(seed=42), result)
    assert "failed: a descriptor is left" in table
    assert verdict == "failed, for 1 reason"
