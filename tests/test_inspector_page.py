"""The inspector's page and what it shows: to whom, and that many who ask cost little more than one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from trioserve.bind import NamedDescriptorBind, is_local
from trioserve.config import Config
from trioserve.process.admin import Answer, Page
from trioserve.process.inspection import Inspection
from trioserve.process.inspector_page import inspector_pages, make_page
from trioserve.snapshot import Request
from trioserve.types import PlainValues

PATIENCE = 20

OPEN = "not shown on an address that others may reach; --inspector shows it to them: what clients ask for, too"

LOCAL = Config(metrics_bind="127.0.0.1:0")


@pytest.fixture
def inspection() -> Inspection:
    return Inspection("server", "main:app")


async def ask_page(pages: Mapping[str, Page | str], path: str) -> Answer:
    page = pages[path]
    assert not isinstance(page, str)
    return await page()


async def test_pages(inspection: Inspection) -> None:
    """The page is one text with a strict policy; what it shows is made in a thread."""
    inspection.loop.attach()
    pages = inspector_pages(inspection, LOCAL)
    assert set(pages) == {"/inspect", "/inspect.json", "/inspect.outline.json"}
    page = await ask_page(pages, "/inspect")
    assert (page.status, page.content_type) == (200, "text/html; charset=utf-8")
    assert page.body == make_page()
    assert b"default-src 'none'; script-src 'sha256-" in page.body
    assert b"innerHTML" not in page.body
    values = json.loads((await ask_page(pages, "/inspect.json")).body)
    assert values["kind"] == "server"
    lines = json.loads((await ask_page(pages, "/inspect.outline.json")).body)
    assert lines["pieces"][0] == [f"server {os.getpid()}", "title"]


@pytest.mark.parametrize(
    ("bind", "inspector", "why"),
    [
        ("127.0.0.1:0", None, None),
        ("127.8.0.1:0", None, None),
        ("[::1]:0", None, None),
        ("LocalHost:0", None, None),
        ("unix:/run/m", None, None),
        ("0.0.0.0:0", True, None),
        ("0.0.0.0:0", None, OPEN),
        ("[::]:0", None, OPEN),
        ("10.0.0.1:0", None, OPEN),
        ("localhost.example:0", None, OPEN),
        ("127.0.0.1:0", False, "not shown: --no-inspector"),
        ("0.0.0.0:0", False, "not shown: --no-inspector"),
    ],
)
def test_who_may_see_the_pages(inspection: Inspection, bind: str, inspector: bool | None, why: str | None) -> None:
    """Where others may reach the address they are shown only if somebody has said so; else it is told why not."""
    pages = inspector_pages(inspection, Config(metrics_bind=bind, inspector=inspector))
    assert set(pages) == {"/inspect", "/inspect.json", "/inspect.outline.json"}
    assert {page if isinstance(page, str) else None for page in pages.values()} == {why}


async def test_a_snapshot_is_shared(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who ask while one is made get one of their own together, however many they are."""
    inspection.loop.attach()
    page = inspector_pages(inspection, LOCAL)["/inspect.json"]
    assert not isinstance(page, str)
    begun, go, taken = trio.Event(), threading.Event(), []
    describe = inspection.describe

    def describe_slowly(request: Request) -> PlainValues:
        taken.append(request)
        trio.from_thread.run_sync(begun.set)
        assert go.wait(PATIENCE)
        return describe(request)

    monkeypatch.setattr(inspection, "describe", describe_slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(page)
        await begun.wait()
        for _ in range(30):
            nursery.start_soon(page)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert len(taken) == 2


def test_where_only_this_machine_is() -> None:
    """What another has opened is not known to be local."""
    assert not is_local(NamedDescriptorBind("web"))
