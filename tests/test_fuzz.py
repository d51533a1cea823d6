"""What fuzzing has kept, and some examples of the rest; and that what looks for bugs does find them."""

from __future__ import annotations

from collections.abc import Callable

import h11
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.types import PlainValues, Receive, Scope, Send
from trioserve.wire.codec_h11 import H11Codec
from trioserve.wire.framing import FramedHeads
from trioserve.wire.request_reader import Head, ParsedHeads

from .codec_reading import CONFIGS, check_held, fresh_codecs, read
from .fuzz import config, http11, proxies, websocket
from .fuzz.__main__ import TARGETS, Drawn, FoundSomething, Guided
from .fuzz.corpus import HTTP11, dictionary, inputs, seeds
from .fuzz.http11 import Ending, check_codecs, check_server, read_input, write_input
from .fuzz.http11_oracle import Answer, read_answers
from .fuzz.websocket import Manner, Scenario
from .fuzz.websocket_reference import Limits, Meaning, Reference
from .support import http_app
from .websocket_client import deflated, frame

pytestmark = pytest.mark.timeout(60)

few = settings(max_examples=80, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))

POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
TEXT, CONTINUATION, CLOSE, PING = 1, 0, 8, 9


# Each time


def test_the_corpus_is_small() -> None:
    """It is for the repository, and gone through each time."""
    kept = inputs()
    assert 100 <= len(kept) <= 200
    assert sum(map(len, kept)) < 100 * 1024
    assert all(data not in kept[:number] for number, data in enumerate(kept))


def test_the_codecs_go_through_the_corpus() -> None:
    """Both read the same of each input, wherever it is cut."""
    for data in inputs():
        check_codecs(data)


def test_the_server_goes_through_the_corpus() -> None:
    """Its answers to each input are right, nothing is left, and its other client notices nothing."""
    for data in inputs():
        check_server(data)


@few
@given(websocket.scenarios())
def test_websockets(scenario: Scenario) -> None:
    """Some examples of what is run for minutes by `nox -s fuzz`."""
    websocket.check(scenario)


@few
@given(config.scenarios())
def test_options(scenario: config.Scenario) -> None:
    """Some examples of what is run for minutes by `nox -s fuzz`."""
    config.check(scenario)


@few
@given(proxies.scenarios())
def test_proxies(scenario: proxies.Scenario) -> None:
    """Some examples of what is run for minutes by `nox -s fuzz`."""
    proxies.check(scenario)


def test_a_proxy_that_is_believed_in_the_wrong_is_found() -> None:
    """An application that is told of another client is noticed."""

    async def lie(scope: Scope, receive: Receive, send: Send) -> None:
        await proxies.tell_client({**scope, "client": ("192.0.2.9", 1)}, receive, send)

    line = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n"
    proxies.check(proxies.Scenario(line))
    with pytest.raises(AssertionError, match="192.0.2.9"):
        proxies.check(proxies.Scenario(line), http_app(lie))


@given(
    st.binary(max_size=30),
    st.lists(st.integers(0, 65535), max_size=7),
    st.sampled_from(Ending),
    st.sampled_from(["h11", "httptools"]),
)
def test_an_input_is_read_as_it_was_written(data: bytes, places: list[int], ending: Ending, codec: str) -> None:
    """What the fuzzer changes in it is the request, the cuts, or the rest."""
    found = read_input(write_input(data, places, ending, codec))
    assert (found.data, found.ending, found.codec) == (data, ending, codec)
    assert len(found.pieces) == len(places) + 1


def test_seeds_and_words_are_there() -> None:
    """Fuzzing begins with the requests of the other tests."""
    assert len(seeds()) > 300
    assert '"\\x0d\\x0a"\n' in dictionary()


# What is broken is found


class Breaks(H11Codec):
    """A codec that raises what none may."""

    def _parse_fields(self, raw: bytes) -> list[tuple[bytes, bytes]]:
        raise ValueError("no")


class Drops(H11Codec):
    """A codec that reads another body."""

    def next_body(self) -> tuple[bytes, bool] | None:
        came = super().next_body()
        return None if came is None else (came[0][1:], came[1])


class Counts(H11Codec):
    """A codec whose answer depends on the pieces."""

    fed = 0

    def feed(self, data: bytes) -> None:
        self.fed += 1
        super().feed(data)

    def next_head(self) -> Head | None:
        head = super().next_head()
        if head is not None:
            head.headers.append((b"fed", b"%d" % self.fed))
        return head


