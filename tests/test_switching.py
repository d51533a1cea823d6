"""Command lines of uvicorn and Hypercorn, and the guides in README.md for those who come from there."""

import argparse
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import click
import hypercorn.__main__
import hypercorn.config
import pytest
from click.testing import CliRunner

from trioserve.cli import main
from trioserve.config import Config, options
from trioserve.errors import ConfigError
from trioserve.foreign_flags import FOREIGN_FLAGS, HYPERCORN, UVICORN
from trioserve.foreign_names import NOTHING_LIKE_IT, RENAMED
from trioserve.switching import find_foreign_variables, translate

from .test_readme_examples import README, below

NOWHERE = "\N{EN DASH}"
KNOWN = {one.name: one for one in options()}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from a file, nor from the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"):
        monkeypatch.delenv(name, raising=False)


def rows(heading: str) -> list[list[str]]:
    """The cells of the section's table."""
    lines = [line for line in below(README.read_text(), f"## {heading}", "## ").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def flags(cell: str) -> list[str]:
    return [word for word in words(cell) if word.startswith("-")]


def run(*arguments: str) -> str:
    """What the command line says in the end, or the settings it would serve with."""
    result = CliRunner().invoke(main, [*arguments, "--print-config"], prog_name="trioserve")
    assert result.exit_code in (0, 2), result.output
    return result.output.partition("Error: ")[2].strip() if result.exit_code else result.stdout


def chosen(*arguments: str) -> dict[str, object]:
    """What the command line has set, besides the application."""
    lines = [line for line in run("main:app", *arguments).splitlines() if line.endswith("# command line")]
    values = tomllib.loads("\n".join(lines))
    assert values.pop("app") == "main:app"
    return values


# --- the tables hold what the servers declare


def options_of_uvicorn() -> list[click.Option]:
    command: click.Command = importlib.import_module("uvicorn.main").main
    return [one for one in command.params if isinstance(one, click.Option)]


def flags_of_uvicorn() -> set[str]:
    return {name for one in options_of_uvicorn() for name in (*one.opts, *one.secondary_opts)}


def flags_of_hypercorn(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    parsers: list[argparse.ArgumentParser] = []

    def note(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", note)
    with pytest.raises(SystemExit):
        hypercorn.__main__.main(["main:app"])
    return {name for action in parsers[0]._actions for name in action.option_strings} - {"-h", "--help"}


def keys_of_hypercorn() -> set[str]:
    config = hypercorn.config.Config
    # What is computed is nobody's to set.
    settable = {
        name
        for name in dir(config)
        if not (callable(found := getattr(config, name)) and name != "logger_class")
        and not (isinstance(found, property) and found.fset is None)
    }
    return {name for name in settable | set(config.__annotations__) if not name.startswith("_")}


def test_every_flag_of_uvicorn_is_in_the_table():
    """The table has each flag that uvicorn declares, once, and no other."""
    listed = [flag for row in rows("Coming from uvicorn") for flag in flags(row[0])]
    assert len(listed) == len(set(listed))
    assert set(listed) == flags_of_uvicorn()


def test_every_flag_of_hypercorn_is_in_the_table(monkeypatch):
    """The table has each flag that Hypercorn declares, once, and no other."""
    listed = [flag for row in rows("Coming from Hypercorn") for flag in flags(row[0])]
    assert len(listed) == len(set(listed))
    assert set(listed) == flags_of_hypercorn(monkeypatch)


def test_every_key_of_hypercorn_is_in_the_table():
    """The table has each key that a configuration file of Hypercorn's can have, once, and no other."""
    listed = [key for row in rows("Coming from Hypercorn") for key in words(row[1])]
    assert len(listed) == len(set(listed))
    assert set(listed) == keys_of_hypercorn()


@pytest.mark.parametrize(
    ("server", "heading"), [(UVICORN, "Coming from uvicorn"), (HYPERCORN, "Coming from Hypercorn")]
)
def test_hints_are_those_of_the_table(server, heading):
    """What the command line says where there is nothing like a flag stands in the table, word for word."""
    table = {flag: row[-1].replace("`", "") for row in rows(heading) for flag in flags(row[0])}
    for foreign in server:
        for name in foreign.names:
            assert foreign.hint in table[name] or name == "-p"


@pytest.mark.parametrize("heading", ["Coming from uvicorn", "Coming from Hypercorn"])
def test_tables_name_options_that_there_are(heading):
    """What stands for ours in the tables are options; nothing does where the command line knows nothing like it."""
    known = {"--version", "--config", "app"} | set(KNOWN) | {one.flag for one in KNOWN.values()}
    known |= {f"--no-{one.flag[2:]}" for one in KNOWN.values() if one.kind is bool}
    for theirs, *_, ours, difference in rows(heading):
        if ours == "the same":
            assert {name.split()[0] for name in flags(theirs)} <= known
        elif ours != NOWHERE and flags(theirs) != ["--ws"]:
            assert set(words(ours)) <= known
        for word in words(difference):
            name = word.split()[0]
            if name.startswith("--") and name not in FOREIGN_FLAGS:
                assert name in known


def is_nothing(default: object) -> bool:
    return default in (None, "", (), []) or repr(default) == "Sentinel.UNSET"


def told(difference: str) -> tuple[float, float] | None:
    """Our default and theirs, if the table says that these are two numbers."""
    found = re.match(r"(\d+), not (\d+)\b", difference)
    return (float(found[1]), float(found[2])) if found else None


def test_other_defaults_than_those_of_uvicorn_are_told():
    """A default that is not uvicorn's stands in the table, and what stands there are the two defaults."""
    table = {flag: row for row in rows("Coming from uvicorn") for flag in flags(row[0])}
    for theirs in options_of_uvicorn():
        _, here, difference = table[theirs.opts[0]]
        ours = KNOWN.get(theirs.opts[0][2:].replace("-", "_"))
        if here != "the same" or ours is None:
            continue
        if not difference:
            assert ours.default == theirs.default or (is_nothing(ours.default) and is_nothing(theirs.default))
        elif numbers := told(difference):
            assert numbers == (ours.default, theirs.default)


def test_other_defaults_than_those_of_hypercorn_are_told():
    """So do those that are not Hypercorn's."""
    config, checked = hypercorn.config.Config(), 0
    for _, keys, here, difference in rows("Coming from Hypercorn"):
        named = words(keys if here == "the same" else here)
        name = named[0].removeprefix("--").replace("-", "_") if len(named) == 1 else ""
        if name not in KNOWN or not words(keys):
            continue
        ours = KNOWN[name].default
        if numbers := told(difference):
            size = 1024 if "KiB" in difference else 1
            assert numbers == (ours / size, getattr(config, words(keys)[0]) / size)
            checked += 1
        elif not difference and name != "log_level":  # which is in capitals there
            theirs = getattr(config, words(keys)[0])
            assert ours == theirs or (is_nothing(ours) and is_nothing(theirs))
            checked += 1
    assert checked > 12


def intro(heading: str) -> str:
    """What stands before the section's table, in one line."""
    return " ".join(below(README.read_text(), f"## {heading}", "## ").partition("\n| ")[0].split())


def test_seconds_that_the_guides_tell_are_the_defaults():
    """The differences that stand before the tables name our deadlines, and Hypercorn's, as they are."""
    ours, theirs = Config(), hypercorn.config.Config()
    words_of = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
    text = intro("Coming from uvicorn")
    assert re.findall(r"(\d+) seconds", text) == [
        f"{ours.timeout_disconnect_grace:g}",
        f"{ours.timeout_graceful_shutdown:g}",
    ]
    told_anywhere = re.findall(r"cancelled (\d+) seconds after its client has left", README.read_text())
    assert told_anywhere == [f"{ours.timeout_disconnect_grace:g}"] * 2
    assert f"A stop ends after {ours.timeout_graceful_shutdown:g} seconds" in text
    (count,) = re.findall(r"(\w+) things are different", text)
    assert text.count("- **") == words_of[count]
    assert chosen("--timeout-disconnect-grace", "none") == {"timeout_disconnect_grace": "none"}
    text = intro("Coming from Hypercorn")
    assert re.findall(r"(\d+) seconds", text) == [f"{theirs.graceful_timeout:g}"]


def test_names_of_uvicorn_in_a_program():
    """Each keyword of uvicorn.run() is an option's, or it is known what to use for it."""
    theirs = set(inspect.signature(importlib.import_module("uvicorn").run).parameters)
    assert theirs - {"app"} - set(KNOWN) <= set(RENAMED) | set(NOTHING_LIKE_IT)


def test_names_of_hypercorn_in_a_program():
    """Each key of Hypercorn's is an option's, or it is known what to use for it, as the table has it."""
    for _, keys, here, _ in rows("Coming from Hypercorn"):
        for key in set(words(keys)) - set(KNOWN):
            named = [name.removeprefix("--").replace("-", "_") for name in words(here)]
            assert (RENAMED.get(key) in named) if named else (key in NOTHING_LIKE_IT)


def test_foreign_names_are_none_of_ours():
    """What theirs are called here is what options are called, and nothing is said of an option as if it were none."""
    assert set(RENAMED.values()) <= set(KNOWN) | {"app"}
    assert not (set(RENAMED) | set(NOTHING_LIKE_IT)) & set(KNOWN)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("keep_alive_timeout", "; did you mean 'timeout_keep_alive'?"),
        ("worker_class", "; it always runs on Trio"),
        ("loop", "; it always runs on Trio"),
        ("prot", "; did you mean 'port'?"),
        ("zzz", ""),
    ],
)
def test_wrong_names(name, end, tmp_path):
    """A name of theirs is answered with ours, in a program and in a file."""
    with pytest.raises(ConfigError) as caught:
        Config().replace(**{name: 1})
    assert str(caught.value) == f"there is no option {name!r}{end}"
    (tmp_path / "theirs.toml").write_text(f"{name} = 1\n")
    assert run("-c", "theirs.toml") == f"{tmp_path / 'theirs.toml'}: there is no option {name!r}{end}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("main:app:x", "APP must be module:attribute, not 'main:app:x'; did you mean 'main:app'?"),
        ("main --port 1", "APP must be module:attribute, not 'main'; did you mean 'main:app'?"),
        ("inspct 12 --watch", "there is no command 'inspct'; did you mean 'trioserve inspect'?"),
        ("main app", "APP is one word; did you mean 'main:app'?"),
        ("main :app", "APP is one word; did you mean 'main:app'?"),
        ("run main:app", "there is no command 'run'; leave it out: trioserve main:app"),
        ("main:app --worker 2", "there is no option '--worker'; did you mean '--workers'?"),
        ("main:app --por=1", "there is no option '--por'; did you mean '--port'?"),
    ],
)
def test_wrong_words(arguments, said):
    """What is no command, no application or no option is told with what was probably meant."""
    assert run(*arguments.split()) == said


