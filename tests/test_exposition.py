"""Figures as Prometheus reads them, read back with its own parsers."""

from __future__ import annotations

import prometheus_client
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from trioserve.figures import FAMILIES, Kind, bound_labels
from trioserve.process.exposition import render

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def parse(answer):
    content_type, text = answer
    read = (
        openmetrics.text_string_to_metric_families
        if content_type.startswith("application/openmetrics-text")
        else text_string_to_metric_families
    )
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in read(text.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
            OPENMETRICS,
        ),
    ],
)
def test_format_follows_the_accept_field(accept, content_type):
    """Prometheus gets OpenMetrics if it asks for that, and everyone else the older text; both say the same."""
    figures = {
        ("requests", "GET", "2xx", "ok"): 3,
        ("tls_handshake_failures", 'unix:/run/a "b"\n\\', "timed out"): 2,
        ("event_loop_lag_seconds",): 0.25,
    }
    answer = render(figures, accept)
    # Later versions of the library add a parameter that says how names are escaped.
    assert answer[0].split("; escaping")[0] == content_type
    samples = parse(answer)
    labels = (("method", "GET"), ("outcome", "ok"), ("status", "2xx"))
    assert samples["trioserve_requests_total", *labels] == 3
    failed = (("listener", 'unix:/run/a "b"\n\\'), ("reason", "timed out"))
    assert samples["trioserve_tls_handshake_failures_total", *failed] == 2
    assert samples["trioserve_event_loop_lag_seconds",] == 0.25
    assert answer[1].endswith(b"# EOF\n") is content_type.startswith("application")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_histograms_are_cumulative(accept):
    """Each bucket holds those before it as well, and the last all."""
    figures = {
        ("request_body_bytes", "0.0"): 2,
        ("request_body_bytes", "1024.0"): 3,
        ("request_body_bytes", "+Inf"): 1,
        ("request_body_bytes", "sum"): 5000,
    }
    samples = parse(render(figures, accept))
    name = "trioserve_request_body_bytes"
    buckets = {key[1][1]: value for key, value in samples.items() if key[0] == f"{name}_bucket"}
    assert [buckets[bound] for bound in ("0.0", "256.0", "1024.0", "4096.0", "+Inf")] == [2, 2, 5, 5, 6]
    assert (samples[f"{name}_count",], samples[f"{name}_sum",]) == (6, 5000)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_every_family_can_be_shown(accept):
    """Both of Prometheus's own parsers, of which one is strict, read every name, kind and label."""
    figures = {}
    for family in FAMILIES:
        labels = bound_labels(family.bounds)[:1] if family.kind is Kind.HISTOGRAM else family.labels
        figures[family.name, *labels] = 1
    samples = parse(render(figures, accept))
    for family in FAMILIES:
        name = f"trioserve_{family.name}"
        suffix = {Kind.COUNTER: "_total", Kind.HISTOGRAM: "_count"}.get(family.kind, "")
        assert samples[f"{name}{suffix}", *((label, label) for label in sorted(family.labels))] == 1


def test_registry_of_the_application_is_left_alone():
    """What the application itself counts with the library is not shown, and nothing of ours is registered there."""
    mine = prometheus_client.Counter("trioserve_requests", "The application's, by accident of the same name.")
    try:
        mine.inc(7)
        before = prometheus_client.generate_latest()
        assert not any(value == 7 for value in parse(render({("tasks",): 1}, "")).values())
        assert b"trioserve_tasks" not in before
        assert b"trioserve_tasks" not in prometheus_client.generate_latest()
    finally:
        prometheus_client.REGISTRY.unregister(mine)
