"""A logging configuration of the user's."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import signal
import tomllib
from pathlib import Path

import pytest

from trioserve import run
from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.logs import access_log, server_log
from trioserve.process.job import Job
from trioserve.process.log_config import warn_if_silent
from trioserve.process.log_setup import configure_logging
from trioserve.process.settings import format_settings, read_settings
from trioserve.types import PlainValues

from .logging_state import loggers  # noqa: F401 - a fixture
from .programs import APP, WORKER_APP, start, wait_until


def to_file(path: Path, **more: object) -> PlainValues:
    """A configuration that writes all records to a file, as level, logger and message."""
    return {
        "version": 1,
        "formatters": {"plain": {"format": "%(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(path), "formatter": "plain"}},
        "root": {"handlers": ["file"], "level": "INFO"},
        **more,
    }


def as_toml(table: PlainValues) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items() if not isinstance(value, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            rows = {key: value for key, value in inner.items() if isinstance(value, dict)} or {"": inner}
            for key, row in rows.items():
                lines.append(f"[{name}.{key}]" if key else f"[{name}]")
                lines += [f"{column} = {json.dumps(value)}" for column, value in row.items()]
    return "\n".join(lines)


@pytest.mark.parametrize("how", ["table", "json", "toml"])
def test_it_replaces_our_handlers(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    """Our records propagate to the handlers it names, from loggers with our levels; nothing goes to the console."""
    log, file = tmp_path / "app.log", tmp_path / f"log.{how}"
    table = to_file(log)
    file.write_text(as_toml(table) if how == "toml" else json.dumps(table))
    configure_logging(Config())
    configure_logging(Config(log_config=table if how == "table" else str(file)))
    server_log.info("well")
    server_log.debug("too much")
    access_log.info("line")
    logging.getLogger("app").info("theirs")
    assert log.read_text() == "INFO trioserve well\nINFO trioserve.access line\nINFO app theirs\n"
    assert capsys.readouterr() == ("", "")
    configure_logging(Config())
    server_log.info("back")
    assert "back" in capsys.readouterr().err
    assert "back" not in log.read_text()


def test_it_is_not_changed(tmp_path: Path) -> None:
    """The table of the user's, and that of the Config, stay as they are; dictConfig alone would take things out."""
    table = to_file(tmp_path / "log", filters={"none": {"()": "logging.Filter"}})
    before = copy.deepcopy(table)
    config = Config(log_config=table)
    configure_logging(config)
    configure_logging(config)
    assert table == before
    assert config.log_config == before


@pytest.mark.parametrize("given", [None, True])
def test_existing_loggers_go_on(tmp_path: Path, given: bool | None) -> None:
    """Loggers that there are already are only disabled if it says so."""
    theirs = logging.getLogger("tests.existing")
    table = to_file(tmp_path / "log") | ({} if given is None else {"disable_existing_loggers": given})
    try:
        configure_logging(Config(log_config=table))
        assert theirs.disabled is bool(given)
    finally:
        for name in logging.root.manager.loggerDict:
            logging.getLogger(name).disabled = False


def test_its_levels_win(tmp_path: Path) -> None:
    """A level that it gives one of our loggers goes before log_level."""
    log = tmp_path / "log"
    configure_logging(
        Config(log_config=to_file(log, loggers={"trioserve.access": {"level": "ERROR"}}), log_level="debug")
    )
    server_log.debug("said")
    access_log.info("unsaid")
    assert log.read_text() == "DEBUG trioserve said\n"


def test_our_formatters_can_be_named(tmp_path: Path) -> None:
    """JSONFormatter and TextFormatter work in a configuration, by name."""
    log = tmp_path / "log"
    table = to_file(log)
    table["formatters"]["plain"] = {"()": "trioserve.formatters.JSONFormatter"}
    configure_logging(Config(log_config=table))
    server_log.info("well")
    assert json.loads(log.read_text())["message"] == "well"
    table["formatters"]["plain"] = {"()": "trioserve.formatters.TextFormatter", "use_colors": False}
    configure_logging(Config(log_config=table))
    server_log.info("text")
    assert log.read_text().endswith(" info: text\n")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("log.json", None, "log_config {}: cannot read it: No such file or directory"),
        ("log.json", "{", "log_config {}: not JSON: Expecting property name"),
        ("log.toml", "=", "log_config {}: not TOML: "),
        ("log.json", "[1]", "log_config {}: must be a table of names and values, not [1]"),
        ("log.json", "[" * 99999, "log_config {}: its values are nested too deeply"),
        ("log.json", "{}", "log_config {}: dictionary doesn't specify a version"),
        ("log.json", '{"version": 1, "handlers": 3}', "log_config {}: TypeError: "),
        (
            "log.json",
            '{"version": 1, "handlers": {"console": {"class": "nope.Handler"}}}',
            "log_config {}: Unable to configure handler 'console': Cannot resolve 'nope.Handler': No module named",
        ),
        (
            "log.toml",
            "version = 1\n[root]\nhandlers = ['console']",
            "log_config {}: Unable to configure root logger: Unable to add handler 'console'",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    """A file that cannot be read or used is a ConfigError with the file, the key and the reason."""
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configure_logging(Config(log_config=str(file)))
    assert str(caught.value).startswith(said.format(file))


@pytest.mark.parametrize("keep_notes", [True, False])
def test_a_key_that_is_nearly_right(keep_notes: bool) -> None:
    """A typing error would silence the server; what is like none of the keys is somebody's own affair."""
    table = {"version": 1, "x-notes": 1} if keep_notes else {"version": 1, "handlres": {}}
    wrong = pytest.raises(ConfigError, match=r"^log_config: there is no 'handlres'; did you mean 'handlers'\?$")
    with contextlib.nullcontext() if keep_notes else wrong:
        configure_logging(Config(log_config=table))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, "log_config has no handler for the logger 'trioserve' or the root: nothing is shown"),
        ({"uvicorn.access": {}}, "begins with 'trioserve' here"),
        ({"trioserve": {"handlers": ["file"]}}, ""),
    ],
    ids=["none", "uvicorn's", "ours"],
)
@pytest.mark.parametrize("how", ["table", "file"])
def test_silence_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: PlainValues, said: str, how: str
) -> None:
    """A configuration without a handler for our lines is no error, but hardly what is meant."""
    for handler in list(logging.getLogger().handlers):  # pytest's
        logging.getLogger().removeHandler(handler)
    handlers = {"file": {"class": "logging.NullHandler"}}
    table = {"version": 1, "handlers": handlers, "loggers": named, "root": {"level": "INFO"}}
    (tmp_path / "log.json").write_text(json.dumps(table))
    given = table if how == "table" else str(tmp_path / "log.json")
    configure_logging(Config(log_config=given))
    warn_if_silent(given)
    assert capsys.readouterr().err.strip().endswith(said)
    assert bool(said) is not server_log.hasHandlers()


