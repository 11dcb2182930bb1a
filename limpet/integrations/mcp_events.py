"""The bus of events for `MCPServer(subscriptions=)`: who listens in one worker hears of changes made in another.

Owns the form in which an event of the SDK travels on limpet's bus. `--for mcp` makes this class the SDK's default
(integrations/mcp.py). It is a file of its own because the base class is the SDK's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Final

from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared import subscriptions as vocabulary

from limpet.coordination.bus import Subscription, publish, subscribe

_numbers: Final = itertools.count()


class Events(InMemorySubscriptionBus):
    """Passes the events of one server object on to the same object in all workers.

    Objects are the same if they are made in the same order, as workers import the same application.
    """

    def __init__(self) -> None:
        super().__init__()
        self._topic = f"limpet.mcp.{next(_numbers)}"
        self._passing: asyncio.Task[None] | None = None

    async def publish(self, event: Any) -> None:
        """Deliver *event* to every listener, in all workers."""
        await publish(self._topic, [type(event).__name__, dataclasses.asdict(event)])

    def subscribe(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        """Register *listener*, and return what takes it away."""
        if self._passing is None or self._passing.done():
            messages = subscribe(self._topic).__enter__()
            self._passing = asyncio.get_running_loop().create_task(self._pass_on(messages))
        return super().subscribe(listener)

    async def _pass_on(self, messages: Subscription) -> None:
        try:
            async for message in messages:
                name, values = message.data
                if name in vocabulary.__all__:
                    await super().publish(getattr(vocabulary, name)(**values))
        finally:
            messages.close()
