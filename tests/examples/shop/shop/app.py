"""The shop's application: ``trioserve --factory shop.app:create_app`` serves it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, TypedDict

import trio
from fastapi import Depends, FastAPI, HTTPException, Response, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from .database import Database, SoldOutError

PAGE = Path(__file__).with_name("page.html")


class Order(BaseModel):
    item: str


class Delivery(BaseModel):
    item: str
    count: int


class State(TypedDict):
    database: Database


async def pay_at_the_bank(item: str) -> None:
    await trio.sleep(0.05)


@cache
def list_prices() -> str:
    """The wholesaler's list: some 10 MB."""
    return "".join(f"article {number:06},{number % 9973 / 100:.2f}\n" for number in range(500_000))


async def get_database(connection: HTTPConnection) -> Database:
    return connection.state.database


Opened = Annotated[Database, Depends(get_database)]


def create_app(path: Path = Path("shop.db"), pay: Callable[[str], Awaitable[None]] = pay_at_the_bank) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        with Database.open(path) as database:
            yield {"database": database}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text())

    @app.get("/stock")
    async def stock(database: Opened) -> dict[str, int]:
        return database.stock()

    @app.put("/stock", status_code=204)
    async def deliver(delivery: Delivery, database: Opened) -> None:
        database.deliver(delivery.item, delivery.count)

    @app.post("/orders", status_code=201)
    async def order(order: Order, database: Opened) -> Order:
        try:
            with database.reserved(order.item):
                await pay(order.item)
        except SoldOutError:
            raise HTTPException(409, f"no more {order.item}") from None
        return order

    @app.get("/prices.csv")
    async def prices() -> Response:
        return Response(list_prices(), media_type="text/csv")

    @app.websocket("/live")
    async def live(websocket: WebSocket, database: Opened) -> None:
        await websocket.accept()
        while True:
            changed = database.changed
            await websocket.send_json(database.stock())
            await changed.wait()

    return app
