"""Whole runs of pytest with the plugin: what it imports and changes, Ctrl-C, stuck servers, options, many processes."""

import random
import signal

import pytest

from .programs import start
from .pytest_runs import Project, shows_only_the_application, trace_of, without_message
from .support import LINUX

linux_only = pytest.mark.skipif(not LINUX, reason="reads /proc")


@pytest.fixture
def project(pytester, monkeypatch):
    return Project(pytester, monkeypatch)


# What a run without servers notices


def test_nothing_is_imported_before_a_fixture_is_used(project):
    """Where no server is asked for, only the plugin and the package's empty top are imported."""
    project.write(
        "test_it.py",
        """
        import sys

        import pytest

        OURS = {"trioserve", "trioserve.pytest_plugin"}
        THEIRS = {"trio", "h11", "wsproto", "trio_websocket", "trustme", "click"}

        def imported():
            return {name for name in sys.modules if name.partition(".")[0] == "trioserve" or name in THEIRS}

        def test_passing():
            assert imported() == OURS

        @pytest.fixture
        def broken():
            raise RuntimeError

        @pytest.mark.xfail
        def test_failing(broken): ...

        @pytest.mark.skip
        def test_skipped(): ...

        def test_asking(tmp_path, request):
            assert imported() == OURS
            request.getfixturevalue("serve_app")
            assert {"trio", "trioserve.testing"} < imported()
        """,
    )
    result = project.run_apart(None, "-p", "no:trio", "-p", "no:anyio", "-p", "no:randomly")
    result.assert_outcomes(passed=2, xfailed=1, skipped=1)


def test_a_run_without_the_plugin(project):
    """-p no:trioserve takes all of it away."""
    result = project.run("def test_it(serve_app): ...\ndef test_other(): ...", "-p", "no:trioserve")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E       fixture 'serve_app' not found"])


def test_collection_starts_nothing(project):
    """--collect-only starts no server, and shows the tests."""
    result = project.run("def test_it(serve_app, trio_server): serve_app(no_start)", "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_it.py::test_it"])


def test_the_fixtures_are_explained(project):
    """pytest --fixtures says of each what it is for, and how it is called."""
    result = project.run("", "--fixtures")
    result.stdout.fnmatch_lines(
        [
            "serve_app -- *trioserve/pytest_plugin.py:*",
            "    Serve ASGI applications on real ports*``server = serve_app(app, [*][*]options)``.",
            "serve_app_session [[]session scope[]] -- *",
            "    As serve_app, until the end of the session*",
            "trio_server -- *",
            "    Serve ASGI applications in the test's own Trio loop*``server = await trio_server(app, *options)``.",
            "memory_server -- *",
            "    As trio_server, over memory streams*``server = await memory_server(app)``.",
        ]
    )


def test_the_set_up_is_shown(project):
    """--setup-show works with all fixtures."""
    result = project.run(
        """
        def test_it(serve_app, serve_app_session): serve_app(app)

        @pytest.mark.trio
        async def test_async(trio_server, memory_server): await trio_server(app)
        """,
        "--setup-show",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["SETUP    S serve_app_session*", "*SETUP    F serve_app*", "*TEARDOWN F serve_app"])


# The end of a run


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_a_run_that_stops_at_its_first_failure(project, option):
    """-x and --maxfail stop at an error of the application, and the session's servers end, with their errors shown."""
    result = project.run(
        """
        @pytest.fixture(scope="session")
        def server(serve_app_session):
            return serve_app_session(no_shutdown)

        def test_one(server, serve_app):
            assert get(server) == (200, b"hello")
            get(serve_app(app), "/broken")

        def test_two(server): ...
        """,
        option,
    )
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: the database is gone", "*- ValueError: the shelf is empty"])
    result.stdout.fnmatch_lines(["*stopping after * failures*"])


