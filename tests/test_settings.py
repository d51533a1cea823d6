"""Where the values of options come from."""

import json
import math
import os
import sys
import tomllib

import pytest

from trioserve.bind import DescriptorBind
from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.process.settings import format_settings, read_settings

FOREIGN = ("TRIOSERVE_", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder and an environment without trioserve's variables; both are put back."""
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    # Not monkeypatch's: an env_file adds variables that it does not know of.
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def hand_over():
    """Set what systemd sets for sockets of these names; descriptors from 3 on are open, whatever they are."""
    opened = []
    flags = {}

    def hand(*names):
        while not opened or opened[-1] < 2 + len(names):
            opened.append(os.open(os.devnull, os.O_RDONLY))
        flags.update({number: os.get_inheritable(number) for number in range(3, 3 + len(names))})
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))

    yield hand
    for number, flag in flags.items():
        os.set_inheritable(number, flag)
    for number in opened:
        os.close(number)


def failure(given=None, **keywords):
    with pytest.raises(ConfigError) as caught:
        read_settings(given or {}, **keywords)
    return str(caught.value)


def test_defaults():
    """With nothing given every option has its default, and says so."""
    settings = read_settings({})
    assert settings.config == Config()
    assert set(settings.sources.values()) == {"default"}
    assert (settings.app, settings.file, settings.warnings) == (None, None, ())


def test_order(folder):
    """The command line wins over the environment, that over the file, that over the default."""
    (folder / "trioserve.toml").write_text("port = 1\nbacklog = 1\nlimit_request_fields = 1\n")
    os.environ.update(TRIOSERVE_PORT="2", TRIOSERVE_BACKLOG="2")
    settings = read_settings({"port": 3})
    config = settings.config
    assert (config.port, config.backlog, config.limit_request_fields, config.host) == (3, 2, 1, "127.0.0.1")
    assert [settings.sources[name] for name in ("port", "backlog", "limit_request_fields", "host")] == [
        "command line",
        "environment TRIOSERVE_BACKLOG",
        f"file {folder / 'trioserve.toml'}",
        "default",
    ]


def test_named_file(folder):
    """--config is read in place of trioserve.toml."""
    (folder / "trioserve.toml").write_text("port = 1\n")
    (folder / "other.toml").write_text("port = 2\n")
    settings = read_settings({}, config_file="other.toml")
    assert (settings.config.port, settings.file) == (2, folder / "other.toml")


def test_file_named_in_the_environment(folder):
    """TRIOSERVE_CONFIG does what --config does."""
    (folder / "other.toml").write_text("port = 2\n")
    os.environ["TRIOSERVE_CONFIG"] = "other.toml"
    settings = read_settings({})
    assert (settings.config.port, settings.warnings) == (2, ())


def test_trioserve_toml_wins_over_pyproject(folder):
    """trioserve.toml in the current folder is read in place of pyproject.toml."""
    (folder / "trioserve.toml").write_text("port = 1\n")
    (folder / "pyproject.toml").write_text("[tool.trioserve]\nport = 2\n")
    assert read_settings({}).config.port == 1


