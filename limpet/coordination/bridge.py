"""The bridge: what is published on this machine's bus goes to the other machines by Redis or NATS, and back.

This file owns the process between the bus and the engine, one for each machine. It does not know who starts it
(operate/bridge_keeper.py). It has a row of interest and a channel, as a worker has, and hears all topics.

1. A message has the number of its bridge. What comes back to the bridge that sent it is dropped, and what comes from
   another one goes to the workers only. So each machine hears a message once.
2. One connection publishes, in the order in which messages came from the channel.
3. While the engine cannot be reached, messages wait up to a bound, and further ones are lost and counted in the log.
4. The engine is trusted as far as the workers are: what comes from it may be nonsense and is then dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from limpet.coordination import packet
from limpet.coordination.bus import Bus, Seat

_HEADER: Final = struct.Struct("=16sBH")  # the bridge, kind, length of the topic
_MOST_WAITING: Final = 10_000  # messages
_AT_ONCE: Final = 100  # messages for one round trip to the engine
_TRY_AGAIN_S: Final = 1.0
log = logging.getLogger("limpet")


class Engine(Protocol):
    """A connection to Redis or NATS."""

    async def send(self, messages: list[bytes]) -> None:
        """Publish *messages*. Raises an exception if that may have failed."""

    async def hear(self, take: Callable[[bytes], None]) -> None:
        """Call *take* with each message, from all bridges. Returns or raises when the connection has ended."""

    async def close(self) -> None:
        """End the connection."""


class Bridge(Bus):
    """The bus, as the bridge sees it: all topics are for the engine."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._me = os.urandom(16)
        self._waiting: deque[bytes] = deque()
        self._came = asyncio.Event()
        self._lost = 0

    def _deliver(self, topic: str, kind: int, payload: bytes) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self._lost += 1
            return
        name = topic.encode()
        self._waiting.append(_HEADER.pack(self._me, kind, len(name)) + name + payload)
        self._came.set()

    def _take_in(self, message: bytes) -> None:
        """Send what another bridge has published to the workers of this machine."""
        try:
            sender, kind, length = _HEADER.unpack_from(message)
            end = _HEADER.size + length
            topic, payload = message[_HEADER.size : end].decode(), message[end:]
        except (struct.error, UnicodeDecodeError):
            return
        is_valid = kind in (packet.BYTES, packet.TEXT, packet.JSON) and length <= packet.LONGEST_TOPIC_BYTES
        if sender != self._me and is_valid and len(payload) <= packet.LARGEST_BYTES and self._seat is not None:
            with self.lock:
                self._send(self._seat, topic, topic.encode(), kind, payload)

    async def run(self, connect: Callable[[], Awaitable[Engine]], line: socket.socket, where: str) -> None:
        """Pass messages on until *line* ends. *where* names the engine in logs."""
        assert self._seat is not None
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(line.fileno(), ended.set)  # the supervisor says nothing on it
        loop.add_reader(self._seat.channel.fileno(), self.take)
        self.hear_all()
        passing = asyncio.create_task(self._pass_on(connect, where))
        await ended.wait()
        passing.cancel()

    async def _pass_on(self, connect: Callable[[], Awaitable[Engine]], where: str) -> None:
        while True:
            engine = None
            try:
                engine = await connect()
                log.info("the bus is bridged by %s", where, extra={"event": "bus_bridged"})
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._hear_engine(engine))
                    group.create_task(self._send_waiting(engine))
            except* Exception as errors:  # noqa: BLE001 - each library has errors of its own
                log.warning(
                    "the bus is not bridged, next try in %.0f s: %s: %s",
                    _TRY_AGAIN_S,
                    where,
                    errors.exceptions[0],
                    extra={"event": "bus_not_bridged"},
                )
            finally:
                if engine is not None:
                    await engine.close()
            await asyncio.sleep(_TRY_AGAIN_S)

    async def _hear_engine(self, engine: Engine) -> None:
        await engine.hear(self._take_in)
        raise ConnectionError("the connection has ended")

    async def _send_waiting(self, engine: Engine) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                count = min(len(self._waiting), _AT_ONCE)
                await engine.send([self._waiting.popleft() for _ in range(count)])  # lost rather than sent twice
            if self._lost:
                log.warning("%d messages of the bus were not bridged", self._lost, extra={"event": "bus_bridge_lost"})
                self._lost = 0


class _Redis:
    def __init__(self, url: str, channel: str) -> None:
        from redis.asyncio import Redis

        self._redis = Redis.from_url(url)
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        self._channel = channel

    async def send(self, messages: list[bytes]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for message in messages:
                pipeline.publish(self._channel, message)
            await pipeline.execute()

    async def hear(self, take: Callable[[bytes], None]) -> None:
        async for message in self._pubsub.listen():
            take(message["data"])

    async def close(self) -> None:
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._redis.aclose()


class _Nats:
    def __init__(self, client: Any, subject: str) -> None:
        self._client, self._subject = client, subject

    async def send(self, messages: list[bytes]) -> None:
        for message in messages:
            if len(message) <= self._client.max_payload:
                await self._client.publish(self._subject, message)
            else:
                log.warning(
                    "a message of the bus with %d bytes is more than NATS takes",
                    len(message),
                    extra={"event": "bus_bridge_lost"},
                )
        await self._client.flush()

    async def hear(self, take: Callable[[bytes], None]) -> None:
        subscription = await self._client.subscribe(self._subject)
        async for message in subscription.messages:
            take(message.data)

    async def close(self) -> None:
        await self._client.close()


def connector(url: str, cluster: str) -> Callable[[], Awaitable[Engine]]:
    """Return what connects to the engine at *url*, for the machines of server *cluster*."""
    channel = f"limpet.{cluster}"

    async def redis() -> Engine:
        engine = _Redis(url, channel)
        await engine._pubsub.subscribe(channel)
        return engine

    async def nats() -> Engine:
        import nats as library

        return _Nats(await library.connect(url, allow_reconnect=False), channel)

    return nats if urlsplit(url).scheme in ("nats", "tls") else redis
