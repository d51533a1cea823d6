"""Figures in the formats that Prometheus reads. The only home of prometheus_client, which is an extra."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from ..figures import FAMILIES, Family, Figures, Kind, bound_labels

_PREFIX = "trioserve_"


def render(figures: Figures, accept: str) -> tuple[str, bytes]:
    """The figures in the format that suits an Accept field best, and its content type."""
    # A registry of its own: what the application counts in the global one is the application's affair.
    registry = CollectorRegistry()
    registry.register(_Snapshot(figures))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


class _Snapshot(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> list[Metric]:
        return []  # else it is collected in order to see what there is

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            found = {key[1:]: value for key, value in self._figures.items() if key[0] == family.name}
            yield _make_metric(family, found)


def _make_metric(family: Family, found: Figures) -> Metric:
    name = f"{_PREFIX}{family.name}"
    if family.kind is Kind.HISTOGRAM:
        return _make_histogram(name, family, found)
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(name, family.help, labels=family.labels)
    for labels, value in sorted(found.items()):
        metric.add_metric(labels, value)
    return metric


def _make_histogram(name: str, family: Family, found: Figures) -> Metric:
    metric = HistogramMetricFamily(name, family.help, labels=())
    count, buckets = 0.0, []
    for bound in bound_labels(family.bounds):
        count += found.get((bound,), 0)
        buckets.append((bound, count))
    metric.add_metric((), buckets, found.get(("sum",), 0))
    return metric
