"""How large a request head may be that a worker is the first to read: as large as the dispatcher would let pass.

Owns the count of headers and bytes of a head that has come whole. One that does not end is uvicorn_protocols.py's
business, and so is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h11

from limpet.config.settings import Settings


def exceeds(settings: Settings, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, is_long: bool) -> bool:
    """Return whether a head is larger than it may be. *is_long* says that as many bytes have come."""
    if len(headers) > settings.max_headers:
        return True
    return (
        is_long and len(target) + sum(len(name) + len(value) + 4 for name, value in headers) > settings.max_head_bytes
    )


class LimitedConnection(h11.Connection):
    """h11's side of a connection, which refuses a head that is larger than it may be."""

    settings: Settings
    is_too_large = False

    @classmethod
    def limit(cls, connection: h11.Connection, settings: Settings) -> None:
        """Make *connection*, which uvicorn has made, such a one."""
        connection.__class__ = cls
        connection.settings = settings  # type: ignore[attr-defined]

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and exceeds(self.settings, event.target, event.headers, is_long=True):
            self.is_too_large = True
            raise h11.RemoteProtocolError("the request head is too large")
        return event
