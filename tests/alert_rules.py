"""The alert rules of README.md, and what they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

README = Path(__file__).parents[1] / "README.md"


def rules_text() -> str:
    """The one block of YAML below the heading about metrics."""
    section = README.read_text().partition("\n## Metrics and health\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block


def read_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(rules_text())["groups"]
    return group["rules"]


@dataclass(frozen=True)
class Asked:
    """One metric of an expression, with the labels that are matched, and the values if they are listed."""

    name: str
    labels: frozenset[str]


def asked_of(expression: str) -> set[Asked]:
    """Every metric of an expression, and the labels that it must have to be matched so."""
    found = set()
    for name, braces in re.findall(r"\b(trioserve_\w+)(?:\{([^}]*)\})?", expression):
        found.add(Asked(name, frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))))
    return found


def grouped_by(expression: str) -> set[str]:
    """The labels by which sums are made; Prometheus itself adds job and instance."""
    return {label.strip() for part in re.findall(r"\bby \(([^)]*)\)", expression) for label in part.split(",")} - {
        "job",
        "instance",
    }
