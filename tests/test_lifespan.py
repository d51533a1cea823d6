"""The application's lifespan: start-up, state, shutdown, and every way it can go wrong."""

from __future__ import annotations

import contextvars
import logging
from functools import partial

import pytest
import trio
import trio.testing

from trioserve import LifespanError, MessageError, serve
from trioserve.observer import Phase
from trioserve.testing.memory_server import MemoryListener

from .support import Recorder, http_app, memory_server, nothing_left, plain_lifespan, respond, send_text

pytestmark = pytest.mark.timeout(20)

COMPLETE = {"type": "lifespan.startup.complete"}


def lifespan_app(handler):
    """An application with this lifespan, that greets over HTTP."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await handler(scope, receive, send)
        else:
            await send_text(send, "Hi")

    return app


async def start_fails(app, **options) -> LifespanError:
    """The error of a start that must fail, of which nothing may be left."""
    with nothing_left():
        with pytest.raises(LifespanError) as caught:
            await serve(app, listeners=[MemoryListener()], **options)
        await trio.testing.wait_all_tasks_blocked()
    return caught.value


async def get(server) -> bytes:
    client = await server.connect()
    answer = await client.get()
    await client.aclose()
    return answer.body


# Which applications have one


async def test_lifespan_scope_and_messages(autojump_clock):
    """The application is called once with a lifespan scope, and gets startup and shutdown, in this order."""
    seen = []

    async def handler(scope, receive, send):
        seen.append({key: value for key, value in scope.items() if key != "state"})
        seen.append(await receive())
        await send(COMPLETE)
        seen.append(await receive())
        await send({"type": "lifespan.shutdown.complete"})

    async with memory_server(lifespan_app(handler)) as server:
        assert await get(server) == b"Hi"
        assert len(seen) == 2
    assert seen == [
        {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}},
        {"type": "lifespan.startup"},
        {"type": "lifespan.shutdown"},
    ]


async def test_auto_serves_an_application_that_refuses_lifespan(autojump_clock, caplog):
    """With auto an application that raises before it received anything is served without lifespan, and the log says
    so."""

    async def refuse(scope, receive, send):
        raise NotImplementedError("no lifespan here")

    caplog.set_level(logging.DEBUG, "trioserve")
    async with memory_server(lifespan_app(refuse)) as server:
        assert await get(server) == b"Hi"
    info, debug = (one for one in caplog.records if one.name == "trioserve")
    assert info.getMessage() == (
        "serving without lifespan, which the application refused: NotImplementedError: no lifespan here"
    )
    assert debug.exc_info[0] is NotImplementedError


async def test_auto_names_an_error_without_a_text_by_its_type(autojump_clock, caplog):
    """An exception without arguments is named by its type alone."""

    caplog.set_level(logging.INFO, "trioserve")

    async def bare(scope, receive, send):
        raise ValueError

    async with memory_server(lifespan_app(bare)) as server:
        assert await get(server) == b"Hi"
    assert caplog.messages[0] == "serving without lifespan, which the application refused: ValueError"


async def test_auto_serves_an_application_that_ignores_lifespan(autojump_clock):
    """With auto an application that returns at once, having received nothing, is served without lifespan."""

    async def ignore(scope, receive, send):
        return

    async with memory_server(lifespan_app(ignore)) as server:
        assert await get(server) == b"Hi"


async def test_auto_does_not_hide_an_error_after_the_first_receive(autojump_clock):
    """With auto an application that raises during its start-up is not served: it knows lifespan, and failed."""

    async def broken(scope, receive, send):
        await receive()
        raise ValueError("no database")

    error = await start_fails(lifespan_app(broken), lifespan="auto")
    assert str(error) == "the application's lifespan raised during start-up: ValueError: no database"
    assert isinstance(error.__cause__, ValueError)


async def test_on_requires_lifespan(autojump_clock):
    """With on an application that refuses lifespan does not start, and its error is the cause."""

    async def refuse(scope, receive, send):
        raise NotImplementedError("none")

    error = await start_fails(lifespan_app(refuse), lifespan="on")
    assert str(error) == (
        "the application's lifespan raised before lifespan.startup was received: NotImplementedError: none"
    )
    assert isinstance(error.__cause__, NotImplementedError)


async def test_on_refuses_an_application_that_ignores_lifespan(autojump_clock):
    """With on an application that returns at once does not start."""

    async def ignore(scope, receive, send):
        return

    error = await start_fails(lifespan_app(ignore), lifespan="on")
    assert str(error) == "the application's lifespan returned before lifespan.startup was received"
    assert error.__cause__ is None


async def test_off_never_calls_the_application_for_lifespan(autojump_clock):
    """With off there is no lifespan scope, and the state of requests is empty."""
    states = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        states.append(scope["state"])
        await send_text(send, "Hi")

    async with memory_server(app, lifespan="off") as server:
        assert await get(server) == b"Hi"
        assert server.server.state == {}
    assert states == [{}]


# State and context


async def test_state_reaches_requests_and_the_handle(autojump_clock):
    """What start-up puts into the state is in Server.state, and each request has a copy of its own of it."""
    shared = object()
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            scope["state"]["shared"] = shared
            await plain_lifespan(receive, send)
            return
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        await send_text(send, "Hi")

    async with memory_server(app) as server:
        assert server.server.state == {"shared": shared}
        client = await server.connect()
        await client.get()
        await client.get()
        assert server.server.state == {"shared": shared}
    assert seen == [{"shared": shared}, {"shared": shared}]


async def test_context_variables_of_start_up_are_seen_by_requests(autojump_clock):
    """A variable set during start-up is there in requests; one set by the caller too; one set after start-up is not."""
    variable = contextvars.ContextVar("variable", default="unset")
    late = contextvars.ContextVar("late", default="unset")
    outer = contextvars.ContextVar("outer", default="unset")
    outer.set("caller")
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            variable.set("start-up")
            await send(COMPLETE)
            late.set("too late")
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        seen.append((variable.get(), late.get(), outer.get()))
        variable.set("a request")
        await send_text(send, "Hi")

    async with memory_server(app) as server:
        client = await server.connect()
        await client.get()
        await client.get()
        await get(server)
    assert seen == [("start-up", "unset", "caller")] * 3


# A start that fails


async def test_start_up_has_a_deadline(autojump_clock):
    """An application that does not start within timeout_startup is cancelled, cleans up, and the error says so."""
    cleaned = False

    async def slow(scope, receive, send):
        nonlocal cleaned
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            cleaned = True

    start = trio.current_time()
    error = await start_fails(lifespan_app(slow), timeout_startup=7.5)
    assert str(error) == "the application did not start within 7.5 s"
    assert trio.current_time() - start == 7.5
    assert cleaned


async def test_start_up_deadline_holds_before_the_first_receive_too(autojump_clock):
    """With auto an application that never receives is not mistaken for one that does without lifespan."""

    async def slow(scope, receive, send):
        await trio.sleep_forever()

    error = await start_fails(lifespan_app(slow), timeout_startup=2)
    assert str(error) == "the application did not start within 2 s"


async def test_what_the_application_raises_when_its_start_up_is_cut_is_the_cause(autojump_clock):
    """The deadline is the error; what the application then raises is its cause, and hides it not."""

    async def slow(scope, receive, send):
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    error = await start_fails(lifespan_app(slow), timeout_startup=2)
    assert str(error) == "the application did not start within 2 s"
    assert isinstance(error.__cause__, ValueError)


async def test_start_up_failed_says_why(autojump_clock):
    """lifespan.startup.failed stops the start with the last line of its message."""

    async def failing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "Traceback ...\n  line\nValueError: no database\n"})

    error = await start_fails(lifespan_app(failing))
    assert str(error) == "the application could not start: ValueError: no database"
    assert error.__cause__ is None


@pytest.mark.parametrize("message", [{}, {"message": ""}, {"message": " \n"}])
async def test_start_up_failed_without_a_reason(autojump_clock, message):
    """lifespan.startup.failed may come without a message, or with an empty one."""

    async def failing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", **message})

    error = await start_fails(lifespan_app(failing))
    assert str(error) == "the application could not start: it gave no reason"


async def test_start_up_failed_and_then_raised(autojump_clock):
    """Starlette sends startup.failed and raises: the message is the text, the exception the cause."""

    async def failing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "ValueError: no database"})
        raise ValueError("no database")

    error = await start_fails(lifespan_app(failing))
    assert str(error) == "the application could not start: ValueError: no database"
    assert isinstance(error.__cause__, ValueError)


async def test_an_application_that_failed_has_a_second_to_return(autojump_clock):
    """After startup.failed the application may clean up for one second, and is then cancelled."""
    cleaned = []

    async def failing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})
        await trio.sleep(0.5)
        cleaned.append("in time")
        try:
            await trio.sleep_forever()
        finally:
            cleaned.append("cancelled")

    start = trio.current_time()
    error = await start_fails(lifespan_app(failing))
    assert str(error) == "the application could not start: no"
    assert trio.current_time() - start == 1
    assert cleaned == ["in time", "cancelled"]


async def test_returning_during_start_up_is_an_error(autojump_clock):
    """An application that received startup and returns without an answer has not started."""

    async def returns(scope, receive, send):
        await receive()

    error = await start_fails(lifespan_app(returns))
    assert str(error) == "the application's lifespan returned during start-up"


async def test_system_exit_in_start_up_is_an_error_and_no_exit(autojump_clock):
    """sys.exit() in the lifespan stops the start with an error of ours, with the SystemExit as cause."""

    async def leaves(scope, receive, send):
        await receive()
        raise SystemExit(7)

    error = await start_fails(lifespan_app(leaves))
    assert str(error) == "the application's lifespan raised during start-up: SystemExit: 7"
    assert isinstance(error.__cause__, SystemExit)


async def test_keyboard_interrupt_in_the_lifespan_passes(autojump_clock):
    """Ctrl-C that strikes in the lifespan ends the program as Trio would: it is no error of the application."""

    async def interrupted(scope, receive, send):
        await receive()
        raise KeyboardInterrupt

    with nothing_left(), pytest.raises(BaseExceptionGroup) as caught:
        await serve(lifespan_app(interrupted), listeners=[MemoryListener()])
    assert caught.group_contains(KeyboardInterrupt)
    assert caught.value.split(KeyboardInterrupt)[1] is None


async def test_a_failed_start_up_makes_no_handle(autojump_clock):
    """nursery.start raises the error of the start; there is no half-built server."""

    async def broken(scope, receive, send):
        await receive()
        raise ValueError("no")

    recorder = Recorder()
    with nothing_left(), pytest.raises(LifespanError, match="no$"):
        async with memory_server(lifespan_app(broken), recorder=recorder):
            pytest.fail("there is a handle")
    assert recorder.phases == [Phase.STARTING, Phase.STOPPING, Phase.STOPPED]


# Messages that do not fit


@pytest.mark.parametrize(
    ("received", "message", "text"),
    [
        (0, "lifespan.shutdown.complete", "before lifespan.startup was received"),
        (1, "lifespan.shutdown.complete", "during start-up"),
        (1, "lifespan.shutdown.failed", "during start-up"),
        (1, "http.response.start", "during start-up"),
    ],
)
async def test_a_message_that_does_not_fit_raises_in_the_application(autojump_clock, received, message, text):
    """send() raises MessageError for a message of the wrong kind or at the wrong point, and says when it came."""
    raised = []

    async def wrong(scope, receive, send):
        for _ in range(received):
            await receive()
        try:
            await send({"type": message})
        except MessageError as error:
            raised.append(str(error))
        if not received:
            await receive()
        await send(COMPLETE)
        await receive()

    async with memory_server(lifespan_app(wrong)) as server:
        assert await get(server) == b"Hi"
    assert raised == [f"a message of type {message!r} does not fit {text}"]


async def test_messages_that_do_not_fit_while_serving_and_later(autojump_clock):
    """A second startup.complete, and one during or after shutdown, raise in the application."""
    raised = []

    async def wrong(scope, receive, send):
        async def attempt(kind):
            with pytest.raises(MessageError) as caught:
                await send({"type": kind})
            raised.append(str(caught.value))

        await receive()
        await send(COMPLETE)
        await attempt("lifespan.startup.complete")
        await attempt("lifespan.startup.failed")
        await receive()
        await attempt("lifespan.startup.complete")
        await send({"type": "lifespan.shutdown.complete"})
        await attempt("lifespan.shutdown.complete")

    async with memory_server(lifespan_app(wrong)):
        pass
    assert raised == [
        "a message of type 'lifespan.startup.complete' does not fit while serving",
        "a message of type 'lifespan.startup.failed' does not fit while serving",
        "a message of type 'lifespan.startup.complete' does not fit during shutdown",
        "a message of type 'lifespan.shutdown.complete' does not fit after shutdown was complete",
    ]


async def test_messages_that_do_not_fit_after_a_failure(autojump_clock):
    """After startup.failed there is nothing more to say."""
    raised = []

    async def wrong(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed"})
        with pytest.raises(MessageError) as caught:
            await send(COMPLETE)
        raised.append(str(caught.value))

    await start_fails(lifespan_app(wrong))
    assert raised == ["a message of type 'lifespan.startup.complete' does not fit after it said that it failed"]


async def test_a_message_without_a_type_raises_in_the_application(autojump_clock):
    """A message must have a type that is a text."""

    async def wrong(scope, receive, send):
        await receive()
        await send({})

    error = await start_fails(lifespan_app(wrong))
    assert isinstance(error.__cause__, MessageError)
    assert "'type' must be str, not nothing" in str(error)


async def test_start_up_may_be_complete_without_a_receive(autojump_clock):
    """An application that sends startup.complete without having asked has started."""

    async def eager(scope, receive, send):
        await send(COMPLETE)
        await receive()

    async with memory_server(lifespan_app(eager)) as server:
        assert await get(server) == b"Hi"


# While serving


@pytest.mark.parametrize("raises", [True, False])
async def test_a_lifespan_that_ends_while_serving_drains_and_fails(autojump_clock, raises):
    """Running requests finish, then serve() raises LifespanError, with what the application raised as its cause."""
    end, begun = trio.Event(), trio.Event()
    recorder = Recorder()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send(COMPLETE)
            await end.wait()
            if raises:
                raise ValueError("lost the database")
            return
        begun.set()
        await trio.sleep(5)
        await send_text(send, "finished")

    with nothing_left(), pytest.raises(LifespanError) as caught:
        async with memory_server(app, recorder=recorder) as server, trio.open_nursery() as nursery:
            client = await server.connect()

            @nursery.start_soon
            async def stop():
                await begun.wait()
                end.set()

            answer = await client.get()
            assert answer.body == b"finished"
            assert answer.headers[b"connection"] == b"close"
            await trio.sleep(1)
    error = caught.value
    what = "raised while serving: ValueError: lost the database" if raises else "returned while serving"
    assert str(error) == f"the application's lifespan {what}"
    assert isinstance(error.__cause__, ValueError) is raises
    assert recorder.phases == [Phase.STARTING, Phase.SERVING, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]


async def test_a_lifespan_that_raises_right_after_start_up_fails(autojump_clock):
    """One that ends in the same step in which it said complete never gets a server."""

    async def hasty(scope, receive, send):
        await receive()
        await send(COMPLETE)
        raise ValueError("no")

    error = await start_fails(lifespan_app(hasty))
    assert str(error) == "the application's lifespan raised while serving: ValueError: no"


# Shutdown


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
async def test_shutdown_comes_after_the_last_handler(autojump_clock, how):
    """lifespan.shutdown comes strictly after the last handler's finally, when stopped and when cancelled."""
    events = []
    begun = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send(COMPLETE)
            events.append((await receive())["type"])
            await trio.sleep(3)
            events.append("shut down")
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            begun.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            events.append("handler's finally")

    with nothing_left():
        async with memory_server(app, timeout_graceful_shutdown=4) as server:
            client = await server.connect()
            await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await begun.wait()
            start = trio.current_time()
            if how == "shutdown":
                server.server.shutdown()
                await trio.sleep(60)
                assert events
    assert events == ["handler's finally", "lifespan.shutdown", "shut down"]
    if how == "cancel":
        assert trio.current_time() - start == 5


