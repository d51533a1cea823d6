import json
from pathlib import Path

import httpx
import pytest
from trioserve.testing import ServeApp, ThreadServer

from shop.app import create_app


def test_an_order_takes_one_from_the_shelf(shop: httpx.Client) -> None:
    response = shop.post("/orders", json={"item": "tea"})
    assert (response.status_code, response.json()) == (201, {"item": "tea"})
    assert shop.get("/stock").json()["tea"] == 2


def test_what_is_not_there_cannot_be_bought(shop: httpx.Client) -> None:
    response = shop.post("/orders", json={"item": "gold"})
    assert (response.status_code, response.json()) == (409, {"detail": "no more gold"})


def test_whoever_watches_is_told_of_each_change(server: ThreadServer, shop: httpx.Client) -> None:
    with server.websocket("/live") as live:
        assert json.loads(live.get_message())["tea"] == 3
        shop.put("/stock", json={"item": "tea", "count": 20})
        assert json.loads(live.get_message())["tea"] == 20


def test_a_payment_that_fails_returns_the_item(serve_app: ServeApp, database: Path) -> None:
    async def refuse(item: str) -> None:
        raise ValueError("no money")

    server = serve_app(create_app(database, pay=refuse))
    with httpx.Client(base_url=server.url) as shop:
        shop.put("/stock", json={"item": "tea", "count": 3})
        assert shop.post("/orders", json={"item": "tea"}).status_code == 500
        assert shop.get("/stock").json() == {"tea": 3}
    # The shop must not hide it; so it is expected, and does not fail the test.
    with pytest.raises(ValueError, match="no money"):
        raise server.errors.pop()


def test_the_shop_closes_its_database_and_keeps_what_is_in_it(serve_app: ServeApp, database: Path) -> None:
    first = serve_app(create_app(database))
    httpx.put(f"{first.url}/stock", json={"item": "tea", "count": 3})
    first.shutdown()
    assert not first.state["database"].is_open
    second = serve_app(create_app(database))
    assert second.state["database"].stock() == {"tea": 3}
