"""Applications that break Trio's task tree hurt their own connection only."""

from __future__ import annotations

import hashlib
import logging
import random
import sys

import h11
import pytest
import trio
import trio.testing

from trioserve.logs import Outcome
from trioserve.observer import Phase

from .support import Client, Recorder, RunningServer, http_app, memory_server, nothing_left, send_text, socket_server

pytestmark = [
    pytest.mark.both_codecs,
    pytest.mark.timeout(30),
    pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning"),
]

START = {"type": "http.response.start", "status": 200, "headers": []}


def piece(body: bytes, *, more: bool = True):
    return {"type": "http.response.body", "body": body, "more_body": more}


# Those that break it. None of BREAKERS ends by itself: each has to be abandoned. All tick at every whole second.


async def in_nursery(interval=0):
    """What many write, and Trio cannot bear: a generator that yields inside a nursery, and may be left half-way."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        while True:
            yield b"tick"
            await trio.sleep(interval)


async def in_scope(interval=0):
    with trio.CancelScope():
        while True:
            yield b"tick"
            await trio.sleep(interval)


async def stream(generator, send, interval=0):
    # Without closing the generator, as Starlette's StreamingResponse does: it keeps all that it has opened. Whoever
    # waits here, and not in the generator, leaves it at its yield when cancelled too.
    await send(START)
    async for body in generator:
        await send(piece(body))
        await trio.sleep(interval)


async def tick(send):
    await send(START)
    while True:
        await send(piece(b"tick"))
        await trio.sleep(1)


async def yields_in_a_nursery(scope, receive, send):
    await stream(in_nursery(), send, 1)


async def yields_in_a_scope(scope, receive, send):
    await stream(in_scope(), send, 1)


async def waits_inside_the_generators_nursery(scope, receive, send):
    # A cancellation finds it inside, and the generator ends in order; the error of a send does not.
    await stream(in_nursery(1), send)


async def waits_inside_the_generators_scope(scope, receive, send):
    await stream(in_scope(1), send)


async def yields_beside_a_listener(scope, receive, send):
    """As Starlette for older ASGI versions: the stream in one task, and a listener that cancels it on a disconnect."""

    async def listen(nursery):
        while (await receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, nursery)
        await stream(in_nursery(), send, 1)


def enter_a_scope():
    # Kept alive past the handler, or closing it would put things in order.
    kept.append(trio.CancelScope())
    kept[-1].__enter__()


async def enter_a_nursery():
    kept.append(trio.open_nursery())
    nursery = await kept[-1].__aenter__()
    nursery.start_soon(trio.sleep_forever)


async def enters_a_scope_and_never_leaves(scope, receive, send):
    enter_a_scope()
    await tick(send)


async def enters_a_nursery_and_never_leaves(scope, receive, send):
    await enter_a_nursery()
    await tick(send)


async def exits_between_ticks(scope, receive, send):
    try:
        await tick(send)
    finally:
        sys.exit("the application wants to go")


async def exits_when_abandoned(scope, receive, send):
    await send(START)
    await send(piece(b"tick"))
    try:
        await trio.sleep_forever()
    finally:
        sys.exit("the application wants to go")


kept: list = []
BREAKERS = [
    yields_in_a_nursery,
    yields_in_a_scope,
    waits_inside_the_generators_nursery,
    waits_inside_the_generators_scope,
    yields_beside_a_listener,
    enters_a_scope_and_never_leaves,
    enters_a_nursery_and_never_leaves,
    exits_between_ticks,
    exits_when_abandoned,
]
UNWINDS_WHEN_CANCELLED = [waits_inside_the_generators_nursery, waits_inside_the_generators_scope]
# What raises in the handler itself, and so is an error of the application while the server stops.
RAISES_WHEN_CANCELLED = [yields_beside_a_listener, exits_between_ticks, exits_when_abandoned]


@pytest.fixture(autouse=True)
def _forget():
    yield
    kept.clear()


# Those that end by themselves


async def exits_at_once(scope, receive, send):
    await trio.sleep(BREAK)
    sys.exit("the application wants to go")


async def exits_in_its_response(scope, receive, send):
    await send(START)
    await send(piece(b"tick"))
    await trio.sleep(BREAK)
    sys.exit("the application wants to go")


async def returns_from_inside_a_scope(scope, receive, send):
    enter_a_scope()
    await trio.sleep(BREAK)
    await send_text(send, "ok")


async def returns_from_inside_a_nursery(scope, receive, send):
    await enter_a_nursery()
    await trio.sleep(BREAK)
    await send_text(send, "ok")


# The neighbours: 20 pieces, one a second. All times are seconds from the beginning of the broken request.

PIECE = 1024
BODY = random.Random(20).randbytes(20 * PIECE)
NEIGHBOUR = 40.25
BREAK = 50.5
NEIGHBOUR_ENDS = 60.25


async def send_slowly(send):
    await send({**START, "headers": [(b"content-length", b"%d" % len(BODY))]})
    for start in range(0, len(BODY), PIECE):
        await trio.sleep(1)
        await send(piece(BODY[start : start + PIECE], more=start + PIECE < len(BODY)))


def app_with(breaker):
    async def handler(scope, receive, send):
        if scope["path"] == "/broken":
            await breaker(scope, receive, send)
        elif scope["path"] == "/fine":
            await send_text(send, "fine")
        else:
            with trio.CancelScope(shield=scope["path"] == "/shielded"):
                await send_slowly(send)

    return http_app(handler)


class Download:
    """What a neighbour has got of BODY so far; ``ended`` is when the response was complete, ``cut`` when it broke
    off.
    """

    def __init__(self) -> None:
        self.body = b""
        self.ended: float | None = None
        self.cut: float | None = None

    @property
    def pieces(self) -> int:
        assert BODY.startswith(self.body)
        return len(self.body) // PIECE

    @property
    def is_right(self) -> bool:
        return hashlib.sha256(self.body).digest() == hashlib.sha256(BODY).digest()

    async def run(self, server: RunningServer, target: str = "/download") -> None:
        client = await begin(server, target)
        assert isinstance(await client.next_event(), h11.Response)
        try:
            while isinstance(event := await client.next_event(), h11.Data):
                self.body += event.data
            self.ended = trio.current_time()
        except h11.RemoteProtocolError:
            self.cut = trio.current_time()
        await client.aclose()


class TimedRecorder(Recorder):
    """Knows when each phase began, and finds the one record of a target."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[Phase, float] = {}

    def phase_changed(self, phase: Phase) -> None:
        super().phase_changed(phase)
        self.times[phase] = trio.current_time()

    def told_of(self, target: str) -> tuple[Outcome, float]:
        """How the exchange ended, and when (those that break begin at 0)."""
        (record,) = [one for one in self.records if one.target == target]
        return record.outcome, record.duration

    def outcomes(self) -> dict[str, Outcome]:
        return {one.target: one.outcome for one in self.records}


