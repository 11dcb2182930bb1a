"""The application of benchmarks/bus.py: each worker publishes a share of the messages and hears all of them.

`BUS_WAY` says by which way: `limpet`, a URL of Redis or NATS, or `none`, which shows what the rest costs.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import limpet

_TIME: Final = struct.Struct("=d")
_TOPIC: Final = "measured"
_PADDING: Final = b"x" * 92  # a message has 100 bytes
way = os.environ["BUS_WAY"]
rate, seconds = float(os.environ["BUS_RATE"]), float(os.environ["BUS_SECONDS"])
place, begin_at = Path(os.environ["BUS_PLACE"]), float(os.environ["BUS_BEGIN_AT"])
heard: list[float] = []
tasks: set[asyncio.Task[None]] = set()


def take(data: bytes) -> None:
    """Note how long a message was on its way."""
    heard.append(time.monotonic() - _TIME.unpack_from(data)[0])


async def connect() -> Callable[[bytes], Awaitable[Any]]:
    """Begin to hear, and return what publishes."""
    if way == "limpet":

        async def hear() -> None:
            async with limpet.subscribe(_TOPIC) as messages:
                async for message in messages:
                    take(message.data)

        tasks.add(asyncio.create_task(hear()))
        return lambda data: limpet.publish(_TOPIC, data)
    if way.startswith("nats:"):
        import nats

        client = await nats.connect(way)

        async def on_message(message: Any) -> None:
            take(message.data)

        await client.subscribe(_TOPIC, cb=on_message)
        return lambda data: client.publish(_TOPIC, data)
    if way.startswith("unix:"):
        from redis.asyncio import Redis

        redis = Redis.from_url(way)

        async def listen() -> None:
            pubsub = redis.pubsub(ignore_subscribe_messages=True)
            await pubsub.subscribe(_TOPIC)
            async for message in pubsub.listen():
                take(message["data"])

        tasks.add(asyncio.create_task(listen()))
        return lambda data: redis.publish(_TOPIC, data)

    async def nothing(data: bytes) -> None:
        pass

    return nothing


def cpu_s() -> float:
    """Return the CPU time of this process."""
    return time.process_time()


async def measure(publish: Callable[[bytes], Awaitable[Any]]) -> None:
    """Publish this worker's share, and write down what it has cost and what was heard."""
    await asyncio.sleep(max(0.0, begin_at - 1 - time.monotonic()))
    await publish(_TIME.pack(time.monotonic()) + _PADDING)  # connections are made at the first message
    await asyncio.sleep(max(0.0, begin_at - 0.2 - time.monotonic()))
    heard.clear()
    await asyncio.sleep(max(0.0, begin_at - time.monotonic()))
    before, due, count = cpu_s(), begin_at, 0
    while max(due, time.monotonic()) < begin_at + seconds:
        while due <= time.monotonic() < begin_at + seconds:
            await publish(_TIME.pack(time.monotonic()) + _PADDING)
            due, count = due + 1 / rate, count + 1
        await asyncio.sleep(max(due - time.monotonic(), 0.001))
    await asyncio.sleep(max(0.0, begin_at + seconds + 0.5 - time.monotonic()))
    result = {"cpu_s": cpu_s() - before, "published": count, "latencies_s": heard}
    (place / f"{os.environ['LIMPET_SLOT']}.part").write_text(json.dumps(result))
    (place / f"{os.environ['LIMPET_SLOT']}.part").rename(place / f"{os.environ['LIMPET_SLOT']}.json")


@limpet.on_start
async def begin() -> None:
    """Begin to hear before the worker is ready."""
    tasks.add(asyncio.create_task(measure(await connect())))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer nobody."""
