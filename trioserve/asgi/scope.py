"""The ASGI scope of an exchange."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from ..exchange import Exchange
from ..types import PlainValues, Scope, State

SPEC_VERSION = "2.5"

_EXTENSIONS: PlainValues = {
    "http.response.trailers": {},
    "http.response.early_hint": {},
    "http.response.pathsend": {},
}
_WITH_FILES: PlainValues = {**_EXTENSIONS, "http.response.zerocopysend": {}}


def build_http_scope(exchange: Exchange, state: State, root_path: str, debug: bool) -> Scope:
    """Build the scope of one exchange; ``headers``, ``extensions`` and ``state`` are fresh objects.

    Source: ASGI HTTP & WebSocket §"HTTP Connection Scope".
    """
    request = exchange.request
    endpoint = request.endpoint
    if request.root_path is not None:
        root_path = request.root_path
    raw_path, _, query = request.target.partition(b"?")
    path = decode_path(raw_path)
    extensions = (_WITH_FILES if exchange.can_send_files else _EXTENSIONS).copy()
    if debug:
        extensions["http.response.debug"] = {}
    tls = endpoint.tls()
    if tls is not None:
        extensions["tls"] = tls
    state = state.copy()
    if request.id is not None:
        state["request_id"] = request.id
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
        "http_version": request.http_version,
        "method": request.method,
        "scheme": endpoint.scheme,
        "path": _mount(path, root_path) if root_path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": root_path,
        "headers": request.headers,
        "client": endpoint.client,
        "server": endpoint.server,
        "state": state,
        "extensions": extensions,
    }


def build_websocket_scope(exchange: Exchange, state: State, *, root_path: str, subprotocols: Iterable[str]) -> Scope:
    """Build the scope of an exchange that asks for a WebSocket.

    Source: ASGI HTTP & WebSocket §"WebSocket Connection Scope".
    """
    scope = build_http_scope(exchange, state, root_path=root_path, debug=False)
    del scope["method"]
    scope["type"] = "websocket"
    scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
    scope["subprotocols"] = list(subprotocols)
    tls = scope["extensions"].get("tls")
    scope["extensions"] = {"websocket.http.response": {}}
    if tls is not None:
        scope["extensions"]["tls"] = tls
    return scope


PERCENT = 0x25


def decode_path(raw: bytes) -> str:
    """Percent-decode a path as UTF-8; bytes that are not UTF-8 become U+FFFD, so no path is refused for them."""
    # b"%" would be taken for a number first, and the error this raises within CPython costs more than all else here.
    return unquote_to_bytes(raw).decode("utf-8", "replace") if PERCENT in raw else raw.decode()


def _mount(path: str, root_path: str) -> str:
    """Return the path below root_path, whether the proxy in front stripped the prefix or passed it on.

    ASGI's ``path`` includes ``root_path``; doing it twice is what breaks applications behind proxies that pass it on.
    """
    if path in (root_path, "*") or path.startswith(root_path + "/"):
        return path
    return root_path + path
