"""A worker's error output: shown as it comes, with an end that is kept."""

from __future__ import annotations

import contextlib
import re
import sys

# Control sequences of terminals (ECMA-48 §5.4).
_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_KEPT = 64 * 1024


class ErrorOutput:
    """Hands a worker's error output on to our own, and keeps the end of it."""

    def __init__(self) -> None:
        self._end = b""

    def take(self, data: bytes) -> None:
        self._end = (self._end + data)[-_KEPT:]
        # Either may be None or closed, in a process without a console; what is lost then is lost for all.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.buffer.write(data)
            sys.stderr.flush()

    @property
    def text(self) -> str:
        """The end of what came, at most 64 KiB, without colours."""
        return _ESCAPES.sub(b"", self._end).decode("utf-8", "replace")

    @property
    def last_line(self) -> str | None:
        """The last line that is not empty, word for word."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else None
