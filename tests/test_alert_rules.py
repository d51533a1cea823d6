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
        ("TrioserveTLSHandshakesFail", "reason", _HANDSHAKE_REASONS | {"other"}),
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


# Bytes that are no TLS, and what scanners of ports try.
ANYBODY = {
    *("connection lost", "timed out", "http request", "the connection was dropped", "other", "wrong version number"),
    *("unsupported protocol", "alert protocol version", "no application protocol", "peer did not return a certificate"),
}


@pytest.mark.parametrize("name", ["TrioserveTLSHandshakesFail", "TrioserveOurCertificateIsRefused"])
def test_no_handshake_of_a_scanner_counts(name):
    """What anybody's first bytes can fail with pages nobody; what tells of certificates does."""
    matchers = re.findall(r'\breason(=~|!~)"([^"]*)"', RULES[name]["expr"])
    assert len(matchers) == 2  # what fails is compared with a rate, and with what does not
    for operator, pattern in matchers:
        counted = {
            reason
            for reason in _HANDSHAKE_REASONS | {"other"}
            if (re.fullmatch(pattern, reason) is None) is (operator == "!~")
        }
        assert counted >= {"alert certificate expired", "alert unknown ca", "alert bad certificate"}
        assert not counted & ANYBODY


def test_no_unknown_method_counts():
    """Heads that cannot be read, and words that are no method, are refused with a 501 or 505 that is no fault here."""
    braces = re.findall(r"trioserve_requests_total\{([^}]*)\}", RULES["TrioserveServerErrors"]["expr"])
    assert len(braces) == 3
    assert all('method!="other"' in one for one in braces)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("TrioserveTLSHandshakesFail", "0.05"),
        ("TrioserveServerErrors", "0.05"),
        ("TrioserveOurCertificateIsRefused", "10"),
    ],
)
def test_a_few_are_no_reason(name, least):
    """However few go well, some must fail; and however many fail, they must be more than one in twenty."""
    alone, unless, share = RULES[name]["expr"].partition("unless ")
    assert alone.split()[-2:] == [">", least]
    assert unless
    assert ">= 19 * sum by" in share
