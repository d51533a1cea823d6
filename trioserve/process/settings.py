"""Where the options of the command line and ``run()`` come from.

The order is command line, environment, file, default; ``workers`` also takes WEB_CONCURRENCY, which the others
overrule, and the sockets that systemd hands over are served when no source names an address. Nothing else in trioserve
reads the environment or files, but for ``systemd``, which reads the variables of a service manager.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bind import DescriptorBind, NamedDescriptorBind, parse_bind
from ..config import Config, options
from ..errors import ConfigError
from ..foreign_names import hint_at
from ..option_tables import show
from ..options import Option
from ..types import AnyValue, PlainValues
from .systemd import Inherited, receive_descriptors

COMMAND_LINE = "command line"
DEFAULT = "default"
_PREFIX = "TRIOSERVE_"
_APP_VARIABLE = "TRIOSERVE_APP"
_FILE_VARIABLE = "TRIOSERVE_CONFIG"
_ADDRESSES = ("host", "port", "bind", "uds", "fd", "insecure_bind")
_WORKERS_VARIABLE = "WEB_CONCURRENCY"  # what hosting platforms set
_PROXIES_VARIABLE = "FORWARDED_ALLOW_IPS"
_GRACE_IN_RELOAD = 2.0  # seconds; a developer waits for nothing, and an open event stream would end later anyway


@dataclass(frozen=True)
class Settings:
    """What to serve and how.

    ``sources`` says where each option, and ``app``, came from; ``file`` is the configuration file used; ``warnings``
    are to be logged once logging is configured.
    """

    config: Config
    app: str | None
    sources: Mapping[str, str]
    file: Path | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Layer:
    """The values of one source, and the name of the source of each."""

    values: PlainValues
    sources: Mapping[str, str]


def read_settings(given: Mapping[str, AnyValue], *, app: str | None = None, config_file: str | None = None) -> Settings:
    """Resolve every option.

    ``given`` are the options of the command line or of ``run()``. Reads the environment (after env_file, which is added
    to it and never overrides it) and ``config_file``, else ``trioserve.toml`` in the current folder, else
    ``[tool.trioserve]`` of the nearest ``pyproject.toml`` from there upward. Takes what systemd hands over, so only the
    first call in a process sees it. Raises ConfigError, which says where a bad value came from.
    """
    command_line = _read_given(given, app)
    file, table = _find_file(config_file or os.environ.get(_FILE_VARIABLE) or None)
    from_file = _read_table(file, table)
    before = set(os.environ)
    env_file = _load_env_file((command_line, _read_environment(None, before), from_file))
    environment = _read_environment(env_file, before)
    layers = (command_line, environment, from_file)
    values: PlainValues = {}
    sources = {"app": DEFAULT, **{one.name: DEFAULT for one in options()}}
    for layer in reversed(layers):
        values.update(layer.values)
        sources.update(layer.sources)
    for name in _overruled_addresses(layers):
        del values[name]
        sources[name] = DEFAULT
    _fill_in_processes(values, sources)
    _fill_in_proxies(values, sources)
    target = values.pop("app", None)
    inherited = receive_descriptors()
    config = _make_config(values, sources, inherited)
    warnings = (*_find_strange_variables(), *_find_unserved(config, inherited))
    return Settings(config, target, sources, file, warnings)


def _fill_in_processes(values: PlainValues, sources: dict[str, str]) -> None:
    """What is not given, but has another default than Config's at the command line."""
    if values.get("reload"):
        values.setdefault("timeout_graceful_shutdown", _GRACE_IN_RELOAD)
    elif "workers" not in values and (text := os.environ.get(_WORKERS_VARIABLE)):
        try:
            values["workers"] = _known()["workers"].parse(text)
        except ConfigError as error:
            raise ConfigError(f"{_WORKERS_VARIABLE}: {error}") from None
        sources["workers"] = f"environment {_WORKERS_VARIABLE}"


def _fill_in_proxies(values: PlainValues, sources: dict[str, str]) -> None:
    """Which proxies are trusted, from the variable that uvicorn and gunicorn read, if nothing else says it."""
    if "forwarded_allow_ips" not in values and (text := os.environ.get(_PROXIES_VARIABLE)):
        try:
            values["forwarded_allow_ips"] = _known()["forwarded_allow_ips"].parse(text)
        except ConfigError as error:
            raise ConfigError(f"{_PROXIES_VARIABLE}: {error}") from None
        sources["forwarded_allow_ips"] = f"environment {_PROXIES_VARIABLE}"


