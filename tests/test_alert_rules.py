"""The alert rules of README.md ask for figures that there are.

``nox -s operations`` tries them in a real Prometheus.
"""

from __future__ import annotations

import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from trioserve.figures import _HANDSHAKE_REASONS, FAMILIES, Kind, bound_labels
from trioserve.process.exposition import render
from trioserve.process.totals import Restart

from .alert_rules import asked_of, grouped_by, read_rules

RULES = {rule["alert"]: rule for rule in read_rules()}


@pytest.fixture(scope="module")
def shown():
    """The labels of each sample that a server can show, by its name."""
    figures = {}
    for family in FAMILIES:
        labels = bound_labels(family.bounds)[:1] if family.kind is Kind.HISTOGRAM else family.labels
        figures[family.name, *labels] = 1
    _, text = render(figures, "application/openmetrics-text")
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_names_of_the_rules():
    """There is a rule for each of what goes wrong most."""
    assert {name.removeprefix("Trioserve") for name in RULES} == {
        "TLSHandshakesFail",
        "OurCertificateIsRefused",
        "NobodyServes",
        "WorkersDie",
        "EventLoopIsLate",
        "ServerErrors",
    }


@pytest.mark.parametrize("name", RULES)
def test_a_rule_asks_for_what_there_is(name, shown):
    """Every metric of a rule is shown under that name, with every label that is matched, or summed by."""
    expression = RULES[name]["expr"]
    asked = asked_of(expression)
    assert asked
    for one in asked:
        assert one.name in shown
        assert one.labels <= shown[one.name]
    assert grouped_by(expression) <= set.union(*(shown[one.name] for one in asked))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_what_to_do(name):
    """Each has a severity and a summary, whose labels are those of the result."""
    rule = RULES[name]
    assert rule["labels"]["severity"] in ("page", "warn")
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert "instance" in used
    assert used <= grouped_by(rule["expr"]) | {"instance"}


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("TrioserveTLSHandshakesFail", "reason", _HANDSHAKE_REASONS),
        ("TrioserveOurCertificateIsRefused", "reason", _HANDSHAKE_REASONS),
        ("TrioserveWorkersDie", "reason", {why.value for why in Restart}),
        ("TrioserveNobodyServes", "state", {"serving"}),
        ("TrioserveServerErrors", "status", {"5xx"}),
    ],
)
def test_values_of_labels_are_those_there_are(name, label, values):
    """Each alternative that a matcher lists is a value that the label can have."""
    matchers = re.findall(rf'\b{label}(=~|!~|=)"([^"]*)"', RULES[name]["expr"])
    assert matchers
    for _, pattern in matchers:
        listed = [pattern] if "(" in pattern else pattern.split("|")
        for one in listed:
            assert any(re.fullmatch(one, value) for value in values), one
