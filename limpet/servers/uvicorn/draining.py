"""The connections of a uvicorn worker that drains while the server goes on: each goes to another worker, or ends.

Owns the order of that. What an idle connection is, and how it is given away, is its protocol's business
(protocols.py, moving.py); when a worker drains is the supervisor's.

1. An idle connection is given to the slot's next worker, whether that is there yet or not: to close it would race with
   the client's next request. A request that is being served is finished here; its response says that the connection
   ends if that can still be said, else the connection is given away afterwards.
2. Websockets cannot be given away. They are told 1012, service restart, spread over time, so that not all of their
   clients come back at once.
3. Connections of TLS that ends here cannot be given away. Idle ones are closed after longer than a round trip, which
   can cross with a request: clients repeat it on a new connection.
4. Event streams and long polls have until the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from limpet.servers.uvicorn.protocols import Seated
from limpet.servers.uvicorn.websockets import SeatedWebSocket

_IDLE_S: Final = 1.0  # how long idle connections are left open that cannot be given away
_LOOK_S: Final = 0.02  # how often connections are looked at: who falls idle may be given away before it asks again


async def let_go(connections: set[Any], until: float, spread_s: float, give_up: Callable[[], bool]) -> None:
    """Let all *connections* go until the loop time *until*, or *give_up*; websockets within *spread_s*."""
    loop = asyncio.get_running_loop()
    spread_until, idle_until = loop.time() + spread_s, loop.time() + _IDLE_S
    told: set[SeatedWebSocket] = set()
    due = 0.0  # websockets to be told now; less than one is left for later
    while connections and loop.time() < until and not give_up():
        for connection in list(connections):
            if isinstance(connection, Seated):
                connection.hand_on()
                if connection.is_tls and loop.time() >= idle_until:
                    connection.end_if_idle()
        waiting = [each for each in connections if isinstance(each, SeatedWebSocket) and each.is_open()]
        waiting = [each for each in waiting if each not in told]
        turns = max(1.0, (spread_until - loop.time()) / _LOOK_S)
        due += len(waiting) / turns
        for websocket in waiting[: int(due)]:
            told.add(websocket)
            websocket.shutdown()
        due -= int(due)
        await asyncio.sleep(_LOOK_S)
