"""The latest log records of the supervisor, for `limpet top` and the admin page.

This file owns how many records are kept, and their numbers. It does not know who reads them. The supervisor installs
`Recent` as a log handler, and the control socket asks it. To follow the log, a client asks again with the number of the
last event that it has seen.

1. A number is a time of the wall clock in microseconds, so that numbers keep growing when the supervisor is replaced in
   place. No two numbers are the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, Final

from limpet import logs

_MOST: Final = 200  # records kept


class Recent(logging.Handler):
    """A log handler that keeps the latest records."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: deque[dict[str, Any]] = deque(maxlen=_MOST)
        self._newest = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*. Never raises."""
        self._newest = max(self._newest + 1, int(time.time() * 1e6))
        self._kept.append({"number": self._newest, **logs.fields(record)})

    def after(self, number: int) -> list[dict[str, Any]]:
        """Return the events after the one with *number*, in order. 0 returns all that are kept."""
        return [event for event in self._kept if event["number"] > number]
