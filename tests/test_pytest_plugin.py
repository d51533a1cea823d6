"""The fixtures serve_app and serve_app_session: what they serve, and what they refuse; as users see it."""

import pytest

from .pytest_runs import Project, shows_only_the_application, trace_of


@pytest.fixture
def project(pytester, monkeypatch):
    return Project(pytester, monkeypatch)


# What can be served


def test_an_application_is_served_on_a_real_port(project):
    """serve_app(app) returns a server that answers, with its lifespan started; options are those of Config."""
    result = project.run(
        """
        async def greeting(scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                scope["state"]["word"] = "good day"
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})
            else:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": scope["state"]["word"].encode()})

        def test_greeting(serve_app):
            server = serve_app(greeting, root_path="/deep")
            assert server.state == {"word": "good day"}
            assert get(server, "/deep/") == (200, b"good day")
            assert [request.path for request in server.requests] == ["/deep/"]
        """
    )
    result.assert_outcomes(passed=1)


def test_paths_factories_and_frameworks(project):
    """An application may be named, be made by a factory, or be that of any framework."""
    result = project.run(
        """
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route

        async def hello(request):
            return PlainTextResponse("hello")

        framework = Starlette(routes=[Route("/", hello)])

        @pytest.mark.parametrize("served", [app, "apps:app", framework, "test_it:framework"])
        def test_it(serve_app, served):
            assert get(serve_app(served)) == (200, b"hello")

        @pytest.mark.parametrize("served", [create, "apps:create"])
        def test_factory(serve_app, served):
            assert get(serve_app(served, factory=True)) == (200, b"hello")
        """
    )
    result.assert_outcomes(passed=6)


def test_several_servers_at_once(project):
    """One test may have any number of servers, of all kinds; each has its own port."""
    result = project.run(
        """
        def test_it(serve_app, serve_app_session):
            servers = [serve_app(app), serve_app("apps:app", tls=True), serve_app(app), serve_app_session(app)]
            assert len({server.port for server in servers}) == 4
            assert [get(server) for server in servers] == [(200, b"hello")] * 4
            assert servers[1].url.startswith("https://")
        """
    )
    result.assert_outcomes(passed=1)


