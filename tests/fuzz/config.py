"""Options that are anything: as values, in a file, in the environment and in a file of variables."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from trioserve.bind import parse_bind
from trioserve.config import Config, options
from trioserve.errors import ConfigError
from trioserve.option_texts import parse_header
from trioserve.process.settings import format_settings, read_settings
from trioserve.types import AnyValue, PlainValues

NAMES = [one.name for one in options()]

HUGE = "a huge number"


@dataclass(frozen=True)
class Scenario:
    """``values`` are given as they are, ``toml`` is the configuration file, ``dotenv`` the file of variables."""

    values: PlainValues = field(default_factory=dict)
    toml: bytes | None = None
    environment: dict[str, str] = field(default_factory=dict)
    dotenv: bytes | None = None
    bind: str = "a:1"
    header: str = "a: b"


def check(given: Scenario, read: Callable[[PlainValues], Config] = Config.from_plain) -> None:
    """What is wrong is a ConfigError that says what came, and what is accepted survives JSON. ``read`` is another way
    to read values, which must do the same.
    """
    values = with_huge(given.values)
    config = attempt(lambda: read(values), *values)
    if config is not None:
        check_survives(config, read)
    attempt(lambda: parse_bind(given.bind), "bind")
    attempt(lambda: parse_header(given.header), "header")
    check_settings(given)


def with_huge(value: AnyValue) -> AnyValue:
    """With a number for its name: hypothesis could not show one of more than 4300 digits."""
    if isinstance(value, dict):
        return {key: with_huge(one) for key, one in value.items()}
    if isinstance(value, list):
        return [with_huge(one) for one in value]
    return 16**4000 if value == HUGE else value


def attempt(make: Callable[[], AnyValue], *names: str) -> AnyValue | None:
    """Call it; returns None for a ConfigError, which must be about one of these names."""
    try:
        return make()
    except ConfigError as error:
        text = str(error)
        assert any(name in text or repr(name) in text for name in names), (text, names)
        return None


def check_survives(config: Config, read: Callable[[PlainValues], Config] = Config.from_plain) -> None:
    assert read(json.loads(json.dumps(config.to_plain(), allow_nan=False))) == config
    assert len(config.binds) >= 1
    assert len(config.extra_headers) == len(config.header)


def check_settings(given: Scenario) -> None:
    """All sources together: what is accepted can be shown, and what is shown is accepted and the same."""
    with environment(given.environment) as folder:
        if given.dotenv is not None:
            (folder / "variables").write_bytes(given.dotenv)
            os.environ["TRIOSERVE_ENV_FILE"] = str(folder / "variables")
        if given.toml is not None:
            (folder / "trioserve.toml").write_bytes(given.toml)
        named = str(Path(given.environment.get("TRIOSERVE_CONFIG", "")).absolute())
        names = [*NAMES, "app", "WEB_CONCURRENCY", "systemd", "there is no option", str(folder), named]
        settings = attempt(lambda: read_settings({}), *names)
        if settings is None:
            return
        check_survives(settings.config)
        shown = format_settings(settings)
    if settings.config.ssl_keyfile_password is not None or says_none(settings.config):
        return  # the one is masked, and the other cannot be said in a file
    with environment({}) as folder:
        (folder / "trioserve.toml").write_text(shown, encoding="utf-8")
        again = read_settings({})
        assert (again.config, again.app) == (settings.config, settings.app), shown


def says_none(config: Config) -> bool:
    """An option that may be none has the word for its value."""
    return any(isinstance(value, str) and value.lower() == "none" for value in config.to_plain().values())


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[Path]:
    """No variables but these, and the current folder an empty one."""
    before, folder_before = dict(os.environ), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.environ.clear()
            os.environ.update(variables)
            os.chdir(folder)
            yield Path(folder).absolute()
        finally:
            os.chdir(folder_before)
            os.environ.clear()
            os.environ.update(before)


# What may come

numbers = st.one_of(
    st.just(HUGE),
    st.integers(-1, 70000),
    st.integers(),
    st.sampled_from([0, 1, 65535, 65536, 0o777, 2**31, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(),
    st.floats(0, 100),
)
words = st.sampled_from(
    [
        *("", " ", "none", "None", "inf", "nan", "true", "yes", "off", "1e400", "-0", "0o660", "660", "٣", "9" * 5000),
        *("auto", "on", "h11", "httptools", "required", "TLSv1.3", "info", "json", "/", "a:b", "main:app"),
        *("localhost:80", "[::1]:0", "unix:/a", "fd:3", "fd:web", "unix:", "fd:", "[]:1", ":1", "a:99999", "x\0y:1"),
        *("A: b", "A:b", "Connection: close", "A: \r\nB: c", "é: ü", "A: ü", "A: ł", "A: \x7f", "\ud800", "\udcff"),
    ]
)
texts = st.one_of(words, words, st.text(max_size=10))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
)
names = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), st.text(max_size=8), st.sampled_from(["prot", "app"]))


@st.composite
def fitting(draw: st.DrawFn) -> tuple[str, AnyValue]:
    """An option and a value of its kind, which it may take or not."""
    one = draw(st.sampled_from(options()))
    if one.choices:
        return one.name, draw(st.sampled_from(one.choices))
    kinds = {bool: st.booleans(), int: numbers, float: numbers, str: texts}
    value = st.lists(texts, max_size=3) if one.repeatable else kinds[one.kind]
    return one.name, draw(st.one_of(value, st.none()) if one.optional else value)


values = st.one_of(
    st.lists(fitting(), max_size=3).map(dict),
    st.lists(fitting(), max_size=1).map(dict),
    st.dictionaries(names, anything, max_size=3),
)


def to_toml(value: AnyValue) -> str:
    """As near as TOML comes to it."""
    if value is None:
        return '"none"'
    if value == HUGE:
        return "0x" + "f" * 4000
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value >= 1 << 64 else str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(one)}" for key, one in value.items()) + "}"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def table(given: PlainValues) -> bytes:
    lines = [f"{json.dumps(name, ensure_ascii=False)} = {to_toml(value)}\n" for name, value in given.items()]
    return "".join(lines).encode("utf-8", "surrogatepass")


def mutated(data: bytes, draw: st.DrawFn) -> bytes:
    place = draw(st.integers(0, len(data)))
    piece = draw(
        st.one_of(st.binary(max_size=3), st.sampled_from([b"[" * 3000, b"[tool]", b"a.b = 1", b"1979-05-27", b"'"]))
    )
    return data[:place] + piece + data[place + draw(st.integers(0, 2)) :]


@st.composite
def files(draw: st.DrawFn) -> bytes | None:
    if draw(st.booleans()):
        return None
    data = table(draw(values))
    return mutated(data, draw) if draw(st.integers(0, 4)) == 3 else data


variables = st.one_of(
    st.sampled_from([f"TRIOSERVE_{name.upper()}" for name in NAMES]),
    st.sampled_from(["TRIOSERVE_APP", "TRIOSERVE_CONFIG", "TRIOSERVE_PROT", "WEB_CONCURRENCY", "TRIOSERVE_"]),
)
variable_texts = st.one_of(texts, numbers.map(lambda number: str(number)[:400]))
environments = st.dictionaries(
    variables,
    variable_texts.filter(lambda text: "\0" not in text and "\ud800" not in text and text.isprintable()),
    max_size=2,
)


@st.composite
def dotenvs(draw: st.DrawFn) -> bytes | None:
    if draw(st.integers(0, 3)) != 3:
        return None
    lines = [f"{name}={text}" for name, text in draw(st.dictionaries(variables, texts, max_size=2)).items()]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return mutated(data, draw) if draw(st.booleans()) else data


def scenarios() -> st.SearchStrategy[Scenario]:
    return st.builds(
        Scenario,
        values=values,
        toml=files(),
        environment=environments,
        dotenv=dotenvs(),
        bind=texts,
        header=texts,
    )
