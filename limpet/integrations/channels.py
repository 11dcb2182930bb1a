"""A channel layer for Django Channels over the bus: groups and channels of consumers in all workers, without Redis.

    CHANNEL_LAYERS = {"default": {"BACKEND": "limpet.integrations.channels.ChannelLayer"}}

Owns the channels of one process, and their membership of groups. Each process has one subscription, to its own topic
and to those of the groups that have members here; a task of the event loop distributes what comes.

1. A channel of a consumer (`specific.PROCESS!...`) is in the process that made it, and so are its memberships.
2. `send` to a full channel of this process raises ChannelFull. In another process the message is dropped and logged, as
   is what a group sends to a full channel: nobody waits for an answer.
3. A message to a channel with a plain name goes to one process that receives from it. If there is none, it waits in the
   sender's process, where `receive` finds it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections import defaultdict, deque
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
from channels.exceptions import ChannelFull  # type: ignore[import-untyped]
from channels.layers import BaseChannelLayer  # type: ignore[import-untyped]

from limpet.coordination.bus import here, publish, subscribe
from limpet.coordination.subscription import Subscription

_CLEAN_EVERY_S: Final = 10.0
log = logging.getLogger("limpet.worker")


class _Channel:
    """The messages that wait in one channel, each with the time at which it expires."""

    def __init__(self) -> None:
        self.messages: deque[tuple[float, dict[str, Any]]] = deque()
        self.waiting: deque[asyncio.Future[None]] = deque()

    def put(self, message: dict[str, Any], expires: float) -> None:
        """Append *message*, and wake who waits."""
        self.messages.append((expires, message))
        self._wake()

    def _wake(self) -> None:
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def get(self) -> dict[str, Any]:
        """Return the next message that has not expired."""
        while True:
            while self.messages:
                expires, message = self.messages.popleft()
                if expires > time.monotonic():
                    return message
            future = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and self.messages:
                    self._wake()  # another one, for the message that this one was woken for
                raise


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """The channel layer. The parameters are those of Channels' own layers."""

    extensions: Final = ["groups", "flush"]

    def __init__(
        self,
        prefix: str = "limpet.channels",
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: dict[Any, int] | None = None,
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity, channel_capacity=channel_capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.group_expiry = group_expiry
        self._prefix = prefix
        self._client = uuid.uuid4().hex
        self._channels: defaultdict[str, _Channel] = defaultdict(_Channel)
        self._groups: dict[str, dict[str, float]] = {}  # by group: when the membership of each channel expires
        self._loop: asyncio.AbstractEventLoop | None = None
        self._messages: Subscription | None = None
        self._distributing: asyncio.Task[None] | None = None
        self._turns = itertools.count()
        self._clean_at = 0.0

    # What Channels calls.

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send *message* to *channel*, wherever it is. Raises ChannelFull if it is here and full."""
        assert isinstance(message, dict), "message is not a dict"
        self.require_valid_channel_name(channel)
        assert "__asgi_channel__" not in message
        self._begin()
        if "!" in channel:
            client = channel.partition("!")[0].rpartition(".")[2]
            if client != self._client:
                await self._publish(f"to.{client}", "message", channel, message)
                return
        elif not self._channels[channel].waiting:
            others = here().others(self._topic(f"named.{channel}"))
            if others:
                row, serial = others[next(self._turns) % len(others)]
                await self._publish(f"named.{channel}.{row}.{serial}", "message", channel, message)
                return
        if len(self._channels[channel].messages) >= self.get_capacity(channel):
            raise ChannelFull
        self._put(channel, dict(message))

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of *channel*."""
        self.require_valid_channel_name(channel)
        messages = self._begin()
        if "!" in channel:
            assert channel.partition("!")[0].rpartition(".")[2] == self._client, "a channel of another process"
        else:
            messages.add(self._topic(f"named.{channel}"))
            messages.add(self._topic("named.{}.{}.{}".format(channel, *here().identity)))
        found = self._channels[channel]
        try:
            return await found.get()
        finally:
            if not found.messages and not found.waiting:
                self._channels.pop(channel, None)

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel in this process."""
        self._begin()
        name = f"{prefix}.{self._client}!{uuid.uuid4().hex}"
        self.require_valid_channel_name(name)
        return name

    async def group_add(self, group: str, channel: str) -> None:
        """Put *channel* into *group*."""
        await self._change("add", group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take *channel* out of *group*."""
        await self._change("discard", group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send *message* to all channels in *group*, in all processes."""
        assert isinstance(message, dict), "Message is not a dict"
        self.require_valid_group_name(group)
        self._begin()
        await self._publish(f"group.{group}", "group", group, message)

    async def flush(self) -> None:
        """Forget all messages and memberships in this process."""
        self._channels.clear()
        for group in list(self._groups):
            self._forget(group)

    async def close(self) -> None:
        """Hear nothing more."""
        if self._messages is not None and self._distributing is not None:
            self._messages.close()
            self._distributing.cancel()
            self._messages = self._distributing = self._loop = None

    # How it is done.

    def _topic(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    async def _publish(self, topic: str, *what: Any) -> None:
        await publish(self._topic(topic), msgpack.packb(what))

    def _begin(self) -> Subscription:
        """Hear what comes for this process, by the first event loop that lasts."""
        loop = asyncio.get_running_loop()
        if self._messages is None or self._loop is None or self._loop.is_closed():
            topics = [f"to.{self._client}", *(f"group.{group}" for group in self._groups)]
            self._loop = loop
            self._messages = subscribe(*map(self._topic, topics)).__enter__()
            self._distributing = loop.create_task(self._distribute(self._messages))
        return self._messages

    async def _distribute(self, messages: Subscription) -> None:
        async for message in messages:
            if message.lost:
                log.warning(
                    "%d messages of Channels were lost: this worker does not keep up",
                    message.lost,
                    extra={"event": "channels_lost"},
                )
            what, name, data = msgpack.unpackb(message.data)
            if what == "message":
                self._put_if_room(name, data)
            elif what == "group":
                now = time.monotonic()
                for channel, until in list(self._groups.get(name, {}).items()):
                    if until > now:
                        self._put_if_room(channel, data)
            elif what in ("add", "discard"):
                await self._change(what, name, data)
            self._clean()

    async def _change(self, what: str, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        messages = self._begin()
        client = channel.partition("!")[0].rpartition(".")[2]
        if "!" in channel and client != self._client:
            await self._publish(f"to.{client}", what, group, channel)
        elif what == "add":
            messages.add(self._topic(f"group.{group}"))
            self._groups.setdefault(group, {})[channel] = time.monotonic() + self.group_expiry
        else:
            members = self._groups.get(group, {})
            members.pop(channel, None)
            if not members:
                self._forget(group)

    def _forget(self, group: str) -> None:
        if self._groups.pop(group, None) is not None and self._messages is not None:
            self._messages.discard(self._topic(f"group.{group}"))

    def _put_if_room(self, channel: str, message: dict[str, Any]) -> None:
        if len(self._channels[channel].messages) < self.get_capacity(channel):
            self._put(channel, dict(message))
        else:
            log.info("channel %s is full: a message was dropped", channel, extra={"event": "channel_full"})

    def _put(self, channel: str, message: dict[str, Any]) -> None:
        self._channels[channel].put(message, time.monotonic() + self.expiry)

    def _clean(self) -> None:
        """Forget messages that have expired: consumers do not say that they have ended."""
        now = time.monotonic()
        if now < self._clean_at:
            return
        self._clean_at = now + _CLEAN_EVERY_S
        for name, channel in list(self._channels.items()):
            while channel.messages and channel.messages[0][0] <= now:
                channel.messages.popleft()
            if not channel.messages and not channel.waiting:
                del self._channels[name]
        for group, members in list(self._groups.items()):
            for each in [channel for channel, until in members.items() if until <= now]:
                del members[each]
            if not members:
                self._forget(group)
