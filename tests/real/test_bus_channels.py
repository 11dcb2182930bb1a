"""The channel layer for Django Channels: the same checks on limpet's and on channels_redis with a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from channels.exceptions import ChannelFull  # type: ignore[import-untyped]
from channels_redis.core import RedisChannelLayer  # type: ignore[import-untyped]

from limpet.integrations.channels import ChannelLayer

Layers = Callable[..., Any]
SOON_S = 10
CHECKS: list[Callable[[Layers], Awaitable[None]]] = []


def check(each: Callable[[Layers], Awaitable[None]]) -> Callable[[Layers], Awaitable[None]]:
    """Run *each* on both layers."""
    CHECKS.append(each)
    return each


async def nothing_comes(layer: Any, channel: str) -> None:
    """Fail if *channel* has a message."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            pytest.fail(str(await layer.receive(channel)))


@check
async def message_comes_as_it_was_sent(layers: Layers) -> None:
    """Text, bytes and numbers, to a channel with a plain name and to one of a process."""
    layer = layers()
    for channel in ("jobs", await layer.new_channel()):
        message = {"type": "test.message", "text": "Grüße", "bytes": b"\0\xff", "list": [1, 2.5, None, True]}
        await layer.send(channel, message)
        assert await layer.receive(channel) == message


@check
async def messages_of_a_channel_are_in_order(layers: Layers) -> None:
    """A consumer may rely on it."""
    layer = layers()
    channel = await layer.new_channel()
    for number in range(50):
        await layer.send(channel, {"type": "n", "number": number})
    assert [(await layer.receive(channel))["number"] for _ in range(50)] == list(range(50))


@check
async def full_channel_refuses(layers: Layers) -> None:
    """The sender learns that nobody reads."""
    layer = layers(capacity=3)
    for channel in ("full", await layer.new_channel()):
        for _ in range(3):
            await layer.send(channel, {"type": "n"})
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"type": "n"})


@check
async def capacity_may_differ_for_channels(layers: Layers) -> None:
    """By a pattern of their names."""
    layer = layers(capacity=2, channel_capacity={"big*": 5})
    for _ in range(5):
        await layer.send("big.one", {"type": "n"})
    with pytest.raises(ChannelFull):
        await layer.send("big.one", {"type": "n"})


@check
async def names_are_checked(layers: Layers) -> None:
    """A name that one layer takes and the other refuses would break when the layer is changed."""
    layer = layers()
    for name in ("with space", "a" * 101, "naïve"):
        with pytest.raises(TypeError):
            await layer.send(name, {"type": "n"})
        with pytest.raises(TypeError):
            await layer.group_send(name, {"type": "n"})
    with pytest.raises(AssertionError):
        await layer.send("fine", "no dict")


@check
async def new_channels_differ_and_have_the_prefix(layers: Layers) -> None:
    """Consumers are told apart by them."""
    layer = layers()
    names = {await layer.new_channel("http.request") for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("http.request.") and "!" in name for name in names)


@check
async def group_reaches_its_members_in_all_processes(layers: Layers) -> None:
    """That is what a channel layer is for; two layers stand for two processes."""
    one, two = layers(), layers()
    members = [(one, await one.new_channel()), (one, await one.new_channel()), (two, await two.new_channel())]
    for layer, channel in members:
        await layer.group_add("room", channel)
    gone, outsider = members[1], (two, await two.new_channel())
    await one.group_discard("room", gone[1])
    await one.group_send("room", {"type": "chat", "text": "hi"})
    for layer, channel in (members[0], members[2]):
        async with asyncio.timeout(SOON_S):
            assert await layer.receive(channel) == {"type": "chat", "text": "hi"}
    for layer, channel in (gone, outsider):
        await nothing_comes(layer, channel)


@check
async def group_skips_a_full_channel(layers: Layers) -> None:
    """One consumer that hangs must not keep a message from the others."""
    one, two = layers(capacity=2), layers(capacity=2)
    full, free = await one.new_channel(), await two.new_channel()
    await one.group_add("room", full)
    await two.group_add("room", free)
    for _ in range(2):
        await one.send(full, {"type": "n"})
    await one.group_send("room", {"type": "news"})
    async with asyncio.timeout(SOON_S):
        assert (await two.receive(free))["type"] == "news"
        assert [(await one.receive(full))["type"] for _ in range(2)] == ["n", "n"]
    await nothing_comes(one, full)


@check
async def message_to_a_channel_of_another_process_comes(layers: Layers) -> None:
    """A worker for background jobs answers the consumer that asked."""
    one, two = layers(), layers()
    channel = await one.new_channel()
    waiting = asyncio.create_task(one.receive(channel))
    await asyncio.sleep(0)
    await two.send(channel, {"type": "answer"})
    async with asyncio.timeout(SOON_S):
        assert await waiting == {"type": "answer"}


@check
async def receive_that_is_cancelled_loses_nothing(layers: Layers) -> None:
    """Consumers wait for several things at a time, and cancel what has not come."""
    layer = layers()
    channel = await layer.new_channel()
    for _ in range(5):
        waiting = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await layer.send(channel, {"type": "n"})
    async with asyncio.timeout(SOON_S):
        assert await layer.receive(channel) == {"type": "n"}


@check
async def message_expires(layers: Layers) -> None:
    """What nobody has read in time is of no use."""
    layer = layers(expiry=1)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "old"})
    await asyncio.sleep(1.2)
    await nothing_comes(layer, channel)


@check
async def flush_forgets_everything(layers: Layers) -> None:
    """Between two tests of an application."""
    layer = layers()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.send("jobs", {"type": "n"})
    await layer.flush()
    await layer.group_send("room", {"type": "n"})
    await nothing_comes(layer, "jobs")
    await nothing_comes(layer, channel)


@check
async def waiting_receivers_of_a_channel_share_its_messages(layers: Layers) -> None:
    """Each job is done once."""
    layer = layers()
    waiting = [asyncio.create_task(layer.receive("jobs")) for _ in range(3)]
    await asyncio.sleep(0.1)
    for number in range(3):
        await layer.send("jobs", {"type": "n", "number": number})
    async with asyncio.timeout(SOON_S):
        assert sorted([(await each)["number"] for each in waiting]) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["limpet", "redis"])
@pytest.mark.parametrize("checked", CHECKS, ids=[each.__name__ for each in CHECKS])
def test_channel_layer(checked: Callable[[Layers], Awaitable[None]], kind: str, request: pytest.FixtureRequest) -> None:
    """Whoever changes the setting changes nothing else."""
    made: list[Any] = []
    url = request.getfixturevalue("redis") if kind == "redis" else ""

    def layers(**given: Any) -> Any:
        layer = RedisChannelLayer(hosts=[url], **given) if kind == "redis" else ChannelLayer(**given)
        made.append(layer)
        return layer

    async def run() -> None:
        try:
            async with asyncio.timeout(30):
                await checked(layers)
        finally:
            for layer in made:
                await (layer.close() if kind == "limpet" else layer.close_pools())

    asyncio.run(run())
