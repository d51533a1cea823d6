"""The fixtures trio_server and memory_server, with pytest-trio and with anyio's plugin; as users see it."""

import re
from dataclasses import dataclass

import pytest

from .pytest_runs import Project, shows_only_the_application, trace_of, without_message


@dataclass(frozen=True)
class Loop:
    """A way to run async tests on Trio; ``test_includes_fixtures``: set-up and teardown belong to the test's call."""

    mark: str
    preamble: str = ""
    option: str = ""
    test_includes_fixtures: bool = False


TRIO_MARK = "@pytest.mark.trio\n"
ANYIO_MARK = "@pytest.mark.anyio\n"
BACKEND = """
@pytest.fixture{scope}
def anyio_backend():
    return {name}

"""

LOOPS = {
    "pytest-trio, mode": Loop(mark="", option="trio_mode = true", test_includes_fixtures=True),
    "pytest-trio, mark": Loop(mark=TRIO_MARK, test_includes_fixtures=True),
    "anyio, name": Loop(mark=ANYIO_MARK, preamble=BACKEND.format(scope="", name="'trio'")),
    "anyio, tuple": Loop(mark=ANYIO_MARK, preamble=BACKEND.format(scope="", name="('trio', {})")),
    "anyio, module": Loop(mark=ANYIO_MARK, preamble=BACKEND.format(scope="(scope='module')", name="'trio'")),
    "anyio, mode": Loop(
        mark="", preamble=BACKEND.format(scope="(scope='session')", name="'trio'"), option="anyio_mode = auto"
    ),
}


class LoopProject(Project):
    """A project whose async tests run so; ``@loop`` stands for the mark."""

    loop: Loop

    def write_test(self, text: str) -> None:
        super().write_test(self.loop.preamble + text.replace("@loop\n", self.loop.mark))

    def trace(self, result: pytest.RunResult, test: str, *, phase: str = "call") -> str:
        """What is shown of the failure of this test, whichever phase its fixtures belong to."""
        belongs_to_call = phase == "call" or self.loop.test_includes_fixtures
        return trace_of(result, test if belongs_to_call else f"ERROR at {phase} of {test}")


@pytest.fixture(params=LOOPS)
def project(request, pytester, monkeypatch):
    project = LoopProject(pytester, monkeypatch)
    project.loop = LOOPS[request.param]
    project.add_option(project.loop.option)
    return project


@pytest.fixture
def plain(pytester, monkeypatch):
    return Project(pytester, monkeypatch)


def expect(project, result, *, passed=0, failed=0, broken_fixtures=0):
    """``broken_fixtures``: tests whose set-up failed, which count as failed or as errors."""
    if project.loop.test_includes_fixtures:
        result.assert_outcomes(passed=passed, failed=failed + broken_fixtures)
    else:
        result.assert_outcomes(passed=passed, failed=failed, errors=broken_fixtures)


def test_servers_in_the_loop_of_the_test(project):
    """trio_server serves on real ports in the test's own loop, any number of servers, until the test ends."""
    result = project.run(
        """
servers = []

@loop
async def test_it(trio_server):
    here = trio.lowlevel.current_root_task()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        assert trio.lowlevel.current_root_task() is here
        await answer(send)

    for _ in range(2):
        servers.append(await trio_server(app))
    servers.append(await trio_server("apps:app", tls=True))
    servers.append(await trio_server("apps:create", factory=True))
    for server in servers:
        assert await fetch(server) == (200, b"hello")
        assert [request.path for request in server.requests] == ["/"]

@loop
async def test_next():
    for server in servers:
        with pytest.raises(OSError):
            await server.connect()
"""
    )
    result.assert_outcomes(passed=2)


def test_memory_streams(project):
    """memory_server serves without any socket."""
    result = project.run(
        """
@loop
async def test_it(memory_server, trio_server):
    server = await memory_server(app)
    assert await fetch(server) == (200, b"hello")
    assert await fetch(await trio_server(app)) == (200, b"hello")
    assert server.port == 0
"""
    )
    result.assert_outcomes(passed=1)


def test_fixtures_of_the_users(project):
    """Fixtures can be built on trio_server, async ones and plain ones."""
    result = project.run(
        """
@pytest.fixture
async def server(trio_server):
    server = await trio_server(app)
    yield server
    assert await fetch(server) == (200, b"hello")

@pytest.fixture
def start(trio_server):
    return lambda: trio_server(app)

@loop
async def test_it(server, start):
    assert await fetch(server) == (200, b"hello")
    assert await fetch(await start()) == (200, b"hello")

class TestClass:
    @pytest.mark.parametrize("path", ["/", "/?a"])
    @loop
    async def test_method(self, server, path):
        assert await fetch(server, path) == (200, b"hello")
""".replace("    @loop\n", "    " + (project.loop.mark or "# no mark\n"))
    )
    result.assert_outcomes(passed=3)


