"""run(): one server as a process."""

import signal
import sys

import pytest

from trioserve.config import Config
from trioserve.process.banner import read_version
from trioserve.process.runner import run

from .programs import APP, finish, start

RUN = "import signal, sys\nfrom trioserve.process.runner import run\nfrom trioserve.config import Config\n"

HELLO = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await LIFESPAN(receive, send)
"""

STARTED = """
async def LIFESPAN(receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(APP)
    return tmp_path


@pytest.mark.parametrize(
    ("app", "options", "said"),
    [
        ("main", {}, "error: APP must be module:attribute, not 'main'; did you mean 'main:app'?\n"),
        ("main:app", {"prot": 1}, "error: there is no option 'prot'; did you mean 'port'?\n"),
        ("main:app", {"port": "http"}, "error: port must be a whole number from 0 to 65535, not 'http'\n"),
        ("main:app", {"config": Config(), "prot": 1}, "error: there is no option 'prot'; did you mean 'port'?\n"),
    ],
)
def test_wrong_usage(capsys, app, options, said):
    """Wrong usage is one line, and SystemExit with code 2, before anything is set up."""
    with pytest.raises(SystemExit) as caught:
        run(app, **options)
    assert caught.value.code == 2
    assert capsys.readouterr().err == said


def test_serves_a_callable(folder):
    """An application may be given itself; run() returns None after a stop, with the signal handlers as they were."""
    script = RUN + (
        "from main import app\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "print('result', run(app, port=0), signal.getsignal(signal.SIGINT) is before)\n"
    )
    with start("-c", script, cwd=folder) as program:
        program.connect("/").close()
        program.signal()
        assert program.wait() == 0
    assert "serves main:app" in program.errors
    assert "result None True" in program.output


def test_program_goes_on(folder):
    """A program that goes on after run() is not ended by the hard deadline of the server that it ran."""
    script = RUN + (
        "import time\n"
        "run('main:app', port=0, timeout_hard_shutdown=1)\n"
        "time.sleep(1.5)\n"  # until the deadline would have passed
        "print('went on')\n"
    )
    with start("-c", script, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0
    assert program.output.endswith("went on\n")


INTERRUPTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    raise ValueError("no") from None
"""


def test_program_goes_on_after_a_failed_import(folder):
    """The same where a signal during the import ended in an error of the application."""
    (folder / "interrupted.py").write_text(INTERRUPTED)
    script = RUN + (
        "import time\n"
        "try:\n"
        "    run('interrupted:app', timeout_hard_shutdown=1)\n"
        "except SystemExit as error:\n"
        "    print('code', error.code)\n"
        "time.sleep(1.5)\n"  # until the deadline would have passed
        "print('went on')\n"
    )
    program = finish("-c", script, cwd=folder)
    assert program.process.returncode == 0
    assert program.output == "code 3\nwent on\n"


def test_names_an_application_that_is_an_object(folder):
    """An application that is an instance is named by its class."""
    script = RUN + (
        "class Site:\n"
        "    async def __call__(self, scope, receive, send):\n"
        "        raise NotImplementedError\n"
        "run(Site(), port=0)\n"
    )
    with start("-c", script, cwd=folder) as program:
        program.wait_for("serves __main__:Site")
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0


def test_reads_environment_and_file(folder):
    """Without a Config the environment and the file are read, and keywords win over them."""
    (folder / "trioserve.toml").write_text("port = 0\nlog_format = 'json'\n")
    variables = {"TRIOSERVE_LOG_FORMAT": "text", "TRIOSERVE_HOST": "256.0.0.1"}
    with start("-c", RUN + "run('main:app', host='127.0.0.1')", cwd=folder, **variables) as program:
        program.connect("/").close()
        program.signal()
        assert program.wait() == 0


def test_config_stands_alone(folder):
    """With a Config neither environment nor file is read."""
    (folder / "trioserve.toml").write_text("nonsense")
    script = RUN + "run('main:app', Config(port=1), port=0)"
    with start("-c", script, cwd=folder, TRIOSERVE_PORT="nonsense") as program:
        program.connect("/").close()
        program.signal()
        assert program.wait() == 0


def test_strange_variables_are_warned_of(folder):
    """A misspelt variable is one warning in the log."""
    with start("-c", RUN + "run('main:app', port=0)", cwd=folder, TRIOSERVE_PROT="1") as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0
    assert program.errors.count("warning: environment variable TRIOSERVE_PROT is ignored") == 1


def test_cannot_start(folder):
    """An application that cannot be loaded is one line and SystemExit with code 3, whatever the log level."""
    program = finish("-c", RUN + "run('mian:app', log_level='critical')", cwd=folder)
    assert program.process.returncode == 3
    assert "error: there is no module 'mian'" in program.errors
    assert program.errors.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_the_import(folder, number):
    """A signal while the application is imported ends the import, cleanly."""
    (folder / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    with start("-c", RUN + "run('slow:app')", cwd=folder) as program:
        program.wait_for("importing")
        program.signal(number)
        assert program.wait() == 0
    assert program.errors.endswith("info: stopped before the start\n")
    assert program.errors.count("\n") == 1


def test_lifespan_that_raises_at_the_start(folder):
    """A lifespan that raises at the start is exit code 3, with a trace that begins in the application."""
    (folder / "site_a.py").write_text(
        HELLO + "async def LIFESPAN(receive, send):\n    await receive()\n    raise ValueError('no database')\n"
    )
    program = finish("-c", RUN + "run('site_a:app', port=0)", cwd=folder)
    assert program.process.returncode == 3
    trace = program.errors.split("Traceback (most recent call last):\n")
    assert len(trace) == 2
    assert trace[1].startswith(f'  File "{folder / "site_a.py"}"')
    assert trace[1].endswith("ValueError: no database\n")


def test_lifespan_that_reports_a_failure(folder):
    """A failure that the application reports itself is shown in its words, without a trace."""
    (folder / "site_b.py").write_text(
        HELLO
        + "async def LIFESPAN(receive, send):\n"
        + "    await receive()\n"
        + "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n"
    )
    program = finish("-c", RUN + "run('site_b:app', port=0)", cwd=folder)
    assert program.process.returncode == 3
    assert "no database" in program.errors
    assert "Traceback" not in program.errors


def test_lifespan_that_dies_while_serving(folder):
    """A lifespan that raises while the server serves is a crash: exit code 1, with its trace."""
    (folder / "site_c.py").write_text(
        "import trio\n" + HELLO + STARTED + "    await trio.sleep(0.1)\n    raise ValueError('lost')\n"
    )
    program = finish("-c", RUN + "run('site_c:app', port=0, lifespan='on')", cwd=folder)
    assert program.process.returncode == 1
    assert "ValueError: lost" in program.errors


def test_two_requests_are_counted(folder):
    """The last line says how many requests were served."""
    with start("-c", RUN + "run('main:app', port=0)", cwd=folder) as program:
        program.connect("/").close()
        program.connect("/").close()
        program.signal()
        assert program.wait() == 0
    assert program.errors.endswith("info: stopped: 2 requests served\n")


def test_version_without_metadata(monkeypatch):
    """Where trioserve was not installed by a package manager, the version is not known, and that is no error."""
    monkeypatch.setattr(sys, "path", [])
    assert read_version() == "(not installed)"
