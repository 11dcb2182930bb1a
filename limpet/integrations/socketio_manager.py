"""The client managers by which Socket.IO servers in several workers act as one: rooms, `call`, `disconnect`.

Owns what python-socketio asks of a manager: to publish, to listen, and to begin with both. The bus does the rest. What
the servers say to each other is python-socketio's own, as over Redis. integrations/socketio.py offers the classes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.pubsub_manager import PubSubManager

from limpet.coordination.bus import Message, Subscription, publish, publish_sync, subscribe

log = logging.getLogger("limpet.worker")


class _OnTheBus:
    """What both have: a subscription that begins with the server, and a word on losses."""

    name = "limpet"
    channel: str
    write_only: bool
    _messages: Subscription

    def initialize(self) -> None:
        """Hear the others from now on: before the first client is in a room."""
        if not self.write_only:
            self._messages = subscribe(self._topic).__enter__()
        super().initialize()  # type: ignore[misc]

    @property
    def _topic(self) -> str:
        return f"limpet.socketio.{self.channel}"


def _heard(message: Message) -> Any:
    if message.lost:
        log.warning(
            "%d messages of Socket.IO from other workers were lost: this worker does not keep up",
            message.lost,
            extra={"event": "socketio_lost"},
        )
    return message.data


class AsyncManager(_OnTheBus, AsyncPubSubManager):  # type: ignore[misc]
    """The client manager for `socketio.AsyncServer`."""

    async def _publish(self, data: Any) -> None:
        await publish(self._topic, self.json.dumps(data))

    async def _listen(self) -> AsyncIterator[Any]:
        async for message in self._messages:
            yield _heard(message)


class Manager(_OnTheBus, PubSubManager):  # type: ignore[misc]
    """The client manager for `socketio.Server` and Flask-SocketIO; of an `AsyncServer` it becomes the async one."""

    def set_server(self, server: Any) -> None:
        """Belong to *server*."""
        super().set_server(server)
        if server.is_asyncio_based():
            self.__class__ = AsyncManager  # both have the same attributes

    def _publish(self, data: Any) -> None:
        publish_sync(self._topic, self.json.dumps(data))

    def _listen(self) -> Iterator[Any]:
        for message in self._messages:
            yield _heard(message)