def test_nearest_pyproject(folder, monkeypatch):
    """The nearest pyproject.toml upward is read."""
    (folder / "pyproject.toml").write_text("[tool.trioserve]\nport = 1\n")
    (folder / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(folder / "a" / "b")
    settings = read_settings({})
    assert (settings.config.port, settings.file) == (1, folder / "pyproject.toml")


@pytest.mark.parametrize("text", ["", "tool = 3", "[tool.other]\nport = 2"])
def test_pyproject_without_our_table(folder, monkeypatch, text):
    """A pyproject.toml without our table ends the search and is not named as the file used."""
    (folder / "pyproject.toml").write_text("[tool.trioserve]\nport = 1\n")
    (folder / "a").mkdir()
    (folder / "a" / "pyproject.toml").write_text(text)
    monkeypatch.chdir(folder / "a")
    settings = read_settings({})
    assert (settings.config.port, settings.file) == (8000, None)


@pytest.mark.parametrize(("text", "port"), [("[tool.trioserve]\nport = 1", 1), ("", 8000)])
def test_named_pyproject(folder, text, port):
    """A pyproject.toml named with --config is read for its table too."""
    (folder / "pyproject.toml").write_text(text)
    settings = read_settings({}, config_file="pyproject.toml")
    assert (settings.config.port, settings.file) == (port, folder / "pyproject.toml")


def test_table_of_the_wrong_type(folder):
    """tool.trioserve must be a table."""
    (folder / "pyproject.toml").write_text("tool.trioserve = 3")
    assert failure() == f"{folder / 'pyproject.toml'}: tool.trioserve must be a table, not 3"


def test_keys_with_hyphens(folder):
    """Keys may be written like the flags."""
    (folder / "trioserve.toml").write_text("timeout-keep-alive = 5\n")
    assert read_settings({}).config.timeout_keep_alive == 5


def test_key_given_twice(folder):
    """The two spellings of one option are the same option."""
    (folder / "trioserve.toml").write_text("root-path = '/a'\nroot_path = '/b'\n")
    assert failure() == f"{folder / 'trioserve.toml'}: root_path is given twice"


def test_unknown_key(folder):
    """An unknown key is an error that names the file, the key and the nearest option."""
    (folder / "trioserve.toml").write_text("prot = 1\n")
    expected = f"{folder / 'trioserve.toml'}: there is no option 'prot'; did you mean 'port'?"
    assert failure() == expected


def test_unknown_option_of_run():
    """An unknown keyword is an error too; where nothing is near, nothing is proposed."""
    assert failure({"zzz": 1}) == "there is no option 'zzz'"


def test_bad_value_in_the_file(folder):
    """A bad value in a file is an error that names the file."""
    (folder / "trioserve.toml").write_text("port = true\n")
    expected = f"{folder / 'trioserve.toml'}: port must be a whole number from 0 to 65535, not True"
    assert failure() == expected


def test_bad_value_in_the_environment():
    """A bad value in the environment is an error that names the variable."""
    os.environ["TRIOSERVE_PORT"] = "http"
    assert failure() == "TRIOSERVE_PORT: port must be a whole number from 0 to 65535, not 'http'"


def test_bad_value_of_run():
    """Values given as keywords are checked like all others."""
    assert failure({"port": "80"}) == "port must be a whole number from 0 to 65535, not '80'"


def test_values_that_do_not_go_together():
    """Where two options do not go together, the text says where the one it names came from."""
    os.environ["TRIOSERVE_SSL_KEYFILE"] = "key.pem"
    assert failure() == "ssl_keyfile needs ssl_certfile (environment TRIOSERVE_SSL_KEYFILE)"


def test_values_of_the_command_line_that_do_not_go_together():
    """What was just typed needs no mention of where it came from."""
    assert failure({"ssl_keyfile": "key.pem"}) == "ssl_keyfile needs ssl_certfile"


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"port = ", "not TOML: "), (b"\xff", "not TOML: ")],
)
def test_not_toml(folder, text, said):
    """A file that is not TOML is named."""
    (folder / "trioserve.toml").write_bytes(text)
    assert failure().startswith(f"{folder / 'trioserve.toml'}: {said}")


@pytest.mark.parametrize("key", ["port", "host"])
def test_too_deep(folder, key):
    """A file whose values Python cannot read for their depth is named."""
    (folder / "trioserve.toml").write_text(f"{key} = {'[' * 10000}{']' * 10000}")
    assert failure() == f"{folder / 'trioserve.toml'}: its values are nested too deeply"


def test_a_number_too_long_to_show(folder):
    """A number that Python would not write does not keep the error from naming file and option."""
    (folder / "trioserve.toml").write_text(f"port = 0x{'f' * 4000}\n")
    said = "port must be a whole number from 0 to 65535, not a value of type int that is too large to be shown"
    assert failure() == f"{folder / 'trioserve.toml'}: {said}"


def test_file_missing(folder):
    """A file named with --config must be there."""
    assert failure(config_file="none.toml") == f"{folder / 'none.toml'}: cannot read it: No such file or directory"


def test_none_and_octal_in_a_file(folder):
    """TOML has no null: "none" stands for it; an octal number may be quoted."""
    (folder / "trioserve.toml").write_text('timeout_disconnect_grace = "none"\nuds_permissions = "660"\n')
    config = read_settings({}).config
    assert (config.timeout_disconnect_grace, config.uds_permissions) == (None, 0o660)


def test_app_from_each_source(folder):
    """The application may be named in a file, in the environment or on the command line, in that order of strength."""
    (folder / "trioserve.toml").write_text('app = "a:app"\n')
    assert read_settings({}).app == "a:app"
    os.environ["TRIOSERVE_APP"] = "b:app"
    settings = read_settings({})
    assert (settings.app, settings.sources["app"]) == ("b:app", "environment TRIOSERVE_APP")
    assert read_settings({}, app="c:app").app == "c:app"