@pytest.mark.parametrize(("broken", "error"), [(Breaks, ValueError), (Drops, AssertionError), (Counts, AssertionError)])
def test_a_broken_codec_is_found(broken: type[H11Codec], error: type[Exception]) -> None:
    """One that raises, one that reads another body, one for which it matters how bytes are cut."""

    def make() -> H11Codec:
        return broken(CONFIGS["h11"], ParsedHeads(), FramedHeads())

    data = write_input(POST, [10, 20])
    check_codecs(data)
    with pytest.raises(error):
        check_codecs(data, {**fresh_codecs(), "h11": make})
    if broken is Counts:
        with pytest.raises(AssertionError, match="cut: "):
            check_codecs(data, {"h11": make, "httptools": make})


def test_a_codec_that_holds_too_much_is_found() -> None:
    """What has come of a body is to be taken, and a head has its limit."""
    codec = fresh_codecs()["h11"]()
    reading = read(codec, [POST[:-2]])
    check_held(codec, reading)
    codec.feed(b"more")
    with pytest.raises(AssertionError, match="held back"):
        check_held(codec, reading)
    reading.head = None
    codec.feed(b"x" * 500)
    with pytest.raises(AssertionError):
        check_held(codec, reading)


def answering(status: int = 200, body: bytes = b"POST /x hello", *, asks: bool = True) -> type[http11.Application]:
    """An application that is right but for this."""

    class Wrong(http11.Application):
        async def _answer(self, call: http11.Call, send: Send) -> None:
            await send({"type": "http.response.start", "status": status})
            await send({"type": "http.response.body", "body": body})

        async def _read(self, call: http11.Call, receive: Receive) -> bool:
            return await super()._read(call, receive) if asks else True

    return Wrong


class Leaves(http11.Application):
    """Leaves a task behind."""

    async def _answer(self, call: http11.Call, send: Send) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        await super()._answer(call, send)


class Raises(http11.Application):
    """Raises what was not meant."""

    async def _answer(self, call: http11.Call, send: Send) -> None:
        raise KeyError("no")


class Forgets(http11.Application):
    """Mistakes the neighbour for others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__({**scope, "query_string": b"1"} if scope["type"] == "http" else scope, receive, send)


@pytest.mark.parametrize(
    "wrong",
    [answering(404), answering(body=b"POST /x hell"), Leaves, Raises, Forgets],
    ids=["status", "body", "task", "error", "neighbour"],
)
@pytest.mark.parametrize("ending", [Ending.HALF_CLOSES, Ending.WAITS])
def test_a_broken_application_is_found(wrong: Callable[[], http11.Application], ending: Ending) -> None:
    """One that answers otherwise, or leaves something, or whose other client is told something else."""
    data = write_input(POST, [10, 20], ending)
    check_server(data)
    with pytest.raises(AssertionError):
        check_server(data, wrong())


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" * 3,
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_is_found(data: bytes) -> None:
    """More answers than requests, more after the last one, or no HTTP."""
    head = Head("GET", b"/", [], "1.1", 0)
    with pytest.raises((AssertionError, h11.RemoteProtocolError)):
        read_answers(data, [head])


def test_an_answer_that_is_broken_off_is_told_from_a_whole_one() -> None:
    """An application may fail after it has begun."""
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    assert read_answers(data + b"hell", []) == [Answer(200, b"hell", is_whole=False)]
    assert read_answers(data + b"hello", []) == [Answer(200, b"hello", is_whole=True)]


CONVERSATION = (frame(TEXT, b"one"), frame(PING, b"p") + frame(TEXT, b"two", fin=False), frame(CONTINUATION, b"!"))


class Mishears(websocket.Application):
    """Believes to have received less."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)
        self.received = self.received[:-1]


class ClosesAnyhow(websocket.Application):
    """Closes with a code of its own."""

    async def _converse(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000})


class Shouts(websocket.Application):
    """Sends something else."""

    async def _converse(self, receive: Receive, send: Send) -> None:
        async def shout(message: PlainValues) -> None:
            await send({**message, "text": message["text"].upper()} if "text" in message else message)

        await super()._converse(receive, shout)


class RaisesKeyError(websocket.Application):
    """Raises what was not meant."""

    async def _converse(self, receive: Receive, send: Send) -> None:
        await super()._converse(receive, send)
        raise KeyError("no")