def test_refused_flags_are_none_of_ours():
    """Of a flag that an option of ours is called like, something is taken."""
    for name, foreign in FOREIGN_FLAGS.items():
        if name in {one.flag for one in KNOWN.values()}:
            assert foreign.rewrite("h11" if name == "--http" else "7") is not None


# --- what becomes of them


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # uvicorn
        ("--loop auto", {}),
        ("--http httptools", {"http": "httptools"}),
        ("--http auto", {"http": "auto"}),
        ("--ws auto", {"ws": "on"}),
        ("--ws websockets", {"ws": "on"}),
        ("--ws wsproto", {"ws": "on"}),
        ("--ws none", {"ws": "off"}),
        ("--ws=off", {"ws": "off"}),
        ("--ws-ping-interval 0", {"ws_ping_interval": "none"}),
        ("--ws-per-message-deflate false", {"ws_per_message_deflate": False}),
        ("--ws-per-message-deflate=True", {"ws_per_message_deflate": True}),
        ("--ws-per-message-deflate --port 1", {"ws_per_message_deflate": True, "port": 1}),
        ("--no-ws-per-message-deflate", {"ws_per_message_deflate": False}),
        ("--interface asgi3", {}),
        ("--interface auto", {}),
        ("--log-level trace", {"log_level": "debug"}),
        ("--log-level WARNING", {"log_level": "warning"}),
        ("--no-access-log", {"access_log": False}),
        ("--access-log=0", {"access_log": False}),
        ("--forwarded-allow-ips 10.0.0.1,10.1.0.0/16", {"forwarded_allow_ips": ["10.0.0.1", "10.1.0.0/16"]}),
        ("--forwarded-allow-ips=*", {"forwarded_allow_ips": ["*"]}),
        ("--ssl-version 17", {}),
        ("--ssl-cert-reqs 0", {"ssl_cert_reqs": "none"}),
        ("--reset-contextvars", {}),
        ("--header X-A:b", {"header": ["X-A:b"]}),
        # Hypercorn
        ("--access-logfile -", {"access_log": True}),
        ("--error-logfile -", {}),
        ("-b 0.0.0.0:80 --bind fd://3", {"bind": ["0.0.0.0:80", "fd:3"]}),
        ("-b0.0.0.0:80", {"bind": ["0.0.0.0:80"]}),
        ("--insecure-bind unix:s", {"insecure_bind": ["unix:s"]}),
        ("--certfile a --keyfile b", {"ssl_certfile": "a", "ssl_keyfile": "b"}),
        (
            "--certfile a --ca-certs c --keyfile-password d --ciphers e --verify-mode CERT_OPTIONAL",
            {
                "ssl_certfile": "a",
                "ssl_ca_certs": "c",
                "ssl_keyfile_password": "********",
                "ssl_ciphers": "e",
                "ssl_cert_reqs": "optional",
            },
        ),
        (
            "--certfile a --ca-certs c --cert-reqs 2",
            {"ssl_certfile": "a", "ssl_ca_certs": "c", "ssl_cert_reqs": "required"},
        ),
        ("--graceful-timeout 4", {"timeout_graceful_shutdown": 4}),
        ("--keep-alive 4", {"timeout_keep_alive": 4}),
        (
            "--max-requests 4 --max-requests-jitter 2",
            {"limit_max_requests": 4, "limit_max_requests_jitter": 2},
        ),
        ("--websocket-ping-interval 4", {"ws_ping_interval": 4}),
        ("-w 4 -k trio", {"workers": 4}),
        ("-w4 --worker-class=trio", {"workers": 4}),
    ],
)
def test_flags_that_mean_the_same(theirs, ours):
    """A flag of theirs is taken where there is something that means the same."""
    assert chosen(*theirs.split()) == ours


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("--loop uvloop", "--loop uvloop: it always runs on Trio; leave this out"),
        ("--http2", "--http2: HTTP/2 is not there yet; a proxy in front can speak it"),
        ("--http zttp", "http must be one of auto, h11, httptools, not 'zttp'"),
        ("--ws custom:Class", "ws must be one of on, off, not 'custom:Class'"),
        ("--interface wsgi", "--interface wsgi: only ASGI 3 is served; wrap the application"),
        ("--log-config log.yaml", "--log-config log.yaml: JSON and TOML are read, not YAML and INI"),
        ("--ssl-version 5", "--ssl-version 5: use --ssl-min-version TLSv1.2 or TLSv1.3"),
        ("--h11-max-incomplete-event-size 9", "--h11-max-incomplete-event-size 9: use --limit-request-head N"),
        ("--ws-per-message-deflate=perhaps", "--ws-per-message-deflate takes no value, so not 'perhaps'"),
        ("--reload=perhaps", "say --reload or --no-reload"),
        ("-k uvicorn.workers.UvicornWorker", "it always runs on Trio; leave this out"),
        ("--access-logfile access.log", "access lines go to stdout: redirect it, or use --log-config"),
        ("--log-file errors.log", "all but access lines goes to stderr"),
        ("-c python:conf", "-c python:conf: only TOML is read"),
        ("-D", "-D: it stays in the foreground"),
        ("-p 8000", "-p 8000: use --port N for a port"),
        ("--timeout 120", "--timeout 120: use --timeout-worker-healthcheck SECONDS for gunicorn's"),
        ("-port 8000", "there is no option '-port'; did you mean '--port'?"),
        ("-reloda", "there is no option '-reloda'; did you mean '--reload'?"),
        ("\N{EN DASH}port 8000", "'\N{EN DASH}port' begins with a dash, and not with two hyphens"),
        ("--loop asyncio --quic-bind h:1", "--quic-bind h:1: HTTP/3 is not there; a proxy in front can speak it"),
        ("--proxy-headers", "proxy_headers needs forwarded_allow_ips"),
    ],
)
def test_flags_that_there_is_nothing_like(theirs, said):
    """Of a flag that there is nothing like one line says what to do in its place; so with what cannot be meant so."""
    assert said in run("main:app", *theirs.split())
    assert CliRunner().invoke(main, ["main:app", *theirs.split()]).exit_code == 2


