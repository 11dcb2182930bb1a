"""The application of the matrix without any server of HTTP: what serves streams serves this."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
