"""The demo's chat: a page, and the websocket behind it.

A browser sends ``{"name": ..., "text": ...}``. It receives objects with a ``type``: ``welcome`` with the last messages,
``joined``, ``left`` and ``renamed``, each with the names of all who are ``here``, ``message``, and ``error`` for what
could not be understood. Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Required, TypedDict

import trio

TEXT_LIMIT = 2000
NAME_LIMIT = 40
"""Characters."""

JSON_LIMIT = 32 * 1024
"""Characters of a whole message, of which JSON may need twelve to write one."""

HISTORY_LIMIT = 50
"""Messages that are kept for those who join later, also while nobody is there."""

PARTICIPANTS_LIMIT = 50

OUTBOX_LIMIT = 200
"""What may wait for one participant; who falls further behind is dropped."""

PATIENCE = 5.0
"""Seconds that one participant's connection may take for one message, before that participant is dropped."""


class Message(TypedDict, total=False):
    """What the server and the application tell each other, as far as the chat uses it."""

    type: Required[str]
    text: str | None
    bytes: bytes | None
    code: int
    reason: str


Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Event(TypedDict, total=False):
    """What participants are told."""

    type: Required[str]
    name: str
    was: str
    text: str
    error: str
    here: list[str]
    history: list[Event]


class BadMessage(Exception):
    """A participant sent something that is no message; the text says why."""


@dataclass(eq=False)
class Participant:
    """One who is in the room, and the way to tell them something.

    Nobody waits for a participant's connection but their own task: others leave what they have to say in the outbox.
    """

    name: str
    is_dropped: bool = False

    def __post_init__(self) -> None:
        self._outbox, self._waiting = trio.open_memory_channel[str | trio.Event](OUTBOX_LIMIT)
        self._scope = trio.CancelScope()

    def tell(self, event: Event) -> None:
        """Leave an event for this participant, or drop them if too much is waiting already."""
        try:
            self._outbox.send_nowait(json.dumps(event))
        except trio.WouldBlock:
            self.drop()

    def drop(self) -> None:
        """End this participant's connection."""
        self.is_dropped = True
        self._scope.cancel()

    async def catch_up(self) -> None:
        """Wait until they have been sent all that waits for them now."""
        caught_up = trio.Event()
        await self._outbox.send(caught_up)
        await caught_up.wait()

    async def converse(self, room: Room, receive: Receive, send: Send) -> None:
        """Listen and talk until the client leaves or is dropped."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, send)
                await self._read(room, receive)
                self._scope.cancel()

    async def _read(self, room: Room, receive: Receive) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            try:
                name, text = read_message(message)
            except BadMessage as reason:
                self.tell({"type": "error", "error": str(reason)})
            else:
                room.say(self, name, text)
            # Who talks fast has to keep up with the answers, as otherwise those who listen could not.
            await self.catch_up()

    async def _write(self, send: Send) -> None:
        async for item in self._waiting:
            if isinstance(item, trio.Event):
                item.set()
                continue
            with trio.move_on_after(PATIENCE) as clock:
                try:
                    await send({"type": "websocket.send", "text": item})
                except OSError:  # the client is gone, which receive() may never say
                    self._scope.cancel()
            if clock.cancelled_caught:
                self.drop()


@dataclass
class Room:
    """Who is here, and what they said last. What is told in here, all are told in the same order."""

    participants: list[Participant] = field(default_factory=list)
    history: deque[Event] = field(default_factory=lambda: deque(maxlen=HISTORY_LIMIT))
    guests: int = 0

    def enter(self, name: str) -> Participant | None:
        """Let somebody in, or not if the room is full. Without a name that is fit to be shown they get one."""
        if len(self.participants) >= PARTICIPANTS_LIMIT:
            return None
        if not 0 < len(name := name.strip()) <= NAME_LIMIT:
            self.guests += 1
            name = f"guest {self.guests}"
        participant = Participant(name)
        self.participants.append(participant)
        participant.tell({"type": "welcome", "history": list(self.history), "here": self.names()})
        self.tell({"type": "joined", "name": name, "here": self.names()})
        return participant

    def leave(self, participant: Participant) -> None:
        """Let somebody out."""
        self.participants.remove(participant)
        self.tell({"type": "left", "name": participant.name, "here": self.names()})

    def say(self, speaker: Participant, name: str, text: str) -> None:
        """Somebody says something, perhaps under a new name."""
        if name != speaker.name:
            was, speaker.name = speaker.name, name
            self.tell({"type": "renamed", "name": name, "was": was, "here": self.names()})
        message: Event = {"type": "message", "name": name, "text": text}
        self.history.append(message)
        self.tell(message)

    def tell(self, event: Event) -> None:
        """Tell everybody who is here; never waits."""
        for participant in self.participants:
            participant.tell(event)

    def names(self) -> list[str]:
        """The names of all who are here."""
        return [participant.name for participant in self.participants]


def read_message(message: Message) -> tuple[str, str]:
    """Take (name, text) out of what a client has sent; raises BadMessage."""
    content = message.get("text")
    if content is None:
        raise BadMessage("a message is text, not binary")
    if len(content) > JSON_LIMIT:
        raise BadMessage(f"a message has at most {JSON_LIMIT} characters of JSON")
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"a message is JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadMessage('a message is an object: {"name": ..., "text": ...}')
    return read_line(value.get("name"), "name", NAME_LIMIT), read_line(value.get("text"), "text", TEXT_LIMIT)


def read_line(value: object, what: str, limit: int) -> str:
    """Check one part of a message; raises BadMessage."""
    if not isinstance(value, str) or not value.strip():
        raise BadMessage(f"{what} must be a text that is not empty")
    if len(value) > limit:
        raise BadMessage(f"{what} has at most {limit} characters, this one has {len(value)}")
    return value.strip()


async def refuse(receive: Receive, send: Send) -> None:
    """Turn down a websocket before it is open: the client gets 403."""
    await receive()  # websocket.connect
    await send({"type": "websocket.close"})


async def take_part(room: Room, name: str, receive: Receive, send: Send) -> None:
    """One client's websocket, from its beginning to its end."""
    participant = room.enter(name)
    if participant is None:
        await refuse(receive, send)
        return
    try:
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        await participant.converse(room, receive, send)
    finally:
        room.leave(participant)  # however it ended, the others learn of it
    if participant.is_dropped:
        await say_goodbye(send)


