"""Every option: its values, its texts, its errors; and the addresses to listen on."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.bind import DescriptorBind, NamedDescriptorBind, TCPBind, UnixBind, parse_bind
from trioserve.config import Config, options
from trioserve.errors import BindError, ConfigError
from trioserve.option_tables import LARGEST
from trioserve.option_texts import parse_header
from trioserve.options import Option
from trioserve.types import AnyValue

BY_NAME = {one.name: one for one in options()}


# Addresses


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("127.0.0.1:80", TCPBind("127.0.0.1", 80)),
        ("localhost:0", TCPBind("localhost", 0)),
        ("[::1]:65535", TCPBind("::1", 65535)),
        ("unix:/run/app.sock", UnixBind("/run/app.sock")),
        ("unix:relative:with:colons", UnixBind("relative:with:colons")),
        ("unix:@abstract", UnixBind("@abstract")),
        ("fd:3", DescriptorBind(3)),
        ("fd:http", NamedDescriptorBind("http")),
        ("fd:app-1_b.socket", NamedDescriptorBind("app-1_b.socket")),
        ("fd:3rd", NamedDescriptorBind("3rd")),
    ],
)
def test_each_form_of_an_address_is_read_and_written_back(text, bind):
    """HOST:PORT, [v6]:PORT, unix:PATH, fd:N and fd:NAME are read, and str() gives the same text."""
    assert parse_bind(text) == bind
    assert str(bind) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "localhost", "localhost:http", "localhost:", ":80", "::1:80", "[]:80", "h:65536", "h:-1", "h:²", "h:٣",
        "unix:", "fd:", "fd:" + "9" * 5000, "h:" + "9" * 5000,
        "fd:-1", "fd:1.5", "fd:²", "fd:é", "fd:a b", "fd:a:80", "fd:a\n", "fd:a/b", "fd:a@b",
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused_with_the_forms_there_are(text):
    """Anything else is a ConfigError that names the forms and what came."""
    with pytest.raises(ConfigError) as caught:
        parse_bind(text)
    assert str(caught.value) == f"bind must be HOST:PORT, [v6]:PORT, unix:PATH, fd:N or fd:NAME, not {text!r}"


@given(st.text())
def test_reading_an_address_raises_nothing_but_config_error(text):
    """Whatever the text, parse_bind gives an address that reads back the same, or raises ConfigError."""
    try:
        bind = parse_bind(text)
    except ConfigError:
        return
    assert parse_bind(str(bind)) == bind


# Fields


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("X-Frame-Options: DENY", (b"X-Frame-Options", b"DENY")),
        ("a:b:c", (b"a", b"b:c")),
        ("Empty:", (b"Empty", b"")),
        ("Name: \t caf\xe9 au lait \t", (b"Name", b"caf\xe9 au lait")),
    ],
)
def test_a_header_is_name_colon_value(text, field):
    """The value loses the white space around it, and may be empty or contain colons."""
    assert parse_header(text) == field


@pytest.mark.parametrize("text", ["x", ":x", "a b: c", "a: b\r\nc: d", "a: b\0", "é: x", "a: \u20ac", " a: b", "a : b"])
def test_a_header_that_is_no_field_is_refused(text):
    """What RFC 9110 §5 does not allow never gets into a response: no splitting by configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_header(text)
    assert str(caught.value) == f"header must be 'Name: value', not {text!r}"


@pytest.mark.parametrize("name", ["Connection", "content-length", "Transfer-Encoding", "UPGRADE", "trailer"])
def test_a_header_that_frames_the_message_is_refused(name):
    """Fields that belong to the connection are the server's own."""
    with pytest.raises(ConfigError) as caught:
        parse_header(f"{name}: x")
    assert str(caught.value) == f"header {name!r} belongs to the connection, and the server sets it"


