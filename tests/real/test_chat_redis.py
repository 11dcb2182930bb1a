"""examples/chat_redis: what one client says, every other hears, across two servers of two workers each."""

from __future__ import annotations

import asyncio

import socketio

from tests.harness import HERE, PATIENCE_S, Limpet

EXAMPLE = HERE.parent / "examples" / "chat_redis"
CLIENTS = 6  # of each server


async def everybody_hears_everybody(servers: list[Limpet]) -> None:
    """Have each client say one thing; fail unless all have heard all."""
    peers = [socketio.AsyncClient(reconnection=False) for _ in range(CLIENTS * len(servers))]
    heard: list[set[str]] = [set() for _ in peers]
    for peer, mine in zip(peers, heard, strict=True):
        peer.on("message", lambda told, mine=mine: mine.add(told["text"]))
    try:
        for number, peer in enumerate(peers):
            await peer.connect(servers[number % len(servers)].url)
        told = [await peer.call("say", f"from {number}", timeout=PATIENCE_S) for number, peer in enumerate(peers)]
        assert len({answer["pid"] for answer in told}) == 4
        async with asyncio.timeout(PATIENCE_S):
            while any(len(mine) < len(peers) for mine in heard):
                await asyncio.sleep(0.05)
        assert all(mine == {f"from {number}" for number in range(len(peers))} for mine in heard)
    finally:
        for peer in peers:
            await peer.disconnect()


def test_message_passes_from_every_client_to_every_other(redis: str) -> None:
    """Stickiness says who serves whom; who hears whom is the application's bus, and the two must get on."""
    flags = ("--workers", "2", "--for", "socketio", "--graceful-timeout", "1")
    with (
        Limpet("app:app", *flags, cwd=EXAMPLE, env={"REDIS_URL": redis}) as one,
        Limpet("app:app", *flags, cwd=EXAMPLE, env={"REDIS_URL": redis}) as two,
    ):
        asyncio.run(everybody_hears_everybody([one, two]))
