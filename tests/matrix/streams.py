"""The application of the matrix without any server of HTTP: what serves streams serves this."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import anyio.abc
import trio

from tests.matrix.facts import is_open, request_in, response


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """For `--server stream`."""
    client: Sequence[object] = writer.get_extra_info("peername")
    data = b""
    while more := await reader.read(65536):
        data += more
        while (found := request_in(data)) is not None:
            path, body, data = found
            reply = response(client, body)
            writer.write(reply[:-1])
            while path == "/gated" and not is_open():
                await asyncio.sleep(0.01)
            writer.write(reply[-1:])
    writer.close()


async def handle_trio(stream: trio.SocketStream) -> None:
    """For `--server trio`."""
    client, data = stream.socket.getpeername(), b""
    async for more in stream:
        data += more
        while (found := request_in(data)) is not None:
            path, body, data = found
            reply = response(client, body)
            await stream.send_all(reply[:-1])
            while path == "/gated" and not is_open():
                await trio.sleep(0.01)
            await stream.send_all(reply[-1:])


async def handle_anyio(stream: anyio.abc.SocketStream) -> None:
    """For `--server anyio`."""
    client, data = stream.extra(anyio.abc.SocketAttribute.remote_address), b""
    async for more in stream:
        data += more
        while (found := request_in(data)) is not None:
            path, body, data = found
            reply = response(client, body)
            await stream.send(reply[:-1])
            while path == "/gated" and not is_open():
                await anyio.sleep(0.01)
            await stream.send(reply[-1:])