def test_extra_headers_are_read_from_the_header_option():
    """Config.extra_headers gives the fields as bytes, in order."""
    config = Config(header=["A: 1", "B: 2"])
    assert config.extra_headers == ((b"A", b"1"), (b"B", b"2"))


# Values


@pytest.mark.parametrize(
    ("name", "value", "expects"),
    [
        ("port", -1, "port must be a whole number from 0 to 65535, not -1"),
        ("port", True, "port must be a whole number from 0 to 65535, not True"),
        ("port", "80", "port must be a whole number from 0 to 65535, not '80'"),
        ("port", 8000.0, "port must be a whole number from 0 to 65535, not 8000.0"),
        ("port", 65536, "port must be a whole number from 0 to 65535, not 65536"),
        ("host", None, "host must be a text, not None"),
        ("host", b"x", "host must be a text, not b'x'"),
        ("uds", 3, "uds must be a text or none, not 3"),
        ("fd", -1, "fd must be a whole number from 0 to 2147483647 or none, not -1"),
        ("bind", "127.0.0.1:80", "bind must be a list of texts, not '127.0.0.1:80'"),
        ("bind", {"a:1"}, "bind must be a list of texts, not {'a:1'}"),
        ("bind", [80], "bind must be a text, not 80"),
        ("bind", ["x"], "bind must be HOST:PORT, [v6]:PORT, unix:PATH, fd:N or fd:NAME, not 'x'"),
        (
            "uds_permissions",
            -1,
            "uds_permissions must be an octal number such as 660 (0o660 in TOML), at most 777, not -1",
        ),
        (
            "uds_permissions",
            660,
            "uds_permissions must be an octal number such as 660 (0o660 in TOML), at most 777, not 660",
        ),
        ("factory", 1, "factory must be true or false, not 1"),
        ("lifespan", "maybe", "lifespan must be one of auto, on, off, not 'maybe'"),
        ("root_path", "api", "root_path must begin with a slash, or be empty, not 'api'"),
        ("timeout_write", 0, "timeout_write must be a number of seconds above 0, not 0.0"),
        ("timeout_write", None, "timeout_write must be a number of seconds above 0, not None"),
        ("timeout_write", float("nan"), "timeout_write must be a number of seconds above 0, not nan"),
        ("timeout_write", True, "timeout_write must be a number of seconds above 0, not True"),
        ("timeout_keep_alive", -1, "timeout_keep_alive must be a number of seconds of at least 0, not -1.0"),
        ("timeout_request", 0, "timeout_request must be a number of seconds above 0 or none, not 0.0"),
        ("ssl_context_factory", "module", "ssl_context_factory must be module:attribute, not 'module'"),
        ("ssl_context_factory", ":x", "ssl_context_factory must be module:attribute, not ':x'"),
        ("ssl_keyfile", "k", "ssl_keyfile needs ssl_certfile"),
        ("ssl_keyfile_password", "k", "ssl_keyfile_password needs ssl_certfile"),
        ("ssl_ca_certs", "k", "ssl_ca_certs needs ssl_certfile"),
        ("ssl_cert_reqs", "required", "ssl_cert_reqs needs ssl_certfile"),
        ("ssl_cert_reqs", "no", "ssl_cert_reqs must be one of none, optional, required, not 'no'"),
        ("use_colors", "yes", "use_colors must be true or false, not 'yes'"),
    ],
)
def test_a_wrong_value_says_what_was_expected_and_what_came(name, value, expects):
    """A value an option cannot take is a ConfigError (and a ValueError) with exactly this text."""
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    assert str(caught.value) == expects
    assert isinstance(caught.value, ValueError)


def test_a_number_of_seconds_too_large_for_a_float_is_a_config_error():
    """A whole number that no float can hold is refused like any other wrong number."""
    with pytest.raises(ConfigError, match=r"^timeout_write must be a number of seconds above 0, not 1000"):
        Config(timeout_write=10**400)


