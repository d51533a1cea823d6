"""ASGI's own types. The only module in which ``Any`` stands: ASGI messages are open dictionaries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

State = dict[str, Any]
"""The lifespan state; each exchange gets a shallow copy."""

Headers = Sequence[tuple[bytes, bytes]]
"""Field lines in order, names and values as bytes."""

PlainValues = dict[str, Any]
"""What survives JSON: option names and their plain values, log records, statistics."""

AppFactory = Callable[[], ASGIApp]
AnyIterable = Iterable[Any]
AnyValue = Any
"""A value that came from outside (a message of the application, a configuration file) and is checked before use."""
