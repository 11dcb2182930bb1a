"""A subscription: the messages of some topics, as an iterator for tasks or threads, with a bounded queue.

This file owns the queue, what a subscription is told of losses, and how whoever waits is woken, in asyncio, trio or a
thread. It does not know where messages come from: bus.py calls `put` and `lose`, in whatever thread it has one.

1. A full queue loses its oldest message. The next message that is read says how many were lost before it, so the sum
   of `lost` and of the messages is what was published. A loss is told at its place in the order.
2. Whoever waits is woken by a function, which is called once, with the bus locked, and must not wait.
3. Data is decoded by whoever reads it, not by whoever delivers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from limpet.coordination import packet

MOST_MESSAGES: Final = 4096  # in the queue of a subscription
MOST_BYTES: Final = 64 << 20  # likewise, of payloads; the newest message stays in any case


class Bus(Protocol):
    """What a subscription needs of bus.py."""

    lock: Any

    def add(self, subscription: Subscription, loop: asyncio.AbstractEventLoop | None) -> None:
        """Let *subscription* hear its topics from now on."""

    def remove(self, subscription: Subscription) -> None:
        """Let *subscription* hear nothing more."""

    def listen(self, subscription: Subscription, topic: str) -> None:
        """Let *subscription* hear *topic* from now on."""

    def ignore(self, subscription: Subscription, topic: str) -> None:
        """Let *subscription* hear nothing more of *topic*."""


class Message(NamedTuple):
    """A message of the bus.

    *lost* says how many messages this subscription has lost since the message before: they came faster than it read.
    """

    topic: str
    data: Any
    lost: int = 0


class Subscription:
    """The messages of some topics, from `async with` or `with` on. `limpet.subscribe` makes it."""

    def __init__(self, bus: Callable[[], Bus], topics: tuple[str, ...]) -> None:
        self.topics = list(dict.fromkeys(topics))
        self.lost = 0
        """How many messages this subscription has lost so far, told or not."""
        self._find_bus = bus
        self._bus: Bus | None = None
        self._queue: deque[tuple[str, int, bytes, int]] = deque()  # topic, kind, payload, lost before it
        self._bytes = 0
        self._lost_before = 0  # before the oldest message in the queue, besides what that one says
        self._lost_after = 0  # after the newest one
        self._waiting: list[Callable[[], None]] = []
        self._is_over = False

    def __repr__(self) -> str:
        return f"<subscription to {', '.join(self.topics)}: {len(self._queue)} wait, {self.lost} lost>"

    # For the bus, which is locked during these calls.

    def put(self, topic: str, kind: int, payload: bytes) -> int:
        """Append a message, and return how many were lost for it."""
        queue = self._queue
        queue.append((topic, kind, payload, self._lost_after))
        self._lost_after = 0
        self._bytes += len(payload)
        dropped = 0
        while len(queue) > MOST_MESSAGES or (self._bytes > MOST_BYTES and len(queue) > 1):
            _, _, oldest, before = queue.popleft()
            self._bytes -= len(oldest)
            self._lost_before += before + 1
            dropped += 1
        self.lost += dropped
        if self._waiting:
            self._wake()
        return dropped

    def lose(self, count: int) -> None:
        """Note that *count* messages, after all that were put, did not come."""
        self._lost_after += count
        self.lost += count

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    # For the application.

    def add(self, topic: str) -> None:
        """Hear *topic*, too, from now on. Raises TypeError or ValueError for what cannot be a topic."""
        packet.name(topic)
        bus = self._opened()
        with bus.lock:
            if topic not in self.topics and not self._is_over:
                self.topics.append(topic)
                bus.listen(self, topic)

    def discard(self, topic: str) -> None:
        """Hear nothing more of *topic*. What has come before is still to be read."""
        bus = self._opened()
        with bus.lock:
            if topic in self.topics and not self._is_over:
                self.topics.remove(topic)
                bus.ignore(self, topic)

    def close(self) -> None:
        """End the subscription: whoever iterates over it gets what has come, and then the end. Any thread may."""
        bus = self._bus
        if bus is not None and not self._is_over:
            with bus.lock:
                self._is_over = True
                bus.remove(self)
                self._wake()

    def get(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, for threads; None after *timeout_s* seconds without one, or at the end."""
        bus = self._opened()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with bus.lock:
                if (message := self._next()) is not None or self._is_over:
                    return message
                event = threading.Event()
                self._waiting.append(event.set)
            left_s = None if until is None else until - time.monotonic()
            if (left_s is not None and left_s <= 0) or not event.wait(left_s):
                with bus.lock, contextlib.suppress(ValueError):
                    self._waiting.remove(event.set)
                    return self._next()

    def __enter__(self) -> Subscription:
        if self._bus is not None:
            raise RuntimeError("a subscription can be entered once: call `limpet.subscribe` again")
        self._bus = bus = self._find_bus()
        with bus.lock:
            bus.add(self, None if in_trio() else running_loop())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Message:
        message = self.get()
        if message is None:
            raise StopIteration
        return message

    async def __aenter__(self) -> Subscription:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        bus = self._opened()
        while True:
            with bus.lock:
                if (message := self._next()) is not None:
                    return message
                if self._is_over:
                    raise StopAsyncIteration
                wake, woken = _alarm()
                self._waiting.append(wake)
            try:
                await woken
            finally:
                with bus.lock, contextlib.suppress(ValueError):  # it was called, and is no longer there
                    self._waiting.remove(wake)

    def _opened(self) -> Bus:
        if self._bus is None:
            raise RuntimeError(
                "a subscription begins with `async with` or `with`: `async with limpet.subscribe(topic) as messages:`"
            )
        return self._bus

    def _next(self) -> Message | None:
        """Return the oldest message, or None if the queue is empty."""
        while self._queue:
            topic, kind, payload, before = self._queue.popleft()
            self._bytes -= len(payload)
            try:
                data = packet.decode(kind, payload)
            except packet.InvalidError:  # whoever published it is no process of limpet's, or was taken over
                self._lost_before += before
                continue
            lost, self._lost_before = before + self._lost_before, 0
            return Message(topic, data, lost)
        return None


def in_trio() -> bool:
    """Return whether the caller is a task of trio."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop of asyncio that runs in this thread, None without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _alarm() -> tuple[Callable[[], None], Awaitable[object]]:
    """Return a function that any thread may call, and what the running task awaits until then."""
    if in_trio():
        import trio

        event, token = trio.Event(), trio.lowlevel.current_trio_token()
        return lambda: _quietly(token.run_sync_soon, event.set), event.wait()
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    future: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        if threading.get_ident() == thread:
            finish()
        else:
            _quietly(loop.call_soon_threadsafe, finish)

    return wake, future


def _quietly(call: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the task that waited
        call(*arguments)
