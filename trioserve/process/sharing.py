"""One answer for all who ask at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


@dataclass
class _Round(Generic[T]):
    """Those who wait for one answer; ``answers`` is empty until it is there."""

    answers: list[T]


class Shared(Generic[T]):
    """What is dear to make, made for many at once, and never twice at a time.

    Who asks while it is being made waits for the next, together with all the others who do: so nobody gets what is
    older than the question. What ``make`` raises is for one who asks; the next makes it anew.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._turn = trio.Lock()
        self._gathering: _Round[T] = _Round([])

    async def get(self) -> T:
        mine = self._gathering
        async with self._turn:
            if not mine.answers:
                # Whoever had begun this round may have left; who asks from here on is too late for it.
                self._gathering = _Round([])
                mine.answers.append(await self._make())
        return mine.answers[0]
