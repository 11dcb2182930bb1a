"""The latest log records of the supervisor, for who looks at a running server: `limpet top` and the admin page.

Owns how many are kept. Who wants to follow asks again with the number of the last one it has seen.

1. Numbers are microseconds of the wall clock, so that they go on when the supervisor is replaced in place; two are
   never the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, Final

from limpet import logs

_MOST: Final = 200  # records kept


class Recent(logging.Handler):
    """Keeps the latest records."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: deque[dict[str, Any]] = deque(maxlen=_MOST)
        self._newest = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*; never raises."""
        self._newest = max(self._newest + 1, int(time.time() * 1e6))
        self._kept.append({"number": self._newest, **logs.fields(record)})

    def after(self, number: int) -> list[dict[str, Any]]:
        """Return the events after that with this *number*, in order; 0 for all that are kept."""
        return [event for event in self._kept if event["number"] > number]
