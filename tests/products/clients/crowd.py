"""A crowd of sessions: they come in a few at a time, since each costs a lot to begin, and act once all are there.

Used by the browsers of the tests and by programs beside this file, which run in an environment of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Crowd:
    """So many *sessions*, of which *door* come in at once."""

    def __init__(self, sessions: int, door: int) -> None:
        self._to_come = sessions
        self._door = asyncio.Semaphore(door)
        self._all_in = asyncio.Event()

    @asynccontextmanager
    async def coming_in(self) -> AsyncIterator[None]:
        """Let a session begin in the block; leave it when all have, or have failed to."""
        try:
            async with self._door:
                yield
        finally:
            self._to_come -= 1
            if not self._to_come:
                self._all_in.set()
        await self._all_in.wait()