async def test_shutdown_has_a_deadline(autojump_clock):
    """An application that does not shut down within timeout_shutdown is cancelled, and serve() raises."""
    listener = MemoryListener()

    async def endless(scope, receive, send):
        await receive()
        await send(COMPLETE)
        await receive()
        await trio.sleep_forever()

    with nothing_left(), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            start = partial(serve, lifespan_app(endless), listeners=[listener], timeout_shutdown=4)
            server = await nursery.start(start)
            began = trio.current_time()
            server.shutdown()
    (error,) = caught.value.exceptions
    assert isinstance(error, LifespanError)
    assert str(error) == "the application did not shut down within 4 s"
    assert trio.current_time() - began == 4


async def test_shutdown_is_complete_when_the_application_says_so(autojump_clock):
    """After shutdown.complete an application that does not return is cancelled at the deadline, without an error."""

    async def lingering(scope, receive, send):
        await receive()
        await send(COMPLETE)
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        await trio.sleep_forever()

    start = trio.current_time()
    with nothing_left():
        async with memory_server(lifespan_app(lingering), timeout_shutdown=4):
            pass
    assert trio.current_time() - start == 4


async def test_returning_after_shutdown_without_an_answer_is_fine(autojump_clock):
    """An application may simply return when it got lifespan.shutdown."""

    async def silent(scope, receive, send):
        await receive()
        await send(COMPLETE)
        await receive()

    async with memory_server(lifespan_app(silent)) as server:
        server.server.shutdown()
        await trio.sleep(1)


