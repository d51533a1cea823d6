"""Logging is the process's: what a test changes is put back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from trioserve.logs import access_log, error_log, server_log, slow_log


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """All that a test does to logging is undone after it."""
    loggers = [logging.getLogger(), server_log, error_log, access_log, slow_log]
    kept = [(log, log.level, log.propagate, list(log.handlers), list(log.filters)) for log in loggers]
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
    for log, level, propagate, handlers, filters in kept:
        log.setLevel(level)
        log.propagate = propagate
        for handler in set(log.handlers).difference(handlers):
            handler.close()
        log.handlers[:] = handlers
        log.filters[:] = filters