async def say_goodbye(send: Send) -> None:
    """Tell a client that was dropped why, if it still listens. 1013 is "try again later"."""
    with trio.move_on_after(PATIENCE), contextlib.suppress(OSError):
        await send({"type": "websocket.close", "code": 1013, "reason": "too slow"})


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>trioserve chat</title>
<link rel="icon" href="data:,">
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; color: #223; }
  h1 { margin: 0; }
  output { display: block; min-height: 1.5em; overflow-wrap: anywhere; }
  #status { color: #a30; }
  #status.open { color: #273; }
  #log { height: min(20rem, 50vh); overflow-y: auto; border: 1px solid #ccd; margin: .5rem 0; padding: .5rem; }
  #log p { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
  #log .news { color: #667; font-style: italic; }
  #log .error { color: #a30; }
  form { display: flex; gap: .5rem; }
  input { font: inherit; min-width: 0; }
  #name { flex: 1; }
  #text { flex: 4; }
</style>
<h1>Chat</h1>
<p><a href="/">Back to the demo</a> &middot; open this page in two tabs to talk to yourself.</p>
<output id="status" role="status">connecting</output>
<output id="here"></output>
<div id="log" role="log"></div>
<form id="form">
  <input id="name" aria-label="Your name" placeholder="Your name" required maxlength="[name limit]">
  <input id="text" aria-label="Message" placeholder="Message" required maxlength="[text limit]" autocomplete="off">
  <button>Send</button>
</form>

<script>
  const by = id => document.getElementById(id);
  let socket, delay;

  by("name").value = sessionStorage.getItem("name") || `guest ${100 + Math.floor(Math.random() * 900)}`;
  by("name").onchange = () => sessionStorage.setItem("name", by("name").value);

  function show(kind, text, name) {
    const line = document.createElement("p");
    line.className = kind;
    if (name) line.appendChild(document.createElement("b")).textContent = `${name}: `;
    line.append(text);  // as text, never as HTML
    by("log").append(line);
    while (by("log").childElementCount > 500) by("log").firstChild.remove();
    by("log").scrollTop = by("log").scrollHeight;
  }

  const told = {
    welcome: event => {
      by("log").replaceChildren();  // after a reconnect all that is known comes again
      event.history.forEach(told.message);
    },
    joined: event => show("news", `${event.name} joined`),
    left: event => show("news", `${event.name} left`),
    renamed: event => show("news", `${event.was} is now ${event.name}`),
    message: event => show("message", event.text, event.name),
    error: event => show("error", `not sent: ${event.error}`),
  };

  function connect() {
    const url = new URL("/chat/socket", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("name", by("name").value);
    socket = new WebSocket(url);
    let opened = false;
    socket.onopen = () => {
      opened = true;
      delay = 500;
      by("status").textContent = "connected";
      by("status").className = "open";
    };
    socket.onmessage = message => {
      const event = JSON.parse(message.data);
      told[event.type](event);
      if (event.here) by("here").textContent = `Here: ${event.here.join(", ")}`;
    };
    socket.onclose = event => {
      // While it is being tried again, the page goes on to say how the connection was lost.
      if (opened || !delay) {
        by("status").textContent = `${opened ? "connection lost" : "cannot connect"} (${event.code}); trying again`;
        by("status").className = "";
        by("here").textContent = "";
      }
      delay = Math.min(2 * (delay || 250), 5000);
      setTimeout(connect, delay);
    };
  }

  by("form").onsubmit = event => {
    event.preventDefault();
    if (socket.readyState !== WebSocket.OPEN) return show("error", "not sent: there is no connection");
    socket.send(JSON.stringify({ name: by("name").value, text: by("text").value }));
    by("text").value = "";
  };

  connect();
</script>
</html>
""".replace("[name limit]", str(NAME_LIMIT)).replace("[text limit]", str(TEXT_LIMIT))
