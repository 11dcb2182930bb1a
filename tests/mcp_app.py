"""Servers of MCP for the tests: a tool that asks its user, tools on a handle, and the older transport by SSE."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Annotated, Any, TypedDict
from uuid import uuid4

from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from pydantic import BaseModel, Field

import limpet

server = MCPServer("tests")
notebooks: defaultdict[str, list[str]] = defaultdict(list)
Notebook = Annotated[str, Field(json_schema_extra={"x-mcp-header": "Notebook"})]


class Colour(BaseModel):
    """What the user is asked for."""

    colour: str


class Written(TypedDict):
    """What is in a notebook, and the process that has it."""

    lines: list[str]
    pid: int


async def ask() -> Elicit[Colour]:
    """Ask the user; the server answers with what the client must bring back: its `requestState`."""
    return Elicit("which colour?", Colour)


@server.tool()
async def paint(answer: Annotated[Colour, Resolve(ask)]) -> str:
    """Say which colour the user chose."""
    return answer.colour


@server.tool()
async def open_notebook() -> str:
    """Return the handle of a new notebook, which lives in this process."""
    return limpet.mint(lambda: uuid4().hex)


@server.tool()
async def write(notebook: Notebook, line: str) -> Written:
    """Add a line; clients repeat the handle in the header `Mcp-Param-Notebook`."""
    notebooks[notebook].append(line)
    return Written(lines=notebooks[notebook], pid=os.getpid())


@server.tool()
async def change(uri: str, ctx: Context[Any, Any]) -> str:
    """Tell everybody who listens in this process that *uri* has changed."""
    await ctx.notify_resource_updated(uri)
    return uri


@server.tool()
async def where() -> int:
    """Return the process."""
    return os.getpid()


app = server.streamable_http_app()
sse = server.sse_app()