async def begin(server: RunningServer, target: str) -> Client:
    client = await server.connect()
    await client.send(h11.Request(method="GET", target=target, headers=[("Host", "a")]), h11.EndOfMessage())
    return client


async def first_tick(client: Client) -> None:
    assert isinstance(await client.next_event(), h11.Response)
    event = await client.next_event()
    assert isinstance(event, h11.Data)
    assert event.data == b"tick"


def errors_logged(caplog) -> list[logging.LogRecord]:
    errors = [one for one in caplog.records if one.name == "trioserve.error" and one.levelno == logging.ERROR]
    assert all(one.exc_info is not None for one in errors)
    return errors


def errors_expected(breaker, *, cancelled: bool) -> int:
    if cancelled and breaker in UNWINDS_WHEN_CANCELLED:
        return 0
    # A nursery of the application's own notices too that it was broken into, and that is an error of its own.
    return 2 if breaker is yields_beside_a_listener else 1


async def still_serves(server: RunningServer) -> None:
    client = await server.connect()
    assert (await client.get("/fine")).body == b"fine"
    await client.aclose()


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize("breaker", BREAKERS)
async def test_abandoned_by_its_client(autojump_clock, caplog, breaker):
    """A client leaves in the middle of a neighbour's download: that goes on to its end, and there is one error."""
    # A send fails at the next tick; who listens hears it at once; who does neither is cancelled after the grace.
    when = {yields_beside_a_listener: BREAK, exits_when_abandoned: BREAK + 3}.get(breaker, 51)
    recorder, neighbour = TimedRecorder(), Download()
    async with memory_server(app_with(breaker), recorder=recorder) as server, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        before = tasks()
        broken = await begin(server, "/broken")
        await first_tick(broken)
        await trio.sleep_until(NEIGHBOUR)
        nursery.start_soon(neighbour.run, server)
        await trio.sleep_until(BREAK)
        assert recorder.records == []
        assert neighbour.pieces == 10
        await broken.aclose()
        await trio.sleep_until(when + 0.1)
        assert recorder.told_of("/broken") == (Outcome.CLIENT_LEFT, when)
        assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=False)
        assert server.server.statistics().connections == 1
        assert 10 <= neighbour.pieces < 20
        await still_serves(server)
        await trio.sleep_until(NEIGHBOUR_ENDS + 1)
        assert neighbour.is_right
        assert neighbour.ended == NEIGHBOUR_ENDS
        assert recorder.told_of("/download") == (Outcome.OK, 20)
        assert tasks() == before
    assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=False)