def test_app_of_the_wrong_type(folder):
    """An app that is not text is refused."""
    (folder / "trioserve.toml").write_text("app = 1\n")
    assert failure() == f"{folder / 'trioserve.toml'}: app must be module:attribute, not 1"


def test_strange_variable():
    """A variable that looks like ours and is not gives one warning, with the nearest name."""
    os.environ["TRIOSERVE_PROT"] = "1"
    (warning,) = read_settings({}).warnings
    assert warning == (
        "environment variable TRIOSERVE_PROT is ignored: there is no such option; did you mean 'TRIOSERVE_PORT'?"
    )


def test_strange_variable_like_no_other():
    """The prefix that all have in common is no likeness."""
    os.environ["TRIOSERVE_XYZ"] = "1"
    (warning,) = read_settings({}).warnings
    assert warning == "environment variable TRIOSERVE_XYZ is ignored: there is no such option"


def test_header_in_the_environment():
    """A header in the environment keeps its commas; several are given one per line."""
    os.environ["TRIOSERVE_HEADER"] = "Cache-Control: no-store, max-age=0\nX-A: b"
    assert read_settings({}).config.header == ("Cache-Control: no-store, max-age=0", "X-A: b")


@pytest.mark.parametrize("how", ["command line", "environment", "file"])
def test_env_file(folder, how):
    """An env_file named anywhere is added to the environment, for the application as well as for options."""
    (folder / ".env").write_text("TRIOSERVE_PORT=7\nDATABASE=here\n")
    given = {}
    if how == "command line":
        given["env_file"] = ".env"
    elif how == "environment":
        os.environ["TRIOSERVE_ENV_FILE"] = ".env"
    else:
        (folder / "trioserve.toml").write_text('env_file = ".env"\n')
    settings = read_settings(given)
    assert (settings.config.port, os.environ["DATABASE"]) == (7, "here")
    assert settings.sources["port"] == "environment TRIOSERVE_PORT of .env"


def test_env_file_never_overrides(folder):
    """What is set in the environment stays."""
    (folder / ".env").write_text("TRIOSERVE_PORT=7\n")
    os.environ["TRIOSERVE_PORT"] = "8"
    settings = read_settings({"env_file": ".env"})
    assert (settings.config.port, settings.sources["port"]) == (8, "environment TRIOSERVE_PORT")


def test_no_env_file(folder):
    """A stronger source may take the env_file of a weaker one away."""
    (folder / "trioserve.toml").write_text('env_file = "none.env"\n')
    assert read_settings({"env_file": None}).config.env_file is None


def test_env_file_missing(folder):
    """An env_file must be there, and the error says who named it."""
    os.environ["TRIOSERVE_ENV_FILE"] = "none.env"
    expected = f"env_file (environment TRIOSERVE_ENV_FILE): there is no file {folder / 'none.env'}"
    assert failure() == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"A=\xff", "'utf-8' codec can't decode byte 0xff"), (b"A=b\0c", "embedded null byte")],
)
def test_env_file_that_cannot_be_used(folder, data, said):
    """What no variable can hold is an error that names the file and who named it."""
    (folder / ".env").write_bytes(data)
    expected = f"env_file (command line): cannot take variables from {folder / '.env'}: {said}"
    assert failure({"env_file": ".env"}).startswith(expected)


def test_env_file_with_a_name_too_long():
    """Nor is a name that no file can have anything but an error."""
    assert "File name too long" in failure({"env_file": "x" * 5000})


def test_env_file_without_dotenv(folder, monkeypatch):
    """Without python-dotenv an env_file is refused with what to install."""
    monkeypatch.setitem(sys.modules, "dotenv", None)
    assert "pip install 'trioserve[dotenv]'" in failure({"env_file": ".env"})


def test_port_of_the_command_line_replaces_a_weaker_bind(folder):
    """An address named by a stronger source is not overruled by another kind of address of a weaker one."""
    (folder / "trioserve.toml").write_text('bind = ["unix:a"]\nuds = "b"\nhost = "::1"\n')
    settings = read_settings({"port": 9})
    assert [str(bind) for bind, _ in settings.config.binds] == ["[::1]:9"]
    assert settings.sources["bind"] == "default"


def test_addresses_of_one_source_are_all_kept(folder):
    """Several addresses named by one source are listened on together."""
    (folder / "trioserve.toml").write_text('bind = ["127.0.0.1:1"]\nuds = "b"\nport = 5\n')
    assert [str(bind) for bind, _ in read_settings({}).config.binds] == ["127.0.0.1:1", "unix:b"]


