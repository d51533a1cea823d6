"""From what a test asks for to what is served: the application, the options, the certificates."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bind import TCPBind
from ..config import Config
from ..errors import AppLoadError, ConfigError
from ..process.loader import load_app
from ..types import ASGIApp, PlainValues
from .verdict import strip

if TYPE_CHECKING:
    from .authority import Authority

DEFAULTS: PlainValues = {
    "port": 0,
    "timeout_startup": 10,
    "timeout_graceful_shutdown": 1,
    "timeout_hard_shutdown": 2,
    "timeout_shutdown": 5,
}
"""Options that are shorter for tests, where nobody has time to wait."""


@dataclass(frozen=True)
class Preparation:
    """What is to be served; ``authority`` is None without ``tls=True``. Whoever closes ``resources`` ends it."""

    app: ASGIApp
    config: Config
    authority: Authority | None
    resources: ExitStack


def prepare(app: ASGIApp | str, *, tls: bool, options: PlainValues) -> Preparation:
    """Import the application if it is named, and make certificates if wanted; raises AppLoadError or ConfigError."""
    __tracebackhide__ = True
    try:
        return _prepare(app, tls=tls, config=Config.from_plain({**DEFAULTS, **options}))
    except (AppLoadError, ConfigError) as error:
        raise strip(error)  # noqa: B904 - it is the same error


def _prepare(app: ASGIApp | str, *, tls: bool, config: Config) -> Preparation:
    if config.for_processes is not None:
        raise ConfigError(
            f"{config.for_processes} is for the command line and run(): a server under test is one in this process"
        )
    application = _load(app, config)
    with ExitStack() as resources:
        authority = _make_authority(config, resources) if tls else None
        if authority is not None:
            config = config.replace(ssl_certfile=_certify(authority, config))
        return Preparation(application, config, authority, resources.pop_all())


def _load(app: ASGIApp | str, config: Config) -> ASGIApp:
    __tracebackhide__ = True
    try:
        folder = str(Path(config.app_dir or os.curdir).absolute())
    except OSError:  # the current folder is gone, which matters only to what is imported from it
        folder = ""
    before = sys.path.count(folder)
    try:
        return load_app(app, app_dir=config.app_dir, factory=config.factory)
    finally:
        # It was put in front for the import; what the application has added itself stays.
        if sys.path.count(folder) > before:
            sys.path.remove(folder)


def _make_authority(config: Config, resources: ExitStack) -> Authority:
    if config.uses_tls:
        raise ConfigError("tls=True makes a certificate, so it cannot go with ssl_certfile or ssl_context_factory")
    try:
        from .authority import Authority  # noqa: PLC0415 - trustme is an extra
    except ImportError as error:
        raise ConfigError("tls=True needs trustme: pip install 'trioserve[testing]'") from error
    folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="trioserve-"))
    return Authority(Path(folder))


def _certify(authority: Authority, config: Config) -> str:
    hosts = [bind.host for bind, _ in config.binds if isinstance(bind, TCPBind)]
    names = dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts))
    try:
        return authority.issue_server_certificate(*(name for name in names if name not in ("0.0.0.0", "::")))  # noqa: S104 - compared
    except ValueError as error:  # of idna, for a name that is none
        raise ConfigError(f"tls=True cannot make a certificate for the host names {hosts}: {error}") from None
