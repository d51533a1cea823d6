"""Which codec of HTTP/1.1 a server uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..config import Config
from ..errors import ConfigError
from .codec import Codec
from .codec_h11 import H11Codec
from .framing import FramedHeads
from .request_reader import ParsedHeads


def codec_name(config: Config) -> str:
    """Which implementation ``http`` chooses, "h11" or "httptools".

    Raises ConfigError if it asks for httptools and that is not installed.
    """
    if config.http == "h11":
        return "h11"
    try:
        from . import codec_httptools  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        if config.http == "auto":
            return "h11"
        raise ConfigError("http httptools needs httptools: pip install 'trioserve[fast]'") from error
    return "httptools"


def codec_maker(config: Config) -> Callable[[], Codec]:
    """Return what makes the codec of a connection; what connections can share, they share.

    Raises ConfigError as codec_name does.
    """
    if codec_name(config) == "h11":
        return partial(H11Codec, config, ParsedHeads(), FramedHeads())
    from .codec_httptools import HttptoolsCodec  # noqa: PLC0415 - an extra

    return partial(HttptoolsCodec, config, ParsedHeads(), FramedHeads())