def test_all_that_is_wrong_is_told_at_once():
    """Several flags that there is nothing like are one run's work."""
    said = run("main:app", "--loop", "uvloop", "--port", "1", "--interface", "asgi2").splitlines()
    assert [line.partition(":")[0] for line in said] == ["--loop uvloop", "--interface asgi2"]


def test_values_are_no_flags():
    """What follows a flag that takes a value is that value, whatever it looks like; after ``--`` nothing is a flag."""
    arguments = [
        "--header",
        "--loop",
        "--config",
        "-k",
        "--ssl-keyfile-password",
        "\N{EN DASH}x",
        "--",
        "--loop",
        "uvloop",
    ]
    assert translate(arguments) == arguments
    assert translate(["--port"]) == ["--port"]
    with pytest.raises(ConfigError, match="--loop needs a value"):
        translate(["--loop"])


@pytest.mark.parametrize(
    ("value", "ours"),
    [("log.json", "log.json"), ("json:log.txt", "log.txt"), ("toml:x/log.toml", "x/log.toml")],
)
def test_files_for_logging(value, ours):
    """A file of ours stays; Hypercorn's way to say which kind it is is taken."""
    assert translate(["--log-config", value]) == ["--log-config", ours]


def test_file_of_options():
    """-c is --config; what is there under another name is called by ours."""
    assert translate(["--access-logformat", "%(h)s"]) == ["--access-log-format", "%(h)s"]
    assert translate(["-c", "hypercorn.toml", "--pid", "p"]) == ["--config", "hypercorn.toml", "--pid-file", "p"]


