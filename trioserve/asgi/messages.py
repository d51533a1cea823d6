"""Reading an application's messages: what is wrong in one is said in terms of ASGI, to the application."""

from __future__ import annotations

import os
import stat
from typing import TypeVar

from ..errors import MessageError
from ..exchange import Response
from ..types import AnyValue, Message

T = TypeVar("T")

_MISSING = object()


def read(message: Message, key: str, *kinds: type[T]) -> T:
    """Return a value that must be there and be of one of these types; raises MessageError."""
    value = message.get(key, _MISSING)
    if isinstance(value, kinds):
        return value
    expected = " or ".join(kind.__name__ for kind in kinds)
    came = "nothing" if value is _MISSING else repr(value)
    raise MessageError(f"{_name(message)}: {key!r} must be {expected}, not {came}")


def as_bytes(message: Message, key: str, value: AnyValue) -> bytes:
    """Return a value as bytes; copies a bytearray or memoryview, which may change later. Raises MessageError."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise MessageError(f"{_name(message)}: {key!r} must be bytes, not {value!r}")


def read_headers(message: Message) -> list[tuple[bytes, bytes]]:
    try:
        headers: list[tuple[bytes, bytes]] = []
        for name, value in message.get("headers", ()):
            if type(name) is bytes and type(value) is bytes:
                headers.append((name, value))
            else:
                headers.append((bytes_only(name), bytes_only(value)))
    except (TypeError, ValueError):
        raise MessageError(
            f"{_name(message)}: 'headers' must be pairs of bytes, not {message.get('headers')!r}"
        ) from None
    return headers


def bytes_only(value: AnyValue) -> bytes:
    # bytes(5) is five zero bytes, and bytes("x") a TypeError of its own: neither may pass for a header.
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise TypeError


def read_response(message: Message) -> Response:
    """Read http.response.start. Source: ASGI HTTP §"Response Start"."""
    status = message.get("status")
    # IntEnum members such as HTTPStatus.OK are fine; True is not.
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 999:
        raise MessageError(f"{_name(message)}: 'status' must be a number from 200 to 999, not {status!r}")
    return Response(int(status), read_headers(message), bool(message.get("trailers", False)))


def read_file(message: Message) -> tuple[int, int, int]:
    """Read http.response.zerocopysend as (descriptor, offset, count).

    Without an offset the file is sent from its current position, which moves on as with a read; without a count to
    its end.
    """
    file: AnyValue = message.get("file")
    try:
        descriptor = file if isinstance(file, int) else file.fileno()
        info = os.fstat(descriptor)
    except (AttributeError, OSError, ValueError):
        raise MessageError(f"{_name(message)}: 'file' must be an open file with a descriptor, not {file!r}") from None
    if not stat.S_ISREG(info.st_mode):
        raise MessageError(f"{_name(message)}: 'file' must be a regular file, not {file!r}")
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    given = _read_number(message, "offset")
    offset = position if given is None else given
    count = _read_number(message, "count")
    if count is None:
        count = max(0, info.st_size - offset)
    if given is None:
        os.lseek(descriptor, position + count, os.SEEK_SET)
    return descriptor, offset, count


def _read_number(message: Message, key: str) -> int | None:
    value = message.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise MessageError(f"{_name(message)}: {key!r} must be a number of bytes, not {value!r}")


def open_regular_file(path: str) -> tuple[int, int]:
    """Open for reading; returns (descriptor, size). Raises OSError."""
    # Without O_NONBLOCK opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise MessageError(f"http.response.pathsend: 'path' must be a regular file, not {path!r}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, info.st_size


def _name(message: Message) -> str:
    return str(message.get("type", "the message"))
