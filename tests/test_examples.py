"""The examples in tests/examples: projects of others, with a configuration and tests of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"
PATIENCE = 50


def test_shop(tmp_path: Path) -> None:
    """All tests of the shop pass: over HTTP, in Chromium, and with clients that vanish."""
    project = tmp_path / "shop"
    shutil.copytree(EXAMPLES / "shop", project, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=project,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^=+ 12 passed in ", done.stdout, re.MULTILINE), done.stdout