def _make_config(values: PlainValues, sources: dict[str, str], inherited: Sequence[Inherited]) -> Config:
    try:
        _serve_inherited(values, sources, inherited)
        return Config(**values)
    except ConfigError as error:
        # Each value was good in itself, so this is about two of them, or one and what was inherited; the text begins
        # with the name of one.
        source = sources.get(str(error).partition(" ")[0].partition("=")[0], DEFAULT)
        raise error if source in (DEFAULT, COMMAND_LINE) else ConfigError(f"{error} ({source})") from None


def _serve_inherited(values: PlainValues, sources: dict[str, str], inherited: Sequence[Inherited]) -> None:
    """Put numbers in the place of systemd's names; where no address is named, serve all that was handed over."""
    if inherited and all(values.get(name) in (None, ()) for name in _ADDRESSES):
        values["bind"] = tuple(f"fd:{one.number}" for one in inherited)
        sources["bind"] = "systemd LISTEN_FDS"
    for name in ("bind", "insecure_bind"):
        if name in values:
            values[name] = tuple(text for given in values[name] for text in _resolve(name, given, inherited))


def _resolve(name: str, text: str, inherited: Sequence[Inherited]) -> list[str]:
    """The addresses that one address of an option stands for."""
    bind = parse_bind(text)
    if not isinstance(bind, NamedDescriptorBind):
        return [text]
    # A socket unit with several ListenStream= gives all of them one name.
    found = [f"fd:{one.number}" for one in inherited if one.name == bind.name]
    if not found:
        names = ", ".join(repr(one.name) for one in inherited) or "none"
        raise ConfigError(f"{name} names the socket {bind.name!r}, but systemd handed over {names}")
    return found


def _find_unserved(config: Config, inherited: Iterable[Inherited]) -> Iterator[str]:
    """A warning for each socket that systemd listens on and nobody will answer."""
    served = {bind.number for bind, _ in config.binds if isinstance(bind, DescriptorBind)}
    for number, name in inherited:
        if number not in served:
            yield f"systemd handed over the socket {name!r} (fd {number}), which nothing listens on"


def _overruled_addresses(layers: Iterable[_Layer]) -> list[str]:
    """Names of bind, uds and fd that a stronger source replaces by naming another address.

    Config lets them win over host and port; a port on the command line must win over a bind in the file all the same.
    """
    named: set[str] = set()
    overruled: list[str] = []
    for layer in layers:
        here = layer.values.keys() & {"host", "port", "bind", "uds", "fd"}
        overruled += [name for name in sorted(here - {"host", "port"} - named) if named]
        named |= here
    return overruled


def _read_given(given: Mapping[str, AnyValue], app: str | None) -> _Layer:
    known = _known()
    values: PlainValues = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"there is no option {name!r}{hint_at(name, known)}")
        values[name] = known[name].check(value)
    if app is not None:
        values["app"] = app
    return _Layer(values, dict.fromkeys(values, COMMAND_LINE))


def _read_environment(env_file: str | None, before: Iterable[str]) -> _Layer:
    """Read the variables; those not set ``before`` came from ``env_file``."""
    values: PlainValues = {}
    sources: dict[str, str] = {}
    for name, variable in [("app", _APP_VARIABLE), *((one.name, one.variable) for one in options())]:
        text = os.environ.get(variable)
        if text is None:
            continue
        try:
            values[name] = text if name == "app" else _known()[name].parse(text)
        except ConfigError as error:
            raise ConfigError(f"{variable}: {error}") from None
        sources[name] = f"environment {variable}" + ("" if variable in before else f" of {env_file}")
    return _Layer(values, sources)


def _load_env_file(layers: Iterable[_Layer]) -> str | None:
    named = [layer for layer in layers if "env_file" in layer.values]
    if not named or named[0].values["env_file"] is None:
        return None
    path = Path(named[0].values["env_file"])
    source = named[0].sources["env_file"]
    try:
        import dotenv  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(f"env_file ({source}) needs python-dotenv: pip install 'trioserve[dotenv]'") from None
    try:
        is_there = path.is_file()
        if is_there:
            dotenv.load_dotenv(path, override=False)
    except (OSError, ValueError) as error:  # also what is not UTF-8, and names and values that no variable can have
        raise ConfigError(f"env_file ({source}): cannot take variables from {path.absolute()}: {error}") from error
    if not is_there:
        raise ConfigError(f"env_file ({source}): there is no file {path.absolute()}")
    return str(path)


