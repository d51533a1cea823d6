"""The demo's chat, driven as a server would drive it: clients that are a receive and a send made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from trioserve import demo_chat
from trioserve.demo_chat import Message, Room, take_part


class Client:
    """One websocket as the application sees it. After ``open_for`` sends its connection stalls, or is ``broken``."""

    def __init__(self, open_for: float = math.inf, *, is_broken: bool = False) -> None:
        self._to_app, self._from_client = trio.open_memory_channel[Message](math.inf)
        self._from_app, self._to_client = trio.open_memory_channel[Message](math.inf)
        self._open_for = open_for
        self._is_broken = is_broken
        self.ended = trio.Event()
        self.deliver({"type": "websocket.connect"})

    def deliver(self, message: Message) -> None:
        self._to_app.send_nowait(message)

    async def receive(self) -> Message:
        return await self._from_client.receive()

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self._open_for -= 1
        if self._open_for < 0:
            if self._is_broken:
                raise BrokenPipeError
            await trio.sleep_forever()
        self._from_app.send_nowait(message)

    async def next(self) -> Message:
        """What the application sends next."""
        with trio.fail_after(60):
            return await self._to_client.receive()

    async def event(self) -> demo_chat.Event:
        message = await self.next()
        assert message["type"] == "websocket.send", message
        return json.loads(message["text"])

    async def events(self, count: int) -> list[demo_chat.Event]:
        return [await self.event() for _ in range(count)]

    def say(self, text: str, name: str = "Ada") -> None:
        self.write(json.dumps({"name": name, "text": text}))

    def write(self, text: str) -> None:
        self.deliver({"type": "websocket.receive", "text": text})

    async def leave(self) -> None:
        self.deliver({"type": "websocket.disconnect", "code": 1001})
        await self.end()

    async def end(self) -> None:
        with trio.fail_after(60):
            await self.ended.wait()

    def rest(self) -> list[Message]:
        """What was sent and not yet looked at."""
        return [self._to_client.receive_nowait() for _ in range(self._to_client.statistics().current_buffer_used)]


@dataclass
class House:
    """A room, and the tasks in which the server would call the application."""

    room: Room
    nursery: trio.Nursery

    async def join(self, name: str, client: Client | None = None) -> Client:
        """Connect; returns once the newcomer has been welcomed, and looked at it."""
        client = client or Client()
        self.connect(name, client)
        assert await client.next() == {"type": "websocket.accept"}
        await client.events(2)
        return client

    def connect(self, name: str, client: Client) -> None:
        self.nursery.start_soon(self._call, name, client)

    async def _call(self, name: str, client: Client) -> None:
        try:
            await take_part(self.room, name, client.receive, client.send)
        finally:
            client.ended.set()


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with trio.open_nursery() as nursery:
        yield House(Room(), nursery)
        nursery.cancel_scope.cancel()


async def test_newcomer_is_welcomed_with_those_who_are_here():
    """The websocket opens, and the first event says who is here; then the newcomer's own arrival is told."""
    async with house() as at:
        await at.join("Ada")
        client = Client()
        at.connect("Bob", client)
        assert await client.next() == {"type": "websocket.accept"}
        assert await client.events(2) == [
            {"type": "welcome", "history": [], "here": ["Ada", "Bob"]},
            {"type": "joined", "name": "Bob", "here": ["Ada", "Bob"]},
        ]


async def test_message_reaches_everybody():
    """What one says, all hear, the speaker too."""
    async with house() as at:
        ada = await at.join("Ada")
        bob = await at.join("Bob")
        await ada.event()  # Bob joined
        ada.say("hello, wörld \ud800")
        expected = {"type": "message", "name": "Ada", "text": "hello, wörld \ud800"}
        assert (await ada.event(), await bob.event()) == (expected, expected)


async def test_those_who_are_here_learn_who_joins_and_leaves():
    """Arrivals and departures are told to those who are in the room."""
    async with house() as at:
        ada = await at.join("Ada")
        bob = await at.join("Bob")
        await bob.leave()
        assert await ada.events(2) == [
            {"type": "joined", "name": "Bob", "here": ["Ada", "Bob"]},
            {"type": "left", "name": "Bob", "here": ["Ada"]},
        ]
        assert bob.rest() == []