def test_an_error_in_the_application_fails_the_test(project):
    """The test fails with the application's error and its own frames only, whichever fixture serves."""
    result = project.run(
        """
@loop
async def test_it(trio_server):
    await fetch(await trio_server(app), "/broken")

@loop
async def test_memory(memory_server):
    await fetch(await memory_server(app), "/broken")

@loop
async def test_failing(trio_server):
    assert await fetch(await trio_server(app), "/broken") == (200, b"hello")

@loop
async def test_allowed(trio_server, memory_server):
    await fetch(await trio_server(app, allow_errors=True), "/broken")
    server = await memory_server(app)
    await fetch(server, "/broken")
    server.errors.clear()

@loop
async def test_checks(trio_server):
    await fetch(await trio_server(checks))

async def checks(scope, receive, send):
    assert scope["type"] == "http"
    found = {"books": 2}
    assert found == {"books": 3}
"""
    )
    result.assert_outcomes(passed=1, failed=4)
    for test in ("test_it", "test_memory"):
        trace = trace_of(result, test)
        assert '>       raise ValueError("the shelf is empty")' in trace
        assert "E       raised in the application by GET /broken HTTP/1.1" in trace
        assert shows_only_the_application(trace)
    assert "AssertionError: assert (500, " in trace_of(result, "test_failing")
    result.stdout.fnmatch_lines(["*- Captured errors in the application call -*", "ValueError: the shelf is empty"])
    assert "E       AssertionError: assert {'books': 2} == {'books': 3}" in trace_of(result, "test_checks")
    assert shows_only_the_application(trace_of(result, "test_checks"))


def test_an_error_in_a_fixture(project):
    """What a fixture of the user's provokes fails the test that uses it."""
    result = project.run(
        """
@pytest.fixture
async def server(trio_server):
    server = await trio_server(app)
    await fetch(server, "/broken")
    return server

@loop
async def test_it(server): ...
"""
    )
    expect(project, result, broken_fixtures=1)
    trace = project.trace(result, "test_it", phase="setup")
    assert "E       ValueError: the shelf is empty" in trace
    assert shows_only_the_application(trace)


def test_an_error_after_the_test(project):
    """What a handler raises while the server stops fails the test."""
    result = project.run(
        """
async def at_the_end(scope, receive, send):
    assert scope["type"] == "http"
    try:
        reached.set()
        await trio.sleep_forever()
    except trio.Cancelled:
        raise ValueError("clean-up failed") from None

@loop
async def test_it(trio_server):
    server = await trio_server(at_the_end, timeout_graceful_shutdown=0.1)
    stream = await server.connect()
    await stream.send_all(b"GET / HTTP/1.1\\r\\nHost: test\\r\\n\\r\\n")
    while not reached.is_set():
        await trio.sleep(0.001)
"""
    )
    if project.loop.test_includes_fixtures:
        result.assert_outcomes(failed=1)
    else:
        result.assert_outcomes(passed=1, errors=1)
    trace = project.trace(result, "test_it", phase="teardown")
    assert "ValueError: clean-up failed" in trace
    assert shows_only_the_application(trace)


def test_a_failing_start(project):
    """The call raises why the application does not start, with the application's trace and no more; all goes on."""
    result = project.run(
        """
@loop
async def test_it(trio_server):
    await trio_server(no_start)

@loop
async def test_memory(memory_server):
    await memory_server("appz:app")

@loop
async def test_caught(trio_server, memory_server):
    for serve in (trio_server, memory_server):
        with pytest.raises(Exception, match="no database") as caught:
            await serve(no_start)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert await fetch(await serve(app)) == (200, b"hello")
"""
    )
    result.assert_outcomes(passed=1, failed=2)
    trace = trace_of(result, "test_it")
    assert 'raise RuntimeError("no database")' in trace
    assert "await trio_server(no_start)" in trace
    assert "LifespanError: the application's lifespan raised during start-up: RuntimeError: no database" in trace
    assert "trioserve/" not in trace
    trace = trace_of(result, "test_memory")
    assert "AppLoadError: there is no module 'appz' in" in trace
    assert "did you mean 'apps:app'?" in trace
    assert "trioserve/" not in trace


