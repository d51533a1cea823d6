"""The inspector in a browser: a page beside the metrics that shows the tree of ``trioserve inspect`` anew each second.

What clients send is part of the tree. The page puts it into the document as text alone, and its policy lets it load,
send and run nothing but its own two texts and the snapshot.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable

import trio

from ..bind import is_local, parse_bind
from ..config import Config
from ..outline import outline
from ..snapshot import Request
from ..types import PlainValues
from .admin import Answer, Page
from .inspection import Inspection
from .inspector_client import with_workers
from .sharing import Shared

JSON = "application/json"

CONNECTIONS = 100
"""Connections that are described, of each process."""

_STYLE = """
:root { color-scheme: light dark; --faint: #666; --good: #00700a; --warn: #8a5a00; --bad: #b00020 }
@media (prefers-color-scheme: dark) {
  :root { --faint: #999; --good: #6fcf7a; --warn: #e0b050; --bad: #ff7a85 }
}
body { font: 14px/1.5 ui-monospace, monospace; margin: 1.5rem }
header { display: flex; gap: 1rem; align-items: baseline; margin-bottom: 1rem }
h1 { font-size: 1rem; margin: 0 }
ul { list-style: none; margin: 0; padding-left: 1.5rem }
#tree { padding: 0; overflow-wrap: anywhere }
summary { cursor: pointer; margin-left: -1.2rem }
.title { font-weight: bold }
.faint { color: var(--faint) }
.good { color: var(--good) }
.warn { color: var(--warn) }
.bad { color: var(--bad) }
"""

_SCRIPT = """
"use strict";
const EVERY = 1000, PATIENCE = 10000, STALE = 3000;
const tree = document.getElementById("tree");
const state = document.getElementById("state");
const pause = document.getElementById("pause");
const folded = new Set();
let heard = Date.now(), failure = "";

function show(line, key) {
  const item = document.createElement("li");
  const words = document.createElement(line.lines.length ? "summary" : "span");
  for (const [text, style] of line.pieces) {
    const piece = words.appendChild(document.createElement("span"));
    piece.className = style;
    piece.textContent = text;
  }
  if (!line.lines.length) {
    item.append(words);
    return item;
  }
  words.dataset.key = key;
  const details = document.createElement("details");
  details.open = !folded.has(key);
  details.addEventListener("toggle", () => details.open ? folded.delete(key) : folded.add(key));
  details.append(words, list(document.createElement("ul"), line.lines, key));
  item.append(details);
  return item;
}

function list(element, lines, above) {
  const counts = new Map();
  element.replaceChildren(...lines.map(line => {
    const name = line.pieces.length ? line.pieces[0][0] : "";
    const count = (counts.get(name) ?? 0) + 1;
    counts.set(name, count);
    return show(line, JSON.stringify([above, name, count]));
  }));
  return element;
}

function tell() {
  const silent = Date.now() - heard;
  const late = !pause.checked && (failure || silent > STALE);
  state.className = late ? "bad" : "faint";
  if (pause.checked) state.textContent = "paused";
  else if (late) state.textContent = `no answer for ${Math.round(silent / 1000)} s ${failure}`;
  else state.textContent = "live";
}

async function refresh() {
  // Who marks a text to copy it would lose it.
  if (!pause.checked && !document.hidden && getSelection().isCollapsed) {
    try {
      const answer = await fetch("/inspect.outline.json", {signal: AbortSignal.timeout(PATIENCE), cache: "no-store"});
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const whole = await answer.json();
      const focused = document.activeElement?.dataset.key;
      list(tree, [whole], "");
      for (const one of focused ? tree.querySelectorAll("summary") : []) {
        if (one.dataset.key === focused) one.focus({preventScroll: true});
      }
      heard = Date.now();
      failure = "";
    } catch (error) {
      failure = `(${error.message})`;
    }
  } else {
    heard = Date.now();
  }
  tell();
  setTimeout(refresh, EVERY);
}

pause.addEventListener("change", tell);
setInterval(tell, EVERY);
refresh();
"""


@functools.cache
def make_page() -> bytes:
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_fingerprint(_SCRIPT)}'",
            f"style-src '{_fingerprint(_STYLE)}'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>trioserve</title>
<style>{_STYLE}</style>
<header><h1>trioserve</h1><span id="state" role="status">connecting</span>
<label><input type="checkbox" id="pause"> pause</label></header>
<ul id="tree"></ul>
<script>{_SCRIPT}</script>
</html>
""".encode()


def _fingerprint(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def inspector_pages(inspection: Inspection, config: Config) -> dict[str, Page | str]:
    """The page, what it shows, and the same as plain values for programs. In a supervisor all its workers are asked.

    Texts that say why there are none stand in their places if the address is open to others, and nobody has said that
    they may see what clients ask for.
    """
    why = _why_not(config)
    if why is not None:
        return dict.fromkeys(("/inspect", "/inspect.json", "/inspect.outline.json"), why)
    request = Request(CONNECTIONS)
    # Its own: those of the application may all be taken, which is when somebody looks.
    limiter = trio.CapacityLimiter(2)

    def take() -> PlainValues:
        return with_workers(inspection.describe(request), request)

    def answer_with(show: Callable[[PlainValues], PlainValues]) -> Page:
        def make() -> bytes:
            return json.dumps(show(take())).encode("ascii")

        async def answer() -> Answer:
            return Answer(200, JSON, await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=limiter))

        return Shared(answer).get

    async def page() -> Answer:
        return Answer(200, "text/html; charset=utf-8", make_page())

    return {
        "/inspect": page,
        "/inspect.json": answer_with(lambda snapshot: snapshot),
        "/inspect.outline.json": answer_with(lambda snapshot: outline(snapshot).to_plain()),
    }


def _why_not(config: Config) -> str | None:
    assert config.metrics_bind is not None
    if config.inspector is False:
        return "not shown: --no-inspector"
    if config.inspector is None and not is_local(parse_bind(config.metrics_bind)):
        return "not shown on an address that others may reach; --inspector shows it to them: what clients ask for, too"
    return None