def test_servers_end_with_the_test(project):
    """After the test its servers are stopped, with lifespan.shutdown; the last one first. A session's live on."""
    result = project.run(
        """
        def make(name):
            async def app(scope, receive, send):
                assert scope["type"] == "lifespan"
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                print("end of", name)
                await send({"type": "lifespan.shutdown.complete"})
            return app

        def test_one(serve_app, serve_app_session):
            serve_app_session(make("session"))
            serve_app(make("first"))
            serve_app(make("second"))

        def test_two():
            print("second test")
        """,
        "-s",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*end of second", "end of first", "*second test", "*end of session"])


STYLES = """
import asyncio
import unittest

import anyio
import hypothesis

class TestClass:
    @pytest.fixture
    def server(self, serve_app):
        return serve_app(app)

    def test_method(self, server):
        assert get(server) == (200, b"hello")

    @pytest.mark.parametrize("number", [1, 2])
    def test_parametrised(self, server, number):
        assert get(server) == (200, b"hello")

class Case(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def serve(self, serve_app):
        self.server = serve_app(app)

    def test_case(self):
        self.assertEqual(get(self.server), (200, b"hello"))

@pytest.fixture(scope="module")
def module_server(serve_app_session):
    return serve_app_session(app)

def test_module(module_server):
    assert get(module_server) == (200, b"hello")

@hypothesis.given(number=hypothesis.strategies.integers(0, 3))
@hypothesis.settings(max_examples=5, database=None, derandomize=True)
def test_hypothesis(module_server, number):
    assert get(module_server) == (200, b"hello")

def test_asyncio(serve_app):
    server = serve_app(app)

    async def ask():
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n")
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data

    assert asyncio.run(ask()).endswith(b"hello")

@pytest.mark.trio
async def test_trio(serve_app):
    server = serve_app(app)
    assert await trio.to_thread.run_sync(get, server) == (200, b"hello")

@pytest.mark.anyio
async def test_anyio(serve_app, anyio_backend):
    server = serve_app(app)
    assert await anyio.to_thread.run_sync(get, server) == (200, b"hello")
"""


def test_tests_of_any_style(project):
    """serve_app serves functions, methods, unittest's cases, parametrised, hypothesis and async tests alike."""
    project.run(STYLES).assert_outcomes(passed=10)


def test_items_that_are_no_functions(project):
    """Doctests, and items of other plugins, run beside tests with servers; doctests may use servers, too."""
    project.write(
        "conftest.py",
        """
        import pytest

        class Text(pytest.Item):
            def runtest(self):
                assert "fine" in self.path.read_text()

        class TextFile(pytest.File):
            def collect(self):
                yield Text.from_parent(self, name="text")

        def pytest_collect_file(file_path, parent):
            return TextFile.from_parent(parent, path=file_path) if file_path.suffix == ".dat" else None
        """,
    )
    project.write("some.dat", "fine")
    project.write("other.dat", "bad")
    project.write(
        "library.py",
        '''
        def double(number):
            """
            >>> double(2)
            4
            """
            return 2 * number
        ''',
    )
    project.write("guide.txt", ">>> import apps\n>>> apps.get(getfixture('serve_app')(apps.app))\n(200, b'hello')\n")
    result = project.run(
        "def test_it(serve_app): get(serve_app(app))", "--doctest-modules", "--doctest-glob=*.txt", "."
    )
    result.assert_outcomes(passed=4, failed=1)


# The server does not start


def test_a_failing_start_is_raised_in_the_test(project):
    """The call of serve_app raises why the application does not start, with the application's trace and no more."""
    result = project.run(
        """
        def test_it(serve_app):
            serve_app(no_start, lifespan="on")

        def test_caught(serve_app):
            with pytest.raises(Exception, match="no database") as caught:
                serve_app(no_start, lifespan="on")
            assert type(caught.value).__name__ == "LifespanError"
            assert isinstance(caught.value.__cause__, RuntimeError)
            assert get(serve_app(app)) == (200, b"hello")
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    trace = trace_of(result, "test_it")
    assert 'raise RuntimeError("no database")' in trace
    assert '>       serve_app(no_start, lifespan="on")' in trace
    assert "LifespanError: the application's lifespan raised during start-up: RuntimeError: no database" in trace
    assert trace.index("no database") < trace.index("LifespanError")
    assert shows_only_the_application(trace.replace("trioserve.errors", ""))


def test_a_failing_start_in_a_fixture(project):
    """In a fixture a failing start is an error of the set-up, which each test that needs it shows."""
    result = project.run(
        """
        @pytest.fixture(scope="module")
        def server(serve_app_session):
            return serve_app_session(no_start, lifespan="on")

        def test_one(server): ...
        def test_two(server): ...
        def test_other(serve_app_session): assert get(serve_app_session(app)) == (200, b"hello")
        """
    )
    result.assert_outcomes(passed=1, errors=2)
    for test in ("test_one", "test_two"):
        assert "RuntimeError: no database" in trace_of(result, f"ERROR at setup of {test}")


WRONG = {
    "'appz:app'": "there is no module 'appz' in *; did you mean 'apps:app'[?]",
    "'apps:ap'": "'apps' has no attribute 'ap'; did you mean 'apps:app'[?]",
    "'apps.py'": "APP must be module:attribute, not 'apps.py'; did you mean 'apps:app'[?]",
    "'wrong:app'": "module 'wrong' was found, but importing it raised ZeroDivisionError: division by zero",
    "app, workers=2": "workers=2 is for the command line and run(): a server under test is one in this process",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_what_cannot_be_served(project, arguments):
    """What cannot be served is refused where it is asked for, with a hint and without frames of the server's."""
    project.write("wrong.py", "app = 1 / 0")
    result = project.run(f"def test_it(serve_app):\n    serve_app({arguments})")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E * trioserve.errors.*Error: {WRONG[arguments]}"])
    trace = trace_of(result, "test_it")
    assert f">       serve_app({arguments})" in trace
    assert shows_only_the_application(trace.replace("trioserve.errors", ""))


WRONG_OPTIONS = {
    "lifespam='on'": "there is no option 'lifespam'; did you mean 'lifespan'?",
    "lifespan=5": "lifespan ",
    "ssl_certfile='none.pem', tls=True": "tls=True makes a certificate, so it cannot go with ssl_certfile",
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_wrong_options(project, option):
    """A wrong option is refused where it is given, with what was meant and without frames of the server's."""
    result = project.run(f"def test_it(serve_app):\n    serve_app(app, {option})")
    result.assert_outcomes(failed=1)
    trace = trace_of(result, "test_it")
    assert f"ConfigError: {WRONG_OPTIONS[option]}" in trace
    assert shows_only_the_application(trace.replace("trioserve.errors", ""))


@pytest.mark.parametrize("served", ["None", "5"])
def test_an_object_that_cannot_be_called(project, served):
    """What cannot be called is no application, and is refused at once."""
    result = project.run(f"def test_it(serve_app):\n    serve_app({served})")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E *AppLoadError: {served} is not an application*"])


def test_a_forgotten_factory(project):
    """Who passes a factory as the application is told of the option for it, as a test gives it."""
    result = project.run("def test_it(serve_app):\n    serve_app(create)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *AppLoadError:*if it returns the application, use the option factory"])
    result.stdout.no_fnmatch_line("*--factory*")