def test_a_start_that_is_given_up(project):
    """A start that the test cancels ends with the test, and leaves nothing."""
    result = project.run(
        """
async def slow(scope, receive, send):
    await receive()
    await trio.sleep_forever()

@loop
async def test_it(trio_server):
    with trio.move_on_after(0.1) as scope:
        await trio_server(slow)
    assert scope.cancelled_caught
"""
    )
    result.assert_outcomes(passed=1)


def test_a_failing_end(project):
    """A server that cannot shut down fails the test, and keeps no other from its end."""
    result = project.run(
        """
servers = []

@loop
async def test_it(trio_server):
    for one in (app, no_shutdown, app):
        servers.append(await trio_server(one))

@loop
async def test_next():
    for server in servers:
        with pytest.raises(OSError):
            await server.connect()
"""
    )
    if project.loop.test_includes_fixtures:
        result.assert_outcomes(passed=1, failed=1)
    else:
        result.assert_outcomes(passed=2, errors=1)
    trace = project.trace(result, "test_it", phase="teardown")
    assert "RuntimeError: the database is gone" in trace
    assert "LifespanError: the application's lifespan raised during shutdown" in trace
    assert shows_only_the_application(trace.replace("trioserve.errors", ""))


def test_a_handler_that_does_not_end(project):
    """A handler that shields itself for ever fails its test with the task tree, and the run goes on."""
    result = project.run(
        """
@loop
async def test_it(trio_server):
    clocks = dict(timeout_graceful_shutdown=0.1, timeout_hard_shutdown=0.1, timeout_shutdown=0.1)
    await (await trio_server(app, **clocks)).client_gone("/shielded")

@loop
async def test_next(trio_server):
    assert await fetch(await trio_server(app)) == (200, b"hello")
"""
    )
    if project.loop.test_includes_fixtures:
        result.assert_outcomes(passed=1, failed=1)
    else:
        result.assert_outcomes(passed=2, errors=1)
    trace = project.trace(result, "test_it", phase="teardown")
    assert re.search(r"ServerStuckError: the server has not ended [\d.]+ s after it was told to stop", trace)
    assert "Tasks, each with where it waits" in trace
    assert re.search(r"apps\.py:\d+ in shielded", trace)


def test_the_trace_of_a_handler_that_does_not_end(project):
    """What is shown of a server that is stuck is its task tree, and no code of the server's."""
    result = project.run(
        """
@loop
async def test_it(trio_server):
    clocks = dict(timeout_graceful_shutdown=0.1, timeout_hard_shutdown=0.1, timeout_shutdown=0.1)
    await (await trio_server(app, **clocks)).client_gone("/shielded")
"""
    )
    trace = project.trace(result, "test_it", phase="teardown")
    assert shows_only_the_application(without_message(trace))


def test_a_test_that_is_cancelled(project):
    """A test that fails in the middle of requests fails as itself, and its servers end."""
    result = project.run(
        """
@loop
async def test_it(trio_server):
    server = await trio_server(app, timeout_graceful_shutdown=0.1)
    with trio.fail_after(0.1):
        await fetch(server, "/forever")
"""
    )
    result.assert_outcomes(failed=1)
    assert "trio.TooSlowError" in trace_of(result, "test_it")


# Virtual time


def test_virtual_time_with_pytest_trio(plain):
    """With autojump_clock an hour passes at once."""
    result = plain.run(
        """
@pytest.mark.trio
async def test_it(memory_server, autojump_clock):
    server = await memory_server(app, timeout_keep_alive=3600)
    stream = await server.connect()
    await stream.send_all(b"GET / HTTP/1.1\\r\\nHost: test\\r\\n\\r\\n")
    before = trio.current_time()
    while await stream.receive_some(1000):
        pass
    assert 3600 <= trio.current_time() - before < 3700
"""
    )
    result.assert_outcomes(passed=1)


def test_virtual_time_with_anyio(plain):
    """anyio takes the clock among the options of its backend."""
    result = plain.run(
        """
import trio.testing

@pytest.fixture
def anyio_backend():
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}

@pytest.mark.anyio
async def test_it(memory_server):
    server = await memory_server(app, timeout_keep_alive=3600)
    stream = await server.connect()
    await stream.send_all(b"GET / HTTP/1.1\\r\\nHost: test\\r\\n\\r\\n")
    while await stream.receive_some(1000):
        pass
    assert trio.current_time() >= 3600
"""
    )
    result.assert_outcomes(passed=1)


