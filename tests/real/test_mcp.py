"""MCP with the official client and SDK.

The example with sessions: tools, a notification that the server begins, and the end of a session. Then what has no
session header: the newest form of the protocol, handles that a tool makes, and the older transport by SSE. Those
clients keep no cookie and no connection, so that nothing but limpet brings them home.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
from mcp.client import Client
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitResult

from tests.harness import Limpet

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "mcp"
CLIENT = ROOT / "tests" / "products" / "clients" / "mcp_sessions.py"
WORKERS = 2  # each imports for seconds; tests/products/ has four
SESSIONS = 8
RUN_S = 90.0
JSON = {"content_type": "application/json", "accept": "application/json, text/event-stream"}


def play(url: str) -> list[dict[str, Any]]:
    """Return what came of sessions that run all at once."""
    command = [sys.executable, str(CLIENT), url, str(SESSIONS)]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=RUN_S)
    sessions: list[dict[str, Any]] = json.loads(run.stdout)
    assert len(sessions) == SESSIONS
    return sessions


def test_each_session_is_with_the_worker_that_made_it_until_it_ends() -> None:
    """Any other worker answers 404, and the stream on which the server speaks first must be that worker's."""
    with Limpet("app:app", "--workers", str(WORKERS), "--for", "mcp", "--graceful-timeout", "1", cwd=EXAMPLE) as limpet:
        sessions = play(limpet.url)
        assert [session["error"] for session in sessions if session["error"]] == []
        assert {len(session["pids"]) for session in sessions} == {1}
        assert len({pid for session in sessions for pid in session["pids"]}) == WORKERS
        assert limpet.totals()["learned_hits"] >= 8 * SESSIONS
        ids = [f"header:mcp-session-id={session['id']}" for session in sessions]
        assert not any(entry["learned"] for entry in limpet.where(*ids))  # DELETE has ended them
        statuses = [
            limpet.request("/mcp", "POST", b"{}", **JSON, host=host).status for host in ("here:1", "localhost:1")
        ]
        assert statuses[0] == 421 != statuses[1]  # the SDK sees the Host that the client has sent


CLIENTS = 12
APP = "tests.mcp_app:app"


def forgetful(pids: list[str] | None = None, **given: Any) -> httpx2.AsyncClient:
    """Return an HTTP client without cookies, each request of which has a new connection; *pids* hears who answers."""

    async def watch(response: httpx2.Response) -> None:
        if pids is not None:
            pids.append(response.headers["x-limpet-pid"])

    return httpx2.AsyncClient(
        **{"timeout": RUN_S} | given,
        limits=httpx2.Limits(max_keepalive_connections=0),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        event_hooks={"response": [watch]},
    )


