"""How errors of an application fail the test in which they happen, and what users then see."""

import pytest

from .pytest_runs import Project, shows_only_the_application, trace_of


@pytest.fixture
def project(pytester, monkeypatch):
    return Project(pytester, monkeypatch)


def test_an_error_in_the_application_fails_the_test(project):
    """The test fails with the application's error: its own frames, which request it was, nothing of the server's."""
    result = project.run("def test_it(serve_app): get(serve_app(app), '/broken')")
    result.assert_outcomes(failed=1)
    trace = trace_of(result, "test_it")
    assert shows_only_the_application(trace)
    for line in (
        ' await WAYS[scope["path"]](send)',
        '>       raise ValueError("the shelf is empty")',
        "E       ValueError: the shelf is empty",
        "E       raised in the application by GET /broken HTTP/1.1",
    ):
        assert line in trace
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_it - ValueError: the shelf is empty"])


def test_a_failing_assertion_in_the_application_is_shown_as_one(project):
    """An assertion in the application fails the test as one in the test does, with its values."""
    result = project.run(
        """
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            found = {"books": 2}
            assert found == {"books": 3}

        def test_it(serve_app):
            assert get(serve_app(app))[0] == 500
        """
    )
    result.assert_outcomes(failed=1)
    trace = trace_of(result, "test_it")
    assert shows_only_the_application(trace)
    assert '>       assert found == {"books": 3}' in trace
    assert "E       AssertionError: assert {'books': 2} == {'books': 3}" in trace
    assert "E         {'books': 2} != {'books': 3}" in trace
    assert "E       raised in the application by GET / HTTP/1.1" in trace


def test_several_errors_come_as_a_group(project):
    """More than one error is shown as a group of all, each with its own frames only."""
    result = project.run(
        """
        def test_it(serve_app):
            server = serve_app(app)
            get(server, "/broken?first")
            get(serve_app(app), "/broken?second")
        """
    )
    result.assert_outcomes(failed=1)
    trace = trace_of(result, "test_it")
    assert shows_only_the_application(trace)
    assert trace.count("ValueError: the shelf is empty") == 2
    for number in ("first", "second"):
        assert f"raised in the application by GET /broken?{number} HTTP/1.1" in trace
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_it - ExceptionGroup: 2 errors in the application*"])


def test_a_failing_test_shows_what_went_wrong_in_the_application(project):
    """The test's own failure stays the failure; the application's error is a section of its report."""
    result = project.run("def test_it(serve_app): assert get(serve_app(app), '/broken') == (200, b'hello')")
    result.assert_outcomes(failed=1)
    assert "AssertionError: assert (500, " in trace_of(result, "test_it")
    assert "the shelf is empty" not in trace_of(result, "test_it")
    result.stdout.fnmatch_lines(
        [
            "*- Captured errors in the application call -*",
            "Traceback (most recent call last):",
            '*raise ValueError("the shelf is empty")',
            "ValueError: the shelf is empty",
            "raised in the application by GET /broken HTTP/1.1",
            "*- Captured log call -*",
        ]
    )
    result.stdout.no_fnmatch_line("ERROR at teardown*")


def test_an_error_while_a_fixture_is_set_up(project):
    """What a fixture of the user's provokes is an error of the set-up, with a section if the fixture fails, too."""
    result = project.run(
        """
        @pytest.fixture
        def server(serve_app):
            server = serve_app(app)
            get(server, "/broken")
            return server

        @pytest.fixture
        def failing(server):
            raise RuntimeError("not ready")

        def test_it(server): ...
        def test_failing(failing): ...
        """
    )
    result.assert_outcomes(errors=2)
    trace = trace_of(result, "ERROR at setup of test_it")
    assert "E       ValueError: the shelf is empty" in trace
    assert shows_only_the_application(trace)
    assert "E       RuntimeError: not ready" in trace_of(result, "ERROR at setup of test_failing")
    result.stdout.fnmatch_lines(["*- Captured errors in the application setup -*", "ValueError: the shelf is empty"])


LATE = """
@pytest.fixture
def until_teardown(serve_app):
    yield
    released.set()
"""