def test_hypothesis_with_pytest_trio(plain):
    """pytest-trio gives each example servers of its own."""
    result = plain.run(
        """
from hypothesis import HealthCheck, given, settings, strategies

@pytest.mark.trio
@given(number=strategies.integers())
@settings(
    max_examples=5, database=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_it(trio_server, number):
    assert await fetch(await trio_server(app)) == (200, b"hello")
"""
    )
    result.assert_outcomes(passed=1)


# Tests that do not run on Trio


NOT_ASYNC = {
    "function": "def test_it({fixture}): ...",
    "fixture": "@pytest.fixture\ndef server({fixture}): ...\n\ndef test_it(server): ...",
    "mark": "@pytest.mark.usefixtures('{fixture}')\ndef test_it(): ...",
    "hypothesis": (
        "from hypothesis import HealthCheck, given, settings, strategies\n\n"
        "@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])\n"
        "@given(number=strategies.integers())\ndef test_it({fixture}, number): ..."
    ),
    "unittest": (
        "import unittest\n\nclass TestIt(unittest.TestCase):\n    @pytest.fixture(autouse=True)\n"
        "    def serve(self, {fixture}): ...\n    def test_it(self): ..."
    ),
}


@pytest.mark.parametrize("fixture", ["trio_server", "memory_server"])
@pytest.mark.parametrize("kind", NOT_ASYNC)
def test_a_test_that_is_not_async(plain, kind, fixture):
    """A test without an event loop is told to use serve_app, each time; tests that may have the server still do."""
    plain.configure("addopts = -p no:cacheprovider -p no:randomly")
    text = NOT_ASYNC[kind].format(fixture=fixture)
    again = f"def test_again({fixture}): ...\n\n@pytest.mark.trio\nasync def test_async({fixture}): ..."
    result = plain.run(f"{text}\n\n{again}\n")
    result.assert_outcomes(errors=2, passed=1)
    for test in ("test_it", "test_again"):
        result.stdout.fnmatch_lines(
            f"{fixture} is for async tests that run on Trio, by pytest-trio or by anyio's plugin, "
            f"and {test} is not async: use serve_app."
        )
    result.stdout.no_fnmatch_line("*pytest_plugin*")


@pytest.mark.parametrize("fixture", ["trio_server", "memory_server"])
def test_a_test_on_asyncio(plain, fixture):
    """A test that anyio runs on asyncio is told how to run it on Trio; on Trio it passes."""
    result = plain.run(f"@pytest.mark.anyio\nasync def test_it({fixture}, anyio_backend): ...")
    result.assert_outcomes(errors=1, passed=1)
    assert "ERROR at setup of test_it[asyncio]" in result.stdout.str()
    result.stdout.fnmatch_lines(
        f"{fixture} serves in the test's own Trio loop, and this test runs on another one. Let it run on Trio "
        "(with anyio: an anyio_backend fixture that returns 'trio'; pytest-asyncio must not be in its auto mode), "
        "or use serve_app."
    )
    result.stdout.no_fnmatch_line("*pytest_plugin*")


def test_a_forgotten_mark_concerns_one_test(plain):
    """An async test that no plugin runs says so, and the tests after it can have their servers."""
    result = plain.run(
        """
async def test_forgotten(trio_server): ...

@pytest.mark.trio
async def test_it(trio_server):
    assert await fetch(await trio_server(app)) == (200, b"hello")
"""
    )
    outcomes = result.parseoutcomes()
    assert outcomes.pop("passed") == 1
    assert outcomes in ({"errors": 1}, {"error": 1}, {"failed": 1})
    result.stdout.fnmatch_lines(["trio_server is for async tests that run on Trio*test_forgotten*"])


def test_an_own_fixture_of_the_same_name(plain):
    """A fixture of the user's that has the name of one of ours takes its place, in sync tests, too."""
    result = plain.run(
        """
@pytest.fixture
def memory_server():
    return "mine"

@pytest.fixture
def serve_app():
    return "mine, too"

def test_it(memory_server, serve_app):
    assert (memory_server, serve_app) == ("mine", "mine, too")

class TestClass:
    @pytest.fixture
    def trio_server(self):
        return "of the class"

    def test_method(self, trio_server):
        assert trio_server == "of the class"

@pytest.fixture
async def trio_server(trio_server):
    server = await trio_server(app)
    return server

@pytest.mark.trio
async def test_extended(trio_server):
    assert await fetch(trio_server) == (200, b"hello")
"""
    )
    result.assert_outcomes(passed=3)
