"""A snapshot as nested lines, and how a terminal shows them."""

from __future__ import annotations

import io
import os

import pytest

from trioserve import screen as module
from trioserve.outline import Line, Style, format_age, format_bytes, outline, printable
from trioserve.screen import Screen, draw
from trioserve.types import PlainValues

AT = {"file": "/srv/shop/app.py", "line": 12, "function": "show"}


def task(name: str = "a task", **changes: object) -> PlainValues:
    return {
        "name": name,
        "age": 1.0,
        "state": "waiting",
        "waits_for": "an event",
        "at": AT,
        "own": False,
        "tasks": [],
        **changes,
    }


def own_task(name: str = "own", **changes: object) -> PlainValues:
    return task(name, at=None, own=True) | changes


def exchange(**changes: object) -> PlainValues:
    made: PlainValues = {"client": "10.0.0.1:5", "method": "GET", "target": "/a", "http_version": "1.1"}
    made |= {"websocket": False, "age": 2.0, "status": None, "answered": False, "received": 0, "sent": 0}
    return made | changes


def connection(state: str = "serves", *tasks: PlainValues, **changes: object) -> PlainValues:
    made: PlainValues = {"client": "10.0.0.1:5", "listener": "127.0.0.1:80", "tls": False, "state": state}
    return made | {"age": 60.0, "state_age": 2.0, "requests": 1, "tasks": list(tasks)} | changes


def figures(**changes: object) -> PlainValues:
    made: PlainValues = {"requests": 1, "requests_total": 1234, "websockets": 0, "rejected": {}}
    return made | {"application_errors": 0, "loop_lag_max": None} | changes


def server(*shown: PlainValues, **changes: object) -> PlainValues:
    states: dict[str, int] = {}
    for one in shown:
        states[one["state"]] = states.get(one["state"], 0) + 1
    made: PlainValues = {"kind": "server", "pid": 7, "app": "shop:app", "version": "1.2", "phase": "serving"}
    made |= {"age": 3.0, "urls": ["http://127.0.0.1:80"], "loop": {"runs": True}, "statistics": figures()}
    made |= {"listeners": [{"address": "127.0.0.1:80", "url": "http://127.0.0.1:80", "connections": len(shown)}]}
    made |= {"connections": {"open": len(shown), "by_state": states, "shown": list(shown)}, "tasks": []}
    return made | changes


def lines_of(snapshot: PlainValues) -> list[str]:
    return draw(outline(snapshot))


def test_a_server_that_serves_nothing() -> None:
    """A server is told by its process, application, state and addresses."""
    assert lines_of(server()) == [
        "server 7  shop:app  serving, 3.0 s, trioserve 1.2",
        "├─ requests 1 (1,234 since the start), WebSockets 0",
        "├─ http://127.0.0.1:80  0 connections",
        "├─ no connections",
        "└─ tasks beside the connections",
    ]


def test_a_request_with_a_task() -> None:
    """A request is told by what it asks, how far it is, and where it waits; its tasks stand below it."""
    inner = task("produce", waits_for=None, at=None, nursery=2, more_tasks=1)
    outer = task(exchange=exchange(status=200, sent=2048, received=5), own=True, tasks=[inner, own_task()])
    shown = lines_of(server(connection("serves", outer, tls=True)))
    assert shown[3:6] == [
        "├─ connections 1: 1 serves",
        "│  └─ 10.0.0.1:5  serves 2.0 s, 1 request in 1 min 0 s TLS",
        "│     └─ GET /a  200  2.0 s, received 5 B, sent 2.0 KiB  waits for an event at shop/app.py:12 in show",
    ]
    # Whatever code it is in, what the application has started is told, and what the server has is not.
    assert shown[6:] == [
        "│        └─ produce (nursery 2)  1.0 s  waits",
        "│           └─ ... and 1 task more",
        "└─ tasks beside the connections",
    ]


EXCHANGES = {
    "no status yet": {},
    "404": {"status": 404},
    "500": {"status": 500},
    "200  2.0 s, answered": {"status": 200, "answered": True},
    "2.0 s, id abc": {"request_id": "abc"},
    "WebSocket /a  101  2.0 s  waits": {"status": 101, "websocket": True, "answered": True},
}


