"""The application under test where a framework has its part: a FastAPI endpoint that answers with a model as JSON."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    """What a small shop says about an article."""

    id: int
    name: str
    price: float
    tags: list[str]


@app.get("/items/{number}")
async def read_item(number: int) -> Item:
    """One article; ``number`` is checked by FastAPI."""
    return Item(id=number, name="A kettle", price=29.9, tags=["kitchen", "steel"])
