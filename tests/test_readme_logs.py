"""What README.md says of logs, tried as its reader would."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from trioserve.access_format import _NAMED, _NUMBERS, _TEXTS, AccessFormat
from trioserve.logs import access_log, server_log
from trioserve.process.log_setup import configure_logging
from trioserve.process.settings import read_settings
from trioserve.request_ids import _ACCEPTABLE

from .logging_state import loggers  # noqa: F401 - a fixture
from .programs import APP, start
from .test_readme_examples import README, below

SECTION = below(README.read_text(), "## Logs", "## ")


def block(heading: str, language: str) -> str:
    """The one block of this language below a heading of the section."""
    (found,) = re.findall(
        rf"^```{language}\n(.*?)^```$", below(SECTION, f"### {heading}", "### "), re.MULTILINE | re.DOTALL
    )
    return str(found)


def test_loggers_of_the_application(tmp_path: Path) -> None:
    """With the example they come out in JSON beside ours, each record once; without it a warning does, bare."""
    (example,) = re.findall(r"^```python\n(# in main\.py\n.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    says = "import logging\nlog = logging.getLogger('shop')\nlog.info('open')\nlog.warning('few left')\n"
    for before, shown in (("", ["few left"]), (example, ["open", "few left"])):
        (tmp_path / "main.py").write_text(before + says + APP)
        with start("-m", "trioserve", "main:app", "--port", "0", "--log-format", "json", cwd=tmp_path) as program:
            program.wait_for("Ctrl-C stops")
            program.signal()
            assert program.wait() == 0
        lines = program.errors.splitlines()
        assert sum("Ctrl-C stops" in line for line in lines) == 1
        theirs = [line for line in lines if "open" in line or "few left" in line]
        if before:
            theirs = [one["message"] for line in theirs if (one := json.loads(line))["logger"] == "shop"]
        assert theirs == shown


def test_the_format(tmp_path: Path) -> None:
    """The command's format makes the line that other servers make."""
    (tmp_path / "main.py").write_text(APP)
    command = shlex.split(block("A line of your own", "sh"))
    assert command[:2] == ["trioserve", "main:app"]
    with start("-m", *command, "--port", "0", "--log-level", "info", cwd=tmp_path) as program:
        program.connect("/?a=b").close()
        program.wait_for(r'(?m)^127\.0\.0\.1 - - \[.*\] "GET /\?a=b HTTP/1\.1" 200 \d+ "-" "-" \d\.\d{6}$')
        program.signal()
        assert program.wait() == 0


def test_every_name_is_in_the_table() -> None:
    """The table has all names there are, and each can be used."""
    table = re.findall(r"^\|.*\|$", below(SECTION, "### A line of your own", "### "), re.MULTILINE)
    names = set(re.findall(r"`(\{?\w+\}?[ioe]?)`", " ".join(table)))
    known = {*_NUMBERS, *_TEXTS, *(f"{{field}}{letter}" for letter in "io"), "{variable}e"}
    assert len(_NAMED) == 3
    assert known - names == {"host"}  # h says it shorter
    for name in known:
        AccessFormat(f"%({name})s")


def test_the_characters_of_an_id() -> None:
    """Those that README lists are the ones that are taken."""
    (listed,) = re.findall(r"letters, digits and ``(.*?)``", below(SECTION, "### Request ids", "### "))
    taken = {chr(one) for one in range(256) if _ACCEPTABLE.fullmatch(bytes([one]))}
    assert {one for one in taken if not one.isalnum()} == {*listed, "_"}


def test_the_program(tmp_path: Path) -> None:
    """The program's own format shows the id in the records of the server, and a hyphen elsewhere."""
    (tmp_path / "main.py").write_text("import logging\n" + APP.replace("async def answer():\n    pass", ANSWER))
    (tmp_path / "program.py").write_text(block("Request ids", "python").replace("port=8000", "port=0"))
    with start("-c", SHOWS_URL + "import program", cwd=tmp_path) as program:
        program.connect("/").close()
        program.wait_for(r'INFO trioserve\.access \[([0-9a-f]{32})\] 127\.0\.0\.1:\d+ "GET / ')
        assert re.search(r"WARNING app \[[0-9a-f]{32}\] of the application", program.errors)


ANSWER = "async def answer():\n    logging.getLogger('app').warning('of the application')"

# What the program leaves out: where it listens, on a port that the system chose.
SHOWS_URL = """
import trioserve
serve = trioserve.serve
class Status:
    def __init__(self, inner): self.inner = inner
    def started(self, server):
        print("listening on", server.urls[0], flush=True)
        self.inner.started(server)
trioserve.serve = lambda app, task_status, **options: serve(app, task_status=Status(task_status), **options)
"""


def test_the_configuration_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Access lines go to the file as JSON, everything else to stderr as text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.json").write_text(block("Your own logging configuration", "json"))
    configure_logging(read_settings({"log_config": "log.json"}).config)
    access_log.info("line")
    server_log.info("well")
    assert json.loads((tmp_path / "access.log").read_text())["message"] == "line"
    assert capfd.readouterr().err.endswith(" INFO trioserve well\n")


def test_the_configuration_in_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The table in trioserve.toml is used, and the one in pyproject.toml is the same."""
    monkeypatch.chdir(tmp_path)
    text = block("Your own logging configuration", "toml")
    (tmp_path / "pyproject.toml").write_text(text.replace("[log_config]", "[tool.trioserve.log_config]"))
    expected = read_settings({}).config.log_config
    (tmp_path / "trioserve.toml").write_text(text)
    config = read_settings({}).config
    assert config.log_config == expected is not None
    configure_logging(config)
    access_log.info("line")
    server_log.info("well")
    assert capfd.readouterr().err == "INFO well\n"
