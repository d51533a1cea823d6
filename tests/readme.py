"""Takes README.md apart: its sections, and the examples in them."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def section(*headings: str) -> str:
    """What stands below these headings, each inside the one before: ``("## Deployment", "### nginx")``."""
    text = README.read_text()
    for heading in headings:
        mark = heading.partition(" ")[0]
        _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
        assert found, f"README.md has no heading {heading!r}"
        # Up to the next of its rank or above. The title is not among them, as comments in examples look like one.
        text = re.split(rf"^#{{2,{len(mark)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return text


def block(beginning: str, language: str, *headings: str) -> str:
    """The one example that begins so, which is how they name their files."""
    found = [one for one in blocks(language, *headings) if one.startswith(beginning)]
    assert len(found) == 1, f"README.md has {len(found)} examples that begin with {beginning!r}"
    return found[0]


def blocks(language: str, *headings: str) -> list[str]:
    """The examples in this language below the headings."""
    return re.findall(rf"^```{language}\n(.*?)^```$", section(*headings), re.MULTILINE | re.DOTALL)