def test_what_is_wrong_in_a_table_is_named() -> None:
    """The same for a table, which has no file."""
    with pytest.raises(ConfigError, match="^log_config: dictionary doesn't specify a version$"):
        configure_logging(Config(log_config={}))


def test_other_kinds_of_files_are_refused() -> None:
    """Neither the old format of logging.config nor YAML is read."""
    with pytest.raises(ConfigError, match=r"log_config must be a table, or a file of JSON or TOML .* not 'log.ini'"):
        Config(log_config="log.ini")
    with pytest.raises(ConfigError, match="log_config must be a text or a table or none, not 3"):
        Config(log_config=3)  # type: ignore[arg-type]


def test_options_of_our_handlers_do_not_go_with_it() -> None:
    """log_format=json would have no effect, so it is an error that says what to do instead."""
    with pytest.raises(ConfigError, match=r"name trioserve\.formatters\.JSONFormatter there"):
        Config(log_config="log.json", log_format="json")


def test_a_worker_gets_it(tmp_path: Path) -> None:
    """A table goes to the worker as it is, in the job's JSON."""
    config = Config(log_config=to_file(tmp_path / "log"))
    job = Job("main:app", config, (), (), 3, 2, colors=False, checks_health=True)
    assert Job.from_line(job.to_line()).config == config


def test_print_config_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in a configuration file is shown as one that reads back; a key without a value is left out."""
    monkeypatch.chdir(tmp_path)
    table = to_file(tmp_path / "l\u00f6g", filters={}) | {"x\x7f": [1, True, 1.5, 'a"\x7fb', {}]}
    shown = format_settings(read_settings({"log_config": {**table, "y": None}}))
    (tmp_path / "trioserve.toml").write_text(shown)
    assert read_settings({}).config.log_config == table
    assert tomllib.loads(shown)["log_config"] == table


def test_a_program_that_cannot_use_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """run() ends with 2 and one line that names the file; nothing is imported before."""
    file = tmp_path / "log.json"
    with pytest.raises(SystemExit) as caught:
        run("nowhere:app", log_config=str(file))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: log_config {file}: cannot read it: No such file or directory\n"


def test_a_table_that_cannot_be_used_names_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table in trioserve.toml is named by that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trioserve.toml").write_text("[log_config]\nversion = 2\n")
    with pytest.raises(SystemExit):
        run("nowhere:app")
    assert (
        capsys.readouterr().err == f"error: log_config: Unsupported version: 2 (file {tmp_path / 'trioserve.toml'})\n"
    )


def to_both(path: str) -> str:
    """As to_file, and to stderr, so that a test can wait for it."""
    table = to_file(Path(path))
    table["handlers"]["console"] = {"class": "logging.StreamHandler", "formatter": "plain"}
    table["root"]["handlers"].append("console")
    return json.dumps(table)


def test_in_one_process_from_the_command_line(tmp_path: Path) -> None:
    """A relative path, and relative paths in the file, are those of the current folder."""
    (tmp_path / "main.py").write_text("import logging\nlogging.getLogger('app').info('imported')\n" + APP)
    (tmp_path / "log.json").write_text(to_both("app.log"))
    with start("-m", "trioserve", "main:app", "--port", "0", "--log-config", "log.json", cwd=tmp_path) as program:
        program.wait_for(r"INFO trioserve listening on")
        program.signal()
        assert program.wait() == 0
    log = (tmp_path / "app.log").read_text()
    assert log == program.errors
    assert log.startswith("INFO app imported\n")
    assert "INFO trioserve stopped" in log


def test_in_workers(tmp_path: Path) -> None:
    """Each worker reads it; one that can no longer do so cannot start, says why, and the old ones stay."""
    (tmp_path / "main.py").write_text("import logging\nlogging.getLogger('app').info('imported')\n" + WORKER_APP)
    file = tmp_path / "log.json"
    file.write_text(to_both("app.log"))
    options = ["--port", "0", "--workers", "2", "--log-config", "log.json"]
    with start("-m", "trioserve", "main:app", *options, cwd=tmp_path) as program:
        program.wait_for_answers(2)
        wait_until(lambda: program.errors.count("INFO app imported") == 2, "both have said so")
        file.write_text("{ ")
        program.signal(signal.SIGHUP)
        program.wait_for(r"ERROR trioserve the new worker cannot start, so the old ones stay")
        assert "error: log_config log.json: not JSON: " in program.errors
        assert len(program.wait_for_answers(2)) == 2
        program.signal()
        assert program.wait() == 0
    assert (tmp_path / "app.log").read_text().count("INFO app imported") == 2