@linux_only
def test_a_run_leaves_and_changes_nothing(project):
    """Threads, descriptors, signals, environment, path, hooks, loggers, warnings and files are after it as before."""
    project.watch_for_changes()
    result = project.run_apart(
        """
        @pytest.fixture(scope="session")
        def server(serve_app_session):
            return serve_app_session("apps:app", tls=True)

        @pytest.mark.parametrize("path", ["/", "/broken", "/forever"])
        def test_it(server, serve_app, path):
            for one in (serve_app(app, timeout_graceful_shutdown=0, allow_errors=True), serve_app(app, uds="socket")):
                one.client_gone(path)
            assert get(server) == (200, b"hello")

        def test_not_starting(serve_app):
            for wrong in (no_start, "appz:app", "apps:nothing"):
                with pytest.raises(Exception):
                    serve_app(wrong, tls=True)

        @pytest.mark.trio
        async def test_async(trio_server, memory_server):
            for serve in (trio_server, memory_server):
                assert await fetch(await serve(app)) == (200, b"hello")
                with pytest.raises(Exception):
                    await serve(no_start)
        """.replace('uds="socket"', 'uds=f"{path[1:]}.socket", allow_errors=True')
    )
    result.assert_outcomes(passed=5)
    assert project.changes() == [""]


CLOCKS = "dict(timeout_graceful_shutdown=0.1, timeout_hard_shutdown=0.1, timeout_shutdown=0.1)"