@pytest.mark.parametrize(
    ("name", "value", "expects"),
    [
        ("fd", 1 << 40, "a whole number from 0 to 2147483647 or none, not 1099511627776"),
        ("backlog", 1 << 31, "a whole number from 1 to 2147483647, not 2147483648"),
        ("ws_max_size", 1 << 63, "a whole number of at least 1, of 64 bits at most, not 9223372036854775808"),
    ],
)
def test_a_whole_number_that_nobody_can_use_is_a_config_error(name, value, expects):
    """What would be cut to 32 bits, or cannot be written as JSON, is refused like any other wrong number."""
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    assert str(caught.value) == f"{name} must be {expects}"


def nested(depth):
    """A list in a list, and so on."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", ["port", "timeout_write", "host", "fd", "use_colors", "bind", "http", "ws_max_size"])
def test_a_value_that_cannot_be_shown_is_a_config_error(name):
    """Python writes no number of thousands of digits, and no lists so deep; the error names the option all the same."""
    for wrong in (-(16**4000), 16**4000, [16**4000], nested(100_000)):
        with pytest.raises(ConfigError, match=f"^{name} must be .*, not a value of type (int|list) that is too large"):
            Config(**{name: wrong})


def test_the_error_about_a_text_names_its_own_option():
    """Two options are addresses, and the error is about the one that has the bad one."""
    with pytest.raises(ConfigError, match=r"^insecure_bind: bind must be HOST:PORT, .*, not 'x'$"):
        Config(insecure_bind=["x"])


def test_client_certificates_need_authorities_to_check_them_against():
    """ssl_cert_reqs without ssl_ca_certs would accept nobody, and is refused."""
    with pytest.raises(ConfigError) as caught:
        Config(ssl_certfile="c", ssl_cert_reqs="optional")
    assert str(caught.value) == "ssl_cert_reqs=optional needs ssl_ca_certs"
    assert Config(ssl_certfile="c", ssl_cert_reqs="optional", ssl_ca_certs="a").uses_tls


def test_a_context_factory_needs_none_of_the_files():
    """With ssl_context_factory the other TLS options are the factory's to read."""
    config = Config(ssl_context_factory="a:b", ssl_cert_reqs="required", ssl_keyfile="k")
    assert config.uses_tls


def test_whole_numbers_and_lists_become_what_the_fields_hold():
    """A list becomes a tuple and a whole number of seconds a float, so that equal configurations compare equal."""
    config = Config(bind=["a:1"], timeout_write=5)
    assert config == Config(bind=("a:1",), timeout_write=5.0)
    assert type(config.timeout_write) is float