async def test_message_under_another_name_renames():
    """A participant who writes under a new name is called so from then on."""
    async with house() as at:
        ada = await at.join("Ada")
        ada.say("it is me", name="Countess")
        assert await ada.events(2) == [
            {"type": "renamed", "name": "Countess", "was": "Ada", "here": ["Countess"]},
            {"type": "message", "name": "Countess", "text": "it is me"},
        ]


@pytest.mark.parametrize("name", ["", "  ", "x" * 41], ids=["empty", "blank", "too long"])
async def test_who_has_no_fit_name_gets_one(name):
    """A name that cannot be shown is replaced by one that nobody else has been given."""
    async with house() as at:
        await at.join(name)
        await at.join(name)
        assert at.room.names() == ["guest 1", "guest 2"]


async def test_names_lose_the_space_round_them():
    """Spaces before and after a name do not make it another one."""
    async with house() as at:
        ada = await at.join(" Ada ")
        ada.say("hello", name="Ada ")
        assert (await ada.event())["type"] == "message"


async def test_history_outlives_those_who_wrote_it():
    """Who comes into an empty room gets what was said before."""
    async with house() as at:
        ada = await at.join("Ada")
        ada.say("anybody here?")
        await ada.event()
        await ada.leave()
        assert at.room.participants == []
        bob = Client()
        at.connect("Bob", bob)
        assert await bob.next() == {"type": "websocket.accept"}
        assert (await bob.event())["history"] == [{"type": "message", "name": "Ada", "text": "anybody here?"}]


async def test_history_keeps_the_last_messages():
    """Of many messages the last are kept, in order."""
    async with house() as at:
        ada = await at.join("Ada")
        for number in range(demo_chat.HISTORY_LIMIT + 3):
            ada.say(str(number))
        await ada.events(demo_chat.HISTORY_LIMIT + 3)
        assert [event["text"] for event in at.room.history] == [str(3 + number) for number in range(50)]


