from pathlib import Path

import httpx
import trio
from playwright.sync_api import Page, expect
from trioserve.testing import ServeApp, ThreadServer

from shop.app import create_app

JSON = [(b"Content-Type", b"application/json")]


async def never(item: str) -> None:
    await trio.sleep_forever()


def test_a_customer_who_leaves_before_paying_leaves_the_item(serve_app: ServeApp, database: Path) -> None:
    server = serve_app(create_app(database, pay=never), timeout_disconnect_grace=0)
    httpx.put(f"{server.url}/stock", json={"item": "tea", "count": 3})
    server.client_gone("/orders", method="POST", headers=JSON, body=b'{"item": "tea"}')
    server.wait_idle()
    assert server.requests[-1].outcome == "client left"
    assert httpx.get(f"{server.url}/stock").json() == {"tea": 3}
    assert server.state["database"].orders() == []


def test_a_reader_who_takes_nothing_is_given_up_and_hinders_nobody(serve_app: ServeApp, database: Path) -> None:
    server = serve_app(create_app(database), timeout_write=0.5)
    with server.stall("/prices.csv"):
        assert httpx.get(f"{server.url}/stock").status_code == 200
        assert server.active == 1
        server.wait_idle()
    assert [(request.path, request.outcome) for request in server.requests] == [
        ("/stock", "ok"),
        ("/prices.csv", "deadline"),
    ]


def test_the_page_comes_back_after_the_network_was_gone(page: Page, server: ThreadServer, shop: httpx.Client) -> None:
    expect(page.locator("#line")).to_have_text("as they are")
    server.drop_connections()
    expect(page.locator("#line")).to_have_text("as they were")
    expect(page.locator("#line")).to_have_text("as they are")
    httpx.post(f"{server.url}/orders", json={"item": "tea"})
    expect(page.locator("#shelves")).to_contain_text("tea: 2")
