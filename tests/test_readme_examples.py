"""The examples in README.md, each saved as the file it is meant to be and run as its reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SECTION = "Test your application"
PATIENCE = 50


def example(heading: str) -> str:
    """The one Python block below this heading of the section."""
    section = below(README.read_text(), f"## {SECTION}", "## ")
    blocks = re.findall(r"^```python\n(.*?)^```$", below(section, f"### {heading}", "### "), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"README.md has {len(blocks)} examples below {heading!r}, and should have one"
    return blocks[0]


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


def test_every_example_is_tested() -> None:
    """No example of the section is left untested."""
    assert below(README.read_text(), f"## {SECTION}", "## ").count("```python\n") == 5