@pytest.mark.parametrize("breaker", BREAKERS)
async def test_abandoned_at_timeout_request(autojump_clock, caplog, breaker):
    """The deadline of a request strikes in the middle of a neighbour's download: the same."""
    recorder, neighbour = TimedRecorder(), Download()
    async with (
        memory_server(app_with(breaker), recorder=recorder, timeout_request=BREAK) as server,
        trio.open_nursery() as nursery,
    ):
        await trio.testing.wait_all_tasks_blocked()
        before = tasks()
        broken = await begin(server, "/broken")
        await first_tick(broken)
        await trio.sleep_until(NEIGHBOUR)
        nursery.start_soon(neighbour.run, server)
        await trio.sleep_until(BREAK - 0.1)
        assert recorder.records == []
        assert neighbour.pieces == 10
        await trio.sleep_until(BREAK + 0.1)
        assert recorder.told_of("/broken") == (Outcome.DEADLINE, BREAK)
        assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=True)
        assert neighbour.pieces == 10
        with pytest.raises(h11.RemoteProtocolError):
            while isinstance(await broken.next_event(), h11.Data):
                pass
        await broken.aclose()
        await trio.sleep_until(BREAK + 0.2)
        assert server.server.statistics().connections == 1
        await still_serves(server)
        await trio.sleep_until(NEIGHBOUR_ENDS + 1)
        assert neighbour.is_right
        assert neighbour.ended == NEIGHBOUR_ENDS
        assert recorder.told_of("/download") == (Outcome.OK, 20)
        assert tasks() == before
    assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=True)


@pytest.mark.parametrize("breaker", BREAKERS)
async def test_abandoned_by_a_shutdown(autojump_clock, caplog, breaker):
    """The graceful deadline strikes. A download that comes to its end before is whole; one that does not is cut at that
    moment; and one that shields itself from the cancellation goes on beside the broken tree, to its right end.
    """
    recorder = TimedRecorder()
    in_time, cut, shielded = Download(), Download(), Download()
    with nothing_left():
        async with memory_server(app_with(breaker), recorder=recorder) as server, trio.open_nursery() as nursery:
            broken = await begin(server, "/broken")
            await first_tick(broken)
            await trio.sleep_until(30.25)
            nursery.start_soon(in_time.run, server, "/in-time")
            await trio.sleep_until(NEIGHBOUR)
            nursery.start_soon(cut.run, server, "/cut")
            nursery.start_soon(shielded.run, server, "/shielded")
            await trio.sleep_until(43.5)
            server.server.shutdown(grace=BREAK - 43.5)
            assert (in_time.pieces, cut.pieces, shielded.pieces) == (13, 3, 3)
            await trio.sleep_until(BREAK - 0.1)
            assert in_time.is_right
            assert in_time.ended == 50.25
            assert (cut.pieces, shielded.pieces) == (10, 10)
            assert recorder.phases == [Phase.STARTING, Phase.SERVING, Phase.DRAINING]
            assert recorder.outcomes() == {"/in-time": Outcome.OK}
            await trio.sleep_until(BREAK + 0.1)
            outcome = Outcome.ERROR if breaker in RAISES_WHEN_CANCELLED else Outcome.SHUTDOWN
            assert recorder.told_of("/broken") == (outcome, BREAK)
            assert recorder.told_of("/cut") == (Outcome.SHUTDOWN, BREAK - NEIGHBOUR)
            assert (cut.pieces, cut.cut, cut.ended) == (10, BREAK, None)
            assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=True)
            assert (shielded.pieces, shielded.cut) == (10, None)
            await trio.sleep_until(NEIGHBOUR_ENDS + 1)
            assert shielded.is_right
            assert shielded.ended == NEIGHBOUR_ENDS
            assert recorder.told_of("/shielded") == (Outcome.OK, 20)
            assert recorder.phases == list(Phase)
            assert recorder.times[Phase.CANCELLING] == BREAK
            assert recorder.times[Phase.STOPPED] == NEIGHBOUR_ENDS
            await broken.aclose()
    assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=True)


