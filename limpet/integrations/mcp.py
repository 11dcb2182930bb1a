"""The Python SDK of MCP: what one worker hands out, the others accept, or the client comes back to it.

Owns three places of the SDK that assume a single process. `--mint mcp` (`--for mcp`) calls `install` in each worker,
before the application is imported:

1. `MCPServer` seals the `requestState` of a call that needs more input, by default with a random key of its process.
   Here all workers have one key, made from the server's secret: any of them opens what another has sealed, and what
   was sealed before a restart. A key that the application chooses itself (`request_state_security=`) is left alone.
2. `MCPServer` has a bus of events in its process, from which `subscriptions/listen` streams are fed. Here the default
   bus reaches all workers (integrations/mcp_events.py). One that the application gives (`subscriptions=`) is left
   alone.
3. The older transport by SSE makes a session id, which later requests have in the query (`--by query:session_id`). It
   is minted, so that it hashes to the worker that makes it.

Session ids of Streamable HTTP need nothing here: a header shows them, and `--learn` remembers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from limpet.routing.digests import blake2b
from limpet.routing.hashing import derive
from limpet.sessions.sessions import mint

_KEY_BYTES = 32  # the least that the SDK takes


def keys(secret: bytes, cluster: str) -> list[bytes]:
    """Return the keys of the server *cluster*, one for each line of its secret: the first seals, all open."""
    lines = [line.strip() for line in secret.splitlines()] or [b""]
    ring = [
        blake2b(
            cluster.encode(), key=derive(line, b"limpet.mcp", _KEY_BYTES), digest_size=_KEY_BYTES, person=b"limpet.mcp"
        ).digest()
        for line in lines
    ]
    return list(dict.fromkeys(ring))  # the SDK refuses a key that stands twice


def install(ring: Sequence[bytes]) -> None:
    """Have this process seal `requestState` with the keys *ring*, and mint the ids of the transport by SSE.

    Does nothing for what the installed SDK does not have: servers of MCP that do not use it are served all the same.
    """
    try:
        from mcp.server.request_state import RequestStateSecurity
    except ImportError:  # none, or one before 2.3, which seals nothing
        pass
    else:

        def shared(cls: type[RequestStateSecurity], /, **given: Any) -> RequestStateSecurity:
            return cls(keys=ring, **given)

        RequestStateSecurity.ephemeral = classmethod(shared)  # type: ignore[method-assign,assignment]
    try:
        from mcp.server.mcpserver import server as module

        from limpet.integrations.mcp_events import Events
    except ImportError:  # an older version has no such bus
        pass
    else:
        module.InMemorySubscriptionBus = Events  # type: ignore[attr-defined]
    try:
        from mcp.server import sse
    except ImportError:
        return
    if hasattr(sse, "uuid4"):
        sse.uuid4 = lambda: UUID(mint(lambda: uuid4().hex))  # the query has it without hyphens