@pytest.mark.parametrize("words", EXCHANGES)
def test_requests(words: str) -> None:
    """What is known of a request stands in its line."""
    one = connection("serves", task(exchange=exchange(**EXCHANGES[words])))
    assert words in lines_of(server(one))[5]


def test_many_connections() -> None:
    """An idle connection is one line, and those beyond the limit are a number."""
    own = own_task()
    snapshot = server(connection("idle", own), connection("idle", own))
    snapshot["connections"]["open"] = 1002
    snapshot["connections"]["by_state"] = {"idle": 1002}
    assert lines_of(snapshot)[3:7] == [
        "├─ connections 1,002: 1,002 idle",
        "│  ├─ 10.0.0.1:5  idle 2.0 s, 1 request in 1 min 0 s",
        "│  ├─ 10.0.0.1:5  idle 2.0 s, 1 request in 1 min 0 s",
        "│  └─ ... and 1,000 more",
    ]


def test_tasks_beside_the_connections() -> None:
    """The application's other tasks are shown, with those above them; of the server's own there is a number."""
    own, running = own_task(), task("run", state="running", more_tasks=2, nursery=1, age=None)
    snapshot = server(tasks=[own_task("main", waits_for=None, tasks=[own, running]), own])
    assert lines_of(snapshot)[4:] == [
        "└─ tasks beside the connections",
        "   ├─ main  1.0 s  waits",
        "   │  └─ run (nursery 1)  ?  running at shop/app.py:12 in show",
        "   │     └─ ... and 2 tasks more",
        "   └─ ... and 2 tasks of the server itself",
    ]
    assert lines_of(server(tasks=[own]))[4:] == ["└─ 1 task of the server itself"]


def test_own_tasks_with_more_below() -> None:
    """What was not looked at may be the application's, so it is never counted as the server's own."""
    assert lines_of(server(tasks=[own_task("main", tasks=[own_task(more_tasks=3)])]))[4:] == [
        "└─ tasks beside the connections",
        "   └─ main  1.0 s  waits for an event",
        "      └─ own  1.0 s  waits for an event",
        "         └─ ... and 3 tasks more",
    ]


def test_stacks() -> None:
    """With the stacks every task and every thread is shown."""
    stacked = own_task(stack=["a.py:1 in a", "b.py:2 in b"])
    snapshot = server(
        connection("idle", stacked), tasks=[stacked], threads=[{"name": "Main", "stack": ["c.py:3 in c"]}]
    )
    shown = "\n".join(lines_of(snapshot))
    assert shown.count("a.py:1 in a") == 2
    assert "tasks beside the connections\n│  └─ own  1.0 s" in shown
    assert shown.endswith("   └─ Main\n      └─ c.py:3 in c")


def test_a_blocked_loop() -> None:
    """That the event loop does not run is the first that is told, and what blocks it, where that is known."""
    loop = {"runs": False, "seconds": 4.0, "running": "GET /a", "at": {**AT, "line": None}}
    words = "├─ the event loop does not run, for 4.0 s at least"
    assert lines_of(server(loop=loop))[1] == f"{words}, what runs is GET /a at shop/app.py:? in show"
    assert lines_of(server(loop={**loop, "running": None, "at": None}))[1] == words


def test_figures() -> None:
    """What is not as it should be is counted beside the requests."""
    odd = figures(rejected={"408": 1, "503": 2}, application_errors=4, loop_lag_max=0.25)
    [line] = [one for one in lines_of(server(statistics=odd)) if "requests" in one]
    assert line.endswith("refused 3, application errors 4, event loop late by at most 0.250 s")


