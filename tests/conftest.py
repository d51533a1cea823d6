"""What holds for all tests."""

import functools
import gc
import inspect
from collections.abc import Iterator

import pytest

from . import support

pytest_plugins = ("pytester",)

collect_ignore = ["examples"]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported.

    Each server of the tests ends with a collection, to show that nothing is left of it. Walking through the modules of
    four web frameworks each time was most of what the tests did: 54 of the 62 seconds of CPU of three of their files.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail an async test that passes without having come to its end.

    A trio.Cancelled that has lost its scope ends a test early, and pytest-trio then counts it as passed.
    """
    test = getattr(item, "obj", None)
    if not inspect.iscoroutinefunction(test) or hasattr(test, "hypothesis"):
        yield
        return
    ends = []

    @functools.wraps(test)
    async def to_the_end(*arguments: object, **fixtures: object) -> None:
        await test(*arguments, **fixtures)
        ends.append(item.name)

    item.obj = to_the_end
    yield
    assert ends, "the test was cut short"


CODECS = ["h11", "httptools"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked with both_codecs on both; what is not async runs programs, which choose for themselves."""
    is_marked = metafunc.definition.get_closest_marker("both_codecs") is not None
    if is_marked and inspect.iscoroutinefunction(metafunc.function):
        metafunc.fixturenames.append("codec")
        metafunc.parametrize("codec", CODECS, indirect=True)


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on both codecs: it is what servers use that are not told which, and the fixture's value."""
    name: str = request.param
    monkeypatch.setattr(support, "HTTP", name)
    return name
