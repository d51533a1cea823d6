"""Which codec ``http`` chooses, with httptools and without."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable

import pytest

from trioserve import ConfigError, serve
from trioserve.config import Config
from trioserve.types import AnyValue
from trioserve.wire.codec_h11 import H11Codec
from trioserve.wire.codecs import codec_maker, codec_name

from .support import respond


@pytest.fixture
def without_httptools(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if httptools were not installed."""
    really_import: Callable[..., object] = builtins.__import__

    def refuse(name: str, *arguments: AnyValue, **options: AnyValue) -> object:
        if name == "httptools":
            raise ModuleNotFoundError("No module named 'httptools'")
        return really_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "trioserve.wire.codec_httptools", raising=False)
    monkeypatch.delattr("trioserve.wire.codec_httptools", raising=False)


@pytest.mark.parametrize(("http", "name"), [("auto", "httptools"), ("httptools", "httptools"), ("h11", "h11")])
def test_httptools_is_taken_where_it_is_installed(http: str, name: str) -> None:
    """auto takes httptools, and each can be asked for by name."""
    config = Config.from_plain({"http": http})
    assert codec_name(config) == name
    assert isinstance(codec_maker(config)(), H11Codec) == (name == "h11")


@pytest.mark.usefixtures("without_httptools")
@pytest.mark.parametrize("http", ["auto", "h11"])
def test_h11_does_without(http: str) -> None:
    """Without httptools auto takes h11."""
    config = Config.from_plain({"http": http})
    assert codec_name(config) == "h11"
    assert isinstance(codec_maker(config)(), H11Codec)


@pytest.mark.usefixtures("without_httptools")
async def test_what_is_not_installed_is_said_before_anything_starts() -> None:
    """Who asks for httptools by name is told how to get it, before the application hears anything."""
    with pytest.raises(ConfigError, match=r"http httptools needs httptools: pip install 'trioserve\[fast\]'"):
        await serve(respond(), http="httptools", port=0)
