"""Measures trioserve beside its peers: ``python -m benchmarks``."""