def test_sockets_of_systemd_are_all_served(hand_over):
    """When no source names an address, all that systemd handed over is served."""
    hand_over("http", "admin", "http")
    settings = read_settings({"backlog": 5})
    assert settings.config.binds == tuple((DescriptorBind(number), False) for number in (3, 4, 5))
    assert (settings.sources["bind"], settings.warnings) == ("systemd LISTEN_FDS", ())


@pytest.mark.parametrize("given", [{"bind": []}, {"insecure_bind": []}, {"uds": None}, {"fd": None}])
def test_no_address_is_none(hand_over, given):
    """An option that is set to nothing names no address."""
    hand_over("http")
    assert read_settings(given).config.bind == ("fd:3",)


@pytest.mark.parametrize(
    ("name", "value"), [("host", "::1"), ("port", 8000), ("uds", "s"), ("insecure_bind", ["127.0.0.1:1"])]
)
@pytest.mark.parametrize("how", ["command line", "file"])
def test_sockets_of_systemd_beside_an_address(folder, hand_over, name, value, how):
    """An address named by any source is what is served, and every socket that is not named gets a warning."""
    hand_over("http", "admin")
    (folder / "trioserve.toml").write_text(f"{name} = {json.dumps(value)}\n" if how == "file" else "")
    settings = read_settings({} if how == "file" else {name: value})
    assert settings.config == Config(**{name: value})
    assert settings.warnings == (
        "systemd handed over the socket 'http' (fd 3), which nothing listens on",
        "systemd handed over the socket 'admin' (fd 4), which nothing listens on",
    )


def test_sockets_of_systemd_by_name(hand_over):
    """A name stands for its numbers, of which a socket unit with several addresses has several; the rest stays."""
    hand_over("http", "https", "http")
    settings = read_settings({"bind": ["fd:https"], "insecure_bind": ["fd:http", "127.0.0.1:1"]})
    assert (settings.config.bind, settings.config.insecure_bind) == (("fd:4",), ("fd:3", "fd:5", "127.0.0.1:1"))
    assert (settings.sources["bind"], settings.warnings) == ("command line", ())


@pytest.mark.parametrize("given", [{"fd": 4}, {"bind": ["fd:4"]}, {"insecure_bind": ["fd:04"]}])
def test_sockets_of_systemd_by_number(hand_over, given):
    """A socket may be named by its number too, with each option that takes one."""
    hand_over("http", "admin")
    (warning,) = read_settings(given).warnings
    assert warning == "systemd handed over the socket 'http' (fd 3), which nothing listens on"


def test_name_that_systemd_did_not_hand_over(hand_over):
    """An unknown name is an error that says which there are, and where the name came from."""
    hand_over("http", "admin")
    assert failure({"bind": ["fd:https"]}) == "bind names the socket 'https', but systemd handed over 'http', 'admin'"
    os.environ["TRIOSERVE_INSECURE_BIND"] = "fd:http"
    assert failure() == (
        "insecure_bind names the socket 'http', but systemd handed over none (environment TRIOSERVE_INSECURE_BIND)"
    )


def test_sockets_of_systemd_are_taken_once(hand_over):
    """The second call in a process finds nothing: the sockets have their owner."""
    hand_over("http")
    assert read_settings({}).config.bind == ("fd:3",)
    assert read_settings({}).config == Config()


def test_number_of_workers_of_a_hosting_platform():
    """WEB_CONCURRENCY is the number of workers where nothing else names one."""
    os.environ["WEB_CONCURRENCY"] = "3"
    settings = read_settings({})
    assert (settings.config.workers, settings.sources["workers"]) == (3, "environment WEB_CONCURRENCY")
    assert settings.warnings == ()


@pytest.mark.parametrize("how", ["command line", "environment", "file"])
def test_number_of_workers_of_ours_wins(folder, how):
    """Whoever names workers, even in a file, means trioserve, and WEB_CONCURRENCY may be meant for others."""
    os.environ["WEB_CONCURRENCY"] = "nonsense"
    if how == "environment":
        os.environ["TRIOSERVE_WORKERS"] = "2"
    elif how == "file":
        (folder / "trioserve.toml").write_text("workers = 2\n")
    settings = read_settings({"workers": 2} if how == "command line" else {})
    assert settings.config.workers == 2
    assert settings.sources["workers"].startswith(how)