def test_an_error_after_the_test(project):
    """What a background task raises while the server stops is an error of the teardown of that test."""
    result = project.run(
        LATE
        + """
def test_it(serve_app, until_teardown):
    assert get(serve_app(app), "/late") == (200, b"hello")

def test_next(serve_app):
    assert get(serve_app(app)) == (200, b"hello")
"""
    )
    result.assert_outcomes(passed=2, errors=1)
    trace = trace_of(result, "ERROR at teardown of test_it")
    assert "E       ValueError: too late" in trace
    assert shows_only_the_application(trace)


def test_an_error_in_a_teardown_that_fails_anyway(project):
    """A failing teardown of the user's shows the application's errors as a section."""
    result = project.run(
        """
        @pytest.fixture
        def server(serve_app):
            server = serve_app(app)
            yield server
            assert get(server, "/broken")[0] == 200

        def test_it(server): ...
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    assert "E       assert 500 == 200" in trace_of(result, "ERROR at teardown of test_it")
    result.stdout.fnmatch_lines(["*- Captured errors in the application teardown -*", "ValueError: the shelf is empty"])


SESSION = """
@pytest.fixture(scope="session")
def server(serve_app_session):
    return serve_app_session(app)
"""


def test_a_session_server_blames_the_test_that_ran(project):
    """An error in a server of the session fails the test in which it happened, and no other."""
    result = project.run(
        SESSION
        + """
def test_before(server): get(server)
def test_it(server): get(server, "/broken")
def test_after(server): get(server)
def test_none(): ...
""",
        "-v",
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*::test_before PASSED*", "*::test_it FAILED*", "*::test_after PASSED*"])
    assert "E       ValueError: the shelf is empty" in trace_of(result, "test_it")


def test_an_error_right_after_the_response_blames_the_test_that_ran(project):
    """A handler that raises once the client has its whole answer fails the test that asked, each time."""
    result = project.run(
        SESSION
        + """
async def after(send):
    await answer(send)
    raise ValueError("right after")

WAYS["/after"] = after

@pytest.mark.parametrize("number", range(60))
def test_it(server, number):
    if number % 2 == 0:
        get(server, "/after")
""",
        "-v",
    )
    result.assert_outcomes(passed=30, failed=30)


def test_an_error_at_the_end_of_the_session(project):
    """A session's server that cannot shut down is an error of the last teardown."""
    result = project.run(
        """
        def test_it(serve_app_session): serve_app_session(no_shutdown)
        def test_last(): ...
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    trace = trace_of(result, "ERROR at teardown of test_last")
    assert "trioserve.errors.LifespanError: the application's lifespan raised during shutdown: RuntimeError" in trace
    assert 'raise RuntimeError("the database is gone")' in trace
    assert shows_only_the_application(trace.replace("trioserve.errors", ""))


def test_one_that_cannot_shut_down_keeps_no_other_running(project):
    """All servers of a test are stopped, whatever one of them does at its end."""
    result = project.run(
        """
        servers = []

        def test_it(serve_app):
            servers.extend([serve_app(app), serve_app(no_shutdown), serve_app(no_shutdown), serve_app(app)])

        def test_they_are_gone():
            for server in servers:
                with pytest.raises(ConnectionRefusedError):
                    get(server)
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    trace = trace_of(result, "ERROR at teardown of test_it")
    assert trace.count("RuntimeError: the database is gone") >= 2
    result.stdout.fnmatch_lines(["ERROR test_it.py::test_it - ExceptionGroup: 2 errors in the application*"])


def test_allow_errors(project):
    """allow_errors=True leaves the errors to the test, whatever becomes of it."""
    result = project.run(
        """
        def test_it(serve_app, serve_app_session):
            for serve in (serve_app, serve_app_session):
                server = serve(app, allow_errors=True)
                assert get(server, "/broken")[0] == 500
                assert [str(error) for error in server.errors] == ["the shelf is empty"]

        def test_failing(serve_app):
            get(serve_app(app, allow_errors=True), "/broken")
            raise RuntimeError("something else")
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*errors in the application*")


def test_expected_errors_are_taken_out(project):
    """An error that the test takes out of server.errors does not fail it; the others do."""
    result = project.run(
        """
        def test_all(serve_app):
            server = serve_app(app)
            get(server, "/broken")
            assert str(server.errors.pop()) == "the shelf is empty"

        def test_not_all(serve_app):
            server = serve_app(app)
            get(server, "/broken?first")
            get(server, "/broken?second")
            del server.errors[0]
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "GET /broken?second" in trace_of(result, "test_not_all")
    assert "GET /broken?first" not in trace_of(result, "test_not_all")


def test_pytest_raises_does_not_see_them(project):
    """Errors of the application are not raised in the test's body, so pytest.raises does not catch them there."""
    result = project.run(
        """
        def test_it(serve_app):
            server = serve_app(app)
            with pytest.raises(ValueError):
                get(server, "/broken")
        """
    )
    result.assert_outcomes(failed=1)
    assert "Failed: DID NOT RAISE" in trace_of(result, "test_it")
    result.stdout.fnmatch_lines(["*- Captured errors in the application call -*", "ValueError: the shelf is empty"])


def test_expected_failures(project):
    """An error of the application counts for xfail as one of the test does, with its type."""
    result = project.run(
        """
        @pytest.mark.xfail(raises=ValueError, strict=True)
        def test_it(serve_app): get(serve_app(app), "/broken")

        @pytest.mark.xfail(raises=KeyError, strict=True)
        def test_other(serve_app): get(serve_app(app), "/broken")

        @pytest.mark.xfail(strict=True)
        def test_none(serve_app): get(serve_app(app))

        def test_within(serve_app):
            get(serve_app(app), "/broken")
            pytest.xfail("known")
        """
    )
    result.assert_outcomes(xfailed=2, failed=2)
    result.stdout.fnmatch_lines(["FAILED*::test_other - ValueError*", "FAILED*::test_none - *XPASS(strict)*"])


def test_skipped_tests(project):
    """A test that is skipped is skipped, with servers or without, even if it could not run."""
    result = project.run(
        """
        @pytest.mark.skip(reason="not today")
        def test_it(serve_app): ...

        def test_within(serve_app):
            serve_app(app)
            pytest.skip("not here")

        @pytest.fixture
        def server(serve_app):
            serve_app(app)
            pytest.skip("not so")

        def test_fixture(server): ...
        """
    )
    result.assert_outcomes(skipped=3)


def test_a_skipped_test_that_cannot_have_its_fixture(project):
    """A test marked to be skipped is skipped before anybody looks at its fixtures."""
    result = project.run("@pytest.mark.skip(reason='not today')\ndef test_it(trio_server): ...")
    result.assert_outcomes(skipped=1)


def test_an_error_before_a_skip_is_not_hidden(project):
    """A test that skips itself after the application has raised does not hide that."""
    result = project.run(
        """
        def test_it(serve_app):
            get(serve_app(app), "/broken")
            pytest.skip("not here")
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ValueError: the shelf is empty*"])


def test_a_lifespan_that_ends_while_it_serves(project):
    """A lifespan that raises while the server serves fails the test, at the latest in its teardown."""
    result = project.run(
        """
        async def app(scope, receive, send):
            assert scope["type"] == "lifespan"
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await trio.to_thread.run_sync(released.wait)
            raise RuntimeError("the connection pool broke")

        def test_it(serve_app):
            serve_app(app)
            released.set()
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    trace = trace_of(result, "ERROR at teardown of test_it")
    assert 'raise RuntimeError("the connection pool broke")' in trace
    assert "LifespanError: the application's lifespan raised" in trace


# unittest

UNITTEST = """
import unittest

class Test(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _server(self, serve_app):
        self.server = serve_app(app)

    def test_it(self):
        assert get(self.server, "/broken")[0] == 500
        {end}
"""


def test_a_test_case_that_skips_itself_does_not_hide_an_error(project):
    """What an application has raised before a TestCase calls skipTest fails it."""
    result = project.run(UNITTEST.format(end="self.skipTest('not today')"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *ValueError: the shelf is empty"])


def test_a_test_case_that_skips_itself(project):
    """Without an error it is skipped."""
    result = project.run(
        UNITTEST.format(end="self.skipTest('not today')").replace('"/broken")[0] == 500', '"/")[0] == 200')
    )
    result.assert_outcomes(skipped=1)


def test_a_test_case_that_fails_is_shown_with_the_error(project):
    """A failure of the TestCase comes with what the application has raised."""
    result = project.run(UNITTEST.format(end="self.assertEqual(1, 2)"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E *AssertionError: 1 != 2", "*errors in the application*", "ValueError: the shelf is empty"]
    )


def test_a_test_case_whose_application_raises(project):
    """An error of the application is that of the TestCase."""
    result = project.run(UNITTEST.format(end="pass"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *ValueError: the shelf is empty"])
