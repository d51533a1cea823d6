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


def run(folder: Path, *arguments: str) -> str:
    """Run Python there, without what the tests' own run has set; returns what it printed, and fails if it failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
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


def test_every_example_is_tested() -> None:
    """No example of the section is left untested."""
    assert below(README.read_text(), f"## {SECTION}", "## ").count("```python\n") == 5
