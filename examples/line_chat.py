"""A chat over plain TCP: who comes from the same network meets in the same room, which lives in one worker.

limpet run examples.line_chat:handle --server stream --workers 4 --by python:examples.line_chat:network
nc 127.0.0.1 8000
"""

from __future__ import annotations

import asyncio

import limpet

_members: dict[asyncio.StreamWriter, str] = {}


def network(peer: limpet.Peer) -> str | None:
    """Return the key of a client: the first three numbers of its address."""
    return peer.address.rpartition(".")[0] or None if peer.address else None


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for a name, then pass each line on to all others in this worker."""
    writer.write(b"your name: ")
    name = (await reader.readline()).decode(errors="replace").strip() or "somebody"
    _members[writer] = name
    _tell(f"* {name} joins worker {limpet.current_worker().slot}, {len(_members)} here\n")
    try:
        async for line in reader:
            _tell(f"{name}: {line.decode(errors='replace').rstrip()}\n", but=writer)
    finally:
        del _members[writer]
        _tell(f"* {name} leaves\n")


def _tell(text: str, but: asyncio.StreamWriter | None = None) -> None:
    for member in _members:
        if member is not but:
            member.write(text.encode())
