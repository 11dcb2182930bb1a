"""Programs of the matrix that bring their own server: `--server script`."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn

import limpet
from tests.matrix.facts import request_in, response, wait_open
from tests.matrix.streams import handle
from tests.server_apps import asgi


def uvicorn_on_uvloop() -> None:
    """uvicorn as its users start it themselves, on the loop that ignores what it is given."""
    uvicorn.Server(uvicorn.Config(asgi, loop="uvloop", log_level="warning")).run(sockets=[limpet.listener()])


async def asyncio_server() -> None:
    """A server of asyncio."""
    server = await asyncio.start_server(handle, sock=limpet.listener())
    await server.serve_forever()


def threads() -> None:
    """The oldest of all servers: accept, and a thread for each connection."""
    listener = limpet.listener()
    listener.setblocking(True)
    while True:
        connection, client = listener.accept()
        threading.Thread(target=_serve, args=(connection, client), daemon=True).start()


def _serve(connection: socket.socket, client: Any) -> None:
    data = b""
    with connection:
        while more := connection.recv(65536):
            data += more
            while (found := request_in(data)) is not None:
                path, body, data = found
                reply = response(client, body)
                connection.sendall(reply[:-1])
                if path == "/gated":
                    wait_open()
                connection.sendall(reply[-1:])


async def busy() -> None:
    """A server whose event loop stands still at `/gated`; it answers each connection once."""

    async def block(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = request_in(await reader.readuntil(b"\r\n\r\n"))
        if found is not None and found[0] == "/gated":
            wait_open()
        writer.write(response(writer.get_extra_info("peername"), b""))
        writer.close()

    async with await asyncio.start_server(block, sock=limpet.listener()) as server:
        await server.serve_forever()


def deaf() -> None:
    """Native code that would listen on the descriptor, and never hear."""
    listener = limpet.listener()
    listener.fileno()
    threading.Event().wait()


def ends() -> None:
    """A program that returns at once."""
