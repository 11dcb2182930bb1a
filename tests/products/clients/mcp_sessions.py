"""Sessions of MCP, all at once, with the official client; one JSON document on stdout says what came of each.

    python mcp_sessions.py URL NUMBER

Runs in the environment of the products, since the tests' own has no MCP. Sessions with an odd number open a new
connection for each request, as many clients do behind a gateway; the others keep theirs, but the stream on which the
server speaks first is a connection of its own always.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

NOTES = 5
DEADLINE_S = 30.0


async def session(url: str, number: int) -> tuple[set[int], str]:
    """Remember things, be told of each, recall them, end the session; return who has answered, and its id."""
    streaming, told = asyncio.Event(), asyncio.Semaphore(0)
    statuses: list[tuple[str, int]] = []
    name = ""

    async def watch(response: httpx2.Response) -> None:
        nonlocal name
        name = response.headers.get("mcp-session-id", name)
        statuses.append((response.request.method, response.status_code))
        if response.request.method == "GET":
            streaming.set()

    async def heard(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/resources/updated":
            told.release()

    async with AsyncExitStack() as stack:
        limits = httpx2.Limits(max_keepalive_connections=0 if number % 2 else 10)
        http = httpx2.AsyncClient(limits=limits, event_hooks={"response": [watch]}, timeout=DEADLINE_S)
        await stack.enter_async_context(http)
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode="legacy", message_handler=heard) as client:
            await streaming.wait()
            kept, pids = [], set()
            for count in range(NOTES):
                kept.append(f"note {count} of {number}")
                pids.add(check(await client.call_tool("remember", {"text": kept[-1]}), kept))
                await told.acquire()
                pids.add(check(await client.call_tool("recall", {}), kept))
        assert ("DELETE", 200) in statuses, statuses
        assert {status for _, status in statuses} <= {200, 202}, statuses
    return pids, name


def check(result: Any, expected: list[str]) -> int:
    """Return the pid that has answered with *expected*."""
    assert not result.is_error, result
    assert result.structured_content["notes"] == expected, result.structured_content
    return int(result.structured_content["pid"])


async def bounded(url: str, number: int) -> dict[str, Any]:
    """Return what came of one session."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            pids, name = await session(url, number)
            return {"pids": sorted(pids), "id": name, "error": None}
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what came of this session
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return {"pids": [], "error": f"{type(error).__name__}: {error}"}


async def main(url: str, number: int) -> None:
    """Print what came of *number* sessions."""
    print(json.dumps(await asyncio.gather(*(bounded(url, each) for each in range(number)))))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
