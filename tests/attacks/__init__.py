"""Attacks on a server over real sockets, for the tests and for long runs.

``ATTACKS[name](target, chance)`` does an attack once. It needs Trio and ends by itself, within LIMIT seconds, once the
server has dealt with it as it must; otherwise it raises Unmet, with words. ``chance`` decides what differs from time to
time. An attack with ``needs_tls`` is for a Target with ``tls``, all others are for both kinds.

The server must run ``tests.attacks.app:app`` (or an application that has its paths: ``/`` says hello; ``/echo`` answers
a whole body with itself; ``/download`` answers with more than the kernels hold; ``/forever`` never answers; ``/ws`` is
a WebSocket that echoes, and closes when it hears "close") with the options in CLOCKS. It must have a certificate for
"localhost" if it speaks TLS.
"""

from __future__ import annotations

from typing import Any

from . import junk, resets, secured, slow, websockets
from .peer import ATTACKS, MARGIN, Attack, Target, Unmet

__all__ = ["ATTACKS", "CLOCKS", "LIMIT", "Attack", "Target", "Unmet", "junk", "resets", "secured", "slow", "websockets"]

CLOCKS: dict[str, Any] = {
    "timeout_keep_alive": 2,
    "timeout_request_head": 2,
    "timeout_request_body": 2,
    "timeout_write": 2,
    "timeout_tls_handshake": 2,
    "timeout_ws_handshake": 2,
    "timeout_disconnect_grace": 0.5,
    "ws_ping_interval": 2,
    "ws_ping_timeout": 2,
    "ws_max_size": 65536,
    "limit_request_head": 8192,
    "limit_request_body": 100_000,
}
"""Options with which a server must serve so that every attack ends soon. Longer clocks make longer attacks."""

LIMIT = max(attack.clock for attack in ATTACKS.values()) + MARGIN
"""Seconds in which every attack ends; most take two or three."""
