"""An open WebSocket: its two directions, its clocks and its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import Enum, auto
from math import inf

import trio

from ..bell import Bell
from ..context import ServerContext
from ..errors import ClientDisconnected
from ..linger import linger
from ..logs import Outcome, WebSocketRecord
from ..transport import Channel, Wake
from .frames import ABNORMAL, INTERNAL_ERROR, SERVICE_RESTART, Control, Frames, Kind, size_of
from .heartbeat import Heartbeat
from .inbound import Inbound
from .outbound import Outbound

CLOSE_PATIENCE = 10.0
"""Seconds that a client has to answer a close frame."""

GOODBYE_PATIENCE = 1.0
"""Seconds that a close frame may take to leave when all is being cancelled."""

# Messages that are handed out without a wait in between before others get their turn.
MESSAGES_IN_A_ROW = 16


def _nothing() -> None: ...


class Phase(Enum):
    """The end of a WebSocket, step by step."""

    OPEN = auto()
    CLOSING = auto()  # our close frame is out, and the client's answer is awaited
    ENDING = auto()  # nothing more comes: the client has closed, or left, or is not understood any more
    CLOSED = auto()


class WebSocketSession:
    """An open WebSocket. The application's task reads its channel in ``receive``; ``attend`` reads while that is busy.

    ``client_left`` is called when it is the client that ends it, perhaps more than once.
    """

    def __init__(
        self,
        channel: Channel,
        frames: Frames,
        server: ServerContext,
        *,
        record: WebSocketRecord,
        bell: Bell,
        client_left: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._frames = frames
        self._server = server
        self._record = record
        self._bell = bell
        self._client_left = client_left
        self._phase = Phase.OPEN
        self._is_closed = trio.Event()
        self.closed_with: tuple[int, str] | None = None
        """Code and reason as the application is told them; None while it is open."""
        self._own_close: tuple[int, str] | None = None  # the application's, or that of its end
        self._last_word: tuple[int, str] | None = None  # of the close frame that attend is to send
        self._has_failed = False  # nothing that the client sends can be understood any more
        self._is_given_up = False
        self.outcome = Outcome.OK
        self._started = trio.current_time()
        # What the client sent.
        self._inbound = Inbound(frames, server.config)
        self._has_stopped = False  # reading has, because enough waits for the application
        self._is_reading = False
        self._turn = trio.lowlevel.ParkingLot()
        self._in_a_row = 0
        # What it is sent.
        self._outbound = Outbound(channel, server.config.timeout_write, bell.ring)
        self._sending = trio.CancelScope()  # in which attend waits for room to send pongs
        self._heartbeat = Heartbeat(server.config, self._started)
        self._close_deadline = inf  # of the client's answer to our close frame
        self._timer = server.clock.timer(self._wake_at_deadline)
        self._timer.set(self._heartbeat.deadline)

    @property
    def is_open(self) -> bool:
        return self._phase is Phase.OPEN

    # The application's side

    async def receive(self) -> str | bytes | None:
        """Return the next message, None once it is closed and all are taken. Without a checkpoint if one is there."""
        data: str | bytes | None = None
        while True:
            if self._inbound:
                data = self._inbound.take()
                if self._inbound.has_more:
                    self._bell.ring()
            if data is not None:
                self._in_a_row += 1
                if self._in_a_row >= MESSAGES_IN_A_ROW:
                    await self._let_others_run()
                return data
            if self.closed_with is not None:
                return None
            if self._inbound.has_more or self._is_reading:
                # Another task brings it: attend, or one of the application that came first.
                await self._turn.park()
            else:
                self._is_reading = True
                try:
                    came = await self._channel.receive(inf)
                except BaseException:
                    self._bell.ring()  # what came in this moment was left to this task
                    raise
                finally:
                    self._is_reading = False
                    if self._turn:
                        self._turn.unpark_all()
                if isinstance(came, bytes):
                    data = self._take_lone(came)

    def _take_lone(self, came: bytes) -> str | bytes | None:
        """Return the message if what came is exactly one, as it most often is; None if it is among what waits now."""
        message = self._frames.take_lone(came)
        if message is None:
            self._feed(came)
        else:
            self._note_received()
            self._inbound.count(self._frames.size)
        return message

    async def _let_others_run(self) -> None:
        self._in_a_row = 0
        if not self._channel.has_waited:
            # Shielded, because what is there is to be had even in a cancelled scope.
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._channel.has_waited = False

    async def send(self, data: str | bytes) -> None:
        """Send one message, while it is open: all of it, or nothing if this is cancelled.

        Raises ClientDisconnected when nobody can be reached.
        """
        try:
            # Before it is framed, so that what a broadcast gives up on is not kept for the client all the same.
            if self._outbound.is_full:
                await trio.lowlevel.checkpoint()
            await self._channel.wait_room()
            if is_open := self._phase is Phase.OPEN:
                self._outbound.send(self._frames.message(data))
        except ClientDisconnected:
            self._end_without_handshake()
            raise
        if not is_open:  # since just now, and then its closing handshake is to be completed
            raise ClientDisconnected("the WebSocket is closed")
        self._record.sent_messages += 1
        self._record.sent += size_of(data)

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake, while it is open; attend completes it. Raises ClientDisconnected."""
        try:
            self._outbound.send_now(self._frames.close(code, reason))
        except ClientDisconnected:
            self._end_without_handshake()
            raise
        if not self._channel.has_left:
            self._own_close = (code, reason)
        self._begin_closing()

    async def wait_closed(self) -> None:
        """Wait until the closing handshake is over or given up, and the channel is closed."""
        await self._is_closed.wait()

    # What has come

    def _feed(self, data: bytes) -> None:
        if not data:
            self._end_without_handshake()
            return
        self._note_received()
        self._inbound.feed(data)
        self._take_apart()

    def _note_received(self) -> None:
        self._heartbeat.take_progress()
        self._outbound.note_received()

    def _take_apart(self) -> None:
        inbound = self._inbound
        inbound.take_apart(self._take_control)
        if inbound.has_more and not inbound.is_full:
            self._bell.ring()
        if inbound.awaits_application is not self._has_stopped:
            self._has_stopped = inbound.awaits_application
            turn = self._heartbeat.stop if self._has_stopped else self._heartbeat.go_on
            turn(trio.current_time())
            self._set_timer()

    def _take_control(self, event: Control) -> None:
        if event.kind is Kind.PING:
            if self._phase is Phase.OPEN:
                self._answer_ping(event.payload)
        elif event.kind is Kind.PONG:
            self._heartbeat.take_pong(event.payload, trio.current_time())
            self._set_timer()
        elif event.kind is not Kind.PIECE:
            self._take_end(event)

    def _answer_ping(self, payload: bytes) -> None:
        """At once, so that the pong is not overtaken by the answer to a message that follows the ping."""
        if self._inbound.pongs or self._channel.is_congested:
            self._inbound.pongs.append(payload)
            self._bell.ring()
        else:
            with contextlib.suppress(ClientDisconnected):  # which attend will notice
                self._outbound.send_now(self._frames.pong(payload))

    # The end

    def _take_end(self, event: Control) -> None:
        """The client has closed, or sends what is no WebSocket."""
        self._has_failed = event.kind is Kind.FAILURE
        if self._phase is Phase.OPEN:
            self._last_word = (event.code, event.reason)
        elif self._has_failed:
            # Instead of an answer to our close: it is as if there had been none.
            self._end_without_handshake()
            return
        self._end(event.code, event.reason, Outcome.ERROR if self._has_failed else Outcome.OK)

    def _end_without_handshake(self) -> None:
        """The client has left, or is given up."""
        self._last_word = None
        is_late = self._is_given_up or self._channel.has_stalled
        self._end(ABNORMAL, "", Outcome.DEADLINE if is_late else Outcome.CLIENT_LEFT)

    def _end(self, code: int, reason: str, outcome: Outcome) -> None:
        """Nothing more comes from the client; if it was the one to end it, this is what the application is told."""
        if self._phase is Phase.OPEN:
            self._client_left()
        if self._phase is Phase.OPEN or self.outcome is Outcome.OK:
            self.outcome = outcome
        if self.closed_with is None:
            self.closed_with = (code, reason)
        self._phase = Phase.ENDING
        self._bell.ring()

    def _begin_closing(self) -> None:
        self._phase = Phase.CLOSING
        self._inbound.discard()
        self._close_deadline = trio.current_time() + CLOSE_PATIENCE
        self._set_timer()
        self._bell.ring()

    def _drain_began(self) -> None:
        """Tell the application at once, and the client as soon as it takes what was sent before."""
        if self._phase is Phase.OPEN:
            self.outcome = Outcome.SHUTDOWN
            self.closed_with = self._last_word = (SERVICE_RESTART, "the server is shutting down")
            self._begin_closing()
            self._let_others_look()

    # Clocks

    def _set_timer(self) -> None:
        self._timer.set(self._heartbeat.deadline if self._phase is Phase.OPEN else self._close_deadline)

    def _wake_at_deadline(self) -> None:
        self._bell.ring()
        self._sending.cancel()

    def _keep_clocks(self) -> None:
        now = trio.current_time()
        if self._phase is Phase.CLOSING and self._close_deadline <= now:
            self._is_given_up = True
            self._end_without_handshake()
        elif self._phase is Phase.OPEN and self._heartbeat.deadline <= now:
            self._beat(now)

    def _beat(self, now: float) -> None:
        ping = self._heartbeat.beat(now, in_frame=self._frames.in_frame)
        if ping is None:
            self._last_word = (INTERNAL_ERROR, "no pong came in time")
            self._has_failed = True
            self._end(*self._last_word, Outcome.DEADLINE)
        elif ping:
            self._outbound.send_now(self._frames.ping(ping))
            if self._has_stopped:
                self._heartbeat.stop(now)
        self._set_timer()

    # The session's own task

    async def attend(self) -> None:
        """Read while the application does not, answer pings, keep the clocks, and close the channel in the end."""
        drain, tell_drain = self._server.drain, self._drain_began
        drain.register(tell_drain)
        self._channel.tell(left=self._bell.ring, unread=self._bell.ring)
        self._server.websocket_opened()
        try:
            if drain.kind is not None:
                self._drain_began()
            while self._phase is not Phase.ENDING:
                try:
                    await self._look_after()
                except ClientDisconnected:
                    self._end_without_handshake()
                self._let_others_look()
                await self._bell.wait()
            self._let_others_look()
            await self._finish()
        except trio.Cancelled:
            await self._say_goodbye()
            raise
        finally:
            self._channel.write_in(None)
            drain.unregister(tell_drain)
            self._timer.close()
            self._phase = Phase.CLOSED
            self._is_closed.set()
            self._server.websocket_closed(self._complete_record())
            # What a closed WebSocket no longer needs is to go now, and not when the garbage collector comes.
            self._frames.release()
            self._client_left = _nothing

    async def _look_after(self) -> None:
        self._outbound.write()
        self._say_last_word()
        if self._inbound.has_more:
            self._take_apart()
        if not self._inbound.has_more and not self._is_reading:
            self._read_nowait()
        self._keep_clocks()  # only now: what came in time, while the loop was blocked, wins
        if self._inbound.pongs and self._phase is Phase.OPEN:
            pongs, self._inbound.pongs = self._inbound.pongs, []
            with trio.CancelScope() as self._sending:
                framed = b"".join(map(self._frames.pong, pongs))
                await self._channel.send(framed, self._server.config.timeout_write)
        if self._channel.has_left and self._phase is Phase.OPEN:
            # Whatever of what it sent is still to be read; a close frame may be among it.
            self.outcome = Outcome.CLIENT_LEFT
            self._client_left()

    def _read_nowait(self) -> None:
        data = self._channel.receive_nowait()
        if data is not None:
            self._bell.ring()
            self._feed(data)

    def _let_others_look(self) -> None:
        """Wake the tasks of the application that wait for what this task has brought, or done."""
        self._turn.unpark_all()
        if self._is_reading and self.closed_with is not None:
            self._channel.wake(Wake.ENDED)

    def _say_last_word(self) -> None:
        word, self._last_word = self._last_word, None
        if word is not None:
            self._outbound.send_now(self._frames.close(*word))

    async def _finish(self) -> None:
        """Say what is still to be said, and close the channel so that the client can read it."""
        if not self._is_given_up:
            with trio.move_on_after(CLOSE_PATIENCE), contextlib.suppress(ClientDisconnected):
                self._outbound.write()
                self._say_last_word()
                await self._channel.flush()
                if self._has_failed or self._frames.sends_on or self._channel.has_unread:
                    await linger(self._channel)
        await self._channel.aclose(reset=self._is_given_up)

    async def _say_goodbye(self) -> None:
        """All is being cancelled: a close frame, if the client takes it at once."""
        if self._phase is Phase.OPEN:
            self.closed_with = self._last_word = (SERVICE_RESTART, "")
            self.outcome = Outcome.SHUTDOWN
            self._begin_closing()
            self._let_others_look()
        if self._phase is Phase.CLOSING:
            # From the beginning of the close: one that was said long ago has had its time.
            deadline = self._close_deadline - CLOSE_PATIENCE + GOODBYE_PATIENCE
            with trio.CancelScope(shield=True, deadline=deadline), contextlib.suppress(ClientDisconnected):
                self._say_last_word()
                await self._channel.flush()

    def _complete_record(self) -> WebSocketRecord:
        record = self._record
        record.code, record.reason = self._own_close or self.closed_with or (ABNORMAL, "")
        record.received_messages, record.received = self._inbound.messages, self._inbound.bytes
        record.duration = trio.current_time() - self._started
        record.outcome = self.outcome
        return record
