"""Shows an outline in a terminal, once or again and again in the same place."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TextIO

from .outline import Line, Style

_COLORS = {Style.TITLE: "1", Style.FAINT: "2", Style.GOOD: "32", Style.WARN: "33", Style.BAD: "31"}

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_REST_OF_LINE = "\x1b[K"
_REST_OF_SCREEN = "\x1b[J"


def draw(line: Line, *, width: int | None = None, colors: bool = False) -> list[str]:
    """The lines of a tree. ``width`` is where they are cut, None: nowhere."""
    drawn: list[str] = []
    # Not recursive: tasks nest as deep as programs like.
    ahead = [(line, "", "")]
    while ahead:
        one, first, rest = ahead.pop()
        drawn.append(_draw_pieces(first, one, width, colors))
        last = len(one.lines) - 1
        below = []
        for number, inner in enumerate(one.lines):
            fork, margin = ("└─ ", "   ") if number == last else ("├─ ", "│  ")
            below.append((inner, rest + fork, rest + margin))
        ahead += below[::-1]
    return drawn


def _draw_pieces(margin: str, line: Line, width: int | None, colors: bool) -> str:
    room = None if width is None else max(1, width - len(margin))
    drawn = margin if width is None else margin[: width - 1]
    is_cut = room is not None and len(line.text) > room
    for text, style in line.pieces:
        shown = text if room is None else text[: room - is_cut]
        if room is not None:
            room -= len(shown)
        color = _COLORS.get(style) if colors and shown else None
        drawn += shown if color is None else f"\x1b[{color}m{shown}\x1b[0m"
    return drawn + "…" if is_cut else drawn


class Screen:
    """Where outlines are written to. ``is_terminal``: lines are cut at its width."""

    def __init__(self, output: TextIO, *, is_terminal: bool, colors: bool) -> None:
        self._output = output
        self._is_terminal = is_terminal
        self._colors = colors
        self._is_entered = False

    def show(self, line: Line) -> None:
        """Write it; in the place of what was there before, within ``taking_over``."""
        size = shutil.get_terminal_size()
        lines = draw(line, width=size.columns if self._is_terminal else None, colors=self._colors)
        if not self._is_entered:
            self.write("\n".join([*lines, ""]))
            return
        if len(lines) > size.lines:
            hidden = len(lines) - size.lines + 1
            lines = [*lines[: size.lines - 1], f"... and {hidden} lines more, in a larger window"[: size.columns]]
        # Not cleared first, which flickers.
        whole = f"{_REST_OF_LINE}\r\n".join(lines)
        self.write(f"{_HOME}{whole}{_REST_OF_LINE}{_REST_OF_SCREEN}")

    def write(self, text: str) -> None:
        encoding = self._output.encoding or "utf-8"
        self._output.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._output.flush()

    @contextlib.contextmanager
    def taking_over(self) -> Iterator[None]:
        """Use the whole terminal in this block, and leave it as it was; without one nothing is taken over."""
        if not self._is_terminal:
            yield
            return
        self._is_entered = True
        self.write(_ENTER)
        try:
            yield
        finally:
            self._is_entered = False
            self.write(_LEAVE)