BAD = {
    "binary": ({"bytes": b"{}"}, "not binary"),
    "binary, with both keys": ({"text": None, "bytes": b"{}"}, "not binary"),
    "not JSON": ({"text": "hello"}, "a message is JSON: Expecting value"),
    "cut short": ({"text": '{"name": "Ada"'}, "a message is JSON: "),
    "nested too deep": ({"text": "[" * 30_000}, "a message is JSON: "),
    "a number too long": ({"text": "9" * 5_000}, "a message is JSON: "),
    "too much JSON": ({"text": " " * (demo_chat.JSON_LIMIT + 1)}, "at most 32768 characters of JSON"),
    "not an object": ({"text": '["name", "text"]'}, "a message is an object"),
    "no name": ({"text": '{"text": "x"}'}, "name must be a text"),
    "no text": ({"text": '{"name": "x"}'}, "text must be a text"),
    "blank name": ({"text": '{"name": " ", "text": "x"}'}, "name must be a text that is not empty"),
    "text of another type": ({"text": '{"name": "x", "text": NaN}'}, "text must be a text"),
    "long name": ({"text": json.dumps({"name": "x" * 41, "text": "x"})}, "name has at most 40 characters"),
    "long text": (
        {"text": json.dumps({"name": "x", "text": "x" * 2001})},
        "at most 2000 characters, this one has 2001",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_message_is_answered_and_nobody_else_hears_of_it(case):
    """What is no message gets an error event that says why, and the conversation goes on."""
    content, reason = BAD[case]
    async with house() as at:
        ada = await at.join("Ada")
        bob = await at.join("Bob")
        bob.deliver({"type": "websocket.receive", **content})
        error = await bob.event()
        assert error["type"] == "error"
        assert reason in error["error"]
        bob.say("sorry", name="Bob")
        assert (await bob.event())["text"] == "sorry"
        assert [(await ada.event())["type"] for _ in range(2)] == ["joined", "message"]


@pytest.mark.parametrize("text", ["x" * 2000, "\N{PILE OF POO}" * 2000], ids=["ascii", "twelve characters each"])
async def test_longest_text_is_taken(text):
    """A text of the greatest length passes, however JSON writes it."""
    async with house() as at:
        ada = await at.join("Ada")
        ada.say(text, name="x" * 40)
        assert (await ada.events(2))[1]["text"] == text


async def test_full_room_refuses_before_the_websocket_opens():
    """One more than the room holds is closed before the accept, which the client sees as 403."""
    async with house() as at:
        guests = [await at.join("") for _ in range(demo_chat.PARTICIPANTS_LIMIT)]
        late = Client()
        at.connect("late", late)
        await late.end()
        assert late.rest() == [{"type": "websocket.close"}]
        await guests[0].leave()
        await at.join("later")


async def test_stalled_participant_holds_up_nobody_and_is_dropped(autojump_clock):
    """Others hear each other at once while one connection takes nothing; after a while that one is dropped."""
    async with house() as at:
        ada = await at.join("Ada")
        stalled = await at.join("Bob", Client(3))  # accept, welcome, joined
        await ada.event()
        start = trio.current_time()
        for text in "abc":
            ada.say(text)
            assert (await ada.event())["text"] == text
        assert trio.current_time() == start
        assert (await ada.event()) == {"type": "left", "name": "Bob", "here": ["Ada"]}
        assert trio.current_time() == start + demo_chat.PATIENCE
        await stalled.end()  # neither does it take the goodbye
        assert trio.current_time() == start + 2 * demo_chat.PATIENCE


async def test_dropped_participant_is_told_why_if_they_still_listen(autojump_clock):
    """A connection that takes something again in the end is closed with 1013, "try again later"."""

    class Sluggish(Client):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.send":
                await trio.sleep(4 * demo_chat.PATIENCE)
            await super().send(message)

    async with house() as at:
        client = Sluggish()
        at.connect("Bob", client)
        await client.end()
        assert client.rest() == [
            {"type": "websocket.accept"},
            {"type": "websocket.close", "code": 1013, "reason": "too slow"},
        ]


async def test_who_falls_too_far_behind_is_dropped(mock_clock):
    """No more than the limit waits for one participant; the memory is bounded, and the others go on."""
    async with house() as at:
        ada = await at.join("Ada")
        await at.join("Bob", Client(3))  # the clock stands still, so that patience does not end
        await ada.event()
        for _ in range(demo_chat.OUTBOX_LIMIT + 1):  # one is in the stalled send
            ada.say("x")
            await ada.event()
        assert at.room.names() == ["Ada", "Bob"]
        ada.say("x")
        assert [event["type"] for event in await ada.events(2)] == ["message", "left"]


async def test_broken_connection_is_dropped():
    """Whose connection fails is out of the room, though receive() has said nothing; nobody says goodbye to them."""
    async with house() as at:
        ada = await at.join("Ada")
        bob = await at.join("Bob", Client(3, is_broken=True))
        await ada.event()
        ada.say("hello")
        assert [event["type"] for event in await ada.events(2)] == ["message", "left"]
        await bob.end()


async def test_connection_that_breaks_before_its_goodbye_is_let_go(autojump_clock):
    """A dropped participant whose connection then fails ends without an error."""

    class Dying(Client):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.send":
                await trio.sleep_forever()
            if message["type"] == "websocket.close":
                raise BrokenPipeError
            await super().send(message)

    async with house() as at:
        client = Dying()
        at.connect("Bob", client)
        await client.end()
        assert client.rest() == [{"type": "websocket.accept"}]


async def test_connection_that_breaks_before_it_is_open_leaves_the_room():
    """An accept that fails ends the handler with the error of send(), and nobody stays behind."""
    room = Room()
    client = Client(0, is_broken=True)
    with pytest.raises(BrokenPipeError):
        await take_part(room, "Ada", client.receive, client.send)
    assert room.participants == []


async def test_cancelled_participant_leaves_the_room():
    """When the server cancels the handler, the others still learn that this one has left."""
    async with house() as at:
        ada = await at.join("Ada")
        async with trio.open_nursery() as nursery:
            await House(at.room, nursery).join("Bob")
            nursery.cancel_scope.cancel()
        assert [(await ada.event())["type"] for _ in range(2)] == ["joined", "left"]


async def test_fast_talker_drops_nobody_who_keeps_up():
    """Far more messages than may wait reach all, in the same order: a speaker has to keep up with the own echo."""
    count = 3 * demo_chat.OUTBOX_LIMIT
    async with house() as at:
        ada = await at.join("Ada")
        bob = await at.join("Bob")
        await ada.event()
        for number in range(count):
            ada.say(str(number))
            bob.say(str(number), name="Bob")
        heard = await ada.events(2 * count)
        assert heard == await bob.events(2 * count)
        assert [event["text"] for event in heard if event["name"] == "Bob"] == [str(number) for number in range(count)]
