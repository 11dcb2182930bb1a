"""The MCP example with the official client: tools, a notification that the server begins, and the session ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
