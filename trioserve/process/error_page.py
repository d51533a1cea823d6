"""What a browser sees under ``--reload`` while the application does not run: why."""

from __future__ import annotations

import html

from ..types import ASGIApp, Receive, Scope, Send

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ margin: 2rem; font: 1rem/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff }}
pre {{ padding: 1rem; overflow-x: auto; font: 0.85rem/1.5 ui-monospace, monospace; background: #f4f4f6 }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #f0f0f2; background: #1d1d1f }}
  pre {{ background: #2c2c2f }}
}}
</style>
<h1>{title}</h1>
<p>It starts again as soon as a file changes.</p>
<pre>{text}</pre>
</html>
"""

# A request with one of these came through a proxy, from somebody who may be no developer (RFC 9110 §7.6.3, RFC 7239).
_SIGNS_OF_A_PROXY = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"})


def make_error_page(title: str, text: str) -> ASGIApp:
    """An application that answers every request with 503, ``title`` and ``text``: HTML to those who ask for it.

    ``text``, which tells much about the program, is left out where a proxy has handed the request on.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        shown = "" if any(name in _SIGNS_OF_A_PROXY for name, _ in scope["headers"]) else text
        if any(name == b"accept" and b"text/html" in value for name, value in scope["headers"]):
            kind, body = b"text/html", _PAGE.format(title=html.escape(title), text=html.escape(shown))
        else:
            kind, body = b"text/plain", f"{title}\n\n{shown}"
        # A WebSocket is denied with the same response.
        prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        fields = [(b"content-type", kind + b"; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": f"{prefix}.start", "status": 503, "headers": fields})
        await send({"type": f"{prefix}.body", "body": body.encode("utf-8", "replace")})

    return app
