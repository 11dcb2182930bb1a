"""The bridge between the buses of two machines, with an engine that is a list."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from limpet.coordination import bridge
from limpet.coordination.bridge import Bridge
from limpet.coordination.bus import Seat
from limpet.coordination.subscription import Message, Subscription
from limpet.operate.bridge_keeper import shown
from tests.unit.coordination.test_bus import Server, hear, server, taken

__all__ = ["server"]


class Engine:
    """Passes each message to all bridges, as Redis does; it fails when told to."""

    def __init__(self) -> None:
        self.takers: list[Callable[[bytes], None]] = []
        self.is_up = True
        self.closed = 0

    async def send(self, messages: list[bytes]) -> None:
        """Publish *messages*."""
        if not self.is_up:
            raise OSError("down")
        for message in messages:
            for take in self.takers:
                take(message)

    async def hear(self, take: Callable[[bytes], None]) -> None:
        """Take part until the engine goes down."""
        self.takers.append(take)
        try:
            while self.is_up:
                await asyncio.sleep(0.001)
        finally:
            self.takers.remove(take)

    async def close(self) -> None:
        """Count how often a connection was given up."""
        self.closed += 1


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def hears(messages: Subscription, condition: Callable[[list[Message]], object]) -> list[Message]:
    """Return what comes to *messages* until *condition* holds for it."""
    heard: list[Message] = []

    def has_come() -> object:
        heard.extend(taken(messages))
        return condition(heard)

    await until(has_come)
    return heard


def bridged(server: Server, row: int) -> Bridge:
    """Return a bridge in *row* of *server*."""
    seat = server.worker(row)._seat
    assert isinstance(seat, Seat)
    return Bridge(seat)


def test_message_is_heard_once_on_each_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back from the engine must not be heard again, nor go round in circles; order is kept."""
    monkeypatch.setattr(bridge, "_TRY_AGAIN_S", 0.01)
    other = Server()
    one, two, far = server.worker(0), server.worker(1), other.worker(0)
    here, near, away = hear(one, "room"), hear(two, "room"), hear(far, "room")
    engine = Engine()

    async def connect() -> Engine:
        if not engine.is_up:
            raise ConnectionError("down")
        return engine

    async def run() -> None:
        ends = [socket.socketpair() for _ in range(2)]
        bridges = [bridged(server, 5), bridged(other, 5)]
        async with asyncio.TaskGroup() as group:
            for each, (_, line) in zip(bridges, ends, strict=True):
                group.create_task(each.run(connect, line, "a list"))
            await until(lambda: len(engine.takers) == 2)
            for number in range(300):
                one.publish("room", number)
            far.publish("room", "from afar")
            heard = await hears(away, lambda heard: len(heard) >= 301)
            assert [each.data for each in heard if each.data != "from afar"] == list(range(300))
            assert len(await hears(near, lambda heard: len(heard) >= 301)) == len(taken(here)) == 301
            engine.is_up = False
            await until(lambda: engine.closed == 2)
            one.publish("room", "while it is down")
            engine.is_up = True
            await until(lambda: len(engine.takers) == 2)
            one.publish("room", "again")
            await hears(away, lambda heard: any(each.data == "again" for each in heard))
            for ours, _ in ends:
                ours.close()
        for _, line in ends:
            line.close()
        assert not taken(away)

    asyncio.run(run())
    other.close()


@pytest.mark.parametrize("message", [b"", b"x" * 10, b"x" * 19, b"x" * 17 + b"\xff\xff", bytes(range(100))])
def test_nonsense_from_the_engine_is_dropped(server: Server, message: bytes) -> None:
    """Who else publishes there is not the machine's to say."""
    messages = hear(server.worker(0), "room")
    bridged(server, 5)._take_in(message)
    assert taken(messages) == []


def test_messages_that_wait_for_the_engine_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is down for a night must not cost the machine's memory."""
    monkeypatch.setattr(bridge, "_MOST_WAITING", 10)
    made = bridged(server, 5)
    for number in range(25):
        made._deliver("room", 0, bytes([number]))
    assert (len(made._waiting), made._lost) == (10, 15)


def test_password_of_the_engine_is_not_shown() -> None:
    """Logs go to more people than secrets."""
    assert shown("redis://ada:secret@10.0.0.9:6379/0") == "redis://10.0.0.9:6379/0"
    assert shown("unix:///run/redis.sock") == "unix:///run/redis.sock"
