"""Kernels of Jupyter, all at once, by its REST interface and websockets; one JSON document on stdout.

    python jupyter_sessions.py URL NUMBER

Each request is a connection of its own and carries no cookie, as those of scripts and gateways do. Kernels start a
few at a time, since each takes a CPU for a while, and all are there before any of them is asked again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from uuid import uuid4

import httpx2
from crowd import Crowd
from websockets.asyncio.client import ClientConnection, connect

TOKEN = "secret"
DEADLINE_S = 200.0
STARTS = 4  # at once
QUIET_S = 60.0  # for one answer of a kernel that starts beside nineteen others


async def request(url: str, method: str, path: str, expected: int) -> Any:
    """Return what the server answers to one request on a connection of its own."""
    async with httpx2.AsyncClient(timeout=DEADLINE_S) as http:
        response = await http.request(method, f"{url}{path}", headers={"Authorization": f"token {TOKEN}"})
    assert response.status_code == expected, f"{method} {path}: {response.status_code} {response.text[:200]}"
    return response.json() if response.content else None


async def evaluate(socket: ClientConnection, expression: str) -> Any:
    """Return the value of *expression* in the kernel."""
    header = {"msg_id": uuid4().hex, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
    content = {"code": f"import json; print(json.dumps({expression}))", "silent": False, "store_history": True}
    content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await socket.send(json.dumps(message))
    said, is_idle, is_answered = "", False, False
    while not (is_idle and is_answered):
        answer = json.loads(await asyncio.wait_for(socket.recv(), QUIET_S))
        if answer["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        kind, content = answer["header"]["msg_type"], answer["content"]
        said += content["text"] if kind == "stream" else ""
        is_idle = is_idle or (kind == "status" and content["execution_state"] == "idle")
        if kind == "execute_reply":
            assert content["status"] == "ok", content
            is_answered = True
    return json.loads(said)


async def session(url: str, number: int, crowd: Crowd) -> set[int]:
    """Start a kernel, keep something in it, come back to it, end it; return the pids of the server's process."""
    async with crowd.coming_in():
        kernel = (await request(url, "POST", "/api/kernels", 201))["id"]
        channels = f"{url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={TOKEN}"
        async with connect(channels, open_timeout=DEADLINE_S, ping_interval=None) as socket:
            await evaluate(socket, f"globals().update(kept={number})")
    pids = set()
    for _ in range(2):
        async with connect(channels, open_timeout=DEADLINE_S, ping_interval=None) as socket:
            assert await evaluate(socket, "kept") == number
            pids.add(await evaluate(socket, "__import__('os').getppid()"))
        assert (await request(url, "GET", f"/api/kernels/{kernel}", 200))["id"] == kernel
    await request(url, "DELETE", f"/api/kernels/{kernel}", 204)
    return pids


async def bounded(url: str, number: int, crowd: Crowd) -> dict[str, Any]:
    """Return what came of one session."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return {"pids": sorted(await session(url, number, crowd)), "error": None}
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what came of this session
        return {"pids": [], "error": f"{type(error).__name__}: {error}"}


async def main(url: str, number: int) -> None:
    """Print what came of *number* sessions."""
    crowd = Crowd(number, STARTS)
    print(json.dumps(await asyncio.gather(*(bounded(url, each, crowd) for each in range(number)))))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
