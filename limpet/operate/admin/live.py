"""What the page shows: the server as it is now, and as it was in the last minutes.

Owns the samples of those minutes and the stream to each page. asking.py asks the server; page.js draws.

1. Samples are taken even while no page is open, because an operator who opens the page wants to know what happened
   before. Everything else is asked for only while a page is open.
2. All pages get the same events. A page that does not read gets the next ones later, and only what fits into its
   buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from limpet.errors import LimpetError
from limpet.operate.admin.asking import Server

PERIOD_S: Final = 1.0
_KEPT: Final = 300  # samples: five minutes
MOST_WATCHERS: Final = 32


class Live:
    """The samples, and the open pages."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._samples: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._now: dict[str, Any] = {"error": "the server has not answered yet"}
        self._turn = asyncio.Condition()
        self.watchers = 0

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            try:
                figures = await self._server.figures()
                self._samples.append(sample(figures, time.time()))
                self._now = {"figures": figures, **(await self._more() if self.watchers else {})}
            except LimpetError as error:
                self._now = {"error": error.message}
            async with self._turn:
                self._turn.notify_all()
            await asyncio.sleep(PERIOD_S)

    async def _more(self) -> dict[str, Any]:
        return {"status": await self._server.ask("status"), "events": (await self._server.ask("events"))["events"]}

    async def stream(self, access: str) -> AsyncIterator[bytes]:
        """Yield what a page needs: first the past and its *access*, then the present once in each period."""
        self.watchers += 1
        seen = 0
        try:
            yield _event("past", {"access": access, "samples": list(self._samples)})
            while True:
                with contextlib.suppress(TimeoutError):  # the server hangs: send what is known
                    async with self._turn:
                        await asyncio.wait_for(self._turn.wait(), 10 * PERIOD_S)
                events = [event for event in self._now.get("events", []) if event["number"] > seen]
                seen = events[-1]["number"] if events else seen
                yield _event("now", {**self._now, "events": events, "sample": list(self._samples)[-1:]})
        finally:
            self.watchers -= 1


def sample(figures: Mapping[str, Any], at: float) -> dict[str, Any]:
    """Return the part of *figures* that is kept: for each slot, its connections and what it has counted."""
    names = ("connections", "requests", "returns", "cpu_s", "queued")
    return {
        "at": round(at, 3),
        "slots": {str(slot["slot"]): [slot["figures"].get(name, 0) for name in names] for slot in figures["slots"]},
    }


def _event(name: str, value: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