def test_flags_of_others_are_not_in_the_help():
    """--help shows what is ours."""
    shown = CliRunner().invoke(main, ["--help"]).output
    own = {one.flag for one in KNOWN.values()} | {"--config"}
    for name in FOREIGN_FLAGS.keys() - own:
        assert re.search(rf"(^|\s){name}[\s,]", shown) is None


def test_a_whole_command_line_of_uvicorn():
    """What the documentation of uvicorn and FastAPI puts into container files is taken but for what Trio replaces."""
    theirs = (
        "--host 0.0.0.0 --port 80 --workers 4 --proxy-headers --forwarded-allow-ips=* --http httptools --lifespan on "
        "--no-server-header --timeout-keep-alive 5 --limit-concurrency 100 --log-level info --ws websockets"
    )
    assert chosen(*theirs.split()) == {
        "host": "0.0.0.0",
        "port": 80,
        "workers": 4,
        "proxy_headers": True,
        "forwarded_allow_ips": ["*"],
        "http": "httptools",
        "lifespan": "on",
        "server_header": False,
        "timeout_keep_alive": 5,
        "limit_concurrency": 100,
        "log_level": "info",
        "ws": "on",
    }


# --- variables


def test_variables_of_uvicorn(monkeypatch):
    """A variable that uvicorn reads and trioserve does not is told of, with ours; not one that is given."""
    for name in (
        "PORT",
        "RELOAD_DIRS",
        "HEADERS",
        "APP",
        "LOOP",
        "SSL_CERT_REQS",
        "RESET_CONTEXTVARS",
        "DEBUG",
        "HOST",
    ):
        monkeypatch.setenv(f"UVICORN_{name}", "1")
    monkeypatch.setenv("UVICORN_FD", "")
    monkeypatch.setenv("UVICORN", "1")
    sources = {"app": "default", **dict.fromkeys(KNOWN, "default"), "host": "environment TRIOSERVE_HOST"}
    assert list(find_foreign_variables(sources)) == [
        f"environment variable UVICORN_{text}"
        for text in (
            "APP is not read; use TRIOSERVE_APP",
            "HEADERS is not read; use TRIOSERVE_HEADER",
            "LOOP is not read: it always runs on Trio; leave this out",
            "PORT is not read; use TRIOSERVE_PORT",
            "RELOAD_DIRS is not read; use TRIOSERVE_RELOAD_DIR",
            "SSL_CERT_REQS is not read; use TRIOSERVE_SSL_CERT_REQS",
        )
    ]


def test_variables_are_warned_of(monkeypatch):
    """The command line says so."""
    monkeypatch.setenv("UVICORN_PORT", "1")
    result = CliRunner().invoke(main, ["main:app", "--print-config"])
    assert "warning: environment variable UVICORN_PORT is not read; use TRIOSERVE_PORT\n" in result.output