def _find_strange_variables() -> Iterable[str]:
    """A warning for each variable that looks like ours and is not; an error would let a stray one stop a server."""
    # Compared without the prefix, which would make any two of them look alike.
    known = {
        name.removeprefix(_PREFIX) for name in [*(one.variable for one in options()), _APP_VARIABLE, _FILE_VARIABLE]
    }
    for variable in sorted(os.environ):
        name = variable.removeprefix(_PREFIX)
        if variable.startswith(_PREFIX) and name not in known:
            hint = hint_at(name, known, prefix=_PREFIX)
            yield f"environment variable {variable} is ignored: there is no such option{hint}"


def _find_file(named: str | None) -> tuple[Path | None, PlainValues]:
    if named is not None:
        path = Path(named).absolute()
        document = _read_toml(path)
        return path, _pyproject_table(path, document) or {} if path.name == "pyproject.toml" else document
    try:
        here = Path.cwd()
    except OSError:  # it has been removed
        return None, {}
    if (path := here / "trioserve.toml").is_file():
        return path, _read_toml(path)
    for folder in (here, *here.parents):
        if (path := folder / "pyproject.toml").is_file():
            table = _pyproject_table(path, _read_toml(path))
            return (None, {}) if table is None else (path, table)
    return None, {}


def _pyproject_table(path: Path, document: PlainValues) -> PlainValues | None:
    tool = document.get("tool", {})
    table = tool.get("trioserve") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.trioserve must be a table, not {show(table)}")
    return table


def _read_toml(path: Path) -> PlainValues:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:  # also what is not UTF-8
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: its values are nested too deeply") from None


def _read_table(file: Path | None, table: PlainValues) -> _Layer:
    known = _known()
    values: PlainValues = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in values:
            raise ConfigError(f"{file}: {name} is given twice")
        if name not in known and name != "app":
            raise ConfigError(f"{file}: there is no option {key!r}{hint_at(name, [*known, 'app'])}")
        try:
            values[name] = _check_app(value) if name == "app" else _from_toml(known[name], value)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    return _Layer(values, dict.fromkeys(values, f"file {file}"))


def _check_app(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"app must be module:attribute, not {show(value)}")
    return value


def _from_toml(one: Option, value: object) -> object:
    # TOML has no null, and whoever quotes an octal number means what the command line means by it.
    if isinstance(value, str) and ((one.optional and value.lower() == "none") or one.octal):
        return one.parse(value)
    return one.check(value)


def _known() -> dict[str, Option]:
    return {one.name: one for one in options()}


def format_settings(settings: Settings) -> str:
    """Show each value and where it came from, as a ``trioserve.toml`` that would give the same.

    All but ssl_keyfile_password, which is masked: that row has to be filled in again.
    """
    rows = [("app", settings.app)] if settings.app is not None else []
    lines = [f"{name} = {json.dumps(value)}" for name, value in rows]
    names = [name for name, _ in rows]
    for one in options():
        lines.append(f"{one.name} = {_to_toml(one, getattr(settings.config, one.name))}")
        names.append(one.name)
    width = min(max(map(len, lines)), 48)
    return "\n".join(f"{line:<{width}}  # {settings.sources[name]}" for line, name in zip(lines, names, strict=True))


def _to_toml(one: Option, value: AnyValue) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, dict):
        return _to_inline_toml(value)
    if one.name == "ssl_keyfile_password":
        return '"********"'
    if one.octal:
        return f"0o{value:o}"
    if value == math.inf:
        return "inf"  # JSON has no such number, and json writes Infinity
    return _to_json(value)


def _to_inline_toml(value: AnyValue) -> str:
    if isinstance(value, dict):
        # TOML has no null; for logging a key without a value is one that is not there.
        rows = [f"{_to_json(key)} = {_to_inline_toml(inner)}" for key, inner in value.items() if inner is not None]
        return f"{{ {', '.join(rows)} }}" if rows else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_to_inline_toml, value))}]"
    return _to_json(value)


def _to_json(value: AnyValue) -> str:
    # What TOML writes alike, but for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