@pytest.mark.parametrize("breaker", BREAKERS)
async def test_abandoned_by_a_cancellation_of_the_server(autojump_clock, caplog, breaker):
    """Who runs the server cancels it: a download that shields itself goes on to its end, nothing else does."""
    recorder, cut, shielded = TimedRecorder(), Download(), Download()
    async with trio.open_nursery() as clients, memory_server(app_with(breaker), recorder=recorder) as server:
        broken = await begin(server, "/broken")
        await first_tick(broken)
        await trio.sleep_until(NEIGHBOUR)
        clients.start_soon(cut.run, server, "/cut")
        clients.start_soon(shielded.run, server, "/shielded")
        await trio.sleep_until(BREAK)
        assert recorder.phases == [Phase.STARTING, Phase.SERVING]
        server.cancel()
    outcome = Outcome.ERROR if breaker in RAISES_WHEN_CANCELLED else Outcome.SHUTDOWN
    assert recorder.told_of("/broken") == (outcome, BREAK)
    assert recorder.told_of("/cut") == (Outcome.SHUTDOWN, BREAK - NEIGHBOUR)
    assert (cut.pieces, cut.cut, cut.ended) == (10, BREAK, None)
    assert recorder.told_of("/shielded") == (Outcome.OK, 20)
    assert shielded.is_right
    assert shielded.ended == NEIGHBOUR_ENDS
    assert recorder.times[Phase.CANCELLING] == BREAK
    assert recorder.times[Phase.STOPPED] == NEIGHBOUR_ENDS
    assert len(errors_logged(caplog)) == errors_expected(breaker, cancelled=True)


@pytest.mark.parametrize(
    ("breaker", "status", "outcome"),
    [
        (exits_at_once, 500, Outcome.ERROR),
        (exits_in_its_response, 200, Outcome.ERROR),
        (returns_from_inside_a_scope, 200, Outcome.OK),
        (returns_from_inside_a_nursery, 200, Outcome.OK),
    ],
)
async def test_broken_by_a_handler_that_ends(autojump_clock, caplog, breaker, status, outcome):
    """A handler breaks it by itself, in the middle of a neighbour's download: the same."""
    recorder, neighbour = TimedRecorder(), Download()
    async with memory_server(app_with(breaker), recorder=recorder) as server, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        before = tasks()
        broken = await begin(server, "/broken")
        await trio.sleep_until(NEIGHBOUR)
        nursery.start_soon(neighbour.run, server)
        await trio.sleep_until(BREAK - 0.1)
        assert recorder.records == []
        assert neighbour.pieces == 10
        await trio.sleep_until(BREAK + 0.1)
        assert recorder.told_of("/broken") == (outcome, BREAK)
        assert recorder.records[0].status == status
        # What is left open is noticed where the connection ends, be that now or after more requests.
        await broken.aclose()
        await trio.sleep_until(BREAK + 0.2)
        assert len(errors_logged(caplog)) == 1
        assert server.server.statistics().connections == 1
        assert neighbour.pieces == 10
        await still_serves(server)
        await trio.sleep_until(NEIGHBOUR_ENDS + 1)
        assert neighbour.is_right
        assert recorder.told_of("/download") == (Outcome.OK, 20)
        assert tasks() == before
    assert len(errors_logged(caplog)) == 1


async def test_a_broken_task_tree_over_sockets(caplog):
    """The same over real sockets, with the transport of sockets: a neighbour's request is answered after it."""

    async def handler(scope, receive, send):
        if scope["path"] == "/broken":
            await stream(in_nursery(0.01), send)
        else:
            await send_text(send, "fine")

    async with socket_server(http_app(handler)) as server:
        neighbour = await server.connect()
        assert (await neighbour.get()).body == b"fine"
        client = await begin(server, "/broken")
        await first_tick(client)
        await client.aclose()
        with trio.fail_after(10):
            while server.server.statistics().connections > 1:
                await trio.sleep(0.01)
        assert (await neighbour.get()).body == b"fine"
        await neighbour.aclose()
    assert len(errors_logged(caplog)) == 1