def test_a_config_cannot_be_changed():
    """Config is frozen: what several servers and processes share cannot differ between them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]
    hash(Config())


# Where to listen


def test_without_any_address_host_and_port_are_bound():
    """host and port are what is bound when nothing else is named, with TLS if there is a certificate."""
    assert Config().binds == ((TCPBind("127.0.0.1", 8000), False),)
    assert not Config().names_address
    assert Config(ssl_certfile="c").binds == ((TCPBind("127.0.0.1", 8000), True),)


def test_named_addresses_take_the_place_of_host_and_port():
    """bind, uds and fd are all bound, and then host and port are not."""
    config = Config(bind=["a:1", "b:2"], uds="/s", fd=3)
    assert [bind for bind, _ in config.binds] == [TCPBind("a", 1), TCPBind("b", 2), UnixBind("/s"), DescriptorBind(3)]
    assert config.names_address
    assert Config(fd=0).names_address


def test_insecure_bind_is_plain_and_beside_the_rest():
    """insecure_bind adds addresses without TLS; it takes the place of none."""
    config = Config(ssl_certfile="c", insecure_bind=["a:1"])
    assert config.binds == ((TCPBind("127.0.0.1", 8000), True), (TCPBind("a", 1), False))
    assert config.names_address


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [("prot", "; did you mean 'port'?"), ("ssl_certfiles", "; did you mean 'ssl_certfile'?"), ("zzz", "")],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(name, hint):
    """from_plain and replace refuse a name that is none of ours, and offer a near one if there is one."""
    with pytest.raises(ConfigError) as caught:
        Config.from_plain({name: 1})
    assert str(caught.value) == f"there is no option {name!r}{hint}"
    with pytest.raises(ConfigError):
        Config().replace(**{name: 1})


def test_replace_makes_a_checked_copy():
    """replace leaves the original as it is, and checks the new values."""
    config = Config(port=1)
    assert config.replace(port=2) == Config(port=2)
    assert config.port == 1
    with pytest.raises(ConfigError, match="^port must be"):
        config.replace(port=-1)


# Texts


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "80", 80),
        ("host", "none", "none"),
        ("fd", "none", None),
        ("fd", " None ", None),
        ("uds", "/x", "/x"),
        ("bind", "a:1, b:2,,", ("a:1", "b:2")),
        ("bind", "a:1\n b:2\r\n\n", ("a:1", "b:2")),
        ("bind", "", ()),
        ("header", "Cache-Control: no-store, max-age=0", ("Cache-Control: no-store, max-age=0",)),
        ("header", "A: b, c\nD: e", ("A: b, c", "D: e")),
        ("uds_permissions", "660", 0o660),
        ("factory", "YES", True),
        ("factory", "off", False),
        ("use_colors", "1", True),
        ("use_colors", "none", None),
        ("timeout_write", "2.5", 2.5),
        ("timeout_request", "none", None),
        ("lifespan", "off", "off"),
        ("ssl_cert_reqs", "none", "none"),
    ],
)
def test_an_option_is_read_from_text(name, text, value):
    """What the environment and the command line give: true and false in several words, none, octal modes, several
    values."""
    assert BY_NAME[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text", "expects"),
    [
        ("port", "x", "port must be a whole number from 0 to 65535, not 'x'"),
        ("port", "none", "port must be a whole number from 0 to 65535, not 'none'"),
        ("factory", "maybe", "factory must be true or false, not 'maybe'"),
        (
            "uds_permissions",
            "999",
            "uds_permissions must be an octal number such as 660 (0o660 in TOML), at most 777, not '999'",
        ),
        ("timeout_write", "soon", "timeout_write must be a number of seconds above 0, not 'soon'"),
        ("timeout_write", "nan", "timeout_write must be a number of seconds above 0, not nan"),
        ("bind", "a:1,b", "bind must be HOST:PORT, [v6]:PORT, unix:PATH, fd:N or fd:NAME, not 'b'"),
    ],
)
def test_a_wrong_text_is_refused_as_it_came(name, text, expects):
    """A text that cannot be read is shown as it stands."""
    with pytest.raises(ConfigError) as caught:
        BY_NAME[name].parse(text)
    assert str(caught.value) == expects


@pytest.mark.parametrize("one", options(), ids=lambda one: one.name)
def test_each_option_is_complete(one: Option):
    """Every option has a group, a help text that ends in a full stop, a flag, a variable, and takes its own default."""
    assert one.help.endswith(".")
    assert one.flag == "--" + one.name.replace("_", "-")
    assert one.variable == "TRIOSERVE_" + one.name.upper()
    assert one.check(one.default) == one.default
    assert one.expects


# JSON


def _values(one: Option) -> st.SearchStrategy:
    checked = {
        "bind": st.sampled_from(["a:1", "[::1]:0", "unix:/s", "fd:3", "fd:http"]),
        "insecure_bind": st.sampled_from(["a:1", "[::1]:0"]),
        "header": st.sampled_from(["A: b", "C:"]),
        "root_path": st.text().map(lambda text: "/" + text) | st.just(""),
        "ssl_context_factory": st.just("module:name"),
        "forwarded_allow_ips": st.sampled_from(["10.0.0.1", "fd00::/8", "unix", "*"]),
        "forwarded_headers": st.sampled_from(["x-forwarded-for", "x-forwarded-host"]),
        "metrics_bind": st.sampled_from(["127.0.0.1:9100", "[::1]:0", "unix:/run/metrics.sock"]),
        "port": st.integers(0, 65535),
        "uds_permissions": st.integers(0, 0o777),
        "access_log_format": st.sampled_from(["%(h)s", "%%", ""]),
        "access_log_exclude": st.sampled_from(["/healthz", "*"]),
        "log_config": st.sampled_from(["log.json", "LOG.TOML", {}, {"a": {"\u00e4": [1, {}, -2.5, None, True, "x"]}}]),
    }
    if one.name in checked:
        value = checked[one.name]
    elif one.choices:
        value = st.sampled_from(one.choices)
    elif one.kind is bool:
        value = st.booleans()
    elif one.kind is int:
        value = st.integers(int(one.minimum or 0), one.maximum or LARGEST)
    elif one.kind is float:
        value = st.floats(min_value=one.minimum if one.above is None else 0.001, allow_nan=False)
    else:
        value = st.text()
    if one.repeatable:
        value = st.lists(value, max_size=3)
    return st.none() | value if one.optional else value


PLAIN = st.fixed_dictionaries({}, optional={one.name: _values(one) for one in options()}).map(
    # Some options have conditions on each other, which have tests of their own.
    lambda values: (
        values
        | ({"ssl_certfile": "c", "ssl_ca_certs": "a"} if any(name.startswith("ssl_") for name in values) else {})
        | ({"workers": 1} if values.get("reload") else {})
        | ({"request_id": False} if "header" in values else {})
        | ({"log_format": "text"} if values.get("log_config") is not None else {})
        | ({"forwarded_allow_ips": ["*"]} if values.get("proxy_headers") or values.get("proxy_protocol") else {})
    )
)


@given(PLAIN)
def test_a_config_survives_json(values):
    """to_plain, JSON and from_plain give an equal Config, for any values: workers get theirs this way."""
    config = Config.from_plain(values)
    assert Config.from_plain(json.loads(json.dumps(config.to_plain(), allow_nan=False))) == config


@given(PLAIN)
def test_reading_plain_values_does_not_change_them(values):
    """from_plain, to_plain and replace leave what they are given as it was."""
    before = copy.deepcopy(values)
    config = Config.from_plain(values)
    plain = config.to_plain()
    again = copy.deepcopy(plain)
    config.replace(**plain)
    assert values == before
    assert plain == again


def test_to_plain_is_fresh_each_time():
    """Changing what to_plain gave changes no Config."""
    config = Config(bind=["a:1"])
    config.to_plain()["bind"].append("b:2")
    assert config.to_plain()["bind"] == ["a:1"]


def test_config_holds_nothing_but_plain_values():
    """No field can hold an SSLContext, a socket, a logger or a callable: every one is a text, a number, a truth or
    none; or a table, and what may be in that is checked."""
    plain = {str, int, float, bool, types.NoneType}

    def kinds(annotation):
        if annotation == Mapping[str, AnyValue]:
            return set()
        if typing.get_origin(annotation) is typing.Literal:
            return {type(one) for one in typing.get_args(annotation)}
        inner = [one for one in typing.get_args(annotation) if one is not Ellipsis]
        return set().union(*(kinds(one) for one in inner)) if inner else {annotation}

    for annotation in typing.get_type_hints(Config).values():
        assert kinds(annotation) <= plain


# Errors


def test_a_bind_error_is_an_os_error_with_the_address():
    """BindError has the system's number, the address that was asked for, and a text that names it."""
    error = BindError(98, "address already in use", "127.0.0.1:80")
    assert isinstance(error, OSError)
    assert (error.errno, error.address) == (98, "127.0.0.1:80")
    assert str(error) == "cannot listen on 127.0.0.1:80: address already in use"
