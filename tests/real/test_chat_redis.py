"""examples/chat_redis: what one client says, every other hears, across two machines of two workers each."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import socketio

from tests.clientele import run_peers
from tests.harness import PATIENCE_S, wait_until
from tests.namespace import in_own_network
from tests.network import FRONT, Bridge, Machine
from tests.real.conftest import redis_server

CLIENTS = 6  # of each machine


async def everybody_hears_everybody(urls: list[str]) -> None:
    """Have each client say one thing; fail unless all have heard all of it, and nothing twice."""
    peers = [socketio.AsyncClient(reconnection=False) for _ in range(CLIENTS * len(urls))]
    heard: list[list[str]] = [[] for _ in peers]
    for peer, mine in zip(peers, heard, strict=True):
        peer.on("message", lambda told, mine=mine: mine.append(told["text"]))
    try:
        for number, peer in enumerate(peers):
            await peer.connect(urls[number % len(urls)])
        told = [await peer.call("say", f"from {number}", timeout=PATIENCE_S) for number, peer in enumerate(peers)]
        assert len({answer["pid"] for answer in told}) == 4
        async with asyncio.timeout(PATIENCE_S):
            while any(len(mine) < len(peers) for mine in heard):
                await asyncio.sleep(0.05)
        assert all(sorted(mine) == sorted(f"from {number}" for number in range(len(peers))) for mine in heard)
    finally:
        for peer in peers:
            await peer.disconnect()


def test_message_passes_from_every_client_to_every_other() -> None:
    """Each machine has a network of its own, and Redis is elsewhere: nothing but the bridge joins them."""

    def inside() -> None:
        with ExitStack() as stack:
            stack.enter_context(Bridge())
            url = stack.enter_context(redis_server(FRONT))
            flags = ("--for", "socketio", "--name", "chat", "--bus", url)
            app = "examples.chat_redis.app:app"
            machines = [stack.enter_context(Machine(number, *flags, app=app)) for number in (1, 2)]
            for machine in machines:
                machine.wait_ready()
                wait_until(lambda machine=machine: "the bus is bridged" in machine.limpet.log, "the bus is bridged")  # type: ignore[misc]
            run_peers(everybody_hears_everybody([f"http://{machine.target}" for machine in machines]))

    in_own_network(inside)
