"""Applications that the tests of this folder serve with the trioserve program."""

from __future__ import annotations

import trio
from fastapi import FastAPI
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

hello = FastAPI()


@hello.get("/")
async def greet():
    return {"hello": "world"}


async def _events(request):
    async def generate():
        yield {"data": "begun"}
        try:
            while True:
                await trio.sleep(0.01)
                yield {"data": "more"}
        finally:
            print("events cleaned up", flush=True)

    return EventSourceResponse(generate())


events = Starlette(routes=[Route("/", _events)])