def test_a_blocked_event_loop(project):
    """A handler that blocks its thread: the stop is bounded, its test fails with tasks and stack, the run goes on,
    and waits for it no more.
    """
    result = project.run_apart(
        f"""
        @pytest.fixture
        def asked():
            connections = []
            yield connections
            for connection in connections:
                connection.close()

        def test_it(serve_app, asked):
            asked.append(ask(serve_app(app, **{CLOCKS}), "/block"))
            assert reached.wait(20)

        def test_next(serve_app):
            assert get(serve_app(app)) == (200, b"hello")
        """,
        "--durations=0",
        "--durations-min=1",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.no_fnmatch_line("*s call * test_it.py::test_next")
    trace = trace_of(result, "ERROR at teardown of test_it")
    assert "ServerStuckError: the server's thread has not ended" in trace
    for part in ("Tasks, each with where it waits", "Threads, the most recent call last", "in block: time.sleep(600)"):
        assert part in trace
    assert shows_only_the_application(without_message(trace))


def test_a_handler_that_does_not_end(project):
    """A handler that shields itself for ever is ended, and its test fails with the task tree; nothing is left."""
    result = project.run(
        f"""
        def test_it(serve_app):
            serve_app(app, **{CLOCKS}).client_gone("/shielded")

        def test_next(serve_app):
            assert get(serve_app(app)) == (200, b"hello")
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    trace = trace_of(result, "ERROR at teardown of test_it")
    assert "ServerStuckError: the server has not ended" in trace
    assert "in shielded" in trace


# Ctrl-C

APPLICATIONS = """
async def hanging(scope, receive, send):
    print("waits", flush=True)
    await trio.sleep_forever()

async def wait(send):
    print("waits", flush=True)
    await trio.sleep_forever()

async def stubborn(send):
    try:
        await trio.sleep_forever()
    finally:
        print("waits", flush=True)
        with trio.CancelScope(shield=True):
            await trio.sleep(600)

async def blocking(send):
    print("waits", flush=True)
    time.sleep(600)

WAYS.update({"/wait": wait, "/stubborn": stubborn, "/blocking": blocking})

@pytest.fixture
def anyio_backend():
    return "trio"

def test_first(serve_app_session):
    serve_app_session("apps:app", tls=True)

"""

IN_THREADS = {
    "request": "def test_it(serve_app): get(serve_app(app), '/wait')",
    "request to a server of the session": "def test_it(serve_app_session): get(serve_app_session(app), '/wait')",
    "start": "def test_it(serve_app): serve_app(hanging)",
}

IN_LOOPS = {
    "request, pytest-trio": (
        "@pytest.mark.trio\nasync def test_it(trio_server): await fetch(await trio_server(app), '/wait')"
    ),
    "start, pytest-trio": "@pytest.mark.trio\nasync def test_it(trio_server): await trio_server(hanging)",
}


def interrupt(project, test):
    """Run this test and others, with a Ctrl-C once it waits: the run ends, with pytest's exit code for that."""
    project.watch_for_changes()
    project.write_test(f"{APPLICATIONS}\n{test}\n\ndef test_next(): print('not reached')\n")
    with start("-m", "pytest", "-s", cwd=project.path) as program:
        program.wait_for("waits")
        program.signal(signal.SIGINT)
        assert program.wait() == 2, program.output
    assert "KeyboardInterrupt" in program.output
    assert "not reached" not in program.output


@linux_only
@pytest.mark.parametrize("when", IN_THREADS)
def test_an_interrupt_ends_the_run(project, when):
    """Ctrl-C ends the run with pytest's exit code for it, whatever a test waits for; nothing is left."""
    interrupt(project, IN_THREADS[when])
    assert project.changes() == [""]


@linux_only
@pytest.mark.parametrize("when", IN_LOOPS)
def test_an_interrupt_ends_the_run_in_a_loop(project, when):
    """Ctrl-C does the same for a test whose servers run in its own loop."""
    interrupt(project, IN_LOOPS[when])
    assert project.changes() == [""]


ENDLESS = {
    "shield": (
        "def test_it(serve_app):\n"
        "    serve_app(app, timeout_graceful_shutdown=0, timeout_hard_shutdown=600).client_gone('/stubborn')"
    ),
    "blocked event loop": f"def test_it(serve_app): get(serve_app(app, **{CLOCKS}), '/blocking')",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_an_interrupt_ends_the_run_whatever_does_not_end(project, what):
    """Ctrl-C ends the run also where a server does not end."""
    interrupt(project, ENDLESS[what])


# Many processes

MANY = """
import threading

@pytest.fixture(scope="session")
def shared(serve_app_session):
    return serve_app_session(app)

@pytest.mark.parametrize("number", range(120))
def test_thread(serve_app, number):
    server = serve_app(app)
    assert get(server, f"/?{number}") == (200, b"hello")
    assert [request.query for request in server.requests] == [str(number)]

@pytest.mark.parametrize("number", range(10))
def test_tls(serve_app, number):
    assert get(serve_app(app, tls=True), f"/?{number}") == (200, b"hello")

@pytest.mark.parametrize("number", range(20))
def test_session(shared, serve_app_session, number):
    assert get(shared) == get(serve_app_session(app)) == (200, b"hello")

@pytest.mark.trio
@pytest.mark.parametrize("number", range(30))
async def test_loop(trio_server, number):
    server = await trio_server(app)
    assert await fetch(server, f"/?{number}") == (200, b"hello")
    assert [request.query for request in server.requests] == [str(number)]

@pytest.mark.trio
@pytest.mark.parametrize("number", range(20))
async def test_memory(memory_server, number):
    assert await fetch(await memory_server(app)) == (200, b"hello")
"""


@linux_only
@pytest.mark.timeout(180)  # 16 processes start, on whatever cores the other tests leave
def test_many_servers_in_many_processes(project, monkeypatch):
    """200 servers in 8 processes, in any order: all pass, and no process keeps or changes anything."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # other tests cover what these run
    project.configure("addopts = -p no:cacheprovider -p no:timeout")
    project.watch_for_changes()
    # From the seed of this run: `nox -s tests` does two, and so this in two orders.
    seed = random.randrange(2**32)
    result = project.run_apart(MANY, "-n", "8", "-p", "randomly", f"--randomly-seed={seed}", timeout=160)
    result.assert_outcomes(passed=200)
    result.stdout.fnmatch_lines([f"Using --randomly-seed={seed}"])
    assert project.changes() == [""] * 8
