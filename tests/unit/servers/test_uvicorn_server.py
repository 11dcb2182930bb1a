"""What a worker that runs uvicorn does by its clock."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from uvicorn.server import ServerState

from limpet.servers.uvicorn.protocols import SeatedHttpTools
from limpet.servers.uvicorn.server import SeatedServer


def test_thousands_of_connections_are_looked_at_some_in_each_turn_of_the_loop() -> None:
    """A look at 10,000 in one go would make each request that comes meanwhile wait for all of them."""
    looks, turns = [0], []

    class Waiting(SeatedHttpTools):
        def __init__(self) -> None:
            pass

        def expire(self, now: float) -> None:
            looks[0] += 1

    async def look() -> None:
        server = SeatedServer.__new__(SeatedServer)
        server.server_state = ServerState()
        server.server_state.connections = {Waiting() for _ in range(2000)}
        server._seat = SimpleNamespace(home=SimpleNamespace(has_changed=False, has_scaled=False))  # type: ignore[assignment]
        looking = asyncio.ensure_future(server._look_at_connections(0.0))
        while not looking.done():
            before = looks[0]
            await asyncio.sleep(0)
            turns.append(looks[0] - before)
            if looks[0] > 1000:
                server.server_state.connections.clear()  # they end meanwhile

    asyncio.run(look())
    assert max(turns) <= 256
    assert 1000 < looks[0] < 2000