@pytest.mark.parametrize(
    ("message", "text"),
    [({"message": "x\nno\n"}, "no"), ({}, "it gave no reason"), ({"message": ""}, "it gave no reason")],
)
async def test_shutdown_failed_is_an_error(autojump_clock, message, text):
    """lifespan.shutdown.failed makes serve() raise, with the last line of its message."""

    async def failing(scope, receive, send):
        await receive()
        await send(COMPLETE)
        await receive()
        await send({"type": "lifespan.shutdown.failed", **message})

    with pytest.raises(LifespanError) as caught:
        async with memory_server(lifespan_app(failing)) as server:
            server.server.shutdown()
            await trio.sleep(1)
    error = caught.value
    assert str(error) == f"the application could not shut down: {text}"


async def test_raising_in_shutdown_is_an_error(autojump_clock):
    """What the application raises while it shuts down is the cause of serve()'s error."""

    async def failing(scope, receive, send):
        await receive()
        await send(COMPLETE)
        await receive()
        raise ValueError("cannot close")

    with pytest.raises(LifespanError) as caught:
        async with memory_server(lifespan_app(failing)) as server:
            server.server.shutdown()
            await trio.sleep(1)
    error = caught.value
    assert str(error) == "the application's lifespan raised during shutdown: ValueError: cannot close"
    assert isinstance(error.__cause__, ValueError)


