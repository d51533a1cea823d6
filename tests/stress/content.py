"""Bytes that both sides can compute at any place, so that whatever arrives can be checked without being sent first."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

BLOCK = 4096
_HEAD = struct.Struct(">QQ")  # every block says whose it is and which, so that none is lost or exchanged unseen
_NOISE = random.Random(4096).randbytes(2 * BLOCK)


def content(seed: int, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end`` of the endless text of this seed."""
    first = start // BLOCK
    blocks = b"".join(_block(seed, number) for number in range(first, -(-end // BLOCK)))
    return blocks[start - first * BLOCK : end - first * BLOCK]


def _block(seed: int, number: int) -> bytes:
    head = _HEAD.pack(seed, number)
    place = (seed * 31 + number * 17) % BLOCK
    return head + _NOISE[place : place + BLOCK - len(head)]


@dataclass(frozen=True)
class Body:
    """So many bytes of the text of a seed, or else ``literal``."""

    seed: int = 0
    size: int = 0
    literal: bytes | None = None

    @classmethod
    def of(cls, literal: bytes) -> Body:
        return cls(size=len(literal), literal=literal)

    def part(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        return content(self.seed, start, end) if self.literal is None else self.literal[start:end]

    @property
    def whole(self) -> bytes:
        return self.part(0, self.size)