def test_workers() -> None:
    """Workers stand below their supervisor, also those that do not answer."""
    silent = {"kind": "worker", "pid": 9, "state": "serving", "error": "does not answer"}
    values = {"kind": "supervisor", "workers": [server(kind="worker", pid=8), silent]}
    snapshot = {key: value for key, value in server(**values).items() if key not in ("statistics", "connections")}
    shown = lines_of(snapshot)
    assert shown[1] == "├─ http://127.0.0.1:80"
    assert shown[2] == "├─ worker 8  shop:app  serving, 3.0 s"
    assert "├─ worker 9  does not answer" in shown
    # One that has not begun to tell of a server.
    assert draw(outline({key: snapshot[key] for key in ("kind", "pid", "app", "phase", "age", "version")}))


def test_ages_and_sizes() -> None:
    """Times and sizes are in the units that people use."""
    ages = (None, 0.04, 59.94, 60, 3661, 90000)
    assert [format_age(one) for one in ages] == ["?", "0.0 s", "59.9 s", "1 min 0 s", "1 h 1 min", "1 d 1 h"]
    sizes = (0, 1023, 1024, 5 << 20, 3 << 30, 2 << 40, 1 << 60)
    told = ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB", "1048576.0 TiB"]
    assert [format_bytes(one) for one in sizes] == told


def test_nothing_that_a_terminal_would_obey() -> None:
    """Whatever came from a client, or from a file's name, is shown with escapes."""
    assert printable("grün /a") == "grün /a"
    assert printable("a\x1b[31m\nb\u202e\ud800") == r"a\x1b[31m\nb\u202e\ud800"
    line = Line.of(("\x1b]0;x\x07", Style.BAD), ("", Style.PLAIN))
    assert line.text == r"\x1b]0;x\x07"
    assert line.to_plain() == {"pieces": [[r"\x1b]0;x\x07", "bad"]], "lines": []}


# The terminal

TREE = Line.of(("title", Style.TITLE), (" rest", Style.PLAIN), lines=[Line.of(("inner line", Style.FAINT))])


def test_width() -> None:
    """Lines are cut where the terminal ends, and say so."""
    assert draw(TREE, width=13) == ["title rest", "└─ inner line"]
    assert draw(TREE, width=9) == ["title re…", "└─ inner…"]
    assert draw(TREE, width=2) == ["t…", "└…"]


def test_colors() -> None:
    """Colours are put round what is left of each piece."""
    assert draw(TREE, width=10, colors=True) == ["\x1b[1mtitle\x1b[0m rest", "└─ \x1b[2minner \x1b[0m…"]
    assert draw(TREE, width=5, colors=True)[0] == "\x1b[1mtitl\x1b[0m…"


@pytest.fixture
def output() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")


def written(output: io.TextIOWrapper) -> str:
    buffer = output.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def test_a_file_gets_whole_lines(output: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no terminal gets no escapes, and nothing is cut."""
    monkeypatch.setattr(module.shutil, "get_terminal_size", lambda: os.terminal_size((5, 5)))
    screen = Screen(output, is_terminal=False, colors=False)
    with screen.taking_over():
        screen.show(TREE)
        screen.show(TREE)
    assert written(output) == "title rest\n└─ inner line\n" * 2


def test_a_terminal_is_given_back(output: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch takes the other screen, writes each picture over the last, within its height, and leaves."""
    monkeypatch.setattr(module.shutil, "get_terminal_size", lambda: os.terminal_size((40, 2)))
    screen = Screen(output, is_terminal=True, colors=False)
    with screen.taking_over():
        screen.show(TREE)
        screen.show(Line.of(("top", Style.PLAIN), lines=[TREE]))
    shown = written(output)
    assert shown.startswith("\x1b[?1049h\x1b[?25l\x1b[Htitle rest\x1b[K\r\n└─ inner line\x1b[K\x1b[J")
    assert shown.endswith("\x1b[Htop\x1b[K\r\n... and 2 lines more, in a larger window\x1b[K\x1b[J\x1b[?25h\x1b[?1049l")


def test_a_terminal_without_these_characters() -> None:
    """What the output cannot show is escaped."""
    buffer = io.BytesIO()
    output = io.TextIOWrapper(buffer, encoding="ascii")
    Screen(output, is_terminal=False, colors=False).show(TREE)
    assert buffer.getvalue().splitlines()[1] == rb"\u2514\u2500 inner line"