@pytest.mark.parametrize("wrong", [Mishears, ClosesAnyhow, Shouts, RaisesKeyError])
def test_a_broken_conversation_is_found(wrong: type[websocket.Application]) -> None:
    """Messages that do not arrive as they were sent, another close code, an error."""
    scenario = Scenario((*CONVERSATION, frame(CLOSE, b"")))
    websocket.check(scenario)
    with pytest.raises(AssertionError):
        websocket.check(scenario, wrong(Manner()))


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b"".join(CONVERSATION), Meaning(["one", "two!"], [b"p"])),
        (frame(CLOSE, b""), Meaning(close=1005)),
        (frame(CLOSE, b"\x03\xe9bye") + b"more", Meaning(close=1001)),
        (frame(CLOSE, b"\x03"), Meaning(failures={1002})),
        (frame(CLOSE, b"\x03\xec"), Meaning(failures={1002})),
        (frame(CLOSE, b"\x03\xe8\xff"), Meaning(failures={1007})),
        (frame(TEXT, b"\xff"), Meaning(failures={1007})),
        (frame(TEXT, b"\xc3"), Meaning(failures={1007})),
        (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"\xa4"), Meaning(["ä"])),
        (frame(TEXT, b"x" * 11), Meaning(failures={1009})),
        (frame(CONTINUATION, b"x"), Meaning(failures={1002})),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), Meaning(failures={1002})),
        (frame(PING, b"x" * 126), Meaning(failures={1002})),
        (frame(PING, b"x", fin=False), Meaning(failures={1002})),
        (frame(3, b"x"), Meaning(failures={1002})),
        (frame(TEXT, b"x", rsv=2), Meaning(failures={1002})),
        (frame(TEXT, b"x", mask=None), Meaning(failures={1002})),
        (b"\x81\xfe\x00\x01abcdx", Meaning(failures={1002})),
        (b"\x81\xff" + b"\xff" * 8 + b"abcdx", Meaning(failures={1002})),
        (frame(TEXT, deflated(b"hello"), rsv=4) * 2, Meaning(["hello", "hello"])),
        (frame(TEXT, deflated(b"x" * 11), rsv=4), Meaning(failures={1007, 1009})),
        (frame(TEXT, b"\xff\xff\xff\xff", rsv=4), Meaning(failures={1007, 1009})),
        (frame(TEXT, b"hello")[:-1], Meaning()),
        (frame(TEXT, b"\xffello")[:-1], Meaning(possible={1007})),
        (b"\x81\x85ab", Meaning()),
        (b"\x81", Meaning(possible={1002})),
        (b"\x81\xfe\x01", Meaning(possible={1002})),
    ],
)
def test_the_reference_knows_its_rfc(data: bytes, meaning: Meaning) -> None:
    """What the server is compared with: of each kind of frame one that is right, or wrong."""
    assert Reference(Limits(10, window=15)).read(data) == meaning


def test_the_reference_forgets_a_window() -> None:
    """With client_no_context_takeover a message cannot refer to the one before (RFC 7692 §7.1.1.2)."""
    again = frame(TEXT, bytes.fromhex("f200110000"), rsv=4)  # of RFC 7692 §7.2.3.2
    data = frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=4) + again
    assert Reference(Limits(10, window=15)).read(data) == Meaning(["Hello", "Hello"])
    assert Reference(Limits(10, window=15, forgets=True)).read(data).messages == ["Hello"]


def raises_type_error(values: PlainValues) -> Config:
    raise TypeError("no")


def names_nothing(values: PlainValues) -> Config:
    raise ConfigError("something is wrong")


def takes_anything(values: PlainValues) -> Config:
    return Config(port=len(str(values)))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(raises_type_error, TypeError), (names_nothing, AssertionError), (takes_anything, AssertionError)],
)
def test_a_broken_reader_of_options_is_found(wrong: Callable[[PlainValues], Config], error: type[Exception]) -> None:
    """One that raises, one whose error does not say what it is about, one that does not survive JSON."""
    scenario = config.Scenario({"port": 80})
    config.check(scenario)
    with pytest.raises(error):
        config.check(scenario, wrong)


# The program


def test_the_program_tells_what_it_has_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A finding is shown with its smallest example, and the seed that leads to it."""

    def check(number: int) -> None:
        assert number < 10

    with pytest.raises(FoundSomething, match=r"^numbers failed with seed 5, after \d+ examples$"):
        Drawn(st.integers, check).run("numbers", 10, 5)
    assert "scenario=10" in capsys.readouterr().err


def test_the_program_ends_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    """What finds nothing says how much it has tried."""
    Drawn(st.integers, abs).run("numbers", 0.001, 5)
    assert capsys.readouterr().out.startswith("numbers: 100 examples, seeds 5 to 5")


def test_each_target_is_there() -> None:
    """Those that are guided by coverage share a corpus."""
    guided = {name for name, target in TARGETS.items() if isinstance(target, Guided) and target.corpus == HTTP11}
    assert guided == {"codecs", "http11"}
    assert TARGETS.keys() - guided == {"websocket", "config", "proxies"}
