"""An MCP server that keeps the notes of each session in the memory of its process.

    limpet run app:app --workers 4 --for mcp

A session of MCP is a header: the server names it in its first answer, and the client sends it with every request from
then on. Only the process that made a session knows it; any other answers 404.

1. Nothing here imports limpet, so the file runs under plain uvicorn too.
2. Whoever remembers something is told so on the stream that the server keeps open to this session, and no other.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any, TypedDict

from mcp.server.mcpserver import Context, MCPServer

NOTES = "notes://mine"

server = MCPServer("notes")
notes: defaultdict[str, list[str]] = defaultdict(list)  # by session; MCP does not tell tools when one ends


class Kept(TypedDict):
    """The notes of a session, and the process that has them."""

    notes: list[str]
    pid: int


def session_of(ctx: Context[Any, Any]) -> str:
    """Return the id by which the client's session goes; empty in the protocol's newer form, which has no sessions."""
    return str(ctx.request_context.request.headers.get("mcp-session-id", ""))


@server.tool()
async def remember(text: str, ctx: Context[Any, Any]) -> Kept:
    """Keep a note for the rest of this session; return all of them."""
    mine = notes[session_of(ctx)]
    mine.append(text)
    await ctx.session.send_resource_updated(NOTES)
    return Kept(notes=mine, pid=os.getpid())


@server.tool()
async def recall(ctx: Context[Any, Any]) -> Kept:
    """Return the notes of this session."""
    return Kept(notes=notes[session_of(ctx)], pid=os.getpid())


app = server.streamable_http_app()
