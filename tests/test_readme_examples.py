"""The examples in README.md, each saved as the file it is meant to be and run as its reader would run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .programs import STRICT, start

README = Path(__file__).parents[1] / "README.md"
SECTION = "Test your application"
PATIENCE = 50


def example(heading: str) -> str:
    """The one Python block below this heading of the section."""
    return only_block(below(below(README.read_text(), f"## {SECTION}", "## "), f"### {heading}", "### "))


def only_block(text: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"there are {len(blocks)} examples, and there should be one: {text[:80]!r}"
    return str(blocks[0])


def below(text: str, heading: str, mark: str) -> str:
    """What stands between this heading and the next that begins with ``mark``."""
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"README.md has no heading {heading!r}"
    return rest.partition(f"\n{mark}")[0]


def run(folder: Path, *arguments: str, **variables: str) -> str:
    """Run Python there, without what the tests' own run has set; returns what it printed, and fails if it failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("heading", "count"),
    [
        ("Plain tests, with httpx", 2),
        ("pytest-trio, and half an hour in no time", 2),
        ("anyio", 1),
        ("A browser", 1),
    ],
)
def test_example_for_pytest_passes(tmp_path: Path, heading: str, count: int) -> None:
    """Each pytest example in README.md passes as it stands, warnings being errors."""
    (tmp_path / "test_hello.py").write_text(example(heading))
    printed = run(tmp_path, "-m", "pytest", "-W", "error", "test_hello.py")
    assert re.search(rf"^=+ {count} passed in ", printed, re.MULTILINE), printed


def test_example_for_unittest_passes(tmp_path: Path) -> None:
    """The unittest example in README.md passes as it stands, warnings being errors."""
    (tmp_path / "test_hello.py").write_text(example("unittest"))
    printed = run(tmp_path, "-W", "error", "-m", "unittest", "test_hello.py")
    assert "Ran 1 test in " in printed
    assert printed.endswith("\nOK\n")


def test_marks_of_pytest_trio_are_not_needed_in_its_mode(tmp_path: Path) -> None:
    """With trio_mode = true the marks of the pytest-trio example are not needed, as README.md says."""
    code = example("pytest-trio, and half an hour in no time")
    assert code.count("@pytest.mark.trio\n") == 2
    (tmp_path / "test_hello.py").write_text(code.replace("@pytest.mark.trio\n", ""))
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    printed = run(tmp_path, "-m", "pytest", "-W", "error", "test_hello.py")
    assert re.search(r"^=+ 2 passed in ", printed, re.MULTILINE), printed


def test_asyncio_inside_trio(tmp_path: Path) -> None:
    """The example with a loop of asyncio's answers, warnings being errors."""
    (tmp_path / "main.py").write_text(
        only_block(below(README.read_text(), "## When your application needs asyncio", "## "))
    )
    with start(*STRICT, "-m", "trioserve", "main:app", "--port", "0", cwd=tmp_path) as program:
        client = program.open()
        client.request("GET", "/rows", headers={"Connection": "close"})
        assert json.load(client.getresponse()) == ["a row"]
        client.close()
        program.signal()
        assert program.wait() == 0


def test_stop_trigger(tmp_path: Path) -> None:
    """What takes the place of Hypercorn's shutdown_trigger serves until it is told."""
    (tmp_path / "main.py").write_text("async def app(scope, receive, send): ...\n")
    ending = """
async def trial():
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main, stop)
        await trio.testing.wait_all_tasks_blocked()
        stop.set()

trio.run(trial)
"""
    code = only_block(below(README.read_text(), "## Coming from Hypercorn", "## ")).replace("port=8000", "port=0")
    (tmp_path / "program.py").write_text(f"import trio.testing\n{code}{ending}")
    run(tmp_path, "-W", "error", "program.py")


# Asks the example of OpenTelemetry, and prints the spans that it makes.
ASK = """
import json
import httpx
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from trioserve.testing import running
from main import app, provider

spans = InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(spans))
headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
with running(app) as server, httpx.Client(base_url=server.url) as client:
    assert client.get("/items/3?color=red", headers=headers).json() == 3
    assert client.get("/items/4").json() == 4
    with server.websocket("/echo") as websocket:
        websocket.send_message("hello")
        assert websocket.get_message() == "hello"
    assert client.get("/missing").status_code == 404
    spans.shutdown = lambda: None  # what is in memory is to outlive the server
found = spans.get_finished_spans()
print("SPANS", json.dumps([
    {"name": one.name, "kind": one.kind.name, "parent": one.parent and f"{one.parent.span_id:016x}",
     "trace": f"{one.context.trace_id:032x}", **one.attributes, **one.resource.attributes}
    for one in found
]))
"""


def test_the_example_of_opentelemetry_makes_one_span_per_request(tmp_path: Path) -> None:
    """Each request is one server span, with method, route, target, status and client, and its caller's trace."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", below(README.read_text(), "## OpenTelemetry", "## "), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 1
    (tmp_path / "main.py").write_text(blocks[0])
    (tmp_path / "ask.py").write_text(ASK)
    printed = run(tmp_path, "-W", "error", "ask.py", OTEL_SEMCONV_STABILITY_OPT_IN="http")
    told = [line for line in printed.splitlines() if line.startswith("SPANS ")]
    spans = json.loads(told[0].removeprefix("SPANS "))
    servers = [one for one in spans if one["kind"] == "SERVER"]
    assert [one["name"] for one in servers] == [*["GET /items/{number:int}"] * 2, "WebSocket /echo", "GET /missing"]
    routes = ["/items/{number:int}", "/items/{number:int}", "/echo", None]
    assert [one.get("http.route") for one in servers] == routes
    assert [one["url.path"] for one in servers] == ["/items/3", "/items/4", "/echo", "/missing"]
    assert [one.get("http.request.method") for one in servers] == ["GET", "GET", None, "GET"]
    assert [one["url.scheme"] for one in servers] == ["http", "http", "ws", "http"]
    assert [one["http.response.status_code"] for one in servers] == [200, 200, 200, 404]
    assert {(one["client.address"], one["service.name"]) for one in servers} == {("127.0.0.1", "shop")}
    assert servers[0]["url.query"] == "color=red"
    assert [one["parent"] for one in servers] == ["b7ad6b7169203331", None, None, None]
    assert servers[0]["trace"] == "0af7651916cd43dd8448eb211c80319c"
    assert [one["name"] for one in spans if one["kind"] != "SERVER"] == ["database", "database"]
    # And what goes to the console are as many spans.
    assert printed.count('\n    "name": "') == len(spans)


def test_every_example_is_tested() -> None:
    """No example of the section is left untested."""
    assert below(README.read_text(), f"## {SECTION}", "## ").count("```python\n") == 5