def test_number_of_workers_from_an_env_file(folder):
    """WEB_CONCURRENCY may stand in the env_file."""
    (folder / "platform.env").write_text("WEB_CONCURRENCY=2\n")
    assert read_settings({"env_file": "platform.env"}).config.workers == 2


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5"])
def test_number_of_workers_that_is_none(text):
    """A WEB_CONCURRENCY that is no number of workers is refused by its own name."""
    os.environ["WEB_CONCURRENCY"] = text
    assert failure().startswith("WEB_CONCURRENCY: workers must be a whole number")


def test_proxies_that_other_servers_trust(folder):
    """FORWARDED_ALLOW_IPS, which uvicorn and gunicorn read, counts where nothing else names the proxies."""
    os.environ["FORWARDED_ALLOW_IPS"] = "10.0.0.0/8, ::1"
    settings = read_settings({})
    assert settings.config.forwarded_allow_ips == ("10.0.0.0/8", "::1")
    assert settings.sources["forwarded_allow_ips"] == "environment FORWARDED_ALLOW_IPS"
    (folder / "trioserve.toml").write_text("forwarded_allow_ips = ['unix']\n")
    assert read_settings({}).config.forwarded_allow_ips == ("unix",)


def test_proxies_that_are_none():
    """A FORWARDED_ALLOW_IPS that names no network is refused by its own name."""
    os.environ["FORWARDED_ALLOW_IPS"] = "10.0.0.1/8"
    assert failure().startswith("FORWARDED_ALLOW_IPS: forwarded_allow_ips must be an address, a network")


@pytest.mark.parametrize("text", ["", "4"])
@pytest.mark.parametrize("reload", [True, False])
def test_number_of_workers_under_reload(text, reload):
    """Under reload, with its one worker, WEB_CONCURRENCY is none of our business; one that is empty never is."""
    os.environ["WEB_CONCURRENCY"] = text
    settings = read_settings({"reload": reload})
    assert settings.config.workers == (4 if text and not reload else 1)


def test_grace_under_reload(folder):
    """Under reload nobody waits 30 s for a stream to end, unless it was asked for."""
    settings = read_settings({"reload": True})
    assert (settings.config.timeout_graceful_shutdown, settings.sources["timeout_graceful_shutdown"]) == (2, "default")
    assert read_settings({"reload": False}).config.timeout_graceful_shutdown == 30
    assert read_settings({"reload": True, "timeout_graceful_shutdown": 9}).config.timeout_graceful_shutdown == 9
    (folder / "trioserve.toml").write_text("reload = true\ntimeout_graceful_shutdown = 8\n")
    assert read_settings({}).config.timeout_graceful_shutdown == 8
    os.environ["TRIOSERVE_TIMEOUT_GRACEFUL_SHUTDOWN"] = "7"
    assert read_settings({}).config.timeout_graceful_shutdown == 7


def test_reload_with_several_workers(folder):
    """reload and several workers exclude each other, wherever they come from."""
    assert failure({"reload": True, "workers": 2}) == "reload runs one worker, so it cannot go with workers=2"
    (folder / "trioserve.toml").write_text("workers = 3\n")
    assert failure({"reload": True}).startswith("reload runs one worker, so it cannot go with workers=3")


def test_format_can_be_used_as_a_file(folder):
    """What --print-config shows is a trioserve.toml that gives the same values."""
    given = {"header": ['A: \u00e4, "b"'], "uds_permissions": 0o660, "timeout_request": None, "use_colors": True}
    settings = read_settings({**given, "uds": "s"}, app="main:app")
    (folder / "trioserve.toml").write_text(format_settings(settings))
    again = read_settings({})
    assert (again.config, again.app) == (settings.config, "main:app")


def test_format_of_an_endless_timeout():
    """An endless timeout is shown as TOML spells it."""
    text = format_settings(read_settings({"timeout_graceful_shutdown": math.inf}))
    assert tomllib.loads(text)["timeout_graceful_shutdown"] == math.inf


def test_format_says_where_each_came_from():
    """Each row ends with the source."""
    rows = format_settings(read_settings({"port": 1})).splitlines()
    assert "".join(rows[0].split(" ")) == 'host="127.0.0.1"#default'
    assert "".join(rows[1].split(" ")) == "port=1#commandline"


def test_format_hides_the_password():
    """The password of a key is never printed."""
    text = format_settings(read_settings({"ssl_certfile": "c.pem", "ssl_keyfile_password": "hunter2"}))
    assert "hunter2" not in text
    assert tomllib.loads(text)["ssl_keyfile_password"] == "********"
