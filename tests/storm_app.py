"""The application of tests/storm.py: two publishers and some subscribers in each worker, which note what they heard.

What publishers have done is in a file that all processes map: for each publisher and topic how many messages it has
begun to publish, and how many it has published. So whatever happens to a worker, at most one message of each of its
publishers is uncertain.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
import random
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import limpet

TOPICS: Final = tuple(f"topic:{number}" for number in range(5))
PUBLISHERS: Final = 512  # that may ever be
_HEADER: Final = 8  # cells: total to publish, finish, publishers so far, messages published by all that have ended
TOTAL, FINISH, COUNT = range(3)
_CELLS: Final = _HEADER + PUBLISHERS * len(TOPICS) * 2
_NUMBER: Final = struct.Struct("=II")  # publisher, number of the message in its topic
_LARGE: Final = 60_000  # bytes of one message in `_LARGE_EVERY`, which goes by a memory file
_LARGE_EVERY: Final = 400
_QUIET_S: Final = 2.0


class Progress:
    """The file that all processes map."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "r+b")  # noqa: SIM115 - for the life of the process
        self._file.truncate(_CELLS * 8)
        self.cells = memoryview(mmap.mmap(self._file.fileno(), _CELLS * 8)).cast("Q")

    def new_publisher(self) -> int:
        """Return a number that no publisher has had."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        number = self.cells[COUNT]
        self.cells[COUNT] = number + 1
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return number

    @staticmethod
    def at(publisher: int, topic: int) -> int:
        """Return the place of the cell of what was begun; what is done follows."""
        return _HEADER + (publisher * len(TOPICS) + topic) * 2

    def begun(self, topics: list[int]) -> dict[str, int]:
        """Return how many messages each publisher has begun to publish in each of *topics*."""
        return {f"{p}/{t}": self.cells[self.at(p, t)] for p in range(self.cells[COUNT]) for t in topics}

    def done(self, topics: list[int]) -> dict[str, int]:
        """Return how many messages each publisher has published in each of *topics*."""
        return {f"{p}/{t}": self.cells[self.at(p, t) + 1] for p in range(self.cells[COUNT]) for t in topics}

    def published(self) -> int:
        """Return how many messages were published by all."""
        return sum(self.cells[_HEADER + 1 : _HEADER + self.cells[COUNT] * len(TOPICS) * 2 : 2])


progress = Progress(Path(os.environ["STORM_PLACE"]) / "progress")
tasks: set[asyncio.Task[None]] = set()


async def publish() -> None:
    """Publish until all have published enough."""
    me = progress.new_publisher()
    rate = float(os.environ["STORM_RATE"])
    numbers, due = [0] * len(TOPICS), time.monotonic()
    while progress.published() < progress.cells[TOTAL] and not progress.cells[FINISH]:
        for _ in range(random.randrange(1, 40)):
            topic = random.randrange(len(TOPICS))
            numbers[topic] += 1
            data = _NUMBER.pack(me, numbers[topic])
            data += bytes(_LARGE) if random.randrange(_LARGE_EVERY) == 0 else b""
            progress.cells[progress.at(me, topic)] = numbers[topic]
            await limpet.publish(TOPICS[topic], data)
            progress.cells[progress.at(me, topic) + 1] = numbers[topic]
            due += 1 / rate
        due = max(due, time.monotonic() - 0.5)  # what a stopped worker has missed is not made up for
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def hear(topics: list[int], stay_s: float, pause_s: float) -> dict[str, Any]:
    """Hear *topics* for *stay_s* seconds, or to the end of all, and return what was heard. *pause_s* makes it slow."""
    before = progress.done(topics)
    heard: dict[str, list[int]] = {}  # first, last, count
    told, faults, until = 0, [], time.monotonic() + stay_s
    async with limpet.subscribe(*(TOPICS[topic] for topic in topics)) as messages:
        after = progress.begun(topics)
        is_final = is_over = False
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(_QUIET_S if progress.cells[FINISH] else 0.2):
                    message = await anext(messages)
            except TimeoutError:
                if is_final := bool(progress.cells[FINISH]):
                    break
                continue
            except asyncio.CancelledError:  # the worker ends: what was heard until now counts, too
                is_over = True
                break
            publisher, number = _NUMBER.unpack_from(message.data)
            key = f"{publisher}/{TOPICS.index(message.topic)}"
            found = heard.setdefault(key, [number, 0, 0])
            if number <= found[1]:
                faults.append(f"{key}: {number} after {found[1]}")
            found[1], found[2] = number, found[2] + 1
            told += message.lost
            if pause_s and random.randrange(1000) == 0:
                await asyncio.sleep(pause_s)
        return {
            "slot": limpet.current_worker().slot,
            "pid": os.getpid(),
            "topics": topics,
            "final": is_final,
            "over": is_over,
            "before": before,
            "after": after,
            "end_begun": progress.begun(topics),
            "heard": heard,
            "told": told,
            "lost": messages.lost,
            "faults": faults[:10],
        }
    raise AssertionError


async def subscribe(topics: list[int] | None, pause_s: float = 0.0) -> None:
    """Hear *topics* for as long as there is something, or other ones again and again, and write down each result."""
    notes = Path(os.environ["STORM_PLACE"]) / f"heard-{os.getpid()}"
    while True:
        chosen = topics or sorted(random.sample(range(len(TOPICS)), random.randrange(1, len(TOPICS) + 1)))
        result = await hear(chosen, float("inf") if topics else random.expovariate(1.0), pause_s)
        with open(notes, "a") as file:
            file.write(json.dumps(result) + "\n")
        if result["final"] or result["over"]:
            return


@limpet.on_start
async def begin() -> None:
    """Begin with the publishers and subscribers of this worker."""
    everything = list(range(len(TOPICS)))
    for work in (publish(), publish(), subscribe(everything), subscribe(None), subscribe(None, pause_s=0.5)):
        tasks.add(asyncio.create_task(work))


async def app(scope: Mapping[str, Any], receive: Callable[..., Awaitable[Any]], send: Callable[..., Any]) -> None:
    """Answer nothing of interest."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
