"""HTTP/1.1 with h11."""

from __future__ import annotations

import h11

from .codec import Codec
from .rules import check_lengths, explain_refusal


class H11Codec(Codec):
    """A Codec whose heads h11 parses.

    h11 could also frame bodies and write responses. `framing` does that as h11 does, and takes a sixth of the time.
    """

    def _parse_fields(self, raw: bytes) -> list[tuple[bytes, bytes]]:
        check_lengths(raw)
        parser = h11.Connection(h11.SERVER)
        try:
            parser.receive_data(raw)
            event = parser.next_event()
        except h11.RemoteProtocolError:
            raise explain_refusal(raw) from None
        assert isinstance(event, h11.Request)
        # raw_items() is one list; iterating the Headers is a Python call for each of them.
        return [(name.lower(), value) for name, value in event.headers.raw_items()]
