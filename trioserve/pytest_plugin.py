"""The pytest fixtures.

pytest loads this in every run of everyone who has trioserve installed. So nothing else of trioserve is imported before
a fixture is used, and until then the hooks do nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from .testing import OpenMemoryServer, OpenTrioServer, ServeApp
    from .testing.stuck import ServerStuckError
    from .testing.watch import Watch
    from .types import AnyValue

T = TypeVar("T")

_WATCH = pytest.StashKey["Watch"]()
_ASYNC_FIXTURES = ("trio_server", "memory_server")


@pytest.fixture
def serve_app(pytestconfig: pytest.Config) -> Iterator[ServeApp]:
    """Serve ASGI applications on real ports, in threads of their own: ``server = serve_app(app, **options)``.

    ``server.url`` says where. Each is stopped after the test. An exception in the application fails the test, unless
    ``allow_errors=True``; ``tls=True`` makes a certificate.
    """
    with _watch(pytestconfig).threads() as serve:
        yield serve


@pytest.fixture(scope="session")
def serve_app_session(pytestconfig: pytest.Config) -> Iterator[ServeApp]:
    """As serve_app, until the end of the session; for fixtures of a wider scope than one test."""
    with _watch(pytestconfig).threads() as serve:
        yield serve


@pytest.fixture
async def trio_server(pytestconfig: pytest.Config) -> AsyncIterator[OpenTrioServer]:
    """Serve ASGI applications in the test's own Trio loop: ``server = await trio_server(app, **options)``.

    For tests that run on Trio, by pytest-trio or by anyio's plugin.
    """
    _require_trio("trio_server")
    from .testing import open_server  # noqa: PLC0415 - see above

    async with _watch(pytestconfig).tasks(open_server) as serve:
        yield serve


@pytest.fixture
async def memory_server(pytestconfig: pytest.Config) -> AsyncIterator[OpenMemoryServer]:
    """As trio_server, over memory streams, for tests in virtual time: ``server = await memory_server(app)``."""
    _require_trio("memory_server")
    from .testing import memory_server  # noqa: PLC0415 - see above

    async with _watch(pytestconfig).tasks(memory_server) as serve:
        yield serve


def _watch(config: pytest.Config) -> Watch:
    from .testing.watch import Watch  # noqa: PLC0415 - see above

    if _WATCH not in config.stash:
        config.stash[_WATCH] = Watch(partial(_show_last_words, config))
    return config.stash[_WATCH]


def _show_last_words(config: pytest.Config, stuck: ServerStuckError) -> None:
    """Show on the terminal what no report ever will, as the event loop of the test cannot end."""
    from .testing.trio_server import LAST_WORDS  # noqa: PLC0415 - see above

    capture: AnyValue = config.pluginmanager.getplugin("capturemanager")
    with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
        print(f"\n{stuck}\n\n{LAST_WORDS}", file=sys.stderr, flush=True)  # noqa: T201 - the terminal is meant


def _require_trio(fixture: str) -> None:
    import trio  # noqa: PLC0415 - see above

    if not trio.lowlevel.in_trio_run():
        pytest.fail(
            f"{fixture} serves in the test's own Trio loop, and this test runs on another one. "
            "Let it run on Trio (with anyio: an anyio_backend fixture that returns 'trio'; pytest-asyncio must not be "
            "in its auto mode), or use serve_app.",
            pytrace=False,
        )


@pytest.hookimpl(specname="pytest_runtest_setup")
def pytest_refuse_without_loop(item: pytest.Item) -> None:
    """Say what to do about a test without an event loop that asks for a server in its event loop."""
    # Not in pytest_fixture_setup: pytest 9 cannot use a fixture again whose set-up was refused there.
    function = getattr(item, "function", None)
    test = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if test is None or (inspect.iscoroutinefunction(test) and _has_runner(item)):
        return
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    is_marked_wrong = inspect.iscoroutinefunction(test)
    what = "marked for neither: use @pytest.mark.trio" if is_marked_wrong else "not async: use serve_app"
    for name in _ASYNC_FIXTURES:
        if name in known and known[name][-1].func.__module__ == __name__:
            pytest.fail(
                f"{name} is for async tests that run on Trio, by pytest-trio or by anyio's plugin, and {item.name} is "
                f"{what}.",
                pytrace=False,
            )


def _has_runner(item: pytest.Item) -> bool:
    return item.get_closest_marker("trio") is not None or "anyio_backend" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, T, T]:
    __tracebackhide__ = True
    return (yield from _look_for_errors(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    __tracebackhide__ = True
    return (yield from _look_for_errors(item, "call"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, T, T]:
    __tracebackhide__ = True
    return (yield from _look_for_errors(item, "teardown"))


def _look_for_errors(item: pytest.Item, when: str) -> Generator[None, T, T]:
    """Let an error of an application fail the phase in which it happened, or explain why that has failed."""
    __tracebackhide__ = True
    try:
        result = yield
    except BaseException as error:  # pytest.fail() raises one that is no Exception
        watch = item.config.stash.get(_WATCH, None)
        if watch is not None:
            _explain(watch, item, when, error)
        raise
    watch = item.config.stash.get(_WATCH, None)
    if watch is not None:
        # A TestCase of unittest raises nothing; pytest takes what has happened in it from there, and later.
        outcomes = getattr(item, "_excinfo", None)
        if outcomes:
            _explain(watch, item, when, outcomes[0].value)
        else:
            watch.raise_errors()
    return result


def _explain(watch: Watch, item: pytest.Item, when: str, error: BaseException) -> None:
    """Show what has gone wrong in applications beside an error that a test has raised."""
    __tracebackhide__ = True
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
    if group.subgroup(KeyboardInterrupt) is not None:
        watch.is_interrupted = True
        if group is error:
            # pytest would take a group for an error like any other, and go on.
            raise KeyboardInterrupt from error
    elif isinstance(error, pytest.skip.Exception):
        try:
            watch.raise_errors()  # which a skip must not hide
        except BaseException:
            if getattr(item, "_excinfo", None):
                item._excinfo = None  # type: ignore[attr-defined]  # else pytest would take that of the TestCase
            raise
    else:
        text = watch.describe_errors()
        if text:
            item.add_report_section(when, "errors in the application", text)