async def test_shutdown_failed_and_then_raised(autojump_clock):
    """Starlette sends shutdown.failed and raises: the message is the text, the exception the cause."""

    async def failing(scope, receive, send):
        await receive()
        await send(COMPLETE)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "cannot close"})
        raise ValueError("cannot close")

    with pytest.raises(LifespanError) as caught:
        async with memory_server(lifespan_app(failing)) as server:
            server.server.shutdown()
            await trio.sleep(1)
    error = caught.value
    assert str(error) == "the application could not shut down: cannot close"
    assert isinstance(error.__cause__, ValueError)


async def test_a_lifespan_that_uses_tasks_is_cancelled_with_them(autojump_clock):
    """The nursery an application holds open in its lifespan runs while serving, and ends before serve() does."""
    ticks = []

    async def with_tasks(scope, receive, send):
        async def tick():
            while True:
                await trio.sleep(1)
                ticks.append(trio.current_time())

        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await send(COMPLETE)
            await receive()
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async with memory_server(lifespan_app(with_tasks)):
        await trio.sleep(3.5)
    assert len(ticks) == 3


async def test_serving_does_not_depend_on_the_kind_of_application(autojump_clock):
    """The tests' own two kinds of application have a lifespan that passes with on."""
    for app in (respond(), http_app(None)):
        async with memory_server(app, lifespan="on"):
            pass