async def all_at_once(play: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Return what came of all clients: what each has seen, or its exception."""
    async with asyncio.timeout(RUN_S):
        return await asyncio.gather(*(play() for _ in range(CLIENTS)), return_exceptions=True)


async def paint(url: str) -> tuple[str, list[str]]:
    """Call a tool that asks its user; return what it says, and who has answered the requests of the call."""

    async def choose(context: object, params: object) -> ElicitResult:
        return ElicitResult(action="accept", content={"colour": "blue"})

    pids: list[str] = []
    async with forgetful(pids) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, elicitation_callback=choose) as client:
            await client.list_tools()
            pids.clear()
            result = await client.call_tool("paint", {})
            return str(result.content[0].text if result.content[0].type == "text" else result), pids


def test_state_that_one_worker_has_sealed_another_opens() -> None:
    """The SDK seals it with a key of its process: the second half of such a call would fail on any other worker."""
    with Limpet(APP, "--workers", str(WORKERS), "--for", "mcp", "--debug-header") as limpet:
        calls = asyncio.run(all_at_once(lambda: paint(limpet.url)))
        assert [call for call in calls if isinstance(call, BaseException)] == []
        assert {said for said, _ in calls} == {"blue"}
        assert [pids for _, pids in calls if len(set(pids)) > 1]  # or it would prove nothing


def test_state_that_was_sealed_before_a_restart_is_opened() -> None:
    """A worker that is replaced must not cut calls short that wait for their user."""

    async def call(limpet: Limpet) -> str:
        async def choose(context: object, params: object) -> ElicitResult:
            await asyncio.to_thread(limpet.kill_worker, 0)
            return ElicitResult(action="accept", content={"colour": "blue"})

        async with forgetful() as http:
            transport = streamable_http_client(f"{limpet.url}/mcp", http_client=http)
            async with Client(transport, elicitation_callback=choose) as client:
                result = await client.call_tool("paint", {})
                return str(result.content[0].text if result.content[0].type == "text" else result)

    with Limpet(APP, "--workers", "1", "--for", "mcp") as limpet:
        assert asyncio.run(call(limpet)) == "blue"


async def write(url: str) -> set[int]:
    """Open a notebook and write into it; return who has done it."""
    async with forgetful() as http, Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client:
        await client.list_tools()  # which says what the client has to repeat in headers
        opened = await client.call_tool("open_notebook", {})
        handle, pids = opened.structured_content["result"], set()
        for count in range(1, 6):
            result = await client.call_tool("write", {"notebook": handle, "line": f"line {count}"})
            written: Any = result.structured_content
            assert written["lines"] == [f"line {number}" for number in range(1, count + 1)]
            pids.add(written["pid"])
        return pids


def test_handle_that_a_tool_mints_comes_home_by_its_header() -> None:
    """The protocol's newest form has no sessions: what a process keeps is found by an argument, and its header."""
    by = "header:mcp-param-notebook,header:mcp-session-id,query:session_id,affinity"
    with Limpet(APP, "--workers", str(WORKERS), "--for", "mcp", "--by", by) as limpet:
        wrote = asyncio.run(all_at_once(lambda: write(limpet.url)))
        assert [each for each in wrote if isinstance(each, BaseException)] == []
        assert {len(pids) for pids in wrote} == {1}
        assert len(set.union(*wrote)) == WORKERS


def with_cookies() -> httpx2.AsyncClient:
    """Return an HTTP client that keeps its cookies, each request of which has a new connection."""
    return httpx2.AsyncClient(timeout=RUN_S, limits=httpx2.Limits(max_keepalive_connections=0))


async def hear(url: str, client_of: Callable[[], httpx2.AsyncClient]) -> bool:
    """Listen, and change what is listened to; return whether it was heard."""
    uri = f"notes://{uuid4()}"
    async with (
        client_of() as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        client.listen(resource_subscriptions=[uri]) as changes,
    ):
        await client.call_tool("change", {"uri": uri})
        async with asyncio.timeout(RUN_S / 9):
            async for _ in changes:
                return True
    return False


def test_client_that_keeps_cookies_hears_of_its_own_changes() -> None:
    """Stream and tool are with one worker."""
    with Limpet(APP, "--workers", str(WORKERS), "--for", "mcp", "--graceful-timeout", "1") as limpet:
        assert asyncio.run(all_at_once(lambda: hear(limpet.url, with_cookies))) == [True] * CLIENTS


def test_client_without_cookies_hears_of_changes_in_other_workers() -> None:
    """Stream and tool come to any worker; the SDK's own bus would end at the process."""
    with Limpet(APP, "--workers", str(WORKERS), "--for", "mcp", "--graceful-timeout", "1") as limpet:
        assert asyncio.run(all_at_once(lambda: hear(limpet.url, forgetful))) == [True] * CLIENTS


async def over_sse(url: str) -> set[int]:
    """Ask over the older transport who answers, several times."""

    def client(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        return forgetful(headers=headers, auth=auth, timeout=timeout)

    async with (
        sse_client(f"{url}/sse", httpx_client_factory=client) as (reading, writing),
        ClientSession(reading, writing, read_timeout_seconds=RUN_S / 3) as session,
    ):
        await session.initialize()
        found: list[Any] = [(await session.call_tool("where", {})).structured_content for _ in range(5)]
        return {int(each["result"]) for each in found}


def test_sessions_of_the_older_transport_come_home_by_their_minted_id() -> None:
    """Its id is in an event, where no header shows it, and then in the query of each message."""
    with Limpet("tests.mcp_app:sse", "--workers", str(WORKERS), "--for", "mcp", "--graceful-timeout", "1") as limpet:
        asked = asyncio.run(all_at_once(lambda: over_sse(limpet.url)))
        assert [each for each in asked if isinstance(each, BaseException)] == []
        assert {len(pids) for pids in asked} == {1}
        assert len(set.union(*asked)) == WORKERS
